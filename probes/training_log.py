"""What a run's log tells: a learning rate that never moves, a loss that never falls, gradients that vanish, overfit.

Every judgement waits for its time: a run of a few steps says nothing about a schedule, and nothing is said about it.
"""

import math
import statistics

from cli import parse_choice
from engine.optim import SCHEDULES
from probes.finding import Exhibit, Finding
from probes.limits import LIMITS, stands_out


def training_log(subject):
    """Faults seen in the log of a checkpoint's run: the Findings of `judge_log`. Raises UserError without a log."""
    return judge_log(subject.log, subject.config)


def judge_log(lines, config):
    """Four Findings, log.learning_rate, log.loss, log.gradients and log.fit.

    lines: the log's lines as dicts, in order (`engine.run_directory` says what is in them); config: the run's flags as
    a dict. A judgement that has too few lines is a skip.
    """
    steps = [line for line in lines if line["kind"] == "train"]
    validations = [line for line in lines if line["kind"] == "validation"]
    return [
        learning_rate(steps, validations, config),
        loss(steps, validations, config),
        gradients(steps),
        fit(steps, validations, config),
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Learning rate


def learning_rate(steps, validations, config):
    """Is the rate above zero, and does it move as the schedule's name says?"""
    probe = "log.learning_rate"
    if len(steps) < 2:
        return _too_short(probe, steps)
    rates = [(line["step"], max(line["lr"])) for line in steps]
    about = {"evidence": {"schedule": config["schedule"], "first": rates[0], "last": rates[-1]}}
    if not any(rate for _, rate in rates):
        why = f"the learning rate is 0 at all {len(rates)} lines of the log: no step changed a weight"
        remedy = "set --lr above 0, and look at what sets the optimiser's rates"
        return Finding(probe, "fail", why, cause="learning_rate_zero", value=0.0, remedy=remedy, **about)
    fault = _schedule_fault(rates, _total_steps(steps, validations, config), config)
    if fault:
        verdict, why = fault
        exhibit = Exhibit("learning rate over the steps", curves={"learning rate": rates})
        remedy = "compare --schedule with what sets the optimiser's rates, once a step and from the run's first step on"
        return Finding(probe, verdict, why, cause="wrong_schedule", remedy=remedy, exhibits=[exhibit], **about)
    why = f"the learning rate follows {config['schedule']}: {rates[0][1]:.3g} first, {rates[-1][1]:.3g} last"
    return Finding(probe, "pass", why, value=rates[-1][1], **about)


def _total_steps(steps, validations, config):
    """How many steps the run was to have, None where the log does not tell: a validation ends an epoch."""
    if config["iters"]:
        return config["iters"]
    if not validations:
        return None
    first = validations[0]
    return first["step"] * config["epochs"] // (first["epoch"] + 1)


def _schedule_fault(rates, total, config):
    """(verdict, sentence) of what the schedule's name does not allow, or None.

    Judged by the shape alone, not by the schedule's own code: that may be what is wrong.
    """
    name, _ = parse_choice(config["schedule"], SCHEDULES)
    risen = [(step, rate) for step, rate in rates if step > config["warmup"]]
    if len(risen) < LIMITS["log_lines"].value:
        return None
    low, high = min(rate for _, rate in risen), max(rate for _, rate in risen)
    if name == "constant":
        moved = high > low * (1 + 1e-6)
        return ("warn", f"the schedule is constant, but the rate moved from {low:.3g} to {high:.3g}") if moved else None
    if name == "plateau":
        rose = any(after > before * (1 + 1e-6) for (_, before), (_, after) in zip(risen, risen[1:], strict=False))
        return ("warn", "the schedule is plateau, which only lowers the rate, but it rose") if rose else None
    if high <= low * (1 + 1e-6):
        return "fail", f"the learning rate stood at {high:.3g} at all {len(risen)} lines, though {name} moves it"
    if name == "cosine-restarts" or total is None or risen[-1][0] < LIMITS["log_complete"].value * total:
        return None  # restarts rise again by design; an unfinished run has not come to its end
    if risen[-1][1] > LIMITS["log_last_rate"].value * high:
        return "fail", f"{name} ends near 0, but the rate was {risen[-1][1]:.3g} at the end, {high:.3g} at most"
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Loss


def loss(steps, validations, config):
    """Is the loss finite, and did it ever fall?"""
    probe = "log.loss"
    broken = [line["step"] for line in steps if not _is_finite(line["loss"])]
    if broken:
        why = f"the loss is not finite at {len(broken)} lines of the log, first at step {broken[0]}"
        remedy = "lower --lr, try --clip 1, or --amp off; look at the images of that step"
        return Finding(probe, "fail", why, cause="gradient_not_finite", remedy=remedy, evidence={"steps": broken[:20]})
    after = [line["loss"] for line in steps[1:] if line["step"] > config["warmup"]]
    if len(after) < LIMITS["log_lines"].value or steps[-1]["step"] < config["warmup"] + LIMITS["log_steps"].value:
        return _too_short(probe, steps)
    first, least = steps[0]["loss"], min(_smoothed(after))
    about = {"value": least / first if first > 0 else None, "reference": LIMITS["log_flat"].value}
    about["evidence"] = {"first": first, "least": least, "last": steps[-1]["loss"], "steps": steps[-1]["step"]}
    if first <= 0 or least <= LIMITS["log_flat"].value * first or _knows_already(validations):
        why = f"the training loss went from {first:.3g} to {steps[-1]['loss']:.3g} in {steps[-1]['step']} steps"
        return Finding(probe, "pass", why, **about)
    why = f"the training loss never fell: {first:.3g} at first, {least:.3g} at best in {steps[-1]['step']} steps"
    remedy = "look for a learning rate near 0, frozen weights, a softmax inside the model, or targets that are all void"
    verdict = "fail" if validations else "warn"
    return Finding(
        probe, verdict, why, cause="loss_flat", remedy=remedy, exhibits=[_curves(steps, validations)], **about
    )


def _smoothed(losses):
    """Means of five neighbouring lines, so that one easy batch is no progress."""
    return [statistics.fmean(losses[i : i + 5]) for i in range(len(losses) - 4)]


def _knows_already(validations):
    """Whether a validation is above the layout floor: the run went on with a model that had learnt."""
    return any(
        line["miou"] is not None and line["layout_floor"] is not None and stands_out(line["miou"], line["layout_floor"])
        for line in validations
    )


# ---------------------------------------------------------------------------------------------------------------------
# Gradients


def gradients(steps):
    """Do gradients reach every part of the model, neither vanishing nor exploding?"""
    probe = "log.gradients"
    if len(steps) < LIMITS["log_lines"].value:
        return _too_short(probe, steps)
    norms = [(line["step"], line["gradient_norm"]) for line in steps if _is_finite(line["gradient_norm"])]
    overflowed = len(steps) - len(norms)
    about = {"exhibits": [Exhibit("gradient norm over the steps", curves={"gradient norm": norms})]}
    if overflowed > len(steps) / 2:
        why = f"the gradient norm is not finite at {overflowed} of {len(steps)} lines of the log"
        remedy = "train with --amp bf16 or --amp off; lower --lr"
        return Finding(probe, "fail", why, cause="gradient_not_finite", remedy=remedy)
    usual = statistics.median(norm for _, norm in norms)
    about |= {"value": usual, "evidence": {"median": usual, "largest": max(n for _, n in norms)}}
    fault = _silent_part(steps) or _vanishing(norms, steps) or _exploding(norms, steps, usual)
    if fault:
        verdict, cause, why, remedy = fault
        return Finding(probe, verdict, why, cause=cause, remedy=remedy, **about)
    why = f"gradient norm {usual:.3g} (median), {about['evidence']['largest']:.3g} at most; every part gets its share"
    return Finding(probe, "pass", why, value=usual, evidence=about["evidence"])


def _silent_part(steps):
    """A part of the model whose gradient is 0 at every line."""
    parts = {name for line in steps for name in line["gradient_norms"]}
    silent = sorted(p for p in parts if all(line["gradient_norms"].get(p, {}).get("mean") == 0 for line in steps))
    if not silent:
        return None
    names = " and ".join(silent)
    why = f"the gradient of {names} is 0 at all {len(steps)} lines of the log: nothing is learnt there"
    remedy = f"look where {names} is cut off from the loss: a detach, a no_grad, an output that no loss term reads"
    if len(silent) == len(parts):
        return "fail", "no_gradient", why, remedy
    return "fail", "frozen_backbone" if silent == ["backbone"] else "untrained_layers", why, remedy


def _vanishing(norms, steps):
    late = statistics.median(norm for _, norm in norms[len(norms) // 2 :])
    if late >= LIMITS["log_vanishing"].value or steps[-1]["loss"] < LIMITS["log_solved"].value:
        return None
    why = f"the gradient norm is {late:.3g} (median of the run's second half) at a loss of {steps[-1]['loss']:.3g}"
    remedy = "look for saturated activations, a softmax before the loss, or a loss divided by too much"
    return "fail", "vanishing_gradient", why, remedy


def _exploding(norms, steps, usual):
    early = statistics.median(norm for _, norm in norms[: max(1, len(norms) // 4)])
    late = statistics.median(norm for _, norm in norms[-max(1, len(norms) // 4) :])
    limit, remedy = LIMITS["log_exploding"].value, "lower --lr, raise --warmup, or try --clip 1"
    if late > limit * early and steps[-1]["loss"] > steps[0]["loss"]:
        why = f"the gradient norm grew from {early:.3g} to {late:.3g} and the loss from {steps[0]['loss']:.3g} to "
        return "fail", "exploding_gradient", f"{why}{steps[-1]['loss']:.3g}", remedy
    step, largest = max(norms, key=lambda one: one[1])
    if largest > limit * usual:
        why = f"the gradient norm jumped to {largest:.3g} about step {step}, {largest / usual:.0f} times its median"
        return "warn", "exploding_gradient", why, remedy
    return None


# ---------------------------------------------------------------------------------------------------------------------
# Fit


def fit(steps, validations, config):
    """Did training go on past the best validation loss, or stop while the loss still fell?"""
    probe = "log.fit"
    if len(steps) < 2 * LIMITS["log_lines"].value or steps[-1]["step"] < LIMITS["log_steps"].value:
        return _too_short(probe, steps)
    if not all(_is_finite(line["loss"]) for line in steps):
        return Finding(probe, "skip", "the training loss is not finite")
    fault = _overfit(steps, validations) or _underfit(steps, validations, config)
    if fault:
        cause, why, remedy, value, reference = fault
        about = {"value": value, "reference": reference, "exhibits": [_curves(steps, validations)]}
        return Finding(probe, "warn", why, cause=cause, remedy=remedy, **about)
    why = "the training loss has come to rest and the validation loss has not risen again"
    return Finding(probe, "pass", why, value=steps[-1]["loss"], evidence={"validations": len(validations)})


def _overfit(steps, validations):
    losses = [(line["step"], line["loss"]) for line in validations if _is_finite(line["loss"])]
    if len(losses) < 3:
        return None
    (best_step, best), (_, last) = min(losses, key=lambda one: one[1]), losses[-1]
    limit = LIMITS["log_overfit"].value
    before = [line["loss"] for line in steps if line["step"] <= best_step][-5:]
    late = statistics.fmean(line["loss"] for line in steps[-5:])
    if last < limit * best or not before or late >= statistics.fmean(before):
        return None
    why = (
        f"the validation loss rose from {best:.3g} at step {best_step} to {last:.3g} while the training loss fell from "
        f"{statistics.fmean(before):.3g} to {late:.3g}"
    )
    remedy = "train for fewer epochs, augment more, or add images; best.pth holds the best validation, not the last"
    return "overfit", why, remedy, last / best, limit


def _underfit(steps, validations, config):
    """Only at a run's end: what is interrupted is meant to go on."""
    total = _total_steps(steps, validations, config)
    if total is None or steps[-1]["step"] < LIMITS["log_complete"].value * total or _starts_learnt(steps):
        return None
    losses = [line["loss"] for line in steps]
    tail = max(2, len(losses) // 7)
    before, late = statistics.fmean(losses[-2 * tail : -tail]), statistics.fmean(losses[-tail:])
    remedy = "train for more epochs, or with a higher --lr"
    falling, hardly = LIMITS["log_still_falling"].value, LIMITS["log_hardly_fell"].value
    if late < falling * before:
        why = f"the training loss still fell at the end, from {before:.3g} to {late:.3g} in the last {tail} lines"
        return "underfit", why, remedy, late / before, falling
    if late > hardly * losses[0] and not _knows_already(validations):
        why = f"the training loss is hardly below its start: {losses[0]:.3g} at first, {late:.3g} at the end"
        return "underfit", why, remedy, late / losses[0], hardly
    return None


def _starts_learnt(steps):
    """A loss this small at the start is that of a model that had been trained before."""
    return steps[0]["loss"] < LIMITS["log_solved"].value


# ---------------------------------------------------------------------------------------------------------------------
# Shared


def _is_finite(value):
    return value is not None and math.isfinite(value)


def _too_short(probe, steps):
    last = steps[-1]["step"] if steps else 0
    return Finding(probe, "skip", f"the log has {len(steps)} training lines up to step {last}: too few to judge by")


def _curves(steps, validations):
    """The losses over the steps."""
    curves = {"training": [(line["step"], line["loss"]) for line in steps]}
    held_out = [(line["step"], line["loss"]) for line in validations if _is_finite(line["loss"])]
    if held_out:
        curves["validation"] = held_out
    return Exhibit("loss over the steps", curves=curves)
