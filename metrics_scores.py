"""Anomaly metrics from scores: average precision, ROC area and FPR95 of billions of pixels in constant memory.

A pixel is positive when it shows an anomaly, and a larger score means more anomalous. `ScoreHistogram` pools a whole
set and bounds its own error; `image_anomaly_scores` is exact for one image. Both rank scores by their float32 bits, so
nothing is squashed, clipped or rounded on the way.
"""

import numpy as np
import torch

PAGE_BITS = 10  # a page holds 1024 neighbouring bins
MAX_PAGES = 1024  # 25 MB of bins, with the page table 34 MB; more pages would be finer, but fall out of the cache
MANTISSA_BITS = 11  # kept whatever happens: all floats together then fill 1020 pages, so MAX_PAGES always suffices
EXACT = 150  # the resolution at which each float32 has a bin of its own
COARSEST = MANTISSA_BITS - 127  # the one at which all have no more than MANTISSA_BITS
CPU_CHUNK = 1 << 15  # stays in the cache, and below the size at which torch starts threads for so little work
CUDA_CHUNK = 1 << 22
NO_LOW, NO_HIGH = 2**31 - 1, -(2**31)  # smallest and largest key of an empty bin


def _check(scores, positives):
    if scores.dtype != torch.float32:
        raise ValueError(f"scores must be float32, got {scores.dtype}: other types round or hide ties")
    if scores.shape != positives.shape or positives.dtype != torch.bool:
        found = f"{tuple(positives.shape)} {positives.dtype} for scores {tuple(scores.shape)}"
        raise ValueError(f"positives must be bool and of the scores' shape, got {found}")
    if scores.numel() and not all(bool(torch.isfinite(end)) for end in scores.aminmax()):  # aminmax passes NaN on
        raise ValueError(f"{int((~torch.isfinite(scores)).sum())} of {scores.numel()} scores are not finite")
    return scores.detach().reshape(-1), positives.reshape(-1)


def _order_keys(scores):
    """int32 in the order of the float32 scores: their bits, those of negative ones turned round; -0.0 equals 0.0."""
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _bin_shifts(resolution, device):
    """How many low bits of a key its bin spans, for each sign and exponent (a key's top nine bits): (512,) int32."""
    top = torch.arange(-256, 256, device=device)
    exponent = torch.where(top < 0, -1 - top, top) - 127
    return (23 - (resolution + exponent).clamp(MANTISSA_BITS, 23)).int()


def _bin_shift(keys, shifts):
    return shifts.index_select(0, (keys >> 23).add_(256))


def _page_starts(keys, shift):
    """The first key of each key's page; a bin spans 2**shift keys. int32."""
    page_shift = shift + PAGE_BITS
    return (keys >> page_shift) << page_shift


def _table_entries(starts):
    return (starts >> PAGE_BITS).add_(1 << (31 - PAGE_BITS))


def _distinct(keys):
    return torch.from_numpy(np.unique(keys.cpu().numpy())).to(keys.device)  # torch's own starts threads for a handful


class ScoreHistogram:
    """Streaming, mergeable histogram of anomaly scores that knows how far its figures can be from the exact ones.

    A bin keeps how many pixels and positives fell into it and its smallest and largest score, so a bin with one
    distinct score costs no accuracy. Bins are 2**-resolution wide, but never finer than float32 and never coarser than
    2**-11 of the score's magnitude. They lie in pages made on demand; the resolution starts exact and drops, for all
    bins at once, when the pages would not fit. It is therefore the finest at which the scores seen so far fit, in
    whatever order, batches or shards they came: merging equals counting everything in one place.
    Memory: at most 34 MB, besides what one chunk needs. The bins live on the device of the first scores.
    """

    def __init__(self):
        self.resolution = EXACT
        self._clear("cpu")

    @property
    def positives(self):
        """Number of positive pixels seen."""
        return int(self._positives.sum())

    @property
    def negatives(self):
        """Number of negative pixels seen."""
        return int(self._pixels.sum()) - self.positives

    def update(self, scores, positives):
        """Count pixels. scores: float32, any shape, finite, larger = more anomalous; positives: bool, same shape.

        Raises: ValueError for scores that are not float32 or not finite, or another shape; nothing is counted then.
        """
        scores, positives = _check(scores, positives)
        if not self._first.numel():
            self._clear(scores.device)
        scores, positives = scores.to(self._low.device), positives.to(self._low.device)
        size = CUDA_CHUNK if scores.is_cuda else CPU_CHUNK
        ones = torch.ones(min(size, scores.numel()), dtype=torch.int64, device=scores.device)
        for start in range(0, scores.numel(), size):
            keys = _order_keys(scores[start : start + size])
            slots = self._slots(keys)
            self._low.scatter_reduce_(0, slots, keys, "amin")
            self._high.scatter_reduce_(0, slots, keys, "amax")
            self._pixels.scatter_add_(0, slots, ones[: slots.numel()])
            slots = slots[positives[start : start + size]]
            self._positives.scatter_add_(0, slots, ones[: slots.numel()])

    def merge(self, other):
        """Add what another histogram counted; it stays as it is."""
        if other.resolution < self.resolution:
            self._rebin(other.resolution)
        self._insert(*other._bins())

    def state(self):
        """The contents as plain tensors (K,): low, high int32 keys; pixels, positives int64. Sorted by score.

        Independent of the order in which the scores came. To add up several processes, merge their from_state.
        """
        names = ("low", "high", "pixels", "positives")
        return dict(zip(names, self._bins(), strict=True), resolution=torch.tensor(self.resolution))

    @classmethod
    def from_state(cls, state):
        """The histogram whose `state()` this is."""
        histogram = cls()
        histogram.resolution = int(state["resolution"])
        histogram._clear(state["low"].device)
        histogram._insert(state["low"], state["high"], state["pixels"], state["positives"])
        return histogram

    def aupr(self):
        """Average precision and the bound of its error; (None, None) where one kind of pixel is missing.

        sum over distinct scores k of (R_k - R_k-1) P_k, with recall R and precision P of "score >= k". Inside a bin of
        several distinct scores the order is unknown. Best: all its positives tie above all its negatives. Worst: they
        come singly below them. The value is the middle of the two sums, the bound half their distance.
        """
        if not (self.positives and self.negatives):
            return None, None
        single, before, n, p = self._ranked()
        fp, tp = before
        tied = p * (tp + p) / (tp + p + fp + n)
        best = torch.where(single, tied, p * (tp + p) / (tp + p + fp).clamp(min=1))
        # The worst is sum_i=1..p (tp + i) / (a + i) with a = tp + fp + n, that is p - (fp + n) sum_i 1 / (a + i);
        # 1 / x is convex, so that sum is at most the integral of 1 / x from a + 0.5 to a + p + 0.5.
        worst = torch.where(single, tied, p - (fp + n) * torch.log1p(p / (tp + fp + n + 0.5)))
        high, low = float(best.sum()) / self.positives, float(worst.sum()) / self.positives
        return (high + low) / 2, (high - low) / 2

    def auroc(self):
        """Area under the ROC curve and the bound of its error; (None, None) where one kind of pixel is missing.

        The share of (positive, negative) pairs in the right order, ties counting half.
        """
        if not (self.positives and self.negatives):
            return None, None
        single, (fp, _), n, p = self._ranked()
        pairs = self.positives * self.negatives
        wrong = float((p * (fp + n / 2)).sum())
        unknown = float(torch.where(single, 0.0, p * n / 2).sum())
        return 1 - wrong / pairs, unknown / pairs

    def fpr95(self):
        """False positive rate at the first threshold with a true positive rate of at least 0.95, or None.

        The threshold is the smallest score of the bin in which that happens: a rate that can be had. Where that bin
        holds several distinct scores a higher one may do; the rate is then lower, by at most the bin's negatives.
        """
        if not (self.positives and self.negatives):
            return None
        _, (fp, tp), n, p = self._ranked()
        first = int(((tp + p) / self.positives >= 0.95).nonzero()[0])
        return float(fp[first] + n[first]) / self.negatives

    def _ranked(self):
        """Bins from the highest score down: single (K,) bool; before (2, K), n, p (K,) float64 negatives, positives."""
        low, high, pixels, positives = (column.flip(0) for column in self._bins())
        counts = torch.stack([pixels - positives, positives])  # (2, K)
        before = (counts.cumsum(1) - counts).double()
        return low == high, before, *counts.double()

    def _bins(self):
        """The bins that hold a score, lowest first: low, high (K,) int32 keys, pixels, positives (K,) int64."""
        filled = (self._low <= self._high).nonzero().view(-1)
        order = filled[self._low[filled].argsort()]
        return self._low[order], self._high[order], self._pixels[order], self._positives[order]

    def _insert(self, low, high, pixels, positives):
        """Add whole bins, none of them wider than the bins here."""
        if not self._first.numel():
            self._clear(low.device)
        for parts in zip(*(column.split(CPU_CHUNK) for column in (low, high, pixels, positives)), strict=True):
            low, high, pixels, positives = (part.to(self._low.device) for part in parts)
            slots = self._slots(low)
            self._low.scatter_reduce_(0, slots, low, "amin")
            self._high.scatter_reduce_(0, slots, high, "amax")
            self._pixels.scatter_add_(0, slots, pixels)
            self._positives.scatter_add_(0, slots, positives)

    def _slots(self, keys):
        """The place of each key's bin in the store, int64; makes the pages it needs, or drops the resolution first."""
        shift = _bin_shift(keys, self._shifts)
        starts = _page_starts(keys, shift)
        rows = self._table.index_select(0, _table_entries(starts))
        if keys.numel() and int(rows.min()) < 0:
            new = _distinct(starts[rows < 0])
            if self._first.numel() + new.numel() > MAX_PAGES:
                self._coarsen(keys)
                return self._slots(keys)
            self._make_pages(new)
            rows = self._table.index_select(0, _table_entries(starts))
        within = (keys >> shift).bitwise_and_((1 << PAGE_BITS) - 1)
        return within.add_(rows.int() << PAGE_BITS).long()

    def _make_pages(self, starts):
        first, have = self._first.numel(), self._low.numel() >> PAGE_BITS
        self._first = torch.cat([self._first, starts])
        rows = torch.arange(first, self._first.numel(), dtype=torch.int16, device=starts.device)
        self._table[_table_entries(starts).long()] = rows
        if self._first.numel() > have:
            wanted = min(MAX_PAGES, max(2 * have, self._first.numel()))
            self._grow((wanted - have) << PAGE_BITS)

    def _grow(self, bins):
        self._low = torch.cat([self._low, self._low.new_full((bins,), NO_LOW)])
        self._high = torch.cat([self._high, self._high.new_full((bins,), NO_HIGH)])
        self._pixels = torch.cat([self._pixels, self._pixels.new_zeros(bins)])
        self._positives = torch.cat([self._positives, self._positives.new_zeros(bins)])

    def _coarsen(self, keys):
        """Drop the resolution to the finest at which the pages stored and those of `keys` fit."""
        # A page's first key stands for it: a wider page holds narrower ones whole.
        pages = _distinct(torch.cat([self._first, _page_starts(keys, _bin_shift(keys, self._shifts))]))
        fits, too_fine = COARSEST, self.resolution
        while too_fine - fits > 1:
            middle = (fits + too_fine) // 2
            shift = _bin_shift(pages, _bin_shifts(middle, pages.device))
            if _distinct(_page_starts(pages, shift)).numel() <= MAX_PAGES:
                fits = middle
            else:
                too_fine = middle
        self._rebin(fits)

    def _rebin(self, resolution):
        bins, self.resolution = self._bins(), resolution
        self._clear(self._table.device)
        self._insert(*bins)

    def _clear(self, device):
        self._table = torch.full((1 << (32 - PAGE_BITS),), -1, dtype=torch.int16, device=device)  # rows of the store
        self._first = torch.zeros(0, dtype=torch.int32, device=device)  # first key of each page, by row
        self._low, self._high = self._first, self._first
        self._pixels = self._positives = torch.zeros(0, dtype=torch.int64, device=device)
        self._shifts = _bin_shifts(self.resolution, device)


def image_anomaly_scores(scores, positives):
    """Exact average precision, ROC area and FPR95 of one image, or None where it lacks one kind of pixel.

    scores: float32, any shape, finite, larger = more anomalous; positives: bool, same shape.
    FPR95 is taken at the recall nearest to 0.95; of equally near ones at the higher recall, and where several
    thresholds share that recall at the lowest of them (at the highest if the recall is 1).
    Raises: ValueError for scores that are not float32 or not finite, or shapes that differ.
    Source: Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings, the StreetHazards
    evaluation code (`anom_utils.py`).
    """
    scores, positives = _check(scores, positives)
    ranked = (_order_keys(scores).long() * 2 + positives).sort(descending=True).values
    last = torch.ones_like(ranked, dtype=torch.bool)  # the last pixel of each distinct score
    last[:-1] = (ranked[1:] >> 1) != (ranked[:-1] >> 1)
    ends = last.nonzero().view(-1)
    tp = (ranked & 1).cumsum(0)[ends]
    fp = ends + 1 - tp
    if ends.numel() == 0 or tp[-1] == 0 or fp[-1] == 0:
        return None
    recall = tp.double() / tp[-1]
    step_tp = tp.diff(prepend=tp.new_zeros(1)).double()
    aupr = float((step_tp * (tp / (tp + fp).double())).sum() / tp[-1])
    step_fp = fp.diff(prepend=fp.new_zeros(1)).double()
    wrong = float((step_tp * (fp - step_fp / 2)).sum())  # pairs with the negative above, ties counting half
    complete = int((recall < 1).sum())  # where the recall first is 1
    nearest = complete - int((recall[: complete + 1] - 0.95).abs().flip(0).argmin())
    return {"aupr": aupr, "auroc": 1 - wrong / (int(tp[-1]) * int(fp[-1])), "fpr95": int(fp[nearest]) / int(fp[-1])}
