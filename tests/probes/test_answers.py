"""The probes of a trained model: each names its planted fault and is silent about the healthy model beside it.

Most ask a network that answers from colours alone, so that it is right from the start, and a fault is one line.
"""

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import data
import models
from datasets.catalogue import build_spec
from engine.checkpoint import fingerprint
from engine.predictor import Predictor
from networks.blocks import Normalise
from probes.answers import (
    Sample,
    ask,
    assign,
    batches,
    class_assignment,
    collapse,
    flip_equivariance,
    flip_figures,
    label_maps,
    miou_of,
    offset_hits,
    prediction_shift,
    softmax_inside,
    take_sample,
)
from probes.preprocessing import CARELESS, TWICE, input_contrast, preprocessing, recognise
from probes.preprocessing import ONCE as STATISTICS_ONCE
from probes.trained_weights import batch_norm_gap, is_judged, looks_fresh, untrained
from tests.folder_set import write_folder_set

CPU = torch.device("cpu")
CLASSES, SIZE = 4, (48, 64)
COLOURS = torch.tensor([[0.62, 0.40, 0.42], [0.40, 0.58, 0.38], [0.38, 0.42, 0.62], [0.60, 0.58, 0.40]])


class ByColour(nn.Module):
    """Logits: closeness of each pixel to each class's colour, as ImageNet's normalisation shows it."""

    def __init__(self):
        super().__init__()
        shown = Normalise()(COLOURS[:, :, None, None])[..., 0, 0]  # (C, 3)
        self.layer = nn.Conv2d(3, CLASSES, 1)
        with torch.no_grad():
            self.layer.weight.copy_(2 * shown[:, :, None, None])
            self.layer.bias.copy_(-shown.square().sum(1))

    def forward(self, images):
        return {"out": self.layer(images)}


class Then(nn.Module):
    """A network and what is done to its logits."""

    def __init__(self, net, change):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, images):
        return {"out": self.change(self.net(images)["out"])}


class Before(nn.Module):
    """What is done to images before a network, or before a preparation."""

    def __init__(self, change, net):
        super().__init__()
        self.net, self.change = net, change

    def forward(self, images):
        return self.net(self.change(images))


def draw_sample(count=12, seed=0, size=SIZE):
    """Blobs of four classes, each at other places in each image, in their colours with some noise."""
    generator = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for _ in range(count):
        fields = torch.rand(CLASSES, 4, 5, generator=generator)[None]
        target = nn.functional.interpolate(fields, size, mode="bilinear")[0].argmax(0).to(torch.uint8)
        noise = 0.02 * torch.randn(*size, 3, generator=generator)
        images.append(((COLOURS[target.long()] + noise).clamp(0, 1) * 255).to(torch.uint8))
        targets.append(target)
    names = [f"{i}.png" for i in range(count)]
    return Sample(images, targets, names, [(2 * size[0], 2 * size[1])] * count, tuple("abcd"))


def predictor_of(net=None, normalise=None):
    return Predictor(net or ByColour(), CLASSES, data.Geometry(list(SIZE)), CPU, normalise or Normalise())


def with_targets(sample, change):
    changed = copy.copy(sample)
    changed.targets = [change(target) for target in sample.targets]
    return changed


@pytest.fixture(scope="module")
def sample():
    return draw_sample()


PROBES = {
    "softmax": softmax_inside,
    "collapse": collapse,
    "class_ids": class_assignment,
    "shift": prediction_shift,
    "flip": flip_equivariance,
    "preprocessing": preprocessing,
    "input_contrast": input_contrast,
}


@pytest.mark.parametrize("probe", PROBES)
def test_healthy_model_passes_and_its_finding_is_plain_json(probe, sample):
    finding = PROBES[probe](predictor_of(), sample)
    assert (finding.probe, finding.verdict, finding.cause) == (f"model.{probe}", "pass", None), finding.why
    json.dumps(finding.json(), allow_nan=False)


def constant(logits):
    """Always the first class."""
    return logits * 0 + torch.tensor([1.0, 0, 0, 0])[:, None, None]


def layout(logits):
    """The same mask for every image, half of it of each of two classes."""
    logits = constant(logits)
    logits[:, 1, :, : SIZE[1] // 2] = 2
    return logits


RELATIVE = ["class_ids", "shift", "flip", "preprocessing"]


@pytest.mark.parametrize("probe", RELATIVE)
@pytest.mark.parametrize("change", [constant, layout, lambda x: torch.rand(x.shape, generator=torch.manual_seed(0))])
def test_a_model_broken_otherwise_is_not_accused(probe, change, sample):
    assert PROBES[probe](predictor_of(Then(ByColour(), change)), sample).verdict == "pass"


# ---- the sample


def test_sample_is_even_at_the_networks_size_and_read_once(tmp_path):
    root = write_folder_set(tmp_path / "set", counts=(("train", 1), ("val", 10)))
    spec = build_spec("folder", root)
    split = data.open_split(spec, root, "val")
    sample = take_sample(split, data.Geometry([20, 28]), count=5)
    assert sample.files == [split.file(i) for i in (1, 3, 5, 7, 9)]
    assert sample.sizes == [(40, 56)] * 5
    assert sample.classes == ("red", "green", "blue")
    image, target = split.read(3)
    assert torch.equal(sample.images[1], data.Geometry([20, 28]).resize(image))
    assert np.array_equal(sample.targets[1].numpy(), target[1::2, 1::2])
    whole = take_sample(split, data.Geometry([20, 28], crop=[16, 16]), count=99)
    assert len(whole) == 10
    assert whole.images[0].shape == (40, 56, 3)
    assert whole.thin(3).files == [split.file(i) for i in (1, 5, 8)]


def test_batches_keep_the_order_and_mix_no_sizes():
    images = [torch.full((h, 4, 3), i, dtype=torch.uint8) for i, h in enumerate([4] * 9 + [6] * 2 + [4])]
    found = list(batches(images))
    assert [len(batch) for batch in found] == [5, 4, 2, 1]
    assert [int(image[0, 0, 0]) for batch in found for image in batch] == list(range(12))


def test_answers_are_those_of_the_predictor_and_coarse_ones_are_enlarged(sample):
    predictor = predictor_of()
    answers = list(ask(predictor, sample))
    assert torch.equal(torch.stack(answers[:2]), predictor.logits(torch.stack(sample.images[:2])))
    coarse = predictor_of(Then(ByColour(), lambda logits: nn.functional.avg_pool2d(logits, 4)))
    assert next(ask(coarse, sample)).shape == (CLASSES, *SIZE)
    assert miou_of(label_maps(coarse, sample), sample, CLASSES) > 0.7


def test_answers_that_are_not_finite_name_the_file(sample):
    broken = predictor_of(Then(ByColour(), lambda logits: logits / 0))
    with pytest.raises(FloatingPointError, match=r"0\.png"):
        label_maps(broken, sample)


# ---- softmax


@pytest.mark.parametrize(
    ("change", "verdict", "cause"),
    [
        (lambda x: x.softmax(1), "fail", "softmax_inside"),
        (lambda x: x.softmax(1).half().float(), "fail", "softmax_inside"),
        (torch.sigmoid, "warn", "softmax_inside"),
        (lambda x: x.log_softmax(1), "pass", None),
        (lambda x: x - x.amax(1, keepdim=True), "pass", None),
    ],
)
def test_probabilities_are_told_from_logits(change, verdict, cause, sample):
    finding = softmax_inside(predictor_of(Then(ByColour(), change)), sample)
    assert (finding.verdict, finding.cause) == (verdict, cause)


# ---- collapse


def test_one_class_and_one_mask_are_told_apart(sample):
    finding = collapse(predictor_of(Then(ByColour(), constant)), sample)
    assert (finding.verdict, finding.cause, finding.evidence["most_predicted"]) == ("fail", "collapse", "a")
    finding = collapse(predictor_of(Then(ByColour(), layout)), sample)
    assert (finding.verdict, finding.cause) == ("fail", "ignores_the_image")
    assert len(finding.exhibits[0].tiles) == 6


def test_a_single_image_has_no_other_to_be_compared_with(sample):
    assert collapse(predictor_of(), sample.take([0])).evidence["mask_agreement"] is None


# ---- class ids


def test_assignment_is_the_best_one():
    optimize = pytest.importorskip("scipy.optimize")
    random = np.random.RandomState(0)
    for rows, columns in [(1, 1), (3, 3), (11, 11), (7, 12), (20, 20)]:
        for gain in (random.rand(rows, columns), random.randint(0, 3, (rows, columns)), np.zeros((rows, columns))):
            found = assign(gain)
            assert len(set(found.tolist())) == rows
            best = gain[optimize.linear_sum_assignment(gain, maximize=True)].sum()
            assert gain[np.arange(rows), found].sum() == pytest.approx(best)


@pytest.mark.parametrize(
    ("order", "cause"),
    [
        ([1, 2, 3, 0], "class_ids_shifted"),
        ([3, 0, 1, 2], "class_ids_shifted"),
        ([1, 2, 3, 3], "class_ids_shifted"),  # clamped at the top
        ([0, 2, 1, 3], "class_ids_permuted"),
        ([3, 2, 1, 0], "class_ids_permuted"),
    ],
)
def test_classes_by_other_names_are_named(order, cause, sample):
    names = torch.tensor(order, dtype=torch.uint8)
    renamed = with_targets(sample, lambda target: names[target.long()])
    finding = class_assignment(predictor_of(), renamed)
    assert (finding.verdict, finding.cause) == ("fail", cause)
    pairs = {"abcd"[order[c]]: "abcd"[c] for c in range(CLASSES) if order[c] != c}
    assert finding.evidence["predicted_where_target_is"].items() <= pairs.items()
    assert finding.exhibits[0].confusion.sum() == len(sample) * SIZE[0] * SIZE[1]


def test_rare_classes_that_swap_are_no_fault(sample):
    def swap_rare(target):
        target = target % 2  # two classes cover all, the other two a corner
        target[0, :2], target[0, 2:4] = 2, 3
        return target

    def confuse(logits):
        logits = torch.cat([logits[:, :2] + logits[:, 2:], torch.full_like(logits[:, :2], -99.0)], dim=1)
        logits[:, 3, 0, :2], logits[:, 2, 0, 2:4] = 99, 99
        return logits

    finding = class_assignment(predictor_of(Then(ByColour(), confuse)), with_targets(sample, swap_rare))
    assert finding.verdict == "pass"
    assert finding.value > finding.reference + 0.2


# ---- shift


def test_offset_hits_counts_as_a_loop_does():
    random = np.random.RandomState(0)
    label, target = (torch.from_numpy(random.randint(0, 4, (13, 18)).astype(np.uint8)) for _ in range(2))
    hits, pixels = offset_hits(label, target, 3, 2)  # class 3 counts as void
    inner = target[2:-2, 2:-2]
    assert pixels == int((inner < 3).sum())
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            seen = label[2 + dy : 11 + dy, 2 + dx : 16 + dx]
            assert hits[2 + dy, 2 + dx] == int(((seen == inner) & (inner < 3)).sum())


@pytest.mark.parametrize("shift", [(0, 5), (-4, 0), (3, -3)])
def test_a_shift_is_given_back_to_the_pixel(shift, sample):
    moved = predictor_of(Then(ByColour(), lambda logits: logits.roll(shift, (2, 3))))
    finding = prediction_shift(moved, sample)
    assert (finding.verdict, finding.cause) == ("fail", "shifted_predictions")
    assert (finding.evidence["down"], finding.evidence["right"]) == shift
    assert finding.evidence["original_pixels"] == [2 * shift[0], 2 * shift[1]]
    assert len(finding.exhibits[0].tiles) == 2


# ---- flip


def turned_by_chance(logits):
    """The mask for an image that was flipped without it: of this image or of its mirror image, half and half."""
    return logits.softmax(1) + logits.flip(3).softmax(1)


def knows_its_side(logits):
    """The same mask for an image and its mirror image, though not a symmetric one: that of the darker left side."""
    turn = logits[:, 0, :, : SIZE[1] // 2].mean((1, 2)) < logits[:, 0, :, SIZE[1] // 2 :].mean((1, 2))
    return torch.where(turn[:, None, None, None], logits, logits.flip(3))


def test_flip_figures_count_as_a_loop_does():
    random = np.random.RandomState(0)
    label, other, target = random.randint(0, 4, (3, 5, 6))
    target[0, 0] = 255
    known = [(y, x) for y in range(5) for x in range(6) if max(target[y, x], target[y, 5 - x]) < 3]  # 3 as void
    sided = [(y, x) for y, x in known if target[y, x] != target[y, 5 - x]]
    wanted = {
        "equivariant": np.mean([other[y, 5 - x] == label[y, x] for y, x in known]),
        "invariant": np.mean([other[y, x] == label[y, x] for y, x in known]),
        "symmetric": np.mean([label[y, 5 - x] == label[y, x] for y, x in known]),
        "symmetric_target": 1 - len(sided) / len(known),
        "turned": np.mean([other[y, x] == target[y, 5 - x] for y, x in sided]),
        "unturned": np.mean([other[y, x] == target[y, x] for y, x in sided]),
        "sided": len(sided),
    }
    masks = ([torch.from_numpy(mask.astype(np.uint8))] for mask in (label, other, target))
    assert flip_figures(*masks, 3) == pytest.approx(wanted)


def test_masks_that_do_not_turn_are_named(sample):
    assert flip_equivariance(predictor_of(), sample).value < 0.05
    for change in (turned_by_chance, knows_its_side):
        finding = flip_equivariance(predictor_of(Then(ByColour(), change)), sample)
        assert (finding.verdict, finding.cause) == ("fail", "flip_missed_masks"), finding.why
        assert len(finding.exhibits[0].tiles) == 4


def test_symmetric_scenes_prove_nothing(sample):
    both = copy.copy(sample)
    half = SIZE[1] // 2
    both.images = [torch.cat([image[:, :half], image[:, :half].flip(1)], dim=1) for image in sample.images]
    both.targets = [torch.cat([target[:, :half], target[:, :half].flip(1)], dim=1) for target in sample.targets]
    assert flip_equivariance(predictor_of(), both).verdict == "skip"


# ---- what enters the network


def in_series(*parts):
    return nn.Sequential(*parts)


class Reversed(nn.Module):
    def forward(self, images):
        return images.flip(1)


class Scale(nn.Module):
    def __init__(self, factor, offset=0.0):
        super().__init__()
        self.factor, self.offset = factor, offset

    def forward(self, images):
        return images * self.factor + self.offset


ONCE = Normalise()


@pytest.mark.parametrize(
    ("normalise", "known"),
    [
        (ONCE, ("RGB", STATISTICS_ONCE)),
        (in_series(ONCE, Normalise()), ("RGB", TWICE)),
        (in_series(ONCE, Reversed()), ("BGR", STATISTICS_ONCE)),
        (in_series(Reversed(), ONCE), (CARELESS, STATISTICS_ONCE)),
        (Scale(255), ("RGB", "[0, 255]")),
        (in_series(Reversed(), Scale(2, -1)), ("BGR", "[-1, 1]")),
        (nn.Identity(), ("RGB", "[0, 1]")),
        (Normalise((0.4, 0.4, 0.4), (0.3, 0.3, 0.3)), None),
        (nn.InstanceNorm2d(3), None),
    ],
)
def test_a_preparation_is_recognised(normalise, known):
    assert recognise(normalise, CPU) == known


@pytest.mark.parametrize(
    ("normalise", "net", "cause"),
    [
        (in_series(ONCE, Normalise()), ByColour(), "normalised_twice"),
        (Normalise(), Before(Normalise(), ByColour()), "normalised_twice"),
        (in_series(Reversed(), ONCE), ByColour(), "wrong_channel_order"),
        (Normalise(), Before(Reversed(), ByColour()), "wrong_channel_order"),
        (Scale(255), ByColour(), "wrong_value_range"),
        (Normalise((0.45,) * 3, (0.225,) * 3), Before(Reversed(), ByColour()), "wrong_channel_order"),
    ],
)
def test_the_preparation_that_wins_is_named(normalise, net, cause, sample):
    finding = preprocessing(predictor_of(net, normalise), sample)
    assert (finding.verdict, finding.cause) == ("fail", cause), finding.why
    assert finding.reference > finding.value + 0.1
    json.dumps(finding.json(), allow_nan=False)


def test_an_unusual_preparation_that_was_trained_with_is_healthy(sample):
    odd, undo = Scale(0.7, 0.1), Scale(1 / 0.7, -0.1 / 0.7)
    predictor = predictor_of(Before(undo, ByColour()), in_series(odd, Normalise((0.1,) * 3, (1.0,) * 3)))
    predictor.model = Before(in_series(Scale(1, 0.1), undo, Normalise()), ByColour())
    finding = preprocessing(predictor, sample)
    assert (finding.verdict, finding.evidence["now"]) == ("pass", "as declared")
    assert input_contrast(predictor, sample).verdict == "pass"


@pytest.mark.parametrize(
    ("normalise", "verdict", "cause"),
    [
        (Scale(255), "pass", None),
        (Normalise((123.7 / 255, 116.8 / 255, 103.9 / 255), (1 / 255,) * 3), "pass", None),
        (in_series(ONCE, Normalise()), "warn", "normalised_twice"),
        (in_series(Scale(255), ONCE), "warn", "wrong_value_range"),
        (Scale(1 / 255), "fail", "wrong_value_range"),
        (Scale(math.inf), "fail", "wrong_value_range"),
    ],
)
def test_contrast_of_what_enters(normalise, verdict, cause, sample):
    finding = input_contrast(predictor_of(ByColour(), normalise), sample)
    assert (finding.verdict, finding.cause) == (verdict, cause), finding.why
    json.dumps(finding.json(), allow_nan=False)


# ---- batch norm


def with_norm(sample, momentum=None):
    """ByColour with a batch norm in it that has seen the sample, or not (momentum 0)."""
    norm = nn.BatchNorm2d(3, momentum=momentum)
    inside = Before(in_series(Scale(1, 60), norm), ByColour())
    wide = torch.stack([data.to_float(image[None])[0] for image in sample.images])
    prepared = Normalise()(wide)
    mean, std = prepared.mean((0, 2, 3)), prepared.std((0, 2, 3))
    with torch.no_grad():  # its output is what ByColour expects
        norm.weight.copy_(std)
        norm.bias.copy_(mean)
    inside.train()
    inside(prepared)
    return nn.Sequential(inside).eval()


def test_stale_statistics_are_named_and_nothing_changes(sample):
    healthy, stale = predictor_of(with_norm(sample)), predictor_of(with_norm(sample, momentum=0.0))
    before = copy.deepcopy(stale.model.state_dict())
    assert batch_norm_gap(healthy, sample).verdict == "pass"
    finding = batch_norm_gap(stale, sample)
    assert (finding.verdict, finding.cause) == ("fail", "stale_batch_norm"), finding.why
    assert "1 of 1 batch norms still have the statistics they started with" in finding.why
    assert all(torch.equal(value, before[key]) for key, value in stale.model.state_dict().items())
    assert not stale.model.training


def test_batch_norm_that_does_no_harm_and_models_without(sample):
    assert batch_norm_gap(predictor_of(), sample).verdict == "skip"
    assert batch_norm_gap(predictor_of(with_norm(sample)), sample.take([0, 1])).verdict == "skip"
    idle = predictor_of(nn.Sequential(ByColour()))
    idle.model.add_module("rest", Rest(nn.BatchNorm2d(3)))
    finding = batch_norm_gap(idle, sample)
    assert (finding.verdict, finding.cause) == ("warn", "stale_batch_norm")


class Rest(nn.Module):
    """A part that the model holds and does not run."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, outputs):
        return outputs


def test_dropout_is_measured_and_leaves_the_generator_alone(sample):
    net = with_norm(sample)
    net[0].change.append(nn.Dropout(0.5))
    state = torch.get_rng_state()
    evidence = batch_norm_gap(predictor_of(net), sample).evidence
    assert evidence["miou_dropout"] < evidence["miou_stored"]
    assert torch.equal(state, torch.get_rng_state())


# ---- untrained


def moved(model, names):
    """The model after a training that moved these modules' own parameters; names: None for all."""
    with torch.no_grad():
        for name, module in model.named_modules():
            if names is None or name in names:
                for parameter in module.parameters(recurse=False):
                    parameter.add_(1e-3)
    return model


class Ours(nn.Module):
    """As much of a model of ours as freezing knows."""

    class_layers, centres = ("classifier",), None

    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1))
        self.decoder, self.classifier = nn.Conv2d(8, 8, 1), nn.Conv2d(8, CLASSES, 1)


def test_layers_that_did_not_move_are_named(sample):
    small = Ours()
    initial = fingerprint(small)
    own = [*initial]

    def judge(names, freeze="none"):
        model = moved(copy.deepcopy(small), names)
        config = type("Config", (), {"freeze": freeze})
        finding = untrained(predictor_of(model), sample, initial, config)
        json.dumps(finding.json(), allow_nan=False)
        return finding.verdict, finding.cause

    body = [name for name in own if name.startswith("backbone.")]
    rest = [name for name in own if name not in body]
    assert judge(None) == ("pass", None)
    assert judge([]) == ("fail", "learning_rate_zero")
    assert judge(rest) == ("fail", "frozen_backbone")
    assert judge(rest, "backbone") == ("pass", None)
    assert judge(["classifier"], "all-but-head") == ("pass", None)
    assert judge([], "all-but-head") == ("fail", "learning_rate_zero")
    assert judge([name for name in own if name != "classifier"]) == ("fail", "untrained_layers")
    assert judge(own[2:], "3") == ("pass", None)  # two layers' three parameter tensors
    assert judge(own[2:], "1") == ("fail", "untrained_layers")
    assert judge(own[2:], "2") == ("fail", "untrained_layers")  # half of the second is meant to train


class Foreign(nn.Module):
    """Somebody's model: a body, a head, and an auxiliary head that only training runs."""

    def __init__(self, bias=True):
        super().__init__()
        self.body = nn.Conv2d(3, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)
        self.head = nn.Conv2d(64, CLASSES, 3, padding=1, bias=bias)
        self.aux = nn.Conv2d(64, CLASSES, 3, padding=1)

    def forward(self, images):
        maps = self.norm(self.body(images)).relu()
        return {"out": self.head(maps), **({"aux": self.aux(maps)} if self.training else {})}


def test_a_foreign_models_fresh_layers_are_named(sample):
    torch.manual_seed(0)
    net = Foreign()

    def judge(names):
        finding = untrained(predictor_of(moved(copy.deepcopy(net), names)), sample)
        return finding.verdict, finding.cause, finding.evidence["fresh_at_work"]

    assert judge(["body", "norm", "head", "aux"]) == ("pass", None, [])
    assert judge(["body", "norm", "aux"]) == ("fail", "untrained_layers", ["head"])
    assert judge(["body", "head", "aux"]) == ("fail", "untrained_layers", ["norm"])
    assert judge(["body", "norm", "head"]) == ("warn", "untrained_layers", [])
    assert judge([])[2] == ["body", "norm", "head"]


def test_what_looks_fresh_and_what_does_not():
    torch.manual_seed(0)
    fresh = [nn.Conv2d(16, 128, 3), nn.Linear(64, 64), nn.Conv2d(64, 64, 1, bias=False), nn.ConvTranspose2d(64, 32, 2)]
    for init in (nn.init.xavier_uniform_, lambda w: nn.init.kaiming_uniform_(w, nonlinearity="relu")):
        layer = nn.Conv2d(32, 64, 3)
        init(layer.weight)
        nn.init.zeros_(layer.bias)
        fresh.append(layer)
    assert all(map(looks_fresh, fresh))
    for layer in fresh:
        with torch.no_grad():
            layer.weight.add_(1e-4 * torch.randn(layer.weight.shape))  # one small step
    assert not any(map(looks_fresh, fresh))
    pruned = nn.Conv2d(64, 64, 3)
    with torch.no_grad():
        pruned.weight.mul_(0.5)  # weight decay alone: within the bounds, but not up to them
    assert not looks_fresh(pruned)
    assert not is_judged(nn.Conv2d(3, 4, 1))


# ---- a real network on real images


@pytest.mark.real_data
def test_untrained_network_on_real_images_is_accused_of_nothing_relative(real_data):
    root = real_data / "camvid"
    spec = build_spec("camvid", root)
    geometry = data.Geometry([60, 80])
    sample = take_sample(data.open_split(spec, root, "val"), geometry, count=8)
    torch.manual_seed(0)
    net = models.build_model("fpn_mobilenet_v2", spec.num_classes)
    predictor = Predictor(net, spec.num_classes, geometry, CPU)
    before = copy.deepcopy(net.state_dict())
    for probe in RELATIVE:
        assert PROBES[probe](predictor, sample).verdict == "pass"
    assert batch_norm_gap(predictor, sample).verdict == "warn"
    finding = untrained(predictor, sample, fingerprint(net))
    assert (finding.verdict, finding.cause) == ("fail", "learning_rate_zero")
    finding = untrained(predictor, sample)
    assert (finding.verdict, finding.cause) == ("fail", "untrained_layers")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
