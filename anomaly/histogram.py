"""Anomaly metrics of billions of pixels in constant memory: average precision, ROC area and FPR95 with error bounds.

A pixel is positive when it shows an anomaly, and a larger score means more anomalous. `ScoreHistogram` pools a whole
set and bounds its distance from the exact figures of `metrics.ranking_figures`. It ranks scores by their float32 bits,
so nothing is squashed, clipped or rounded on the way.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

import metrics

PAGE_BITS = 10  # a page holds 1024 neighbouring bins
MAX_PAGES = 1024  # 25 MB of bins, with the page table 34 MB; more pages would be finer, but fall out of the cache
MANTISSA_BITS = 11  # kept whatever happens: all floats together then fill 1020 pages, so MAX_PAGES always suffices
EXACT = 150  # the resolution at which each float32 has a bin of its own
COARSEST = MANTISSA_BITS - 127  # the one at which all have no more than MANTISSA_BITS
CPU_CHUNK = 1 << 21  # scores sorted at once, 8 MB: the more, the fewer bins are touched
CPU_BLOCK = 1 << 17  # of them counted at once: in smaller ones the threads wait for each other
CPU_BINS = 1 << 15  # added at once: below the size at which torch starts threads for so little work
THREADS = 2  # that sort at the same time; only one of them adds to the bins
CUDA_CHUNK = 1 << 22
NO_LOW, NO_HIGH = 2**31 - 1, -(2**31)  # smallest and largest key of an empty bin


def _check_rate(rate):
    if not 0 <= rate <= 1:
        raise ValueError(f"a rate lies in 0..1, got {rate}")


def _sorted_keys(scores):
    """The order keys of (N,) numpy scores, ascending, made where the scores were."""
    scores += 0.0
    scores.sort()
    keys = scores.view(np.int32)
    keys[: np.searchsorted(scores, np.float32(0))] ^= 0x7FFFFFFF
    return keys


def _runs(keys, shifts):
    """The bins of ascending keys (N,) int32: low, high (K,) int32 keys, count (K,) int32. All numpy, N at least 1.

    shifts: as of _bin_shifts.
    """
    changes = np.flatnonzero(np.diff(shifts)) + 1  # exponents at which the width of the bins changes
    ends = np.searchsorted(keys, ((changes - 256) << 23).astype(np.int32))
    masks = np.int32(-1) << shifts[np.append(0, changes)]
    bins = np.empty_like(keys)  # the first key of each key's bin
    for part, found, mask in zip(np.split(keys, ends), np.split(bins, ends), masks, strict=True):
        np.bitwise_and(part, mask, out=found)
    last = np.append(np.flatnonzero(bins[1:] != bins[:-1]), keys.size - 1)
    first = np.append(0, last[:-1] + 1)
    return keys[first], keys[last], last - first + 1


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


class _Ranked(NamedTuple):
    """The bins that hold a score, from the highest down: (K,) numpy."""

    low: np.ndarray  # int32 keys of the smallest and the largest score
    high: np.ndarray
    fp: np.ndarray  # float64 negatives and positives above the bin
    tp: np.ndarray
    n: np.ndarray  # float64 negatives and positives in it
    p: np.ndarray

    @property
    def single(self):
        """(K,) bool: bins with one distinct score."""
        return self.low == self.high


class ScoreHistogram:
    """Streaming, mergeable histogram of anomaly scores that knows how far its figures can be from the exact ones.

    A bin keeps how many pixels and positives fell into it and its smallest and largest score, so a bin with one
    distinct score costs no accuracy. Bins are 2**-resolution wide, but never finer than float32 and never coarser than
    2**-11 of the score's magnitude. They lie in pages made on demand; the resolution starts exact and drops, for all
    bins at once, when the pages would not fit. It is therefore the finest at which the scores seen so far fit, in
    whatever order, batches or shards they came: merging equals counting everything in one place.
    Memory: at most 34 MB, while counting 12 MB more for each of at most two threads; a figure needs up to 80 MB for a
    moment. The bins live on the device of the first scores.
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
        scores, positives = metrics.check_scores(scores, positives)
        if not self._first.numel():
            self._clear(scores.device)
        scores, positives = scores.to(self._low.device), positives.to(self._low.device)
        if scores.device.type == "cpu":
            self._count(scores.numpy(), positives.numpy())
            return
        for part, truth in zip(scores.split(CUDA_CHUNK), positives.split(CUDA_CHUNK), strict=True):
            keys = metrics.order_keys(part)
            self._insert(keys, keys, torch.ones_like(keys), truth)

    def _count(self, scores, positives):
        """Count (N,) numpy scores and positives, in several threads where torch may use them: same contents, sooner.

        They are sorted first: a bin then costs one access whatever the number of its pixels, and one access lies next
        to the other.
        """
        lock = threading.Lock()
        starts = range(0, scores.size, CPU_CHUNK)
        threads = max(1, min(THREADS, torch.get_num_threads(), len(starts)))

        def work(thread):
            for start in starts[thread::threads]:
                chosen = slice(start, start + CPU_CHUNK)
                self._count_sorted(_sorted_keys(scores[chosen].copy()), False, lock)
                self._count_sorted(_sorted_keys(scores[chosen][positives[chosen]]), True, lock)

        with ThreadPoolExecutor(THREADS) as pool:
            others = [pool.submit(work, thread) for thread in range(1, threads)]
            work(0)
            for other in others:
                other.result()  # raises what went wrong there

    def _count_sorted(self, keys, positive, lock):
        """Count ascending keys (N,) int32 numpy as pixels, or for the second time as positive ones."""
        with lock:
            self._slots(torch.from_numpy(keys[::64]))  # makes most pages, so that the resolution drops now if it has to
        for start in range(0, keys.size, CPU_BLOCK):
            # Another thread may drop the resolution meanwhile: bins that are too fine lie whole in wider ones.
            runs = _runs(keys[start : start + CPU_BLOCK], self._shifts.numpy())
            low, high, count = map(torch.from_numpy, runs)
            with lock:
                self._insert(low, high, *((torch.zeros_like(count), count) if positive else (count,)))

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
        ranked = self._ranked()
        if ranked is None:
            return None, None
        total = ranked.p.sum()
        holds = ranked.p > 0  # the others add nothing
        single, fp, tp, n, p = (column[holds] for column in (ranked.single, *ranked[2:]))
        tied = p * (tp + p) / (tp + p + fp + n)
        best = np.where(single, tied, p * (tp + p) / (tp + p + fp))
        # The worst is sum_i=1..p (tp + i) / (a + i) with a = tp + fp + n, that is p - (fp + n) sum_i 1 / (a + i);
        # 1 / x is convex, so that sum is at most the integral of 1 / x from a + 0.5 to a + p + 0.5.
        worst = np.where(single, tied, p - (fp + n) * np.log1p(p / (tp + fp + n + 0.5)))
        high, low = float(best.sum() / total), float(worst.sum() / total)
        return (high + low) / 2, (high - low) / 2

    def auroc(self):
        """Area under the ROC curve and the bound of its error; (None, None) where one kind of pixel is missing.

        The share of (positive, negative) pairs in the right order, ties counting half.
        """
        ranked = self._ranked()
        if ranked is None:
            return None, None
        _, _, fp, _, n, p = ranked
        pairs = float(p.sum() * n.sum())
        wrong = float((p * (fp + n / 2)).sum())
        unknown = float((p * n / 2)[~ranked.single].sum())
        return 1 - wrong / pairs, unknown / pairs

    def fpr95(self):
        """False positive rate at the first threshold with a true positive rate of at least 0.95, or None.

        The threshold is the smallest score of the bin in which that happens: a rate that can be had. Where that bin
        holds several distinct scores a higher one may do; the rate is then lower, by at most the bin's negatives.
        """
        points = self._points()
        if points is None:
            return None
        _, fpr, tpr, _ = points
        return float(fpr[np.argmax(tpr >= 0.95)])

    def best_f1(self):
        """The largest F1 and its threshold, a score seen: (f1, threshold); (None, None) where one kind is missing.

        A pixel alarms when its score >= threshold. Tried is the smallest score of each bin, of equally good ones the
        highest, so the F1 is one that can be had. A threshold between the scores of one bin may do better, by at most
        the bin's negatives over all positives.
        """
        ranked = self._ranked()
        if ranked is None:
            return None, None
        found, alarms = ranked.tp + ranked.p, ranked.tp + ranked.p + ranked.fp + ranked.n
        f1 = 2 * found / (alarms + found[-1])
        best = int(np.argmax(f1))
        return float(f1[best]), float(metrics.key_scores(ranked.low[best : best + 1])[0])

    def found_at(self, rate):
        """Share of positives that alarm when at most `rate` (0..1) of the negatives do; None where a kind is missing.

        Can be had at the smallest score of a bin. Where the next bin holds several scores, a threshold between them
        may find more, by at most that bin's share of the positives. Raises: ValueError for a rate outside 0..1.
        """
        _check_rate(rate)
        points = self._points()
        if points is None:
            return None
        _, fpr, tpr, _ = points
        allowed = int(np.searchsorted(fpr, rate, side="right"))
        return float(tpr[allowed - 1]) if allowed else 0.0

    def threshold_at(self, rate):
        """The smallest threshold at which at most `rate` (0..1) of the negatives seen alarm (score >= threshold).

        A score seen, the smallest of its bin, so the rate is kept exactly whatever the bins hold. If already the
        highest bin alarms too often, the next float32 above the largest score: then nothing seen alarms. Needs no
        positive; None without a negative. Raises: ValueError for a rate outside 0..1.
        """
        _check_rate(rate)
        negatives = self.negatives
        if not negatives:
            return None
        low, high, fp, _, n, _ = self._ranked(both=False)
        allowed = int(np.searchsorted((fp + n) / negatives, rate, side="right"))
        if allowed:
            return float(metrics.key_scores(low[allowed - 1 : allowed])[0])
        return float(np.nextafter(metrics.key_scores(high[:1]), np.float32(np.inf))[0])

    def curves(self, points=200):
        """What to draw as ROC and precision-recall curve: {"fpr", "tpr", "precision", "threshold"}, lists of floats.

        At most `points` (2 or more) operating points that can be had, each at the smallest score of a bin, from the
        highest threshold down: the first, the last, and such that neither the recall nor the FPR makes a larger step
        than it must. None where one kind of pixel is missing.
        """
        columns = self._points()
        if columns is None:
            return None
        steps = np.linspace(0, 1, points // 2)  # the first asks for the first point on both axes, so the last fits in
        threshold, fpr, tpr, precision = columns
        chosen = [np.searchsorted(axis, steps) for axis in (fpr, tpr)]
        chosen = np.unique(np.concatenate([*chosen, [len(fpr) - 1]]))
        names = ("threshold", "fpr", "tpr", "precision")
        return {name: column[chosen].tolist() for name, column in zip(names, columns, strict=True)}

    def density(self, bins=60):
        """How the scores of both kinds spread: {"edges": bins + 1 floats, "normal", "anomaly": shares a bin}.

        Equal bins from the 0.1 % to the 99.9 % quantile of all scores (the smallest score with at least that share
        at or below it; where the two are equal, half a unit or half the score to either side), scores outside counted
        in the first or last. Bins are closed below, the last one on both sides. Each kind's shares sum to 1; None for
        a kind that is missing, and for the whole without a pixel. A histogram's own bin is counted whole, at its
        smallest score.
        """
        ranked = self._ranked(both=False)
        if not ranked.low.size:
            return None
        scores, counts = (
            column[::-1] for column in (metrics.key_scores(ranked.low).astype(np.float64), ranked.n + ranked.p)
        )
        below = counts.cumsum()
        start, end = scores[np.searchsorted(below, below[-1] * np.array([0.001, 0.999]))]
        if start == end:
            start, end = start - max(1, abs(start)) / 2, end + max(1, abs(end)) / 2
        edges = np.linspace(start, end, bins + 1)
        places = (np.searchsorted(edges, scores, side="right") - 1).clip(0, bins - 1)
        shares = [np.bincount(places, column[::-1], bins) for column in (ranked.n, ranked.p)]
        normal, anomaly = ((share / share.sum()).tolist() if share.any() else None for share in shares)
        return {"edges": edges.tolist(), "normal": normal, "anomaly": anomaly}

    def _points(self):
        """Operating points at the bins' smallest scores, highest first: threshold, fpr, tpr, precision (K,), or None.

        numpy, threshold float32, the rest float64. None where one kind of pixel is missing.
        """
        ranked = self._ranked()
        if ranked is None:
            return None
        fp, tp = ranked.fp + ranked.n, ranked.tp + ranked.p
        return metrics.key_scores(ranked.low), fp / fp[-1], tp / tp[-1], tp / (tp + fp)

    def _ranked(self, both=True):
        """The bins as `_Ranked`; None where one kind of pixel is missing, unless `both` is not asked for."""
        low, high, pixels, positives = (column.cpu().numpy()[::-1] for column in self._bins())
        n, p = (pixels - positives).astype(np.float64), positives.astype(np.float64)
        if both and not (n.any() and p.any()):
            return None
        return _Ranked(low, high, n.cumsum() - n, p.cumsum() - p, n, p)

    def _bins(self):
        """The bins that hold a score, lowest first: low, high (K,) int32 keys, pixels, positives (K,) int64."""
        rows = self._first.argsort()

        def ordered(column):
            return column.view(-1, 1 << PAGE_BITS).index_select(0, rows).view(-1)

        filled = ordered(self._pixels).nonzero().view(-1)
        return tuple(
            ordered(column).index_select(0, filled) for column in (self._low, self._high, self._pixels, self._positives)
        )

    def _insert(self, low, high, pixels, positives=None):
        """Add whole bins, none of them wider than the bins here; without `positives`, they hold none."""
        if not self._first.numel():
            self._clear(low.device)
        size = CPU_BINS if self._low.device.type == "cpu" else CUDA_CHUNK
        columns = (low, high, pixels) if positives is None else (low, high, pixels, positives)
        for parts in zip(*(column.split(size) for column in columns), strict=True):
            low, high, *counts = (part.to(self._low.device) for part in parts)
            slots = self._slots(low)
            self._low.scatter_reduce_(0, slots, low, "amin")
            self._high.scatter_reduce_(0, slots, high, "amax")
            for column, count in zip((self._pixels, self._positives), counts, strict=False):
                column.scatter_add_(0, slots, count.long())

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
            wanted = min(MAX_PAGES, max(4 * have, self._first.numel()))
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
