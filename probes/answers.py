"""What a trained model's answers tell, on a small sample of the validation split that is read once.

Does it use its classes and give different images different masks, do its answers already sum to 1, are its classes
ours, do its masks lie where the targets do, and does a mirrored image get a mirrored mask?
"""

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

import data
import metrics
from probes.finding import Exhibit, Finding, Tile
from probes.limits import LIMITS, stands_out

NOT_SEEN = "the image does not reach the output: check normalisation, frozen layers and batch-norm statistics"

# ---------------------------------------------------------------------------------------------------------------------
# The sample, and how a model is asked about it


@dataclass
class Sample:
    """A few pairs of a split as the network sees them.

    images: (h, w, 3) uint8 tensors at the network's size; targets: (h, w) uint8 tensors of train ids at the same size,
    nearest neighbour; files: their names; sizes: (H, W) of each pair on disk; classes: names.
    """

    images: list
    targets: list
    files: list
    sizes: list
    classes: tuple

    def __len__(self):
        return len(self.images)

    def take(self, places):
        """The sample of the pairs at these places."""
        parts = (self.images, self.targets, self.files, self.sizes)
        return Sample(*([part[i] for i in places] for part in parts), self.classes)

    def of_one_size(self):
        """The pairs of its most common size, so that batches can be made of them."""
        shapes = [target.shape for target in self.targets]
        most = max(shapes, key=shapes.count)
        return self.take([i for i, shape in enumerate(shapes) if shape == most])

    def thin(self, count):
        """At most `count` of its pairs, evenly spaced."""
        return self.take(_evenly(len(self), count))


def _evenly(length, count):
    """`count` of the places 0 … length - 1, or all of them, evenly spaced."""
    count = min(count, length)
    return [(2 * i + 1) * length // (2 * count) for i in range(count)]


def take_sample(split, geometry, count=32):
    """Read a Sample of a split, evenly spaced: whole images at the size at which `geometry` shows them in evaluation.

    Raises UserError for a pair that cannot be read.
    """
    places, pairs = _evenly(len(split), count), []
    for place in places:
        image, target = split.read(place)
        shown = geometry.resize(image)  # (h, w, 3)
        mask = Image.fromarray(target).resize((shown.shape[1], shown.shape[0]), Image.Resampling.NEAREST)
        pairs.append((shown, torch.from_numpy(np.array(mask)), split.file(place), target.shape))
    return Sample(*(list(part) for part in zip(*pairs, strict=True)), split.spec.classes)


def batches(images, size=8):
    """Stack neighbouring images (h, w, 3) of one size: yields (N, h, w, 3), N at most `size` and as even as it can."""
    for _, group in itertools.groupby(images, key=lambda image: image.shape):
        alike = torch.stack(list(group))
        yield from alike.tensor_split(-(-len(alike) // size))


def ask(predictor, sample, prepare=None, change=None, model=None):
    """A model's answer to each image in turn: yields logits (C, h, w) float32 at the image's size.

    prepare: images (N, 3, h, w) float32 in [0, 1] -> what enters the network; None: the predictor's own normalisation.
    change: images (N, h, w, 3) uint8 -> as many of that size, before all else. model: asked in the predictor's place,
    in whatever mode it is; None: the predictor's, in evaluation mode.
    Raises FloatingPointError naming the image whose logits are not finite, unless `prepare` was given.
    """
    model = predictor.model.eval() if model is None else model
    enter, files = prepare or predictor.normalise, iter(sample.files)
    for images in batches(sample.images):
        images = change(images) if change else images
        with torch.inference_mode():
            logits = model(enter(data.to_float(images.to(predictor.device))))["out"].float()  # (N, C, rows, columns)
            for one, file in zip(logits, itertools.islice(files, len(logits)), strict=True):
                if prepare is None and not one.isfinite().all():  # of a preparation that is only tried, no wonder
                    raise FloatingPointError(f"the network's answer is not finite at {file}; its weights are broken")
            if logits.shape[2:] != images.shape[1:3]:
                logits = F.interpolate(logits, images.shape[1:3], mode="bilinear", align_corners=False)
        yield from logits


def label_maps(predictor, sample, **options):
    """`ask`'s answers as masks: a list of (h, w) uint8 tensors on the CPU."""
    known = predictor.num_classes
    return [logits[:known].max(0).indices.to("cpu", torch.uint8) for logits in ask(predictor, sample, **options)]


def count(labels, sample, num_classes):
    """The confusion matrix (C, C) int64 [target, prediction] of masks against the sample's targets."""
    pairs = zip(labels, sample.targets, strict=True)
    return sum(metrics.confusion_matrix(label, target, num_classes) for label, target in pairs)


def miou_of(labels, sample, num_classes):
    """mIoU of masks against the sample's targets; 0 without a labelled pixel."""
    return metrics.segmentation_scores(count(labels, sample, num_classes))["miou"] or 0.0


def floor_of(sample, num_classes, layout_map=None):
    """mIoU on the sample without looking at an image: the layout map's.

    Without a map the better of two guesses: the most frequent class everywhere, or each class at random as often as it
    occurs, which is right at p² of the pixels and has an IoU of p / (2 - p).
    """
    if layout_map is not None:
        maps = [torch.from_numpy(metrics.resize_nearest(layout_map, tuple(target.shape))) for target in sample.targets]
        return miou_of(maps, sample, num_classes)
    pixels = sum(torch.bincount(t.flatten(), minlength=256)[:num_classes] for t in sample.targets)
    shares = pixels[pixels > 0] / pixels.sum().clamp(min=1)
    if not len(shares):
        return 0.0
    return max(float(shares.max()) / len(shares), float((shares / (2 - shares)).mean()))


# ---------------------------------------------------------------------------------------------------------------------
# What the answers are


def softmax_inside(subject):
    """Are the answers probabilities already? A loss or a score that takes logits would apply softmax again."""
    predictor, sample = subject.predictor, subject.sample
    name, low, high, sums, logs = "model.softmax", np.inf, -np.inf, 0.0, 0.0
    for logits in ask(predictor, sample.thin(8)):
        if len(logits) < 2:
            return [Finding(name, "skip", "a model of a single class has nothing to sum over")]
        low, high = min(low, float(logits.min())), max(high, float(logits.max()))
        sums = max(sums, float((logits.sum(0) - 1).abs().max()))
        logs = max(logs, float(logits.logsumexp(0).abs().max()))
    figures = {"lowest": low, "highest": high, "sum_off_by": sums, "logsumexp": logs}
    about = {"value": sums, "reference": 0.0, "evidence": figures}
    tolerance = LIMITS["sums_to_one"].value
    if low >= -tolerance and sums <= tolerance:
        why = f"the answers lie between {low:.3g} and {high:.3g} and sum to 1 at every pixel: they are probabilities"
        remedy = "take softmax out of the model: cross-entropy and the anomaly scores apply it themselves"
        return [Finding(name, "fail", why, cause="softmax_inside", remedy=remedy, **about)]
    if low >= 0 and high <= 1:
        why = f"the answers lie between {low:.3g} and {high:.3g}, as after a sigmoid"
        remedy = "take the sigmoid out of the model, unless its loss is made for it: cross-entropy wants logits"
        return [Finding(name, "warn", why, cause="softmax_inside", remedy=remedy, **about)]
    if logs <= tolerance:
        why = "the answers are logarithms of probabilities: as good for cross-entropy, but energy is 0 everywhere"
        return [Finding(name, "pass", why, **about)]
    return [Finding(name, "pass", f"the answers are logits, between {low:.3g} and {high:.3g}", **about)]


# ---------------------------------------------------------------------------------------------------------------------
# Does it use its classes, and give different images different masks?


def _on_grid(mask):
    """A mask (H, W) at the layout grid's places."""
    return torch.from_numpy(metrics.resize_nearest(mask.numpy()))


def collapse(subject):
    """Does the model use its classes, and give different images different masks?"""
    predictor, sample = subject.predictor, subject.sample
    name, classes, labels = "model.collapse", sample.classes, label_maps(predictor, sample)
    confusion = count(labels, sample, predictor.num_classes)
    predicted, wanted = confusion.sum(0).double(), confusion.sum(1).double()
    if not wanted.any():
        return [Finding(name, "skip", "no labelled pixel in the sample")]
    top = int(predicted.argmax())
    share, true_share = float(predicted[top] / predicted.sum()), float(wanted[top] / wanted.sum())
    agreement, true_agreement = _agreement(labels), _agreement(sample.targets)
    active = metrics.segmentation_scores(confusion)["active_classes"]
    evidence = {"active_classes": active, "classes": len(classes), "most_predicted": classes[top], "share": share}
    evidence |= {"share_in_targets": true_share, "mask_agreement": agreement, "target_agreement": true_agreement}
    evidence["never_predicted"] = [one for one, n in zip(classes, predicted.tolist(), strict=True) if not n]
    about = {"value": share, "reference": true_share, "evidence": evidence}
    if share > LIMITS["one_class"].value and share > true_share + 0.05:
        why = f"{share:.1%} of the pixels are called {classes[top]}, which holds {true_share:.1%} of them"
        remedy = "if gradient flow and labels are sound: lower --lr, train longer, then --class-weights sqrt"
        return [Finding(name, "fail", why, cause="collapse", remedy=remedy, **about)]
    if agreement is not None and agreement > LIMITS["same_mask"].value and agreement > true_agreement + 0.05:
        why = f"different images get the same mask ({agreement:.1%} of the pixels agree; targets: {true_agreement:.1%})"
        about["exhibits"] = [_masks_of(sample, labels)]
        return [Finding(name, "fail", why, cause="ignores_the_image", remedy=NOT_SEEN, **about)]
    why = f"{active} of {len(classes)} classes are active, masks differ between images"
    return [Finding(name, "pass", why, **about)]


def _agreement(masks):
    """Mean share of equal places on the layout grid between each mask and the next image's; None for a single one."""
    if len(masks) < 2:
        return None
    grids = [_on_grid(mask) for mask in masks]
    pairs = zip(grids, grids[1:] + grids[:1], strict=True)
    return float(torch.stack([(a == b).float().mean() for a, b in pairs]).mean())


def _masks_of(sample, labels, number=3):
    """An exhibit of a few images and their masks."""
    tiles = []
    for place in _evenly(len(sample), number):
        tiles += [Tile(sample.files[place], image=sample.images[place].numpy())]
        tiles += [Tile("its mask", mask=labels[place].numpy())]
    return Exhibit("images and what is predicted for them", tiles=tiles)


# ---------------------------------------------------------------------------------------------------------------------
# Are its classes ours?


def assign(gain):
    """The column of each row, every column at most once, so that the sum is largest. gain: (R, C) finite, R <= C.

    Source: Kuhn, The Hungarian Method, 1955, in the shortest-path form with potentials (Jonker and Volgenant 1987).
    """
    cost = -np.asarray(gain, dtype=np.float64)
    rows, columns = cost.shape
    above, beside = np.zeros(rows), np.zeros(columns + 1)  # potentials; the last column is where a row starts from
    row_of = np.full(columns + 1, -1)
    for row in range(rows):
        row_of[columns], here = row, columns
        reached, back = np.full(columns, np.inf), np.full(columns, columns)
        done = np.zeros(columns + 1, bool)
        while row_of[here] >= 0:  # until a free column: then the path back to the start is turned over
            done[here] = True
            reduced = cost[row_of[here]] - above[row_of[here]] - beside[:columns]
            better = (reduced < reached) & ~done[:columns]
            reached[better], back[better] = reduced[better], here
            nearest = int(np.where(done[:columns], np.inf, reached).argmin())
            step = reached[nearest]
            above[row_of[done]] += step
            beside[done] -= step
            reached[~done[:columns]] -= step
            here = nearest
        while here != columns:
            row_of[here] = row_of[back[here]]
            here = back[here]
    column_of = np.empty(rows, int)
    column_of[row_of[:columns][row_of[:columns] >= 0]] = np.flatnonzero(row_of[:columns] >= 0)
    return column_of


def class_assignment(subject):
    """Would another naming of the predicted classes fit the targets far better?"""
    predictor, sample, layout_map = subject.predictor, subject.sample, subject.layout_map
    name, classes, num_classes = "model.class_ids", sample.classes, predictor.num_classes
    confusion = count(label_maps(predictor, sample), sample, num_classes)
    wanted, predicted = confusion.sum(1), confusion.sum(0)
    if not wanted.any():
        return [Finding(name, "skip", "no labelled pixel in the sample")]
    union = wanted[:, None] + predicted[None] - confusion
    iou = (confusion / union.clamp(min=1)).numpy()  # (C, C) [target, prediction]
    column_of = assign(iou)
    present = (wanted > 0).numpy()
    now, best = float(iou.diagonal()[present].mean()), float(iou[np.arange(num_classes), column_of][present].mean())
    frequent = (wanted > LIMITS["frequent"].value * wanted.sum()).numpy()
    gained = iou[np.arange(num_classes), column_of] - iou.diagonal()
    moved = np.flatnonzero(frequent & (gained > LIMITS["renamed"].value))
    pairs = {classes[c]: classes[column_of[c]] for c in moved}
    floor = floor_of(sample, num_classes, layout_map)
    evidence = {"miou": now, "miou_renamed": best, "layout_floor": floor, "predicted_where_target_is": pairs}
    about = {"value": best, "reference": now, "evidence": evidence}
    if len(moved) < 2 or not stands_out(best, floor):
        shown = f"the best assignment of classes gives mIoU {best:.3f}, their own names {now:.3f}"
        return [Finding(name, "pass", shown, **about)]
    offset, times = Counter((column_of[moved] - moved).tolist()).most_common(1)[0]
    about["exhibits"] = [Exhibit("which class is predicted where each class is", confusion=confusion.numpy())]
    gives = f"mIoU {best:.3f} instead of {now:.3f}"
    if times >= LIMITS["one_offset"].value * len(moved):
        why = f"the prediction is the target's number {offset:+d} for {times} classes: read so, the model has {gives}"
        remedy = "number the classes as in training: look for a class 0 that was added or dropped"
        return [Finding(name, "fail", why, cause="class_ids_shifted", remedy=remedy, **about)]
    shown = ", ".join(f"{there} where {here} is" for here, there in list(pairs.items())[:4])
    why = f"{len(moved)} classes go by other names ({shown}): renamed, the model has {gives}"
    remedy = "give the classes the order that the model was trained with"
    return [Finding(name, "fail", why, cause="class_ids_permuted", remedy=remedy, **about)]


# ---------------------------------------------------------------------------------------------------------------------
# Do its masks lie where the targets do?


def offset_hits(label, target, num_classes, reach):
    """Pixels that agree if the prediction is read at an offset of up to `reach` pixels: (2 reach + 1)² float64.

    Entry [reach + dy, reach + dx]: how many pixels x of the target, `reach` and more from its border so that all
    offsets are judged by the same ones, have prediction(x + (dy, dx)) = target(x). Also their number.
    Source: cross-correlation of each class's masks through the Fourier transform, summed over classes.
    """
    height, width = target.shape
    inner = torch.zeros(target.shape, dtype=torch.bool)
    inner[reach : height - reach, reach : width - reach] = True
    inner &= target < num_classes
    spectrum = torch.zeros(height, width // 2 + 1, dtype=torch.complex64)
    for value in target[inner].unique():
        there, here = torch.fft.rfft2((label == value).float()), torch.fft.rfft2(((target == value) & inner).float())
        spectrum += there * here.conj()
    hits = torch.fft.irfft2(spectrum, s=(height, width)).roll((reach, reach), (0, 1))
    return hits[: 2 * reach + 1, : 2 * reach + 1].double().round(), int(inner.sum())


def fit_offset(labels, targets, num_classes):
    """Where the targets fit the masks best, judged by the same pixels of each target: a dict, None without such pixels.

    labels, targets: lists of (h, w) uint8 tensors. Returns down, right (pixels), accuracy (as they are),
    accuracy_moved, errors_mended (share of the wrong pixels), gains (N,) int64: pixels gained by each image.
    """
    reach = min(16, min(side for target in targets for side in target.shape) // 8)
    found = [offset_hits(*pair, num_classes, reach) for pair in zip(labels, targets, strict=True)]
    hits, pixels = torch.stack([one for one, _ in found]), sum(n for _, n in found)  # (N, offsets, offsets)
    if not pixels:
        return None
    row, column = divmod(int(hits.sum(0).argmax()), 2 * reach + 1)
    gains = hits[:, row, column] - hits[:, reach, reach]
    now, best = (float(hits[:, y, x].sum() / pixels) for y, x in ((reach, reach), (row, column)))
    mended = (best - now) / max(1 - now, 1e-9)
    figures = {"down": row - reach, "right": column - reach, "accuracy": now, "accuracy_moved": best}
    return figures | {"errors_mended": mended, "gains": gains}


def prediction_shift(subject):
    """Do the masks fit the targets better when they are moved? By whole pixels of the network's size."""
    predictor, sample, layout_map = subject.predictor, subject.sample, subject.layout_map
    name, num_classes = "model.shift", predictor.num_classes
    labels = label_maps(predictor, sample)
    fit = fit_offset(labels, sample.targets, num_classes)
    if fit is None:
        return [Finding(name, "skip", "no labelled pixel away from the border of the sample's images")]
    down, right, gains = fit["down"], fit["right"], fit.pop("gains")
    back = [label.roll((-down, -right), (0, 1)) for label in labels]
    miou, floor = miou_of(back, sample, num_classes), floor_of(sample, num_classes, layout_map)
    (height, width), (rows, columns) = sample.sizes[0], sample.targets[0].shape
    original = [down * height / rows, right * width / columns]
    fit |= {"original_pixels": original, "miou_moved": miou, "layout_floor": floor}
    fit["images_helped"] = float((gains > 0).double().mean())
    about = {"value": fit["accuracy_moved"], "reference": fit["accuracy"], "evidence": fit}
    shown = f"{fit['accuracy_moved']:.3f} of the pixels agree, as they are {fit['accuracy']:.3f}"
    far = max(abs(down), abs(right)) >= LIMITS["shift_pixels"].value
    clear = fit["errors_mended"] > LIMITS["errors_mended"].value and fit["images_helped"] > 0.75
    if not (far and clear and stands_out(miou, floor)):
        why = f"the masks fit best {down:+d} down and {right:+d} right: {shown}"
        return [Finding(name, "pass", why, **about)]
    why = (
        f"the masks lie {down:+d} down and {right:+d} right of the targets in pixels of the network's size "
        f"({original[0]:+.1f} and {original[1]:+.1f} in the first image's own): moved back, {shown}"
    )
    remedy = "look for padding that is not cut off, a crop on one side only, or masks that were moved"
    worst = int(gains.argmax())
    about["exhibits"] = [_beside(sample, worst, {"target": sample.targets[worst], "prediction": labels[worst]})]
    return [Finding(name, "fail", why, cause="shifted_predictions", remedy=remedy, **about)]


def _beside(sample, place, masks):
    """An exhibit of one image with the borders of several masks. masks: {title: (h, w) uint8 tensor}."""
    image = sample.images[place].numpy()
    tiles = [Tile(title, image, mask.numpy()) for title, mask in masks.items()]
    return Exhibit(sample.files[place], tiles=tiles)


# ---------------------------------------------------------------------------------------------------------------------
# Does a mirrored image get a mirrored mask?


def flip_figures(labels, mirrored, targets, num_classes):
    """How masks f(x) and f(mirror x) stand to each other and to the targets, as shares of pixels over a sample.

    labels, mirrored, targets: lists of (h, w) uint8 tensors. equivariant: f(mirror x) is the mirror image of f(x);
    invariant: it is f(x); symmetric, symmetric_target: f(x), the target is its own mirror image. Where the target is
    not: turned, unturned: f(mirror x) is right, or is what was right before the image was mirrored; sided: how many
    such pixels there are.
    """
    sums = Counter()
    for label, other, target in zip(labels, mirrored, targets, strict=True):
        turned = target.flip(1)
        known = (target < num_classes) & (turned < num_classes)
        sided = known & (target != turned)
        sums["equivariant"] += int((other.flip(1) == label)[known].sum())
        sums["invariant"] += int((other == label)[known].sum())
        sums["symmetric"] += int((label.flip(1) == label)[known].sum())
        sums["symmetric_target"] += int((target == turned)[known].sum())
        sums["turned"] += int((other == turned)[sided].sum())
        sums["unturned"] += int((other == target)[sided].sum())
        sums["known"] += int(known.sum())
        sums["sided"] += int(sided.sum())
    shares = {"equivariant": "known", "invariant": "known", "symmetric": "known", "symmetric_target": "known"}
    shares |= {"turned": "sided", "unturned": "sided"}
    return {name: sums[name] / max(1, sums[whole]) for name, whole in shares.items()} | {"sided": sums["sided"]}


def flip_equivariance(subject):
    """Does a mirrored image get the mirrored mask?

    A model trained on images that were flipped without their masks gives both the same mask, or one that is its own
    mirror image. Judged where targets differ from their mirror images, so that symmetric scenes prove nothing.
    """
    predictor, sample, layout_map = subject.predictor, subject.sample, subject.layout_map
    name, num_classes = "model.flip", predictor.num_classes
    labels = label_maps(predictor, sample)
    mirrored = label_maps(predictor, sample, change=lambda images: images.flip(2))
    figures = flip_figures(labels, mirrored, sample.targets, num_classes)
    miou, floor = miou_of(labels, sample, num_classes), floor_of(sample, num_classes, layout_map)
    if not figures["sided"]:
        return [Finding(name, "skip", "every target of the sample is its own mirror image")]
    unturned = figures["unturned"] / max(figures["turned"] + figures["unturned"], 1e-9)
    evidence = figures | {"unturned_share": unturned, "miou": miou, "layout_floor": floor}
    about = {"value": unturned, "reference": LIMITS["unturned"].value, "evidence": evidence}
    shown = (
        f"a mirrored image gets the mirrored mask at {figures['equivariant']:.1%} of the pixels, the same mask at "
        f"{figures['invariant']:.1%} ({figures['symmetric']:.1%} would be the same in either case)"
    )
    same = figures["invariant"] - figures["symmetric"] > LIMITS["same_when_mirrored"].value
    symmetric = figures["symmetric"] - figures["symmetric_target"] > LIMITS["too_symmetric"].value
    if not (unturned > LIMITS["unturned"].value and (same or symmetric) and stands_out(miou, floor)):
        return [Finding(name, "pass", shown, **about)]
    remedy = "flip masks together with images in training, then train again"
    pairs = zip(labels, mirrored, strict=True)
    place = int(np.argmax([float((a == b).float().mean() - (a.flip(1) == a).float().mean()) for a, b in pairs]))
    about["exhibits"] = [_flip_exhibit(sample, place, labels[place], mirrored[place])]
    return [Finding(name, "fail", shown, cause="flip_missed_masks", remedy=remedy, **about)]


def _flip_exhibit(sample, place, label, mirrored):
    image = sample.images[place].numpy()
    tiles = [Tile("image", image=image), Tile("its mask", mask=label.numpy())]
    tiles += [Tile("mirrored", image=image[:, ::-1].copy()), Tile("its mask", mask=mirrored.numpy())]
    return Exhibit(f"{sample.files[place]}: what is predicted for it, and for its mirror image", tiles=tiles)
