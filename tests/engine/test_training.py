"""Device, precision, schedule, the training step and evaluation."""

import copy
import math
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import data
import losses
import metrics
import models
from cli import UserError
from datasets.catalogue import build_spec
from engine import predictor as predictor_module
from engine import training as engine
from engine.devices import autocast_dtype, choose_device
from engine.evaluation import evaluate
from engine.optim import Schedule, build_optimizer
from engine.predictor import Predictor, predict, strips
from engine.training import Training, optimise, share_buffers, train_step
from networks.blocks import Normalise

CPU = torch.device("cpu")


# ---- machine


def test_devices_and_precision_are_refused_in_words():
    for name in ("gpu", "mps", "cuda:x"):
        with pytest.raises(UserError, match="--device"):
            choose_device(name)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="0 CUDA devices"):
            choose_device("cuda")
        assert choose_device("auto") == CPU
    with pytest.raises(UserError, match="fp16 needs CUDA"):
        autocast_dtype("fp16", CPU)
    assert autocast_dtype("off", CPU) is None
    assert autocast_dtype("bf16", CPU) is torch.bfloat16


# ---- schedule


def test_poly_and_constant_by_hand():
    poly = Schedule("poly:power=0.9", 100, 10)
    assert poly.rate(0.1, 0) == 0.1
    assert poly.rate(0.1, 50) == pytest.approx(0.1 * 0.5**0.9)
    assert Schedule("constant", 100, 10).rate(0.1, 99) == 0.1


def test_onecycle_agrees_with_torch():
    steps, peak, start, end = 40, 0.25, 0.04, 0.001
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.3, steps, pct_start=peak, div_factor=1 / start, final_div_factor=start / end, cycle_momentum=False
    )
    ours = Schedule(f"onecycle:peak={peak},start={start},end={end}", steps, 10)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < steps:
            reference.step()
    mine = [ours.rate(0.3, step) for step in range(steps)]
    assert mine == pytest.approx(rates)


def test_cosine_restarts_agrees_with_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    reference = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2, 2, eta_min=1e-6)
    ours = Schedule("cosine-restarts:t0=2,mult=2,min=1e-6", 1000, 1)
    for step in range(15):
        assert ours.rate(0.1, step) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        reference.step()


def test_plateau_waits_then_lowers_and_survives_a_resume():
    schedule = Schedule("plateau:patience=1,factor=0.5", 100, 10)
    for score, factor in [(0.3, 1), (0.4, 1), (0.4, 1), (0.39, 0.5), (0.41, 0.5), (0.1, 0.5), (0.1, 0.25)]:
        schedule.observe(score)
        again = Schedule("plateau:patience=1,factor=0.5", 100, 10)
        again.load_state_dict(schedule.state_dict())
        schedule = again
        assert schedule.rate(1.0, 5) == factor


def test_warmup_rises_to_the_schedule():
    schedule = Schedule("constant", 100, 10, warmup=4)
    assert [schedule.rate(1.0, s) for s in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_unknown_schedule_is_the_users_error():
    with pytest.raises(UserError, match="poly"):
        Schedule("polly", 10, 1)


# ---- optimiser and step


RATES = {"lr": 0.1, "backbone_lr": 0.01, "weight_decay": 0.5}


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_backbone_and_head_have_their_own_rate_and_norms_no_decay(kind):
    model = models.build_model("mobilenetv2", 3)
    optimizer = build_optimizer(model, kind, **RATES)
    found = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    assert len(found) == len(list(model.parameters()))
    inside = {id(p) for p in model.backbone.parameters()}
    for p in model.parameters():
        assert found[id(p)]["base_lr"] == (0.01 if id(p) in inside else 0.1)
        assert found[id(p)]["weight_decay"] == (0.5 if p.ndim > 1 else 0.0)


@pytest.mark.parametrize(
    ("name", "part"),
    [("fpn_convnext_tiny", "layer_scale"), ("fpn_swin_t", "relative_position_bias"), ("vit_tiny", "pos_embedding")],
)
def test_what_is_no_matrix_has_no_decay(name, part):
    with torch.device("meta"):
        model = models.build_model(name, 3)
    decays = {id(p): g["weight_decay"] for g in build_optimizer(model, **RATES).param_groups for p in g["params"]}
    found = {key: decays[id(parameter)] for key, parameter in model.named_parameters()}
    assert any(part in key for key in found)
    for key, decay in found.items():
        free = any(word in key for word in (part, "bias", "class_token")) or model.get_parameter(key).ndim == 1
        assert decay == (0.0 if free else 0.5), key


def test_nothing_left_to_train_is_an_error():
    model = models.build_model("mobilenetv2", 3).requires_grad_(False)
    with pytest.raises(UserError, match="--freeze"):
        build_optimizer(model, **RATES)


def start(model, **changes):
    made = {"schedule": Schedule("constant", 10, 10), "augment": data.Augment({}), "clip": 0.0, "seed": 0}
    optimizer = build_optimizer(model, changes.pop("optimizer", "adamw"), **{**RATES, "lr": 0.01})
    made |= {"sampling": None, "optimizer": optimizer}
    return Training(model=model, device=CPU, dtype=None, **{**made, **changes})


def batch(count=4, size=32, classes=3):
    torch.manual_seed(1)
    targets = torch.randint(0, classes, (count, size, size), dtype=torch.uint8)
    targets[0, :20] = 255  # so that parts of a batch do not weigh the same
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8), targets


def test_a_batch_of_void_is_a_zero_step_not_nan():
    torch.manual_seed(0)
    training = start(models.build_model("mobilenetv2", 3))
    criterion = losses.Criterion({"ce": [1.0]}, 3, Normalise())
    images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    result = train_step(training, criterion, images, torch.full((2, 32, 32), 255, dtype=torch.uint8))
    assert float(result["loss"]) == 0.0
    assert float(result["gradient_norm"]) == 0.0
    assert all(p.isfinite().all() for p in training.model.parameters())


def test_clipping_reports_the_norm_before_whole_and_by_part():
    model = torch.nn.ModuleDict({"one": torch.nn.Linear(1, 1, bias=False), "two": torch.nn.Linear(1, 1, bias=False)})
    model["one"].weight.data.fill_(1), model["two"].weight.data.fill_(1)
    model["one"].weight.grad, model["two"].weight.grad = torch.tensor([[3.0]]), torch.tensor([[4.0]])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    training = Namespace(optimizer=optimizer, scaler=None, clip=0.5, model=model, average=None)
    norm, parts = optimise(training)
    assert float(norm) == pytest.approx(5.0)
    assert {name: float(value) for name, value in parts.items()} == {"one": 3.0, "two": 4.0}
    assert model["one"].weight.item() == pytest.approx(1 - 0.3, abs=1e-5)
    assert model["two"].weight.item() == pytest.approx(1 - 0.4, abs=1e-5)


def test_accumulated_parts_equal_the_whole_batch():
    """One normaliser over the whole step: the parts differ in labelled pixels, and every term must still agree."""
    torch.manual_seed(0)
    model = models.build_model("mobilenetv2", 3)
    model(torch.randn(4, 3, 64, 64))
    models.freeze_parameters(model, "all-but-head")  # batch norm of parts would see other features
    models.train_mode(model)
    weights = torch.tensor([1.0, 0.2, 3.0])
    criterion = losses.Criterion({"ce": [1.0], "dice": [0.5], "lovasz": [0.3]}, 3, Normalise(), weights)
    results, states = [], []
    for parts in (1, 2, 3):
        training = start(copy.deepcopy(model), accumulate=parts, optimizer="sgd")
        results.append(train_step(training, criterion, *batch(6)))
        states.append(training.model.classifier.weight.detach())
    assert not torch.equal(states[0], model.classifier.weight)
    for result, state in zip(results[1:], states[1:], strict=True):
        torch.testing.assert_close(state, states[0], rtol=1e-4, atol=1e-6)
        assert float(result["gradient_norm"]) == pytest.approx(float(results[0]["gradient_norm"]), rel=1e-4)
        for name, value in result["terms"].items():
            assert float(value) == pytest.approx(float(results[0]["terms"][name]), rel=1e-4)


def test_a_loss_that_draws_from_the_batch_keeps_its_scale_in_parts():
    """Contrastive draws its anchors in each part anew: another draw, and yet the same size of loss."""
    torch.manual_seed(0)
    model = models.build_model("mobilenetv2", 3)
    criterion = losses.Criterion({"ce": [1.0], "contrastive": [1.0, 0.5]}, 3, Normalise())
    found = []
    for parts in (1, 2, 4):
        training = start(copy.deepcopy(model), accumulate=parts, optimizer="sgd")
        found.append(float(train_step(training, criterion, *batch(8, 64))["terms"]["contrastive"]))
    assert found == pytest.approx([found[0]] * 3, rel=0.2)


def test_frozen_parameters_and_a_loss_that_reaches_none_of_the_others_are_an_error():
    model = models.build_model("mobilenetv2", 3)
    models.freeze_parameters(model, "all-but-head")
    criterion = losses.Criterion({"contrastive": [1.0, 0.5]}, 3, Normalise())
    with pytest.raises(UserError, match="no term of the loss reaches a parameter"):
        train_step(start(model), criterion, *batch())


def test_a_run_goes_on_on_another_kind_of_device(capsys):
    training = start(models.build_model("mobilenetv2", 3), schedule=Schedule("constant", 10, 10))
    state = training.state()
    state["random"][0]["varying"] = torch.zeros(16, dtype=torch.uint8)  # the size of a CUDA generator's
    training.restore(state)
    assert "another kind of device" in capsys.readouterr().err


def test_averaged_weights_follow_by_hand():
    torch.manual_seed(0)
    training = start(models.build_model("mobilenetv2", 3), ema=0.2, optimizer="sgd")
    criterion = losses.Criterion({"ce": [1.0]}, 3, Normalise())
    expected, states = None, []
    for step in range(4):
        models.train_mode(training.model)
        train_step(training, criterion, *batch())
        training.step += 1
        current = training.model.state_dict()
        states.append({key: value.clone() for key, value in current.items()})
        decay = min(0.2, (1 + step) / (10 + step))
        expected = {
            key: value.double() if step == 0 else decay * expected[key] + (1 - decay) * value.double()
            for key, value in states[-1].items()
            if value.is_floating_point()
        }
    kept = training.best.state_dict()
    for key, value in expected.items():
        torch.testing.assert_close(kept[key].double(), value, rtol=1e-4, atol=1e-6)
    assert not torch.equal(kept["classifier.weight"], states[-1]["classifier.weight"])


# ---- evaluation


@pytest.mark.parametrize("size", [(90, 61), (24, 32), (7, 9), (24, 61)])
def test_strips_equal_one_resize_whatever_their_height(size, monkeypatch):
    logits = torch.randn(5, 24, 32, generator=torch.Generator().manual_seed(0))
    whole = torch.cat([strip for _, strip in strips(logits, size)], 1)
    reference = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    assert torch.allclose(whole, reference, atol=1e-5)
    monkeypatch.setattr(predictor_module, "STRIP_BYTES", 4 * 5 * size[1] * 3)
    parts = list(strips(logits, size))
    assert len(parts) == math.ceil(size[0] / 3)
    assert torch.equal(torch.cat([strip for _, strip in parts], 1), whole)


def test_prediction_figures_against_softmax():
    logits = torch.randn(4, 9, 11, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, 4, (9, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    target[0] = 255
    target[1] = 4  # anomaly: no known class
    found = predict({"out": logits}, (9, 11), target, ["maxlogit"])
    probabilities = logits.softmax(0)
    assert torch.equal(found.labels.long(), probabilities.argmax(0))
    assert torch.allclose(found.confidence, probabilities.max(0).values)
    assert torch.allclose(found.scores["maxlogit"], -logits.max(0).values)
    known = target < 4
    nll = F.cross_entropy(logits[None], torch.where(known, target, 9).long()[None], ignore_index=9, reduction="sum")
    assert found.nll == pytest.approx(float(nll), rel=1e-5)
    assert found.pixels == int(known.sum())


class ColourModel(torch.nn.Module):
    """Logits are the three colour channels: a model whose every answer is known."""

    def forward(self, images):
        return {"out": images}


def predictor(size=(40, 56)):
    same = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Predictor(ColourModel(), 3, data.Geometry(list(size)), CPU, same)


def test_sharded_evaluation_equals_the_whole(folder_set):
    split = data.open_split(build_spec("folder", folder_set), folder_set, "train")
    layout = np.zeros(metrics.GRID, np.uint8)
    common = {"layout_map": layout, "scores": ["maxlogit"]}
    whole = evaluate(predictor(), split, batch_size=3, **common)
    parts = [evaluate(predictor(), split, batch_size=2, indices=range(r, 8, 3), **common) for r in range(3)]
    for part in parts[1:]:
        parts[0].merge(part)
    assert torch.equal(parts[0].confusion, whole.confusion)
    assert torch.equal(parts[0].floor, whole.floor)
    assert parts[0].loss() == whole.loss()
    assert parts[0].calibration.ece() == whole.calibration.ece()
    assert torch.equal(parts[0].boundary, whole.boundary)
    assert all(torch.equal(parts[0].images[i], whole.images[i]) for i in range(8))
    assert whole.scores()["miou"] > 0.95  # red, green and blue bands are the classes


def test_evaluation_reads_targets_at_their_own_size(folder_set):
    split = data.open_split(build_spec("folder", folder_set), folder_set, "train")
    small = evaluate(predictor((20, 28)), split)
    assert small.confusion.sum() == 8 * 40 * 56
    assert small.pixels == 8 * 40 * 56


def test_what_replaces_the_images_is_what_is_judged(folder_set):
    split = data.open_split(build_spec("folder", folder_set), folder_set, "train")

    def only_green(images, targets, indices):
        assert len(images) == len(targets) == len(indices)
        green = torch.zeros_like(images)
        green[..., 1] = 255
        return green

    totals = evaluate(predictor(), split, change=only_green)
    assert totals.confusion.sum(0)[[0, 2]].tolist() == [0, 0]


def test_every_process_sends_the_models_buffers_before_the_averages(monkeypatch):
    """The order decides which process's tensor meets which; a set's would differ from process to process."""
    sent = []
    monkeypatch.setattr(engine.dist, "broadcast", lambda buffer, source: sent.append(id(buffer)))
    norms = [torch.nn.BatchNorm2d(2) for _ in range(8)]  # of eight pairs a set would have one in the wrong order
    for model, average in zip(norms, reversed(norms), strict=True):
        sent.clear()
        share_buffers(Namespace(processes=2, model=model, best=average))
        assert sent == [id(buffer) for one in (model, average) for buffer in one.buffers()]
