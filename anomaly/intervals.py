"""How far anomaly figures would move with other images: bootstrap intervals over the images of a set.

Pixels of one image are far from independent, so an interval over pixels would be much too narrow: what is drawn again
is whole images. That needs the scores image by image, which nobody keeps for a billion pixels; `ImageHistograms` keeps
counts in bins instead, as fine as a fixed budget of memory allows.
"""

import numpy as np
import torch

import metrics
from anomaly.histogram import MANTISSA_BITS

FIRST_DROP = 23 - MANTISSA_BITS  # low bits of a key that are dropped from the start: bins of 2**-11 of the score
LAST_DROP = 31  # only the sign is left
MAX_ENTRIES = 2_000_000  # bins of all images together, 12 bytes each
CELLS = 1 << 18  # of (images + samples) x bins worked on at once, 8 bytes each
SHARES = 2048  # neighbouring bins count as one while they hold less than 1 / SHARES of each kind's pixels


class ImageHistograms:
    """Mergeable counts of anomaly scores by image, for intervals of the pooled figures over images.

    A bin holds all scores whose order-preserving keys (`metrics.order_keys`) share all but the lowest `drop` bits, and
    counts them as ties. An image keeps only the bins that it fills; whenever all images together keep more than
    MAX_ENTRIES (24 MB), one bit more is dropped in all of them. `drop` is thus the smallest at which the images seen
    fit, in whatever order or shards they came.
    """

    def __init__(self):
        self.drop = FIRST_DROP
        self._images = {}  # index -> bins (K,) int32 ascending, counts (2, K) int32 [negatives, positives]

    @property
    def entries(self):
        """Number of bins kept, over all images."""
        return sum(len(bins) for bins, _ in self._images.values())

    def update(self, index, scores, positives):
        """Count pixels of the image `index` (an int). scores: float32, any shape, finite; positives: bool, same shape.

        Larger = more anomalous. Of an image of less than 2**31 pixels; it may come in parts. Without a pixel it is
        left out of the set: there is nothing to draw in it.
        Raises: ValueError as ScoreHistogram.update; nothing is counted then.
        """
        scores, positives = metrics.check_scores(scores, positives)
        if not scores.numel():
            return
        keys = metrics.order_keys(scores.cpu()).numpy() >> self.drop
        bins, counts = np.unique(keys, return_counts=True)
        abnormal, found = np.unique(keys[positives.cpu().numpy()], return_counts=True)
        counts = np.stack([counts, np.zeros_like(counts)]).astype(np.int32)  # (2, K)
        places = np.searchsorted(bins, abnormal)
        counts[0, places] -= found.astype(np.int32)
        counts[1, places] += found.astype(np.int32)
        self._add(index, bins, counts)
        self._fit()

    def merge(self, other):
        """Add what another one counted; it stays as it is."""
        self._coarsen(max(self.drop, other.drop))
        for index, (bins, counts) in other._images.items():
            self._add(index, *_summed(bins >> (self.drop - other.drop), counts))
            self._fit()

    def interval(self, samples=1000, seed=0, level=0.95):
        """Bootstrap intervals over the images: {"aupr": [low, high], "auroc": [low, high], "fpr95": [low, high]}.

        A sample draws as many images as there are with replacement and pools their pixels. Scores of one bin count as
        ties, as they do in scikit-learn, and of more than 2 * SHARES bins neighbouring ones are joined. A sample that
        lacks one kind of pixel has no figures and is left out, so the interval then speaks of sets that hold both.
        None with fewer than two images, or where one kind of pixel is missing altogether. The same seed gives the same
        interval.
        Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), the percentile interval of section 13.3.
        """
        if len(self._images) < 2:
            return None
        table = BinTable(self._images)
        figures = [table.figures(weights) for weights in metrics.bootstrap_draws(table.images, samples, seed)]
        figures = np.concatenate(figures, axis=1)  # (3, samples that have figures)
        if not figures.size:
            return None
        tail = (1 - level) / 2
        low_high = np.quantile(figures, [tail, 1 - tail], axis=1).T.tolist()
        return dict(zip(("aupr", "auroc", "fpr95"), low_high, strict=True))

    def _add(self, index, bins, counts):
        if index in self._images:
            bins, counts = (
                np.concatenate(both, axis=-1) for both in zip(self._images[index], (bins, counts), strict=True)
            )
            order = bins.argsort()
            bins, counts = _summed(bins[order], counts[:, order])
        self._images[index] = bins, counts

    def _fit(self):
        while self.entries > MAX_ENTRIES and self.drop < LAST_DROP:
            self._coarsen(self.drop + 1)

    def _coarsen(self, drop):
        if drop > self.drop:
            for index, (bins, counts) in self._images.items():
                self._images[index] = _summed(bins >> (drop - self.drop), counts)
            self.drop = drop


def _summed(bins, counts):
    """Add up the counts (2, K) of equal neighbours in bins (K,), K at least 1."""
    starts = np.append(0, np.flatnonzero(bins[1:] != bins[:-1]) + 1)
    return bins[starts], np.add.reduceat(counts, starts, axis=1, dtype=counts.dtype)


class BinTable:
    """The entries of all images by bin, highest first, ready to be weighted by image."""

    def __init__(self, images):
        """images: {index: (bins, counts)}, numbered here in the order of their indices."""
        parts = [images[index] for index in sorted(images)]
        self.images = len(parts)
        row = np.repeat(np.arange(self.images), [len(bins) for bins, _ in parts])
        bins, counts = (np.concatenate(column, axis=-1) for column in zip(*parts, strict=True))
        order = bins.argsort(kind="stable")[::-1]
        self.row, self.counts = row[order], counts[:, order]
        self.column = self._columns(bins[order])
        self.totals = np.stack([counts.sum(axis=1, dtype=np.float64) for _, counts in parts])  # (images, 2)

    def _columns(self, bins):
        """The number of each entry's column, from 0 up; bins: (entries,), highest first."""
        changed = np.append(True, bins[1:] != bins[:-1])
        columns = changed.cumsum() - 1
        if columns[-1] < 2 * SHARES:
            return columns
        # Many bins hold next to nothing: a column ends where the next share of either kind is full.
        first = np.flatnonzero(changed)
        below = (self.counts.cumsum(axis=1, dtype=np.float64) - self.counts)[:, first]
        totals = self.counts.sum(axis=1, dtype=np.float64)
        shares = (below * SHARES // np.maximum(totals, 1)[:, None]).sum(axis=0)
        return np.append(0, np.diff(shares) > 0).cumsum()[columns]

    def figures(self, weights):
        """AUPR, AUROC, FPR95 (3, K) of the K of the samples that hold both kinds; weights: (S, images) float64."""
        totals = weights.numpy() @ self.totals  # (S, 2)
        complete = (totals > 0).all(axis=1)
        weights, (negatives, positives) = weights[torch.from_numpy(complete)], totals[complete].T
        fp, tp = np.zeros((2, len(weights), 1))  # above the bins at hand
        area, wrong, passed = np.zeros((3, len(weights)))
        for counts in self._blocks(max(1, CELLS // (self.images + len(weights)))):
            n, p = ((weights @ torch.from_numpy(part)).numpy() for part in counts)  # (K, bins): integers, so exact
            tp = tp + p.cumsum(axis=1)
            fp = fp + n.cumsum(axis=1)
            area += (p * tp / np.maximum(tp + fp, 1)).sum(axis=1)
            wrong += (p * (fp - n / 2)).sum(axis=1)  # pairs with the negative above, ties counting half
            # The threshold at which the recall reaches 0.95 passes the negatives of each bin above which it has not.
            passed += (n * ((tp - p) / positives[:, None] < 0.95)).sum(axis=1)
            fp, tp = fp[:, -1:], tp[:, -1:]
        return np.stack([area / positives, 1 - wrong / (positives * negatives), passed / negatives])

    def _blocks(self, width):
        """Negatives and positives (2, images, up to `width` bins) float64, highest bins first."""
        columns = int(self.column[-1]) + 1
        for first in range(0, columns, width):
            last = min(columns, first + width)
            part = slice(*np.searchsorted(self.column, [first, last]))
            counts = np.zeros((2, self.images, last - first))
            cells = self.row[part] * (last - first) + self.column[part] - first
            for kind, count in zip(counts, self.counts[:, part], strict=True):
                kind.ravel()[:] = np.bincount(cells, count, kind.size)
            yield counts
