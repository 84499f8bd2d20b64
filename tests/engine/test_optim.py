"""The schedules against torch's own and by hand; the groups of the optimiser."""

import pytest
import torch

import models
from cli import UserError
from engine.optim import Schedule, build_optimizer

CPU = torch.device("cpu")


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
