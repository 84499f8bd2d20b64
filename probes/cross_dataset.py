"""How a score travels: one model on several data sets through their common classes, and why it drops where it does.

A drop is *spatial overfitting* where the model expects classes where its training set has them: the layouts differ, and
the answers follow the training layout, or come right once the images are moved to where the training set has their
classes. Otherwise it is *appearance*: the same things look different.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import cli
import data
import metrics
from cli import UserError
from datasets.audit import audit_split, require_clean
from datasets.catalogue import DATASETS, build_spec, parse_name, recognise
from datasets.label_spaces import common_names
from datasets.spec import VOID
from engine.evaluation import predictions
from engine.trained_run import space_of
from probes.finding import Exhibit, Finding, Tile
from probes.limits import LIMITS

REMEDIES = {
    "spatial_overfitting": "train with --augment scale, translate and flip or with --crop, so that classes are seen in "
    "other places, or add images of this set",
    "appearance_shift": "train with --augment colour and noise, or add images of this set; first check that its images "
    "enter as the training images do (channel order, mean, value range)",
}


class Move(NamedTuple):
    """How a picture is moved: turned over, then rolled by shares of its height and width; what leaves re-enters."""

    upside_down: bool = False
    mirrored: bool = False
    down: float = 0.0
    right: float = 0.0

    def there(self, picture, dims):
        """A tensor moved; dims: its dimensions of rows and columns."""
        return picture.flip(self._flips(dims)).roll(self._steps(picture, dims), dims)

    def back(self, picture, dims):
        """The inverse of `there`."""
        return picture.roll([-step for step in self._steps(picture, dims)], dims).flip(self._flips(dims))

    def _flips(self, dims):
        return [dim for dim, turned in zip(dims, self[:2], strict=True) if turned]

    def _steps(self, picture, dims):
        return [round(share * picture.shape[dim]) for dim, share in zip(dims, self[2:], strict=True)]

    def describe(self):
        """In words."""
        words = ["turned upside down"] * self.upside_down + ["mirrored"] * self.mirrored
        words += [f"{abs(self.down):.0%} of the height {'down' if self.down > 0 else 'up'}"] * bool(self.down)
        words += [f"{abs(self.right):.0%} of the width {'right' if self.right > 0 else 'left'}"] * bool(self.right)
        return ", ".join(words)


@dataclass
class Seen:
    """A model's answers on a sample of a set. Ids are the set's own (targets) and the model's (answers).

    classes: the set's common names; indices: the sampled images; layouts: (N, rows, columns) the set's training grids;
    confusion: (set's classes, model's classes) int64, pixels at full size; targets, answers: (n, rows, columns) uint8.
    """

    split: data.Split
    classes: list
    indices: list
    layouts: np.ndarray
    confusion: torch.Tensor
    targets: np.ndarray
    answers: np.ndarray


def open_others(subject, names):
    """Data sets to compare with, opened and found sound: {name: (Split to measure on, training grids)}, the subject's
    own first.

    names: as `find_set` takes them; the subject's own set is left out. Raises UserError.
    """
    own = subject.splits["val"]
    sets = {f"{subject.spec.name}, its own": (own, subject.clean_audits["train"].grids)}
    for text in names:
        folder, spec = find_set(text)
        if not own.parts and (spec.name, folder.resolve()) == (subject.spec.name, own.root.resolve()):
            continue
        splits = {name: data.open_split(spec, folder, name, subject.limit) for name in ("train", "val")}
        audits = {name: audit_split(split, metrics.GRID) for name, split in splits.items()}
        require_clean(audits.values())
        sets[text] = (splits["val"], audits["train"].grids)
    if len(sets) == 1:
        raise UserError("no other set to compare with", "--cross-dataset", "name a data set or a folder that holds one")
    return sets


def find_set(text):
    """(folder, spec) that --cross-dataset names: a folder that holds a set, a set by name in data/NAME, or NAME:FOLDER,
    the one way to name a condition in a folder of one's own: acdc/fog:DIR."""
    name, colon, folder = text.partition(":")
    if Path(text).is_dir() or parse_name(name)[0] not in DATASETS:
        return Path(text), recognise(text)
    folder = Path(folder) if colon else Path("data") / parse_name(name)[0]
    return folder, build_spec(name, folder)


def cross_dataset(subject, sets):
    """How a checkpoint's score travels to the sets of `open_others`: the Findings of `compare_sets`."""
    progress = cli.Progress(100, "cross-dataset", "%")
    found = compare_sets(
        subject.predictor,
        subject.spec.classes,
        sets,
        space=subject.content and space_of(subject.content),
        progress=lambda done, of: progress.update(round(100 * done / of)),
    )
    progress.close()
    return found


def compare_sets(predictor, classes, sets, *, space=None, count=64, batch_size=8, workers=0, progress=None):
    """How much of a model's score is left on other sets, and why: a `Finding` for each set but the first, "cross.NAME".

    classes: the model's class names. sets: {name: (Split to measure on, that set's own training targets on the layout
    grid (N, rows, columns) uint8)}; the first is the reference, normally the set that the model was trained on. Each
    comparison is made over the classes that model, reference and set share by name (`label_spaces.common_names`);
    pixels of other classes count as void. space: the model's `LabelSpace`, which may merge some; None: nothing is
    merged. count: images of each, evenly spaced. progress(done, total): images.
    """
    common = space.common_names if space else common_names
    model = common(classes)
    passes = 2 * len(sets) - 1  # each set once, each but the first once more if it has to be moved
    names, seen, findings = list(sets), {}, []

    def look(part, split, layouts, move=None):
        tell = progress and (lambda done, all_: progress(part * all_ + done, passes * all_))
        own = common(split.spec.classes)
        return _look(predictor, split, own, layouts, count, move, tell, batch_size=batch_size, workers=workers)

    for part, (name, (split, layouts)) in enumerate(sets.items()):
        seen[name] = look(part, split, layouts)
    for part, name in enumerate(names[1:], len(sets)):
        pair = _Pair(model, names[0], seen[names[0]], name, seen[name])
        moved = look(part, *sets[name], pair.move) if pair.needs_moving() else None
        findings.append(pair.finding(moved))
    return findings


def _look(predictor, split, names, layouts, count, move, tell, **options):
    """The model's answers on an even sample of a split, the images moved before they enter, the answers moved back.

    names: the common ones of the split's classes.
    """
    indices = sorted(set(np.linspace(0, len(split) - 1, count).round().astype(int).tolist()))
    own, known = split.spec.num_classes, predictor.num_classes
    larger = max(own, known)
    confusion, targets, answers = 0, [], []
    change = move and (lambda images, _targets, _indices: move.there(images, (1, 2)))
    found = predictions(predictor, split, indices=indices, change=change, **options)
    for done, (_, target, prediction) in enumerate(found, 1):
        labels = move.back(prediction.labels, (0, 1)) if move else prediction.labels  # (H, W)
        target = target.masked_fill(target >= own, VOID)  # anomalies
        confusion = confusion + metrics.confusion_matrix(labels, target, larger)
        targets.append(metrics.resize_nearest(target.numpy(), layouts.shape[1:]))
        answers.append(metrics.resize_nearest(labels.numpy(), layouts.shape[1:]))
        if tell:
            tell(done, len(indices))
    return Seen(split, names, indices, layouts, confusion[:own, :known], np.stack(targets), np.stack(answers))


class _Pair:
    """A reference and another set through the classes that both share with the model."""

    def __init__(self, model, reference_name, reference, name, other):
        self.model, self.names, self.sides = model, (reference_name, name), (reference, other)
        shared = set(reference.classes) & set(other.classes)
        self.common = [one for one in dict.fromkeys(model) if one in shared]
        self.rows, self.move, self.alike = [], None, None
        if len(self.common) < 2 or not all(self._labelled(side) for side in self.sides):
            return
        layouts = [self._translate(side.classes, side.layouts) for side in self.sides]
        self.training, self.own = (metrics.fit_layout(grids, len(self.common)).map for grids in layouts)
        majority = [metrics.layout_map(grids, len(self.common), 0.0) for grids in layouts]
        self.alike = float((majority[0] == majority[1]).mean())
        self.move, self.aligned = best_move(*majority)
        self.rows = [self._row(reference, self.training), self._row(other, self.own)]

    def _labelled(self, side):
        """Whether any pixel, measured or of the training layout, is of a common class."""
        ids = [i for i, name in enumerate(side.classes) if name in self.common]
        return bool(side.confusion[ids].any()) and bool(np.isin(side.layouts, ids).any())

    def _translate(self, names, labels):
        """Labels in the ids of `names` -> places in `common`, VOID for the rest."""
        table = np.full(256, VOID, np.uint8)
        for i, name in enumerate(names):
            if name in self.common:
                table[i] = self.common.index(name)
        return table[labels]

    def confusion(self, side):
        """(K, K + 1) int64 over the common classes; the last column is what the model answers of no common class."""
        size = len(self.common)
        into = [
            torch.from_numpy(self._translate(names, np.arange(len(names)))).long().clamp(max=size)
            for names in (side.classes, self.model)
        ]
        counts = torch.zeros(size + 1, size + 1, dtype=torch.int64)
        counts.index_put_((into[0][:, None], into[1][None]), side.confusion, accumulate=True)
        return counts[:size]

    def _row(self, side, own):
        """One set's figures, for the table."""
        confusion = self.confusion(side)
        labelled = side.confusion.sum(1).double()
        void = (labelled / labelled.sum()).tolist()
        floors = [self._floor(side, layout) for layout in (self.training, own)]
        iou = _iou(confusion)
        return {
            "images": len(side.indices),
            "miou": _mean(iou),
            "pixel_accuracy": float(confusion.diagonal().sum() / confusion.sum()),
            "floor_of_training_layout": floors[0],
            "floor_of_own_layout": floors[1],
            "layout_pull": layout_pull(self._joint(side)),
            "iou": dict(zip(self.common, iou, strict=True)),
            "void": {
                name: share
                for name, common, share in zip(side.split.spec.classes, side.classes, void, strict=True)
                if common not in self.common
            },
        }

    def _floor(self, side, layout):
        targets = torch.from_numpy(self._translate(side.classes, side.targets))
        layout = torch.from_numpy(layout).expand(targets.shape)
        return metrics.segmentation_scores(metrics.confusion_matrix(layout, targets, len(self.common)))["miou"]

    def _joint(self, side):
        """(K, K, K + 1) int64: cells by the training layout's class, true class, answer (K: no common class)."""
        size = len(self.common)
        targets, answers = self._translate(side.classes, side.targets), self._translate(self.model, side.answers)
        layout = np.broadcast_to(self.training, targets.shape)
        known = targets < size
        cells = (layout[known].astype(np.int64) * size + targets[known]) * (size + 1) + answers[known].clip(max=size)
        return np.bincount(cells, minlength=size * size * (size + 1)).reshape(size, size, size + 1)

    def drop(self):
        """The share of the reference's mIoU that is lost."""
        reference, other = (row["miou"] for row in self.rows)
        return (reference - other) / reference if reference else 0.0

    def needs_moving(self):
        """Whether the score drops and a move would bring the layouts together."""
        return bool(self.rows) and self.drop() > LIMITS["cross_drop"].value and self.move != Move()

    def finding(self, moved):
        """The verdict; moved: the other set `Seen` after `move`, or None."""
        probe = f"cross.{self.names[1]}"
        if not self.rows:
            why = f"{self.names[0]} and {self.names[1]} share {len(self.common)} classes"
            why += ": too few" if len(self.common) < 2 else ", none of which the images looked at show"
            return Finding(probe, "skip", why, evidence={"common_classes": self.common})
        (reference, other), drop = self.rows, self.drop()
        evidence = {
            "common_classes": self.common,
            "sets": dict(zip(self.names, self.rows, strict=True)),
            "drop": drop,
            "layouts_alike": self.alike,
        }
        about = {"value": other["miou"], "reference": reference["miou"], "evidence": evidence}
        shown = (
            f"over {len(self.common)} common classes mIoU {other['miou']:.3f} on {self.names[1]}, "
            f"{reference['miou']:.3f} on {self.names[0]} (layout floors there {other['floor_of_training_layout']:.3f} "
            f"from the training layout, {other['floor_of_own_layout']:.3f} from its own)"
        )
        if drop <= LIMITS["cross_drop"].value:
            return Finding(probe, "pass", shown, **about)
        cause, reason = self._explain(moved, evidence)
        remedy, exhibits = REMEDIES[cause], [self._exhibit()]
        return Finding(probe, "warn", f"{shown}: {reason}", cause, remedy=remedy, exhibits=exhibits, **about)

    def _explain(self, moved, evidence):
        """(cause, the sentence's end); what it rests on is added to the evidence."""
        reference, other = self.rows
        pulls = f"{other['layout_pull']:.1%} (there {reference['layout_pull']:.1%}) of the places where it is wrong"
        alike = f"the layouts agree at {self.alike:.0%} of the places"
        if moved:
            score = _mean(_iou(self.confusion(moved)))
            recovered = (score - other["miou"]) / (reference["miou"] - other["miou"])
            evidence |= {"moved": self.move.describe(), "layouts_alike_moved": self.aligned, "miou_moved": score}
            evidence["recovered"] = recovered
            if recovered > LIMITS["cross_recovered"].value:
                return "spatial_overfitting", (
                    f"moved ({self.move.describe()}) to where the training set has these classes, the same images give "
                    f"{score:.3f}: the model expects classes at fixed places"
                )
        excess = other["layout_pull"] - reference["layout_pull"]
        if self.alike < LIMITS["cross_layouts_alike"].value and excess > LIMITS["cross_pull"].value:
            return "spatial_overfitting", f"{alike}, and the training layout decides the answer at {pulls}"
        if self.alike >= LIMITS["cross_layouts_alike"].value:
            return "appearance_shift", f"{alike}, so it is what the images look like, not where things are"
        still = f"; moving them together gives {evidence['miou_moved']:.3f}" if moved else ""
        return "appearance_shift", (
            f"{alike}, but the answers do not follow the training layout, which decides at {pulls}{still}: it is what "
            "the images look like"
        )

    def _exhibit(self):
        """Both layouts, and the sampled image with most errors; masks in the model's ids."""
        other = self.sides[1]
        back = np.full(256, VOID, np.uint8)
        back[: len(self.common)] = [self.model.index(name) for name in self.common]
        targets, answers = self._translate(other.classes, other.targets), self._translate(self.model, other.answers)
        known = targets < len(self.common)
        right = ((targets == answers) & known).sum((1, 2)) / known.sum((1, 2)).clip(min=1)
        worst = int(np.where(known.any((1, 2)), right, 2.0).argmin())
        image, target = other.split.read(other.indices[worst])
        tiles = [
            Tile(f"where {self.names[0]} has its classes", mask=back[self.training]),
            Tile(f"where {self.names[1]} has them", mask=back[self.own]),
            Tile(other.split.file(other.indices[worst]), image=np.asarray(image)),
            Tile("labels", mask=back[self._translate(other.classes, target)]),
            Tile("answer", mask=back[answers[worst]]),
        ]
        return Exhibit(f"{self.names[1]}: layouts, and the sampled image with the largest share of errors", tiles)


def best_move(training, own, rows=24, columns=16):
    """The move after which a layout map agrees best with the training set's: (Move, share of places that agree).

    Maps: (rows, columns) uint8 of the same classes. Moves: flips, shifts in steps of 1/24 of the height and 1/16 of the
    width. No move at all unless one brings LIMITS["cross_closer"] more agreement.
    """
    training, own = torch.from_numpy(training), torch.from_numpy(own)
    moves = [
        Move(bool(flip & 1), bool(flip & 2), _signed(row / rows), _signed(column / columns))
        for flip in range(4)
        for row in range(rows)
        for column in range(columns)
    ]
    agreement = [float((move.there(own, (0, 1)) == training).float().mean()) for move in moves]
    best = max(range(len(moves)), key=agreement.__getitem__)
    if agreement[best] - agreement[0] < LIMITS["cross_closer"].value:
        best = 0
    return moves[best], agreement[best]


def _signed(share):
    """A roll by more than half is one the other way."""
    return share - 1 if share > 0.5 else share


def layout_pull(joint):
    """How often the layout decides the answer: the share of the cells where it is wrong that are answered as it says,
    beyond what cells of the same true class are answered so where the layout says something else.

    joint: (K, K, K + n) counts by the layout's class, true class, answer. 0: the answers do not depend on it, 1: they
    follow it wherever it is wrong.
    """
    size = len(joint)
    cells = joint.sum(2)  # (layout, truth)
    by_truth = joint.sum(0)[:, :size].T  # (answer, truth)
    follow = np.einsum("ltl->lt", joint[..., :size])  # answered as the layout says
    elsewhere = cells.sum(0) - cells  # cells of that truth where the layout says something else
    expected = cells * (by_truth - follow) / elsewhere.clip(min=1)
    counted = ~np.eye(size, dtype=bool) & (elsewhere > 0)
    return float((follow - expected)[counted].sum() / max(1, cells[counted].sum()))


def _iou(confusion):
    """IoU per common class of (K, K + 1) counts; None for one in neither labels nor answers."""
    hit = confusion.diagonal()
    union = confusion.sum(1) + confusion[:, :-1].sum(0) - hit
    return [h / u if u else None for h, u in zip(hit.tolist(), union.tolist(), strict=True)]


def _mean(values):
    known = [value for value in values if value is not None]
    return sum(known) / len(known)
