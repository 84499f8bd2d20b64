"""Do the masks belong to their images? Label borders lie on image edges, and only there where mask and image agree.

The measure needs no model: the rank (0 to 1) of the grey-level edge strength within its image, averaged over the pixels
at label borders. A mask's *fit* is that average less what the same mask gets when it is moved by 8 to 16 pixels, which
takes out how busy the image is. Every judgement is one against controls: the mask mirrored, moved, or another image's.

On CamVid's 367 training pairs at 240 pixels the fit is 0.08 to 0.27, median 0.156; it is 0.006 for other images' masks.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from datasets.spec import NORMAL, VOID
from probes.finding import Exhibit, Finding, Tile
from probes.limits import LIMITS

PROBE = "data.label_agreement"
REACH = 16  # pixels of the thumbnail that masks are moved by at most
FAR = 8  # from here on a moved mask is a control
SMALLEST = 48  # pixels: in a smaller picture every offset is a large one
FIRST_NO_LABEL = NORMAL  # normal, unknown and void: their borders say nothing about the image
FLIPS = {
    "mirrored left to right": (slice(None), slice(None, None, -1)),
    "upside down": (slice(None, None, -1), slice(None)),
    "turned by 180 degrees": (slice(None, None, -1), slice(None, None, -1)),
}
LISTED, SHOWN = 20, 3  # file names in the evidence, pictures in the exhibit
REMEDIES = {
    "shuffled_masks": "pair images and masks anew: compare the two lists of names, sorted the same way; evidence names "
    "the masks that fit",
    "mirrored_masks": "flip these masks back, and look for a flip that moved the images or the masks alone",
    "shifted_masks": "move these masks back, and look for a crop, a padding or a resize that only one of the two got",
    "masks_do_not_fit": "look at these pairs: replace the masks, or leave the files out",
}


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def edge_ranks(grey):
    """(h, w) uint8 -> (h, w) float32: the rank of a pixel's edge strength in its image, 0 to 1, ties in the middle."""
    grey = grey.astype(np.int32)
    down, right = np.zeros_like(grey), np.zeros_like(grey)
    down[1:-1] = grey[2:] - grey[:-2]
    right[:, 1:-1] = grey[:, 2:] - grey[:, :-2]
    strength = down**2 + right**2
    counts = np.bincount(strength.ravel())  # whole numbers: ranking is counting
    return ((counts.cumsum() - counts / 2) / grey.size).astype(np.float32)[strength]


def label_borders(target):
    """(h, w) uint8 -> (h, w) bool: the pixels on both sides of a border between two labels; void is no label."""
    labelled, borders = target < FIRST_NO_LABEL, np.zeros(target.shape, bool)
    for first, second in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
        differ = (target[first] != target[second]) & labelled[first] & labelled[second]
        borders[first] |= differ
        borders[second] |= differ
    return borders


def offset_map(borders, ranks):
    """Mean rank at the borders moved by every offset: (33, 33), [16 + dy, 16 + dx] moved down by dy, right by dx.

    What is moved out of the image does not count. Cross-correlation of all offsets at once, by Fourier transform.
    """
    padded = [side + REACH for side in borders.shape]  # zeros as far as the masks are moved: nothing wraps around
    moved = np.fft.rfft2(borders, padded).conj()
    near = np.ix_(*[np.r_[-REACH : REACH + 1]] * 2)
    total, count = (np.fft.irfft2(moved * np.fft.rfft2(x, padded), padded)[near] for x in (ranks, np.ones_like(ranks)))
    return total / np.maximum(count, 1)


@dataclass
class Agreement:
    """The pairs of a split that can be judged, N of them.

    maps: (N, 33, 33) fit of each mask at every offset; flips: {name: (N,) how much more a flipped mask fits}; ranks and
    borders: of each pair, (h, w); undecided: pairs with hardly any border.
    """

    pairs: list
    ranks: list = field(default_factory=list)
    borders: list = field(default_factory=list)
    maps: np.ndarray = None
    flips: dict = field(default_factory=dict)
    undecided: int = 0

    def __len__(self):
        return len(self.pairs)

    @property
    def fit(self):
        """(N,) fit of each mask as it lies."""
        return self.maps[:, REACH, REACH]


def measure(pairs):
    """The Agreement of [(file name, grey (h, w) uint8, target (h, w) uint8), …]."""
    result, maps, flips = Agreement([], undecided=len(pairs)), [], []
    far = np.maximum(*np.abs(np.mgrid[-REACH : REACH + 1, -REACH : REACH + 1])) >= FAR
    for pair in pairs:
        borders = label_borders(pair[2])
        if borders.sum() < LIMITS["agreement_borders"].value or min(borders.shape) < SMALLEST:
            continue
        ranks = edge_ranks(pair[1])
        found = offset_map(borders, ranks)
        maps.append(found - found[far].mean())
        flips.append([ranks[borders[flip]].mean() - found[REACH, REACH] for flip in FLIPS.values()])
        for part, value in ((result.pairs, pair), (result.ranks, ranks), (result.borders, borders)):
            part.append(value)
    result.maps = np.reshape(maps, (-1, 2 * REACH + 1, 2 * REACH + 1))
    result.flips = dict(zip(FLIPS, np.reshape(flips, (-1, len(FLIPS))).T, strict=True))
    result.undecided -= len(result)
    return result


class Partners(NamedTuple):
    """Who fits whom best, (N,) each: the other mask of every image, the other image of every mask, -1 for none.

    gains: how much more the other mask fits an image than its own; leads: how far it stands out from all the others, in
    their standard deviations.
    """

    masks: np.ndarray
    images: np.ndarray
    gains: np.ndarray
    leads: np.ndarray

    @property
    def mutual(self):
        """(N,) bool: the images whose best mask has them as its best image."""
        return (self.masks >= 0) & (self.images[self.masks] == np.arange(len(self.masks)))


def best_partners(agreement):
    """The Partners of an Agreement, among the pairs of one size.

    The mean over each image and each mask is taken out, so that neither a busy image nor a mask whose borders lie where
    images are busy wins everywhere.
    """
    masks, images = (np.full(len(agreement), -1) for _ in range(2))
    gains, leads = np.full(len(agreement), -np.inf), np.zeros(len(agreement))
    shapes = np.array([borders.shape for borders in agreement.borders])
    for shape in np.unique(shapes, axis=0):
        group = np.flatnonzero((shapes == shape).all(1))
        if len(group) < 4:  # there is no spread of the others
            continue
        fits = _cross_fits(agreement, group)
        own = fits.diagonal().copy()
        np.fill_diagonal(fits, -np.inf)
        best = fits.argmax(1)
        masks[group], images[group], gains[group] = group[best], group[fits.argmax(0)], fits.max(1) - own
        leads[group] = fits.max(1)
        np.fill_diagonal(fits, np.nan)
        fits[np.arange(len(group)), best] = np.nan
        leads[group] = (leads[group] - np.nanmean(fits, 1)) / np.maximum(np.nanstd(fits, 1), 1e-9)
    return Partners(masks, images, gains, leads)


def _cross_fits(agreement, group):
    """(n images, n masks): mean rank of every image of a group at every mask's borders, both means taken out."""
    ranks = np.stack([agreement.ranks[i].ravel() for i in group])  # (n, pixels)
    borders = np.stack([agreement.borders[i].ravel() for i in group]).astype(np.float32)
    fits = ranks @ (borders / borders.sum(1, keepdims=True)).T
    return fits + fits.mean() - fits.mean(0) - fits.mean(1, keepdims=True)


# ---------------------------------------------------------------------------------------------------------------------
# Judging


@dataclass
class Fault:
    """One thing found in a split: which files (indices into the Agreement), what each mask's fit was and would be."""

    cause: str
    what: str  # the sentence's end: "are mirrored left to right"
    files: np.ndarray
    fit: float
    mended: float
    sure: bool  # fail, not only warn
    details: list = field(default_factory=list)  # one dict a file
    masks: list = field(default_factory=list)  # one mended target a file, None where nothing mends it


def judge(agreement, sizes):
    """The faults of one split, none where the masks fit or too few files can be judged."""
    if len(agreement) < LIMITS["agreement_files"].value:
        return []
    if whole := _whole_flip(agreement) or _whole_shift(agreement, sizes) or _nothing_fits(agreement):
        return [whole]
    faults, free = [], np.ones(len(agreement), bool)
    for look in (_flipped_files, _shifted_files, _foreign_files):
        for fault in look(agreement, free, sizes):
            free[fault.files] = False
            faults.append(fault)
    return faults


def _is_majority(margins):
    """Whether so many margins are above zero that it is no accident: 4 standard deviations of a coin."""
    return 2 * (margins > 0).mean() - 1 >= 4 / np.sqrt(len(margins))


def _surely_better(margins):
    """(N,) bool: where a mended mask fits so much better that the files' own spread does not explain it.

    margins: (N,) gain in fit. It lies about -c for files in order and about +c for faulty ones, so its size shows c and
    its spread whatever the share of faulty files is.
    """
    size = np.abs(margins)
    chance = LIMITS["agreement_spreads"].value * _spread(size) - np.median(size)
    return margins >= max(LIMITS["agreement_margin"].value, chance)


def _spread(values):
    """The standard deviation of a normal distribution with these values' median distance from their median."""
    return 1.4826 * np.median(np.abs(values - np.median(values)))


def _usual(agreement):
    """The fit of a mask in order, also where up to three quarters of the files are none: the upper quartile."""
    return np.quantile(agreement.fit, 0.75)


def _whole_flip(agreement):
    how = max(FLIPS, key=lambda name: np.median(agreement.flips[name]))
    margins = agreement.flips[how]
    if np.median(margins) < LIMITS["agreement_fit"].value or not _is_majority(margins):
        return None
    return _flip_fault(agreement, how, np.flatnonzero(margins > 0), whole=True)


def _flipped_files(agreement, free, _sizes):
    usual = _usual(agreement) / 2
    for how, margins in agreement.flips.items():
        best = np.max([other for name, other in agreement.flips.items() if name != how], axis=0)
        sure = _surely_better(margins) & (agreement.fit < usual) & (agreement.fit + margins >= usual)
        files = np.flatnonzero(sure & free & (margins > best))
        if len(files):
            yield _flip_fault(agreement, how, files)


def _flip_fault(agreement, how, files, whole=False):
    masks = [agreement.pairs[i][2][FLIPS[how]] for i in files[:SHOWN]]
    mended = agreement.fit[files] + agreement.flips[how][files]
    return _fault(agreement, "mirrored_masks", f"are {how}", files, mended.mean(), masks=masks, whole=whole)


def _whole_shift(agreement, sizes):
    mean = agreement.maps.mean(0)
    offset = np.array(np.unravel_index(mean.argmax(), mean.shape)) - REACH
    margins = _margins_at(agreement, offset, 0)
    if not 0 < np.abs(offset).max() < REACH or not _is_majority(margins):
        return None
    if mean.max() < 2 * LIMITS["agreement_fit"].value:
        return None
    if margins.mean() < LIMITS["agreement_shift"].value * mean.max():
        return None
    fault = _shift_fault(agreement, offset, np.flatnonzero(margins > 0), sizes, whole=True)
    fault.sure &= np.abs(offset).max() > 1  # one pixel of a thumbnail may be a matter of rounding
    return fault


def _shifted_files(agreement, free, sizes):
    gains = agreement.maps.max((1, 2)) - agreement.fit
    best = agreement.maps.reshape(len(agreement), -1).argmax(1)
    offsets = np.stack(np.unravel_index(best, agreement.maps.shape[1:]), 1) - REACH  # (N, 2)
    sizes_of_offset = np.abs(offsets).max(1)
    far = free & (gains >= LIMITS["agreement_margin"].value) & (sizes_of_offset > 1) & (sizes_of_offset < REACH)
    if not far.any():
        return
    near = np.abs(offsets[far][:, None] - offsets[far]).max(2) <= 1
    offset = offsets[far][near.sum(1).argmax()]  # the one that most files share
    margins = _margins_at(agreement, offset, 1)
    alike = far & (np.abs(offsets - offset).max(1) <= 1)
    usual = 0.6 * _usual(agreement)  # a mask moved by two pixels still fits half as well
    mended = (agreement.fit < usual) & (agreement.fit + margins >= usual)
    files = np.flatnonzero(alike & mended & _surely_better(margins))
    needed = max(LIMITS["agreement_alike"].value, LIMITS["agreement_share"].value / 2 * len(agreement))
    if len(files) >= needed:  # of many masks some will always fit better elsewhere, and a few at the same offset
        yield _shift_fault(agreement, offset, files, sizes)


def _margins_at(agreement, offset, around):
    """(N,) how much more each mask fits when moved by the offset, the best of those up to `around` pixels from it."""
    row, column = np.asarray(offset) + REACH
    window = agreement.maps[:, row - around : row + around + 1, column - around : column + around + 1]
    return window.max((1, 2)) - agreement.fit


def _shift_fault(agreement, offset, files, sizes, whole=False):
    """offset: what mends the masks, so they lie the other way."""
    down, right = (-int(part) for part in offset)
    height, width = agreement.borders[files[0]].shape
    parts = [
        f"{abs(n)} of {side} pixels {words[n > 0]}"
        for n, side, words in (
            (right, width, ("too far left", "too far right")),
            (down, height, ("too high", "too low")),
        )
        if n
    ]
    full = (sizes or {}).get(agreement.pairs[files[0]][0])
    if full:
        parts.append(f"{max(abs(down), abs(right)) * max(full) / max(height, width):.0f} pixels of the original")
    masks = [_moved(agreement.pairs[i][2], offset) for i in files[:SHOWN]]
    mended = agreement.fit[files] + _margins_at(agreement, offset, 0)[files]
    detail = {"moved_right": right / width, "moved_down": down / height}
    what = f"lie {', '.join(parts)}"
    return _fault(agreement, "shifted_masks", what, files, mended.mean(), [detail] * len(files), masks, whole)


def _moved(target, offset):
    """A target moved down and right by the offset, void where nothing comes in."""
    moved = np.full_like(target, VOID)
    inner = [slice(max(0, n), min(side, side + n)) for n, side in zip(offset, target.shape, strict=True)]
    source = [slice(s.start - n, s.stop - n) for s, n in zip(inner, offset, strict=True)]
    moved[tuple(inner)] = target[tuple(source)]
    return moved


def _nothing_fits(agreement):
    """The fault of a set whose masks fit no better than controls do: shuffled, if the right ones can be found.

    What all masks share (a plan's outline) fits every image; so masks that fit are compared with the others', too.
    """
    partners, weak = best_partners(agreement), np.median(agreement.fit) < LIMITS["agreement_fit"].value
    own_best, margin = (partners.gains < 0).mean(), LIMITS["agreement_margin"].value
    if own_best > (0.5 if weak else LIMITS["agreement_own_best"].value):
        return None
    if not weak and (partners.gains >= margin).mean() <= 0.5:  # masks that are all alike fit as well as each other
        return None
    found = np.flatnonzero(partners.mutual & (partners.gains > 0))
    if not len(found) or np.median(partners.leads[found]) < LIMITS["agreement_lead"].value:
        fits_nothing = np.arange(len(agreement))
        what = "fit their images no better than when they are moved, mirrored or exchanged"
        return _fault(agreement, "masks_do_not_fit", what, fits_nothing, 0.0, whole=True)
    return _exchange_fault(agreement, found, partners, whole=True)


def _foreign_files(agreement, free, _sizes):
    """Masks that fit their image far worse than the others do theirs: another image's, or nobody's."""
    fit, usual = agreement.fit, _usual(agreement)
    suspicious = free & (fit < usual / 2)
    outlying = suspicious & (fit < np.median(fit) - LIMITS["agreement_spreads"].value * _spread(fit))
    if not suspicious.any():
        return
    partners = best_partners(agreement)
    masks, gains = partners.masks, partners.gains
    mutual = suspicious & suspicious[masks] & partners.mutual & (gains >= LIMITS["agreement_margin"].value)
    mutual &= (mutual | outlying)[masks]  # what an exchange took a mask from got a wrong one, too
    better = gains >= 2 * LIMITS["agreement_margin"].value
    exchanged = np.flatnonzero(mutual | (outlying & better))
    if len(exchanged):
        yield _exchange_fault(agreement, exchanged, partners)
    lonely = np.flatnonzero(outlying & ~better & ~mutual)
    if len(lonely):
        yield _fault(agreement, "masks_do_not_fit", "fit their images no better than chance", lonely, usual)


def _exchange_fault(agreement, files, partners, whole=False):
    masks, gains = partners.masks, partners.gains
    details = [{"mask_that_fits": agreement.pairs[masks[i]][0]} for i in files]
    targets = [agreement.pairs[masks[i]][2] for i in files[:SHOWN]]
    mended = float((agreement.fit + gains)[files].mean())
    what = f"are other images' (the mask of {details[0]['mask_that_fits']} fits {agreement.pairs[files[0]][0]})"
    return _fault(agreement, "shuffled_masks", what, files, mended, details, targets, whole)


def _fault(agreement, cause, what, files, mended, details=(), masks=(), whole=False):
    """whole: the set as such is judged, and not each file alone."""
    sure = whole or (
        len(files) >= LIMITS["agreement_alike"].value and len(files) >= LIMITS["agreement_share"].value * len(agreement)
    )
    fit = float(agreement.fit[files].mean())
    return Fault(cause, what, files, fit, float(mended), sure, list(details) or [{}] * len(files), list(masks))


# ---------------------------------------------------------------------------------------------------------------------
# Saying it


def label_agreement(subject):
    """Do label borders lie on image edges more than mirrored, moved or other images' label borders do?

    Returns the Findings of `judge_splits` on the pairs that the surveys keep pictures of.
    """
    pairs = {name: survey.pairs() for name, survey in subject.surveys.items()}
    audits = subject.audits.values()
    sizes = {audit.split.file(i): tuple(size) for audit in audits for i, size in enumerate(audit.image_sizes.tolist())}
    return judge_splits(pairs, sizes)


def judge_splits(pairs_of_split, sizes=None):
    """The Findings on the masks of several splits.

    pairs_of_split: {split: [(file name, grey (h, w) uint8, target (h, w) uint8), …]}, the longer side at 240 pixels and
    targets in train ids from 253 on no label; sizes: {file name: (H, W)} of the originals, to give shifts in pixels.
    Returns a list of Findings: one that passes (or skips, where fewer than 16 masks of a split have borders enough), or
    one for each cause found, `data.label_agreement.CAUSE`.
    """
    agreements = {split: measure(pairs) for split, pairs in pairs_of_split.items()}
    found = {split: judge(agreement, sizes) for split, agreement in agreements.items()}
    causes = dict.fromkeys(fault.cause for faults in found.values() for fault in faults)
    if causes:
        return [_finding(cause, found, agreements) for cause in causes]
    evidence = _evidence(agreements)
    judged = {s: a for s, a in agreements.items() if len(a) >= LIMITS["agreement_files"].value}
    if not judged:
        few = f"fewer than {LIMITS['agreement_files'].value} masks of every split have label borders to judge by"
        return [Finding(PROBE, "skip", few, evidence=evidence)]
    fits = {split: float(np.median(a.fit)) for split, a in judged.items()}
    split = min(fits, key=fits.get)
    why = (
        f"label borders lie on image edges: edge rank {fits[split]:.2f} above that of the same borders moved away "
        f"({split}, median of {len(judged[split])} masks), and no mirrored, moved or other mask fits better"
    )
    return [Finding(PROBE, "pass", why, value=fits[split], reference=LIMITS["agreement_fit"].value, evidence=evidence)]


def _evidence(agreements):
    """Counts and the median fit of every split."""
    return {
        "splits": {
            split: {
                "judged": len(a),
                "undecided": a.undecided,
                "median_fit": float(np.median(a.fit)) if len(a) else None,
            }
            for split, a in agreements.items()
        }
    }


def _finding(cause, found, agreements):
    """What all splits have of one cause, as one Finding."""
    faults = [(split, fault) for split, faults in found.items() for fault in faults if fault.cause == cause]
    parts, files, exhibits = [], [], []
    for split, fault in faults:
        agreement = agreements[split]
        parts.append(f"{split}: {len(fault.files)} of {len(agreement)} masks {fault.what}")
        for i, detail in zip(fault.files, fault.details, strict=True):
            files.append({"split": split, "file": agreement.pairs[i][0], "fit": float(agreement.fit[i]), **detail})
        exhibits.append(_exhibit(split, fault, agreement))
    split, worst = max(faults, key=lambda one: len(one[1].files) / len(agreements[one[0]]))
    compared = f"edge rank above that of moved borders {worst.fit:.2f}, {worst.mended:.2f} when mended"
    return Finding(
        f"{PROBE}.{cause}",
        "fail" if any(fault.sure for _, fault in faults) else "warn",
        f"{'; '.join(parts)} ({compared})",
        cause=cause,
        value=worst.fit,
        reference=worst.mended,
        remedy=REMEDIES[cause],
        evidence={**_evidence(agreements), "count": len(files), "files": files[:LISTED]},
        exhibits=exhibits,
    )


def _exhibit(split, fault, agreement):
    """The first masks on their images, each beside the mended one."""
    tiles = []
    for k, i in enumerate(fault.files[:SHOWN]):
        name, grey, target = agreement.pairs[i]
        image = np.repeat(grey[..., None], 3, 2)  # (h, w, 3)
        tiles.append(Tile(f"{name}: its mask", image, target))
        if fault.masks:
            tiles.append(Tile("mended", image, fault.masks[k]))
    return Exhibit(f"{split}: label borders on the image, as they are and mended", tiles)
