"""A trained model's own state: layers that never trained, and batch norm whose statistics fit nothing, are named."""

import copy
import json

import pytest
import torch
from torch import nn

import data
import models
from datasets.catalogue import build_spec
from engine.checkpoint import fingerprint
from engine.predictor import Predictor
from networks.blocks import Normalise
from probes.answers import take_sample
from probes.trained_weights import batch_norm_gap, is_judged, looks_fresh, untrained
from tests.probes.examples import (
    CLASSES,
    CPU,
    Before,
    ByColour,
    Scale,
    ask_probe,
    draw_sample,
    predictor_of,
    subject_of,
)


@pytest.fixture(scope="module")
def sample():
    return draw_sample()


# ---- batch norm


def with_norm(sample, momentum=None):
    """ByColour with a batch norm in it that has seen the sample, or not (momentum 0)."""
    norm = nn.BatchNorm2d(3, momentum=momentum)
    inside = Before(nn.Sequential(Scale(1, 60), norm), ByColour())
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
    assert ask_probe(batch_norm_gap, healthy, sample).verdict == "pass"
    finding = ask_probe(batch_norm_gap, stale, sample)
    assert (finding.verdict, finding.cause) == ("fail", "stale_batch_norm"), finding.why
    assert "1 of 1 batch norms still have the statistics they started with" in finding.why
    assert all(torch.equal(value, before[key]) for key, value in stale.model.state_dict().items())
    assert not stale.model.training


def test_batch_norm_that_does_no_harm_and_models_without(sample):
    assert ask_probe(batch_norm_gap, predictor_of(), sample).verdict == "skip"
    assert ask_probe(batch_norm_gap, predictor_of(with_norm(sample)), sample.take([0, 1])).verdict == "skip"
    idle = predictor_of(nn.Sequential(ByColour()))
    idle.model.add_module("rest", Rest(nn.BatchNorm2d(3)))
    finding = ask_probe(batch_norm_gap, idle, sample)
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
    evidence = ask_probe(batch_norm_gap, predictor_of(net), sample).evidence
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
        content = {"initial": initial, "config": {"freeze": freeze}}
        [finding] = untrained(subject_of(predictor_of(model), sample, content=content))
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
        finding = ask_probe(untrained, predictor_of(moved(copy.deepcopy(net), names)), sample)
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


@pytest.mark.real_data
def test_an_untrained_network_is_named_on_real_images_and_nothing_changes(real_data):
    root = real_data / "camvid"
    spec = build_spec("camvid", root)
    geometry = data.Geometry([60, 80])
    sample = take_sample(data.open_split(spec, root, "val"), geometry, count=8)
    torch.manual_seed(0)
    net = models.build_model("fpn_mobilenet_v2", spec.num_classes)
    predictor = Predictor(net, spec.num_classes, geometry, CPU)
    before = copy.deepcopy(net.state_dict())
    assert ask_probe(batch_norm_gap, predictor, sample).verdict == "warn"
    content = {"initial": fingerprint(net), "config": {}}
    [finding] = untrained(subject_of(predictor, sample, content=content))
    assert (finding.verdict, finding.cause) == ("fail", "learning_rate_zero")
    finding = ask_probe(untrained, predictor, sample)
    assert (finding.verdict, finding.cause) == ("fail", "untrained_layers")
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
