"""The training step: void batches, clipping, parts, frozen layers, averaged weights, several processes."""

import copy
from argparse import Namespace

import pytest
import torch

import data
import losses
import models
from cli import UserError
from engine import training as engine
from engine.optim import Schedule, build_optimizer
from engine.training import Training, optimise, share_buffers, train_step
from networks.blocks import Normalise

CPU = torch.device("cpu")

RATES = {"lr": 0.1, "backbone_lr": 0.01, "weight_decay": 0.5}


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


def test_every_process_sends_the_models_buffers_before_the_averages(monkeypatch):
    """The order decides which process's tensor meets which; a set's would differ from process to process."""
    sent = []
    monkeypatch.setattr(engine.dist, "broadcast", lambda buffer, source: sent.append(id(buffer)))
    norms = [torch.nn.BatchNorm2d(2) for _ in range(8)]  # of eight pairs a set would have one in the wrong order
    for model, average in zip(norms, reversed(norms), strict=True):
        sent.clear()
        share_buffers(Namespace(processes=2, model=model, best=average))
        assert sent == [id(buffer) for one in (model, average) for buffer in one.buffers()]
