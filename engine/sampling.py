"""Which images an epoch shows, and where their crops lie.

Drawn as requests in the main process from the generator given, so that the same generator state gives the same epoch.
What is rare comes from the audit of the training split.
"""

import itertools
from typing import NamedTuple

import numpy as np
import torch

import cli
from cli import UserError

SAMPLING = {"uniform": {}, "balanced": {}, "rare-crops": {"share": 0.5}}
LEAST_SHARE = 1e-4  # of an image's labelled pixels: an image with less of a class is not drawn for it


class SampleRequest(NamedTuple):
    """What a worker is to read: an image's index, where the crop box lies (0 … 1 of the room there is), and what to
    paste into it (`outliers.Paste`), in order."""

    index: int
    top: float
    left: float
    pastes: tuple = ()


def draw_requests(images, batch_size, order):
    """One epoch's batches of requests: every image once, in an order drawn from the generator `order`.

    A last batch of a single image, which batch norm refuses, joins the batch before it.
    """
    return batch_requests(uniform_requests(images, order), batch_size)


def uniform_requests(images, order):
    """One request an image, shuffled, with a crop box anywhere; all drawn from the generator `order`."""
    indices = torch.randperm(images, generator=order).tolist()
    places = torch.rand(images, 2, generator=order).tolist()
    return [SampleRequest(i, *places[i]) for i in indices]


def batch_requests(requests, batch_size):
    """An epoch's requests as batches; a last batch of one joins the batch before it."""
    batches = [requests[i : i + batch_size] for i in range(0, len(requests), batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [batches[-2] + batches[-1]]
    return batches


def share_batches(batches, rank, processes):
    """One process's share of every batch; a batch that leaves one of several fewer than 2 images is dropped."""
    if processes == 1:
        return batches
    return [batch[rank::processes] for batch in batches if len(batch) >= 2 * processes]


def parse_sampling(text, crop):
    """Read --sampling into (kind, options); crop: --crop, or None.

    Raises UserError for an unknown kind or option, a share outside 0 … 1, and for rare crops where nothing is cropped.
    """
    kind, options = cli.parse_choice(text, SAMPLING)
    if not 0 <= options.get("share", 0) <= 1:
        raise UserError(f"share={options['share']} is out of range", "--sampling", "it lies between 0 and 1")
    if kind == "rare-crops" and not crop:
        raise UserError("rare-crops without --crop", "--sampling", "add --crop HxW, or use --sampling balanced")
    return kind, options


class Sampling:
    """The draw of an epoch's requests, always as many as the split has images.

    uniform: every image once, its crop anywhere. balanced: each request draws a class, all that occur alike, then an
    image that holds it, all alike; its crop lies anywhere. rare-crops: each request of the uniform draw gives way, with
    chance `share`, to a crop that contains a pixel of a class drawn with probability ∝ 1 / sqrt(its share of all
    pixels), in an image that holds it, all alike. It contains that pixel before `Augment` moves anything.

    kind, options: `parse_sampling`'s; audit: of the training split; geometry: the one that cuts the crops; outliers:
    what draws the pastes of the requests (`anomaly/outliers.py`), None without.
    An image holds a class from 0.0001 of its labelled pixels on, or any pixel where no image has as much.
    """

    def __init__(self, kind, options, audit, geometry, outliers=None):
        self.kind, self.options, self.audit, self.geometry = kind, options, audit, geometry
        self.outliers = outliers
        self.images = len(audit.split)
        self.classes = np.flatnonzero(audit.counts)  # those that occur
        self.holders = [images_with(audit.image_counts, c) for c in self.classes]
        self.chances = torch.from_numpy(audit.counts[self.classes] ** -0.5)  # float64

    def draw(self, order, batch_size):
        """One epoch's batches of requests, as `draw_requests` gives them, from the generator `order`."""
        if self.kind == "balanced":
            requests = self.draw_balanced(order)
        else:
            requests = uniform_requests(self.images, order)
        if self.kind == "rare-crops":
            requests = self.put_rare(requests, order)
        if self.outliers:
            requests = self.outliers.add_pastes(requests, order)
        return batch_requests(requests, batch_size)

    def draw_balanced(self, order):
        """Sample requests that draw the class first, then the image."""
        kinds = torch.randint(len(self.classes), (self.images,), generator=order).tolist()
        draws = torch.rand(self.images, 3, generator=order, dtype=torch.float64).tolist()
        return [
            SampleRequest(pick(self.holders[k], which), *box) for k, (which, *box) in zip(kinds, draws, strict=True)
        ]

    def put_rare(self, requests, order):
        """The requests, with a share of them replaced by crops of rare classes."""
        replaced = torch.rand(self.images, generator=order, dtype=torch.float64) < self.options["share"]
        kinds = torch.multinomial(self.chances, self.images, replacement=True, generator=order)
        draws = torch.rand(self.images, 3, generator=order, dtype=torch.float64)
        for i in replaced.nonzero()[:, 0].tolist():
            requests[i] = self.rare_request(int(kinds[i]), *draws[i].tolist())
        return requests

    def rare_request(self, kind, which, down, across):
        """A request whose crop contains a pixel of the kind-th class that occurs; three draws of [0, 1)."""
        image = pick(self.holders[kind], which)
        place = self.audit.places[image, self.classes[kind]]
        sizes = self.geometry.network_size(*self.audit.image_sizes[image].tolist())
        box = zip(place.tolist(), sizes, self.geometry.crop, (down, across), strict=True)
        return SampleRequest(image, *(start_around(*side) for side in box))


class MixedSampling:
    """The draw of an epoch's requests from several sets, each batch mixed in proportion.

    samplings: [`Sampling` of each set, without outliers], whose images follow one another; shares: of every batch, one
    a set, in any unit. An epoch has as many requests as all sets have images; of a set that it shows more often than
    it has images, draw follows draw, each complete but the last.
    """

    def __init__(self, samplings, shares, outliers=None):
        self.samplings, self.outliers = samplings, outliers
        self.shares = [share / sum(shares) for share in shares]
        self.images = sum(sampling.images for sampling in samplings)

    def draw(self, order, batch_size):
        """One epoch's batches of requests, from the generator `order`; within a batch the sets are shuffled."""
        turns = take_turns(self.shares, self.images)
        streams, first = [], 0
        for number, sampling in enumerate(self.samplings):
            streams.append(iter(self.draw_part(sampling, turns.count(number), first, order)))
            first += sampling.images
        requests = [next(streams[number]) for number in turns]
        if self.outliers:
            requests = self.outliers.add_pastes(requests, order)
        batches = batch_requests(requests, batch_size)
        return [[batch[i] for i in torch.randperm(len(batch), generator=order).tolist()] for batch in batches]

    def draw_part(self, sampling, count, first, order):
        """`count` requests of one set, its indices counted from `first`."""
        requests = []
        while len(requests) < count:
            requests += itertools.chain(*sampling.draw(order, sampling.images))
        return [request._replace(index=first + request.index) for request in requests[:count]]


def take_turns(shares, count):
    """Which of several takes each of `count` turns: a list of numbers, so that after any number of turns each has had
    its share, to less than one turn where there are two. shares: add up to 1.

    Each turn goes to whoever is furthest behind its share.
    """
    taken, turns = [0] * len(shares), []
    for turn in range(1, count + 1):
        behind = [share * turn - had for share, had in zip(shares, taken, strict=True)]
        turns.append(behind.index(max(behind)))
        taken[turns[-1]] += 1
    return turns


def build_sampling(text, audit, geometry, outliers=None):
    """What draws the requests of --sampling for a training split: of one set, or of several in their shares.

    audit: of the split, `parts` of it one a set. Raises UserError as `parse_sampling`.
    """
    kind, options = parse_sampling(text, geometry.crop)
    if not audit.parts:
        return Sampling(kind, options, audit, geometry, outliers)
    shares = [part.share for part in audit.split.spec.parts]
    if None in shares:
        shares = [len(part.split) for part in audit.parts]
    return MixedSampling([Sampling(kind, options, part, geometry) for part in audit.parts], shares, outliers)


def images_with(image_counts, train_id):
    """The indices of the images that hold a class; image_counts: (N, C) pixels."""
    counts = image_counts[:, train_id]
    enough = (counts > 0) & (counts >= LEAST_SHARE * image_counts.sum(axis=1))
    return np.flatnonzero(enough if enough.any() else counts).tolist()


def pick(items, draw):
    """The item that a draw of [0, 1) falls on."""
    return items[int(draw * len(items))]


def start_around(place, length, crop, draw):
    """Where along one axis a crop starts that contains a place, as a request says it: 0 … 1 of the room there is.

    place: of the pixel, 0 … 1 of the image; length: of the image at the network's size, crop: of the box, in pixels;
    draw: of [0, 1), among all starts that fit.
    """
    pixel, room = int(place * length), max(length - crop, 0)
    low, high = max(0, pixel - crop + 1), min(room, pixel)
    start = low + int(draw * (high - low + 1))
    return (start + 0.5) / (room + 1)  # the middle of what `Geometry.cut` rounds down to this start
