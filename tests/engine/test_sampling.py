"""Which images an epoch shows and where its crops lie, on a split of unbalanced classes."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

import data
from cli import UserError
from datasets.audit import audit_split, class_places
from datasets.driving import CAMVID
from datasets.masks import find_runs
from engine.sampling import SampleRequest, Sampling, draw_requests, images_with, parse_sampling, start_around

SPEC = CAMVID
ROAD, TREE, CAR, FENCE = 3, 5, 8, 7
CROP = [20, 24]


def write_split(root, count=24):
    """Road everywhere; tree in every second image, a small car in three, one of them portrait; fence a single pixel."""
    rng = np.random.RandomState(0)
    for part in SPEC.splits["train"]:
        (root / part).mkdir(parents=True)
    for i in range(count):
        size = (120, 90) if i == 7 else (100, 144)
        target = np.full(size, ROAD, np.uint8)
        if i % 2:
            target[:30] = TREE
        if i in (3, 7, 20):
            top, left = rng.randint(size[0] - 9), rng.randint(size[1] - 9)
            target[top : top + 9, left : left + 9] = CAR
        if i == 11:
            target[-1, -1] = FENCE
        Image.new("RGB", size[::-1]).save(root / SPEC.splits["train"][0] / f"{i:03}.png")
        Image.fromarray(target).save(root / SPEC.splits["train"][1] / f"{i:03}.png")
    return data.open_split(SPEC, root, "train")


@pytest.fixture(scope="module")
def audit(tmp_path_factory):
    return audit_split(write_split(tmp_path_factory.mktemp("camvid")), (6, 8))


def sampling(text, audit, crop=CROP, short_side=0):
    return Sampling(*parse_sampling(text, crop), audit, data.Geometry([1, 1], crop, short_side))


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


def flat(batches):
    return [request for batch in batches for request in batch]


def test_uniform_is_exactly_the_draw_of_every_image_once(audit):
    one, other = seeded(), seeded()
    assert sampling("uniform", audit).draw(one, 5) == draw_requests(24, 5, other)
    assert torch.equal(one.get_state(), other.get_state())


@pytest.mark.parametrize("text", ["uniform", "balanced", "rare-crops:share=0.5"])
def test_the_same_state_gives_the_same_epoch_of_the_same_length(audit, text):
    sampler, order = sampling(text, audit), seeded()
    first = sampler.draw(order, 5)
    assert [len(batch) for batch in first] == [5, 5, 5, 5, 4]
    assert sampler.draw(order, 5) != first
    assert sampling(text, audit).draw(seeded(), 5) == first
    assert [len(batch) for batch in sampler.draw(order, 23)] == [24]  # no last batch of one


def test_balanced_draws_classes_evenly_and_only_images_that_hold_them(audit):
    sampler, order = sampling("balanced", audit), seeded()
    requests = flat(batch for _ in range(200) for batch in sampler.draw(order, 8))
    drawn = np.bincount([request.index for request in requests], minlength=24)
    expected = np.zeros(24)  # four classes, each a quarter of all requests
    for holders in (range(24), range(1, 24, 2), (3, 7, 20), (11,)):
        expected[list(holders)] += drawn.sum() / 4 / len(holders)
    assert drawn.sum() == 24 * 200
    assert (np.abs(drawn - expected) < 5 * np.sqrt(expected)).all()


def test_an_image_with_a_trace_of_a_class_is_drawn_for_it_only_where_there_is_no_better():
    counts = np.array([[20_000, 1], [20_000, 3], [20_000, 5000], [0, 0]])
    assert images_with(counts, 1) == [1, 2]
    assert images_with(counts[:1], 1) == [0]
    assert images_with(counts, 0) == [0, 1, 2]


@pytest.mark.parametrize("short_side", [0, 60, 250])
def test_rare_crops_contain_the_class_they_were_drawn_for(audit, short_side):
    sampler = sampling("rare-crops:share=1", audit, short_side=short_side)
    split, generator = audit.split, seeded()
    for kind, train_id in enumerate(sampler.classes):
        if train_id == FENCE and short_side == 60:
            continue  # one pixel, which a reduced target can lose
        for draws in torch.rand(12, 3, generator=generator).tolist():
            request = sampler.rare_request(kind, *draws)
            _, target = sampler.geometry.cut(*split.read(request.index), request)
            assert (target == int(train_id)).any()


def test_rare_crops_draw_classes_by_the_inverse_root_of_their_share(audit, monkeypatch):
    sampler, kinds = sampling("rare-crops:share=0.25", audit), []
    monkeypatch.setattr(sampler, "rare_request", lambda kind, *_: kinds.append(kind) or SampleRequest(-1, 0, 0))
    order = seeded()
    requests = flat(batch for _ in range(400) for batch in sampler.draw(order, 8))
    assert len(kinds) / len(requests) == pytest.approx(0.25, abs=0.02)
    kept = [t.index for t in requests if t.index >= 0]
    assert np.bincount(kept, minlength=24).max() < 2 * np.bincount(kept, minlength=24).min()
    share = audit.counts[audit.counts > 0] / audit.counts.sum()
    expected = (1 / np.sqrt(share)) / (1 / np.sqrt(share)).sum()
    assert np.bincount(kinds) / len(kinds) == pytest.approx(expected, abs=0.03)


def test_a_box_contains_its_pixel_whatever_the_sizes():
    """A block that no resizing can lose, anywhere in an image of any size, is in every crop drawn for it."""
    rng = np.random.RandomState(0)
    for _ in range(300):
        height, width, short_side = rng.randint(9, 90), rng.randint(9, 90), rng.choice([0, 7, 30, 120])
        geometry = data.Geometry([1, 1], rng.randint(1, 80, 2).tolist(), int(short_side), most_pixels=3000)
        scale = height / geometry.network_size(height, width)[0]
        half = math.ceil(max(scale, width / geometry.network_size(height, width)[1]))
        row, column = rng.randint(height), rng.randint(width)
        target = np.zeros((height, width), np.uint8)
        target[max(row - half, 0) : row + half + 1, max(column - half, 0) : column + half + 1] = 1
        place = ((row + 0.5) / height, (column + 0.5) / width)
        sizes = geometry.network_size(height, width)
        box = [start_around(*side) for side in zip(place, sizes, geometry.crop, rng.rand(2).tolist(), strict=True)]
        _, cut = geometry.cut(Image.new("RGB", (width, height)), target, SampleRequest(0, *box))
        assert (cut == 1).any()


def test_every_start_that_contains_the_pixel_is_drawn_alike_and_no_other():
    """Against all starts, listed: pixel 6 of 20, a box of 5."""
    draws = (np.arange(1000) + 0.5) / 1000
    starts = [int(start_around(6.5 / 20, 20, 5, draw) * 16) for draw in draws]
    assert np.bincount(starts).tolist() == [0, 0, 200, 200, 200, 200, 200]


def test_places_are_pixels_of_their_class(audit):
    for i in range(len(audit.split)):
        target = audit.split.read_target(i)
        assert audit.image_sizes[i].tolist() == list(target.shape)
        assert audit.image_counts[i].tolist() == np.bincount(target.ravel(), minlength=11).tolist()
        for train_id, (row, column) in enumerate(audit.places[i]):
            if audit.image_counts[i, train_id]:
                assert target[int(row * target.shape[0]), int(column * target.shape[1])] == train_id
            else:
                assert (row, column) == (-1, -1)
    assert audit.counts.tolist() == audit.image_counts.sum(axis=0).tolist()


def test_a_place_is_the_middle_of_a_block_and_of_its_median_row():
    target = np.zeros((10, 12), np.uint8)
    target[2:7, 3:10] = 1  # rows 2 to 6, columns 3 to 9
    starts, lengths = find_runs(target.ravel())
    places = class_places((target.ravel()[starts], starts, lengths), target.shape, 3)
    assert places[1].tolist() == pytest.approx([4.5 / 10, 6.5 / 12])
    assert places[2].tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("text", "crop", "match"),
    [
        ("rare-crops", None, "without --crop"),
        ("rare-crops:share=1.5", CROP, "out of range"),
        ("rare-crops:part=1", CROP, "share"),
        ("balance", CROP, "balanced"),
    ],
)
def test_wrong_samplings_are_refused(text, crop, match):
    with pytest.raises(UserError, match=match):
        parse_sampling(text, crop)
