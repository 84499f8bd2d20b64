"""What a trained model's own state tells: layers that never trained, and batch norm whose statistics fit nothing."""

import copy
import math

import torch
from torch import nn

import models
from engine.checkpoint import fingerprint
from probes.answers import ask, floor_of, label_maps, miou_of
from probes.finding import Finding
from probes.limits import LIMITS, stands_out

# ---------------------------------------------------------------------------------------------------------------------
# Batch norm and dropout


def batch_norm_gap(subject):
    """Does the model score better with the statistics of the batch than with those it has stored?

    Works on copies: no weight and no statistic of the model changes.
    """
    predictor, sample, layout_map = subject.predictor, subject.sample, subject.layout_map
    name, sample = "model.batch_norm", sample.of_one_size()
    norms = {where: m for where, m in predictor.model.named_modules() if _has_statistics(m)}
    if not norms:
        return [Finding(name, "skip", "the model has no batch norm that keeps statistics")]
    if len(sample) < 4:
        return [Finding(name, "skip", f"{len(sample)} images of one size: too few for a batch's statistics")]
    stored = _score(predictor, sample, None)
    batch = _score(predictor, sample, _with_batch_statistics(predictor.model))
    floor = floor_of(sample, predictor.num_classes, layout_map)
    untouched = [where for where, norm in norms.items() if _is_untouched(norm)]
    evidence = {"miou_stored": stored, "miou_batch": batch, "layout_floor": floor, "norms": len(norms)}
    evidence |= {"untouched": untouched[:20]} | _dropout_effect(predictor, sample)
    about = {"value": stored, "reference": batch, "evidence": evidence}
    shown = f"mIoU {stored:.3f} with the stored statistics, {batch:.3f} with those of the batch"
    start = f"; {len(untouched)} of {len(norms)} batch norms still have the statistics they started with"
    remedy = "train or fine-tune in training mode, or measure the statistics again on training images before evaluating"
    if batch - stored > LIMITS["stale_statistics"].value and stands_out(batch, floor):
        why = shown + (start if untouched else "")
        return [Finding(name, "fail", why, cause="stale_batch_norm", remedy=remedy, **about)]
    if untouched:
        return [Finding(name, "warn", shown + start, cause="stale_batch_norm", remedy=remedy, **about)]
    return [Finding(name, "pass", shown, **about)]


def _has_statistics(module):
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def _is_untouched(norm):
    """Whether a batch norm's statistics are exactly those of a new one."""
    return bool((norm.running_mean == 0).all() and (norm.running_var == 1).all())


def _score(predictor, sample, model):
    return miou_of(label_maps(predictor, sample, model=model), sample, predictor.num_classes)


def _with_batch_statistics(model):
    """A copy in evaluation mode whose batch norms have no statistics and so use the batch's."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if _has_statistics(module):
            module.running_mean = module.running_var = None
    return model


def _dropout_effect(predictor, sample):
    """{"miou_dropout": mIoU with dropout at work}, {} for a model without any."""
    model = copy.deepcopy(predictor.model).eval()
    dropouts = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and m.p > 0]
    for module in dropouts:
        module.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {"miou_dropout": _score(predictor, sample, model)} if dropouts else {}


# ---------------------------------------------------------------------------------------------------------------------
# Layers that never trained


def untrained(subject):
    """Which layers are still what they were before training?

    A checkpoint of ours brings `checkpoint.fingerprint` of the model before training, and in its flags the rule of what
    is meant to stay; no image is needed then, so faulty data are no hindrance. A foreign model's layers are judged by
    their weights alone: those that are exactly what torch initialises a layer with, and that run when the model is
    asked about the sample.
    """
    if subject.content:
        return [_judge_unchanged(subject.model, subject.content["initial"], subject.config.get("freeze", "none"))]
    return [_judge_fresh(subject.predictor, subject.sample)]


def _judge_unchanged(model, initial, rule):
    name, now = "model.untrained", fingerprint(model)
    frozen = _frozen_modules(model, rule)
    meant = [module for module in now if module not in frozen]  # to train
    still = [module for module in meant if initial.get(module, {}).get("hash") == now[module]["hash"]]
    body = [module for module in meant if module.split(".")[0] == "backbone"]
    evidence = {"modules": len(now), "frozen_on_purpose": len(frozen), "unchanged": still[:20]}
    about = {"value": float(len(still)), "reference": 0.0, "evidence": evidence}
    if not meant:
        return Finding(name, "skip", f"--freeze {rule} leaves nothing to train")
    if len(still) == len(meant):
        why = f"all {len(meant)} layers that should have trained are exactly as they started"
        remedy = "the optimiser moved nothing: check the learning rate, and that it holds the model's parameters"
        return Finding(name, "fail", why, cause="learning_rate_zero", remedy=remedy, **about)
    if body and set(body) <= set(still):
        why = f"all {len(body)} layers of the backbone are exactly as they started, and --freeze {rule} does not say so"
        remedy = "look for requires_grad_(False), a detach, or an optimiser without the backbone's parameters"
        return Finding(name, "fail", why, cause="frozen_backbone", remedy=remedy, **about)
    if still:
        why = f"{len(still)} of {len(meant)} layers are exactly as they started: {', '.join(still[:4])}"
        remedy = "no loss reaches them, or the optimiser does not hold them: see gradient flow"
        return Finding(name, "fail", why, cause="untrained_layers", remedy=remedy, **about)
    note = f"; {len(frozen)} were frozen by --freeze {rule}" if frozen else ""
    return Finding(name, "pass", f"all {len(meant)} layers that should train have changed{note}", **about)


def _frozen_modules(model, rule):
    """Names of the modules whose own parameters a freeze rule all takes out of training."""
    model = copy.deepcopy(model).requires_grad_(True)
    models.freeze_parameters(model, rule)
    own = {name: list(module.parameters(recurse=False)) for name, module in model.named_modules()}
    return {name for name, found in own.items() if found and not any(p.requires_grad for p in found)}


def _judge_fresh(predictor, sample):
    name, model = "model.untrained", predictor.model
    layers = {where: module for where, module in model.named_modules() if is_judged(module)}
    if not layers:
        return Finding(name, "skip", "the model has no layer large enough to tell by its weights alone")
    running = _layers_at_work(predictor, sample)
    fresh = [where for where, module in layers.items() if looks_fresh(module)]
    at_work = [where for where in fresh if where in running]
    evidence = {"judged": len(layers), "fresh": fresh[:20], "fresh_at_work": at_work[:20]}
    about = {"value": float(len(at_work)), "reference": 0.0, "evidence": evidence}
    if at_work:
        why = f"{len(at_work)} of {len(layers)} layers hold exactly what torch starts with: {', '.join(at_work[:4])}"
        remedy = "check that --weights holds them (strict=False hides what is missing) and that they were trained"
        return Finding(name, "fail", why, cause="untrained_layers", remedy=remedy, **about)
    if fresh:
        why = f"{len(fresh)} layers hold what torch starts with, and rest in evaluation: {', '.join(fresh[:4])}"
        remedy = "an auxiliary head left out of the loss teaches nothing: train it, or remove it"
        return Finding(name, "warn", why, cause="untrained_layers", remedy=remedy, **about)
    return Finding(name, "pass", f"none of {len(layers)} layers looks as torch starts it", **about)


def _layers_at_work(predictor, sample):
    """Names of the modules that run when the model is asked about an image."""
    names, hooks = set(), []
    for where, module in predictor.model.named_modules():
        hooks.append(module.register_forward_hook(lambda *_, where=where: names.add(where)))
    try:
        next(ask(predictor, sample.take([0])))
    finally:
        for hook in hooks:
            hook.remove()
    return names


LAYERS = (nn.modules.conv._ConvNd, nn.Linear)


def is_judged(module):
    """Whether a layer has so many weights that chance cannot make them look fresh, or batch norm with statistics."""
    if isinstance(module, LAYERS):
        return module.weight.numel() >= LIMITS["fresh_weights"].value
    return _has_statistics(module) and module.affine


def looks_fresh(module):
    """Whether a layer is exactly as torch makes it.

    Batch norm: weight 1, bias 0, statistics untouched. A convolution or linear layer: no weight beyond one of the
    uniform initialisations' bounds, and evenly spread up to it. Any training pushes some of many weights beyond.
    Source: He et al., Delving Deep into Rectifiers, 2015; Glorot and Bengio, 2010; torch.nn.init.
    """
    if not isinstance(module, LAYERS):
        return _is_untouched(module) and bool((module.weight == 1).all() and (module.bias == 0).all())
    if module.bias is not None and not (_in_bound(module.bias, module.weight[0].numel()) or not module.bias.any()):
        return False
    fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
    bounds = (1 / math.sqrt(fan_in), math.sqrt(6 / fan_in), math.sqrt(6 / (fan_in + fan_out)))
    return any(_is_uniform(module.weight.detach().flatten().double(), bound) for bound in bounds)


def _in_bound(bias, fan_in):
    return bool(bias.abs().max() <= 1 / math.sqrt(fan_in) * (1 + 1e-6))


def _is_uniform(values, bound):
    """Whether values look drawn evenly from ±bound: none outside, and the Kolmogorov-Smirnov distance of chance."""
    if float(values.abs().max()) > bound * (1 + 1e-6):
        return False
    ranks = (torch.arange(len(values), dtype=torch.float64, device=values.device) + 0.5) / len(values)
    distance = float((((values.sort().values / bound) + 1) / 2 - ranks).abs().max())
    return distance < LIMITS["fresh_distance"].value / math.sqrt(len(values))
