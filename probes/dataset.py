"""What a data set as a whole tells: repeated images, the classes' shares, the layout floor."""

import math
from itertools import combinations

import numpy as np
import torch

import losses
import metrics
from probes.files import LISTED, void_shares
from probes.finding import Exhibit, Finding, Tile
from probes.limits import LIMITS
from probes.survey import fingerprints, unit

# ---------------------------------------------------------------------------------------------------------------------
# Repeated images


def duplicates(subject):
    """Does a split show images of another one: exact, re-encoded, resized, mirrored or brightened copies?

    Images are compared by their detail (`survey.fingerprints`), mirrored too. Neighbouring views across splits,
    and exact repeats inside one, are warnings.
    """
    surveys = subject.surveys
    pairs, nearest = _alike_pairs(surveys)
    copies = [p for p in pairs if p["like"] > LIMITS["copy"].value]
    views = [p for p in pairs if p["like"] <= LIMITS["copy"].value]
    inside = {name: _repeats_inside(s) for name, s in surveys.items()}
    about = {
        "value": _share_of_split(surveys, copies),
        "reference": LIMITS["repeated"].value,
        "evidence": {"copies": copies[:LISTED], "views": views[:LISTED], "repeats_inside": inside},
    }
    if copies:
        return [_copied(surveys, copies, about)]
    if len(views) >= 5 and _share_of_split(surveys, views) >= LIMITS["same_views"].value:
        why = f"{len(views)} images show the view of an image of another split, as neighbouring frames of a video do"
        remedy = "split by video or place, not by frame"
        exhibits = [_pair_exhibit(surveys, p) for p in views[:3]]
        cause = "repeated_across_splits"
        return [Finding("data.duplicates", "warn", why, cause=cause, remedy=remedy, exhibits=exhibits, **about)]
    repeated = [name for name, n in inside.items() if n >= max(2, LIMITS["repeated"].value * len(surveys[name]))]
    if repeated:
        why = ", ".join(
            f"{inside[name]} of {len(surveys[name])} {name} images repeat an earlier one" for name in repeated
        )
        return [Finding("data.duplicates", "warn", why, remedy="keep one of each, unless it is meant", **about)]
    why = f"no image of a split is in another one; the two most alike agree by {nearest:.2f} of 1"
    return [Finding("data.duplicates", "pass", why, **about)]


def _copied(surveys, copies, about):
    """The finding for images that two splits share: a failure where they are more than a few."""
    counts = {}
    for pair in copies:
        counts[tuple(pair["splits"])] = counts.get(tuple(pair["splits"]), 0) + 1
    counted = ", ".join(f"{n} of {len(surveys[b])} {b} images are in {a} too" for (a, b), n in counts.items())
    kinds = [kind for kind in ("exact", "near", "mirrored") if any(p["kind"] == kind for p in copies)]
    sure = about["value"] >= about["reference"] and max(counts.values()) > 1
    return Finding(
        "data.duplicates",
        "fail" if sure else "warn",
        f"{counted} ({' and '.join(kinds)} copies)",
        cause="repeated_across_splits",
        remedy="give every image to one split: what was trained on cannot be measured on",
        exhibits=[_pair_exhibit(surveys, pair) for pair in copies[:3]],
        **about,
    )


def _alike_pairs(surveys):
    """Images of a later split that are like one of an earlier split, and the largest likeness that occurs.

    Each pair: {"splits", "files", "kind" (exact, near or mirrored), "like" (1 for the same)}.
    """
    pairs, nearest = [], 0.0
    for a, b, like, partner, mirrored in _partners(surveys):
        rows = {digest: row for row, digest in enumerate(surveys[a].digests) if not surveys[a].constant[row]}
        exact = np.array([rows.get(digest, -1) for digest in surveys[b].digests])
        partner, like = np.where(exact >= 0, exact, partner), np.where(exact >= 0, 1.0, like)
        nearest = max(nearest, float(like.max()))
        for row in np.flatnonzero(like > LIMITS["same_view"].value):
            kind = "exact" if exact[row] >= 0 else "mirrored" if mirrored[row] else "near"
            files = [surveys[a].files[partner[row]], surveys[b].files[row]]
            pairs.append({"splits": [a, b], "files": files, "kind": kind, "like": float(like[row])})
    return pairs, nearest


def _partners(surveys):
    """For each two splits: names a, b; for each of b its largest likeness to a, whose, and whether mirrored, (N_b,)."""
    prints = {name: fingerprints(s.icons) for name, s in surveys.items()}
    flipped = {name: fingerprints(s.icons[:, :, ::-1]) for name, s in surveys.items()}
    images = sum(map(len, surveys.values()))
    mean = sum(p.sum(axis=0) for p in prints.values()) / max(1, images)  # what all share: a bonnet, a frame, a logo
    for part in (prints, flipped):
        for name, s in surveys.items():
            part[name] = unit(part[name] - mean) * ~s.constant[:, None]
    for a, b in combinations([name for name, s in surveys.items() if len(s)], 2):
        like, row = most_like(prints[b], prints[a])
        like_mirror, row_mirror = most_like(prints[b], flipped[a])
        mirrored = like_mirror > like
        yield a, b, np.where(mirrored, like_mirror, like), np.where(mirrored, row_mirror, row), mirrored


def most_like(queries, others):
    """The largest product of each query (N, K) with the others (M, K), and whose: (N,) float32, (N,) int64."""
    found = []
    for start in range(0, len(queries), 512):  # a block at a time: the products of 7,000 by 7,000 would take 200 MB
        products = queries[start : start + 512] @ others.T
        row = products.argmax(axis=1)
        found.append((products[np.arange(len(row)), row], row))
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def _share_of_split(surveys, pairs):
    """The largest share of a split's images that one other split holds."""
    counts = [(b, sum(p["splits"] == [a, b] for p in pairs)) for a, b in combinations(surveys, 2)]
    return max((n / max(1, len(surveys[b])) for b, n in counts), default=0.0)


def _repeats_inside(survey):
    """How many images have the very pixels of an earlier one of their split."""
    digests = [d for d, constant in zip(survey.digests, survey.constant, strict=True) if not constant]
    return len(digests) - len(set(digests))


def _pair_exhibit(surveys, pair):
    tiles = []
    for name, file in zip(pair["splits"], pair["files"], strict=True):
        tiles.append(Tile(f"{name}: {file}", image=surveys[name].picture(surveys[name].files.index(file))))
    return Exhibit(f"two splits, alike by {pair['like']:.2f} ({pair['kind']})", tiles)


# ---------------------------------------------------------------------------------------------------------------------
# Classes and layout


def class_distribution(subject):
    """Which classes are absent or rare, how much is void, and which weights follow."""
    audits = subject.clean_audits
    train = audits["train"]
    classes, counts, void = train.split.spec.classes, train.counts, void_shares(audits)
    shares = {
        name: dict(zip(classes, (a.counts / max(1, a.counts.sum())).tolist(), strict=True))
        for name, a in audits.items()
    }
    weights = losses.class_weights("sqrt", torch.from_numpy(counts), classes)
    present = counts[counts > 0]
    ratio = float(present.max() / present.min()) if len(present) else math.inf
    evidence = {
        "shares": shares,
        "void_share": void,
        "absent": {name: a.absent for name, a in audits.items() if a.absent},
        "recommended_weights": dict(zip(classes, weights.tolist(), strict=True)),
    }
    about = {"value": ratio, "reference": LIMITS["imbalance"].value, "evidence": evidence}
    also = "; void: " + ", ".join(f"{share:.1%} of {name}" for name, share in void.items())
    if train.absent:
        why = f"train holds no pixel of {', '.join(train.absent)}: the model cannot learn them"
        remedy = "add images of them, or leave the classes out"
        if void["train"] > 0.05:
            remedy = f"see first whether their value is declared void; else {remedy}"
        return [Finding("data.classes", "warn", why + also, cause="absent_classes", remedy=remedy, **about)]
    if ratio > LIMITS["imbalance"].value:
        why = (
            f"the most frequent class has {ratio:.0f} times the pixels of the rarest ({classes[int(counts.argmin())]})"
        )
        remedy = "try --class-weights sqrt, or class_weights.json beside this diagnosis"
        return [Finding("data.classes", "warn", why + also, cause="class_imbalance", remedy=remedy, **about)]
    return [
        Finding("data.classes", "pass", f"all classes occur; most to least frequent {ratio:.0f} to 1{also}", **about)
    ]


def layout_floor(subject, split="val"):
    """What a predictor that never opens the image gets on a split (its name): mIoU, and how many labels it explains."""
    audits = subject.clean_audits
    num_classes = audits["train"].split.spec.num_classes
    layout = metrics.fit_layout(audits["train"].grids, num_classes)
    confusion = sum(
        metrics.confusion_matrix(torch.from_numpy(layout.map), torch.from_numpy(grid), num_classes)
        for grid in audits[split].grids
    )
    scores = metrics.segmentation_scores(confusion)
    floor, accuracy = scores["miou"], scores["pixel_accuracy"]
    if floor is None:
        return [Finding("data.layout_floor", "skip", f"{split} has no labelled pixel")]
    return [
        Finding(
            "data.layout_floor",
            "pass",
            f"without opening an image, the training masks alone give {split} mIoU {floor:.3f} and explain "
            f"{accuracy:.0%} of its labels: what a model scores up to there proves nothing",
            value=floor,
            evidence={"exponent": layout.exponent, "split": split, "pixel_accuracy": accuracy},
        )
    ]
