"""What a run's log tells: real schedules pass, each planted fault is named, early and short runs are left alone."""

import json
import math

import pytest

import cli
from engine.optim import Schedule, add_optim_flags
from probes.finding import CAUSES
from probes.training_log import judge_log
from tests.scripts import TINY, run_script

TOTAL = 400
PER_EPOCH = 40
FLAGS = cli.Parser("")
add_optim_flags(FLAGS)


def config(**changes):
    return {**vars(FLAGS.parse_args([])), "epochs": TOTAL // PER_EPOCH, **changes}


def make_log(config, losses=None, norms=None, rates=None, validation=None, steps=TOTAL, parts=("backbone", "head")):
    """Lines as train.Log writes them, ten steps a line; losses, norms, rates, validation: functions of the step."""
    schedule = Schedule(config["schedule"], TOTAL, PER_EPOCH, config["warmup"])
    losses = losses or (lambda step: 0.3 + 2 * math.exp(-step / 60))
    norms = norms or (lambda step: 2.0 + step % 3)
    rates = rates or (lambda step: [schedule.rate(config["lr"] / share, step - 1) for share in (10, 1)])
    validation = validation or losses
    lines = []
    for step in range(10, steps + 1, 10):
        gradients = {part: {"mean": norms(step), "spread": 0.1} for part in parts}
        lines.append(
            {"kind": "train", "step": step, "epoch": (step - 1) // PER_EPOCH, "loss": losses(step), "lr": rates(step)}
            | {"gradient_norm": norms(step), "gradient_norms": gradients}
        )
        if step % PER_EPOCH == 0:
            score = {"miou": 0.2, "layout_floor": 0.2, "loss": validation(step)}
            lines.append({"kind": "validation", "step": step, "epoch": step // PER_EPOCH - 1, **score})
    return lines


def look(lines, config):
    """{probe: Finding}, each fit for JSON and of a known cause."""
    findings = judge_log(lines, config)
    for finding in findings:
        json.dumps(finding.json(), allow_nan=False)
    assert [f.probe for f in findings] == ["log.learning_rate", "log.loss", "log.gradients", "log.fit"]
    return {finding.probe: finding for finding in findings}


def faults(lines, config):
    """{(cause, verdict)} of what is no pass and no skip."""
    return {(f.cause, f.verdict) for f in look(lines, config).values() if f.verdict in ("warn", "fail")}


SCHEDULES = ("constant", "poly", "onecycle", "plateau:patience=1", "cosine-restarts", "cosine-restarts:t0=2,mult=1")


@pytest.mark.parametrize("warmup", [0, 50])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_healthy_run_passes_at_every_length(schedule, warmup):
    about = config(schedule=schedule, warmup=warmup)
    lines = make_log(about)
    assert {f.verdict for f in look(lines, about).values()} == {"pass"}
    for length in range(len(lines)):  # as if read while it runs, or after an interruption
        assert not faults(lines[:length], about)


@pytest.mark.parametrize("steps", [0, 10, 40])
def test_short_runs_are_left_alone(steps):
    about = config(iters=max(1, steps))
    lines = make_log(about, losses=lambda step: 2.4, steps=steps)
    assert not faults(lines, about)
    assert {f.verdict for f in look(lines, about).values()} <= {"pass", "skip"}


def test_a_rate_of_zero_is_named_even_in_a_short_run():
    about = config()
    for steps in (30, TOTAL):
        finding = look(make_log(about, rates=lambda step: [0.0], steps=steps), about)["log.learning_rate"]
        assert (finding.verdict, finding.cause) == ("fail", "learning_rate_zero")


@pytest.mark.parametrize("schedule", ["poly", "onecycle", "cosine-restarts"])
def test_a_rate_that_never_moves_is_a_wrong_schedule(schedule):
    about = config(schedule=schedule)
    finding = look(make_log(about, rates=lambda step: [1e-3]), about)["log.learning_rate"]
    assert (finding.verdict, finding.cause) == ("fail", "wrong_schedule")
    assert len(finding.exhibits[0].curves["learning rate"]) == TOTAL // 10


@pytest.mark.parametrize("schedule", ["poly", "onecycle"])
def test_a_rate_that_rises_to_the_end_is_a_wrong_schedule(schedule):
    about = config(schedule=schedule)
    lines = make_log(about, rates=lambda step: [1e-5 * step])
    assert faults(lines, about) == {("wrong_schedule", "fail")}
    assert not faults(lines[: len(lines) // 2], about)  # half way through it may still fall


def test_a_constant_rate_that_moves_and_a_plateau_that_rises_are_warnings():
    for schedule in ("constant", "plateau"):
        about = config(schedule=schedule)
        assert faults(make_log(about, rates=lambda step: [1e-5 * step]), about) == {("wrong_schedule", "warn")}


def test_a_loss_that_never_falls_is_flat():
    about = config()
    lines = make_log(about, losses=lambda step: 2.4 + 0.02 * math.sin(step))
    assert ("loss_flat", "fail") in faults(lines, about)
    assert look(lines, about)["log.loss"].exhibits[0].curves["training"][0] == (10, lines[0]["loss"])
    for line in lines:
        if line["kind"] == "validation":
            line["miou"] = 0.6  # it went on with what had been learnt before
    assert not faults(lines, about)


def test_a_loss_or_gradient_that_is_not_finite_is_named():
    about = config()
    lines = make_log(about, losses=lambda step: math.nan if step > 200 else 1.0)
    assert ("gradient_not_finite", "fail") in faults(lines, about)
    lines = make_log(about, norms=lambda step: None)
    assert faults(lines, about) == {("gradient_not_finite", "fail")}
    lines = make_log(about, norms=lambda step: None if step == 10 else 2.0)  # fp16 finds its scale
    assert not faults(lines, about)


@pytest.mark.parametrize(
    ("part", "cause"), [("backbone", "frozen_backbone"), ("head", "untrained_layers"), (None, "no_gradient")]
)
def test_a_part_without_gradient_is_named(part, cause):
    about = config()
    lines = make_log(about)
    for line in lines:
        for name, norm in line.get("gradient_norms", {}).items():
            if part in (None, name):
                norm["mean"] = 0.0
    finding = look(lines, about)["log.gradients"]
    assert (finding.verdict, finding.cause) == ("fail", cause)
    assert (part or "backbone and head") in finding.why


def test_vanishing_and_exploding_gradients_are_named():
    about = config()
    assert ("vanishing_gradient", "fail") in faults(make_log(about, norms=lambda step: 1e-5), about)
    solved = make_log(about, losses=lambda step: 2 * math.exp(-step / 30), norms=lambda step: 1e-5)
    assert "vanishing_gradient" not in {cause for cause, _ in faults(solved, about)}
    blown = make_log(about, losses=lambda step: 2 + step / 10, norms=lambda step: 2.0 ** (step / 20))
    assert ("exploding_gradient", "fail") in faults(blown, about)
    jump = make_log(about, norms=lambda step: 1e4 if step == 200 else 2.0)
    assert faults(jump, about) == {("exploding_gradient", "warn")}


def test_overfit_and_underfit_are_warnings():
    about = config()
    lines = make_log(about, validation=lambda step: 1 + ((step - 160) / 200) ** 2)
    finding = look(lines, about)["log.fit"]
    assert (finding.verdict, finding.cause) == ("warn", "overfit")
    assert "step 160" in finding.why
    assert set(finding.exhibits[0].curves) == {"training", "validation"}
    falling = make_log(about, losses=lambda step: 2.5 - step / 200)
    assert faults(falling, about) == {("underfit", "warn")}
    assert not faults(falling[: len(falling) * 3 // 4], about)  # interrupted, it is meant to go on
    hardly = make_log(about, losses=lambda step: 2.0 + 0.4 * math.exp(-step / 60))
    assert faults(hardly, about) == {("underfit", "warn")}


def test_causes_are_of_the_closed_list():
    for cause in ("learning_rate_zero", "wrong_schedule", "loss_flat", "overfit", "underfit", "exploding_gradient"):
        assert cause in CAUSES


@pytest.mark.slow
def test_a_real_log_passes_and_one_of_rate_zero_is_named(trained, tmp_path):
    run, data_folder = trained
    zero = run_script(
        "train.py", "--dataset", "folder", "--data-dir", data_folder, "--run-dir", tmp_path, *TINY, "--lr=0"
    )
    assert zero.returncode == 0, zero.stderr
    for folder, expected in ((run, set()), (tmp_path, {("learning_rate_zero", "fail")})):
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        assert faults(lines, json.loads((folder / "config.json").read_text())) == expected
