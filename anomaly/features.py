"""What scores need to know of the training split, counted in one pass, and the scores of features.

`ScoreStatistics` streams over the split and merges: the parts of several processes add up to the whole. `similarity`
and `mahalanobis` hold an image's features against what it found. Anomalies must never enter it, so a target that
shows one is an error.
"""

from dataclasses import dataclass

import torch

import metrics
from datasets.spec import VOID

SHRINKAGE = 1e-3  # of the average variance, added to each feature's own


@dataclass
class _Moments:
    """Counts, means and spread by class of values (n, D), such that those of two parts give those of the whole.

    count: (C,) int64; mean: (C, D) float64; squares: (C, D) float64, sums of squared deviations from the class mean;
    outer: (D, D) float64, the sum over all classes of outer products of the deviations. None where not wanted.
    Source: Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance (1983).
    """

    count: torch.Tensor
    mean: torch.Tensor
    squares: torch.Tensor | None = None
    outer: torch.Tensor | None = None

    @classmethod
    def of(cls, values, labels, num_classes, squares=False, outer=False):
        """values: (n, D) float; labels: (n,) int64 in 0..num_classes-1."""
        count = torch.bincount(labels, minlength=num_classes)
        values = values.double()
        mean = _class_sums(values, labels, num_classes) / count.clamp(min=1)[:, None]  # (C, D)
        apart = values - mean[labels] if squares or outer else None  # (n, D)
        return cls(
            count,
            mean,
            _class_sums(apart.square(), labels, num_classes) if squares else None,
            apart.T @ apart if outer else None,
        )

    def merge(self, other):
        """Add what another one counted; it stays as it is."""
        other = _Moments(*(None if part is None else part.to(self.count.device) for part in other.parts().values()))
        apart = other.mean - self.mean  # (C, D)
        share = (other.count / (self.count + other.count).clamp(min=1).double())[:, None]
        weight = self.count[:, None] * share
        if self.squares is not None:
            self.squares = self.squares + other.squares + weight * apart.square()
        if self.outer is not None:
            self.outer = self.outer + other.outer + (weight * apart).T @ apart
        self.mean = self.mean + share * apart
        self.count = self.count + other.count

    def parts(self):
        """{name: tensor or None}."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares, "outer": self.outer}


def _class_sums(values, labels, num_classes):
    """(n, D) float64 -> (C, D) float64, the sums by label."""
    if values.shape[1] == 1:  # many pixels of one number each: counting is faster
        return torch.bincount(labels, values[:, 0], minlength=num_classes)[:, None]
    return values.new_zeros(num_classes, values.shape[1]).index_add_(0, labels, values)


class ScoreStatistics:
    """Statistics of the training split that scores need, counted batch by batch.

    Any order, batching or sharding gives the same, up to the rounding of float64. They live on the device of what was
    counted first; memory: 8 D (C + D) bytes for D features, whatever the split.
    """

    def __init__(self, num_classes):
        self.num_classes = num_classes
        self._moments = {}  # name -> _Moments

    def add_logits(self, top, labels, targets=None):
        """Count the largest logits of a batch by predicted class.

        top: (N, H, W) float32, at the size at which the score will be computed; labels: (N, H, W) integers, the
        predicted classes; targets: as in add_features, only to prove that there is no anomaly. Every pixel counts, void
        ones too.
        Raises: ValueError for other types or shapes, a max logit that is not finite, a label outside the classes, a
        target that is no class (an anomaly); nothing is counted then.
        Source: Jung et al., Standardized Max Logits (ICCV 2021).
        """
        if top.dtype != torch.float32:
            raise ValueError(f"max logits must be float32, got {top.dtype}: fewer bits blur their spread")
        if top.shape != labels.shape or labels.is_floating_point():
            found = f"{tuple(labels.shape)} {labels.dtype} for max logits {tuple(top.shape)}"
            raise ValueError(f"labels must be integers of the max logits' shape, got {found}")
        if targets is not None:
            _check_targets(targets, self.num_classes)
        if not top.numel():
            return
        metrics.check_labels(labels, "label", self.num_classes)
        metrics.check_finite(top, "max logits")
        values, labels = top.detach().reshape(-1, 1), labels.reshape(-1).long()
        self._add("max_logit", _Moments.of(values, labels, self.num_classes, squares=True))

    def add_features(self, name, features, targets):
        """Count a batch's features by true class.

        name: 'similarity' or 'mahalanobis', the score that will use them; features: (N, D, h, w) float, cast to
        float32 (the score casts alike); targets: (N, H, W) uint8 or a list of N (H, W), in train ids, 255 void. A
        cell's class is the target's at the cell's centre; void cells are dropped.
        Raises: ValueError for other types or shapes, a feature that is not finite, a target that is no class: one of
        num_classes is an anomaly, wherever in the target it stands. Nothing is counted then.
        """
        _check_name(name)
        features = _float_features(features.detach())
        if len(targets) != len(features):
            raise ValueError(f"{len(targets)} targets for {len(features)} images' features")
        known = self._moments.get(name)
        if known is not None and known.mean.shape[1] != features.shape[1]:
            raise ValueError(f"{features.shape[1]} features for {name!r}, before there were {known.mean.shape[1]}")
        _check_targets(targets, self.num_classes)
        metrics.check_finite(features, "features")
        for image, target in zip(features, targets, strict=True):  # one at a time: they are widened to float64
            labels = metrics.resize_nearest(target, image.shape[1:]).reshape(-1).to(image.device).long()  # (h w,)
            labelled = labels != VOID
            values = image.flatten(1).T[labelled]  # (n, D)
            moments = _Moments.of(values, labels[labelled], self.num_classes, outer=name == "mahalanobis")
            self._add(name, moments)

    def merge(self, other):
        """Add what another one counted; it stays as it is.

        Raises: ValueError for another number of classes.
        """
        if other.num_classes != self.num_classes:
            raise ValueError(f"statistics of {other.num_classes} classes do not add to those of {self.num_classes}")
        for name, moments in other._moments.items():
            self._add(name, moments)

    def state(self):
        """What was counted so far, as CPU tensors: {name: {"count", "mean", "squares", "outer"}}, None left out."""
        return {
            name: {part: values.cpu() for part, values in moments.parts().items() if values is not None}
            for name, moments in self._moments.items()
        }

    @classmethod
    def from_state(cls, num_classes, state):
        """The statistics whose `state()` this is."""
        statistics = cls(num_classes)
        statistics._moments = {name: _Moments(**parts) for name, parts in state.items()}
        return statistics

    def finish(self):
        """What a checkpoint keeps and the scores take, as plain CPU tensors; what has seen no class is left out.

        {"max_logit": {"count", "mean", "std"}, "similarity": {"count", "means"}, "mahalanobis": {"count", "means",
        "precision"}}: count (C,) int64, mean, std (C,) float32, means (C, D) float32, precision (D, D) float32. A class
        that was never seen has count 0 and zeros. std: of the population, root of the mean squared deviation.
        precision: the inverse of the within-class covariance S that all classes share, regularised by shrinkage:
        S + (SHRINKAGE * trace(S) / D) I; the identity where no feature varies within a class.
        """
        return {
            name: self._finished(name, moments)
            for name, moments in self._moments.items()
            if moments.count.any() and (name != "similarity" or moments.mean.any())
        }

    def _add(self, name, moments):
        if name in self._moments:
            self._moments[name].merge(moments)
        else:
            self._moments[name] = _Moments(**moments.parts())

    def _finished(self, name, moments):
        count = moments.count.cpu()
        if name == "max_logit":
            spread = (moments.squares[:, 0].cpu() / count.clamp(min=1)).sqrt()
            return {"count": count, "mean": moments.mean[:, 0].float().cpu(), "std": spread.float()}
        found = {"count": count, "means": moments.mean.float().cpu()}
        if name == "mahalanobis":
            covariance = moments.outer / moments.count.sum().clamp(min=1)  # (D, D)
            found["precision"] = _precision(covariance).float().cpu()
        return found


def _precision(covariance):
    """The inverse of a (D, D) float64 covariance, after shrinkage towards a multiple of the identity."""
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    variance = float(covariance.trace()) / len(covariance)
    if variance <= 0:
        return identity
    # Divided by the variance first: then no scale of the features makes the inverse overflow before its time.
    factor = torch.linalg.cholesky(covariance / variance + SHRINKAGE * identity)
    return torch.cholesky_inverse(factor) / variance


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def similarity(features, statistics):
    """1 - the largest cosine between a cell's features and a class mean.

    features: (N, D, h, w) float, cast to float32; statistics: the "similarity" of ScoreStatistics.finish(). Returns
    (N, h, w) float32 in 0..2; features of length 0 score 1. Classes never seen, or with a mean of length 0, are left
    out. Computed as half the squared distance of the unit vectors, which keeps its precision where the cosine rounds to
    1.
    Raises: ValueError for other types or shapes, or statistics without a class that can be used.
    Source: nearest class mean by cosine; Mensink et al., Distance-Based Image Classification (2013), with the cosine
    for their learnt metric.
    """
    features = _float_features(features)
    means = _seen_means(statistics, features)
    means = means[means.norm(dim=1) > 0]
    if not len(means):
        raise ValueError("no class mean has a direction: all features were 0")
    directions = _unit(means)
    return torch.stack([_cosine_score(image.flatten(1).T, directions).view(image.shape[1:]) for image in features])


def _cosine_score(values, directions):
    """(n, D), (C, D) unit vectors -> (n,)."""
    score = _squared_distance(_unit(values), directions) / 2
    return torch.where((values == 0).all(dim=1), 1.0, score)


def _unit(values):
    """Rows of length 1, rows of zeros as they are; scaled first, so that no square over- or underflows."""
    smallest = torch.finfo(values.dtype).tiny
    values = values / values.abs().amax(dim=1, keepdim=True).clamp(min=smallest)
    return values / values.norm(dim=1, keepdim=True).clamp(min=smallest)


def mahalanobis(features, statistics):
    """Squared Mahalanobis distance to the nearest class mean, under the covariance that all classes share.

    min_c (x - mu_c)^T P (x - mu_c), computed as a plain squared distance after whitening by the Cholesky factor of P.
    features: (N, D, h, w) float, cast to float32; statistics: the "mahalanobis" of ScoreStatistics.finish(). Returns
    (N, h, w) float32, not negative. Classes never seen are left out.
    Raises: ValueError for other types or shapes, or statistics without a class.
    Source: Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks
    (NeurIPS 2018), equation 2, with the sign turned. Deviation: the covariance is shrunk.
    """
    features = _float_features(features)
    means = _seen_means(statistics, features).double()
    whiten = torch.linalg.cholesky(statistics["precision"].to(features.device).double())  # (D, D)
    origin = means.mean(dim=0)  # distances stay, and smaller numbers lose less in float32
    means = ((means - origin) @ whiten).float()
    origin, whiten = origin.float()[:, None], whiten.float()
    images = ((image.flatten(1) - origin).T @ whiten for image in features)  # each (h w, D)
    distances = [_squared_distance(image, means) for image in images]
    return torch.stack(distances).view(len(features), *features.shape[2:])


def _squared_distance(values, means):
    """(n, D), (C, D) -> (n,), to the nearest; differences are taken first, so that large numbers do not cancel."""
    distances = torch.cdist(values, means, compute_mode="donot_use_mm_for_euclid_dist")  # (n, C)
    return distances.amin(dim=1).square()


def _seen_means(statistics, features):
    means = statistics["means"].to(features.device)
    if means.shape[1] != features.shape[1]:
        raise ValueError(f"{features.shape[1]} features for statistics of {means.shape[1]}")
    means = means[statistics["count"].to(features.device) > 0]
    if not len(means):
        raise ValueError("the statistics have seen no class")
    return means


FEATURE_SCORES = {"similarity": similarity, "mahalanobis": mahalanobis}  # of features and their ScoreStatistics


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def _float_features(features):
    if features.dim() != 4 or not features.is_floating_point():
        raise ValueError(f"features must be float (N, D, h, w), got {features.dtype} {tuple(features.shape)}")
    return features.float()


def _check_name(name):
    if name not in FEATURE_SCORES:
        raise ValueError(f"features are counted for {' or '.join(map(repr, FEATURE_SCORES))}, got {name!r}")


def _check_targets(targets, num_classes):
    """Refuse targets (iterable of (H, W) integers) that show anything but classes and void."""
    for target in targets:
        if target.dim() != 2 or target.is_floating_point() or target.dtype == torch.bool:
            raise ValueError(f"a target must be integers (H, W), got {target.dtype} {tuple(target.shape)}")
        strange = target[((target < 0) | (target >= num_classes)) & (target != VOID)]
        anomalies = int((strange == num_classes).sum())
        if anomalies:
            raise ValueError(
                f"anomaly pixels must never enter score statistics: {anomalies:,} pixels of value {num_classes}"
            )
        if strange.numel():
            raise ValueError(
                f"target value {int(strange[0])} is neither a class 0..{num_classes - 1} nor void ({VOID})"
            )
