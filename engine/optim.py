"""Optimiser and learning-rate schedule: what turns gradients into steps."""

import math

import torch

import cli
from cli import UserError

SCHEDULES = {
    "constant": {},
    "poly": {"power": 0.9},
    "onecycle": {"peak": 0.25, "start": 0.04, "end": 0.001},
    "plateau": {"patience": 3, "factor": 0.5},
    "cosine-restarts": {"t0": 20, "mult": 2, "min": 1e-6},
}
RANGES = {
    "power": (0, 100), "peak": (0, 1), "start": (0, 1), "end": (0, 1), "patience": (0, math.inf), "factor": (1e-6, 1),
    "t0": (1, math.inf), "mult": (1, math.inf), "min": (0, math.inf),
}  # fmt: skip


def add_optim_flags(parser):
    """The flags of optimiser and schedule."""
    group = parser.add_argument_group("optimisation")
    group.add_argument("--epochs", type=cli.positive_int, default=20, help="passes over the training images")
    group.add_argument("--iters", type=cli.natural, default=0, help="stop after N steps instead; 0: --epochs")
    group.add_argument("--batch-size", type=cli.positive_int, default=8, help="images a step, over all processes")
    group.add_argument("--optimizer", default="adamw", choices=("adamw", "adam", "sgd"), help="sgd has momentum 0.9")
    group.add_argument("--lr", type=cli.non_negative, default=2e-3, help="peak learning rate of the head")
    group.add_argument("--backbone-lr", type=cli.non_negative, help="of the backbone; empty: as --lr")
    group.add_argument("--weight-decay", type=cli.non_negative, default=0.01, help="on matrices and convolutions")
    group.add_argument(
        "--schedule",
        default="onecycle",
        help="constant, poly:power=, onecycle:peak=share,start=,end=factors, plateau:patience=validations,factor=, "
        "cosine-restarts:t0=epochs,mult=,min=rate",
    )
    group.add_argument("--warmup", type=cli.natural, default=0, help="steps of linear rise from 0; 0: off")
    group.add_argument(
        "--accumulate", type=cli.positive_int, default=1, help="cut each batch into N parts, for memory; 1: off"
    )
    group.add_argument(
        "--ema", type=cli.non_negative, default=0.0, help="decay a step of averaged weights, validated; 0: off"
    )
    group.add_argument("--clip", type=cli.non_negative, default=0.0, help="largest gradient norm; 0: off")


def optimizer_options(args):
    """What the flags of the optimiser say, as `build_optimizer` takes it."""
    names = ("optimizer", "lr", "backbone_lr", "weight_decay")
    return {name: getattr(args, name) for name in names}


def build_optimizer(model, optimizer="adamw", *, lr=2e-3, backbone_lr=None, weight_decay=0.01):
    """AdamW, Adam or SGD over up to four groups: backbone and head, with and without weight decay.

    What is no matrix gets no decay: biases, normalisation weights and layer scales (one value a channel), position
    embeddings and class tokens. Each group keeps its peak rate as `base_lr`.
    optimizer: adamw, adam or sgd; backbone_lr: None for `lr`. Raises UserError if nothing is left to train.
    """
    backbone = {id(p) for p in model.backbone.parameters()}
    backbone_lr = lr if backbone_lr is None else backbone_lr
    groups = {}
    for name, parameter in ((name, p) for name, p in model.named_parameters() if p.requires_grad):
        peak = backbone_lr if id(parameter) in backbone else lr
        decay = weight_decay if is_matrix(name, parameter) else 0.0
        groups.setdefault((id(parameter) in backbone, decay), (peak, decay, []))[2].append(parameter)
    if not groups:
        raise UserError("nothing is left to train", "--freeze", "freeze less")
    groups = [{"params": ps, "lr": peak, "base_lr": peak, "weight_decay": decay} for peak, decay, ps in groups.values()]
    if optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)
    return (torch.optim.AdamW if optimizer == "adamw" else torch.optim.Adam)(groups, lr=lr)


def is_matrix(name, parameter):
    """Whether a parameter mixes channels, and weight decay is meant for it."""
    positions = "pos_embed" in name or "relative_position_bias" in name
    return parameter.numel() > max(parameter.shape) and not positions


class Schedule:
    """The learning rate as a function of the step alone, so that a resumed run cannot be one step off.

    `plateau` also listens: `observe` lowers the rate when the score has not risen for `patience` validations.
    Raises UserError for an unknown schedule or option.
    """

    def __init__(self, text, total_steps, steps_per_epoch, warmup=0):
        self.name, self.options = cli.parse_choice(text, SCHEDULES)
        for option, value in self.options.items():
            low, high = RANGES[option]
            if not low <= value <= high:
                raise UserError(f"{option}={value} is out of range", "--schedule", f"it lies between {low} and {high}")
        self.total_steps, self.steps_per_epoch, self.warmup = total_steps, steps_per_epoch, warmup
        self.factor, self.best, self.waited = 1.0, -math.inf, 0

    def rate(self, base, step):
        """The learning rate of a group with peak rate `base` at this step (0 is the first)."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return rise * getattr(self, f"_{self.name.replace('-', '_')}")(base, step)

    def apply(self, optimizer, step):
        """Set every group's rate for this step."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(group["base_lr"], step)

    def observe(self, score):
        """Tell the schedule a validation score (larger is better)."""
        if score > self.best:
            self.best, self.waited = score, 0
            return
        self.waited += 1
        if self.name == "plateau" and self.waited > self.options["patience"]:
            self.factor, self.waited = self.factor * self.options["factor"], 0

    def state_dict(self):
        """What `observe` has changed."""
        return {"factor": self.factor, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state):
        """Put it back."""
        self.factor, self.best, self.waited = state["factor"], state["best"], state["waited"]

    def _constant(self, base, step):
        return base

    def _plateau(self, base, step):
        return base * self.factor

    def _poly(self, base, step):
        return base * max(0.0, 1 - step / self.total_steps) ** self.options["power"]

    def _onecycle(self, base, step):
        """Cosine from `start`·base up to base over the first `peak` share of the steps, then down to `end`·base.

        Source: Smith & Topin 2018, with the cosine form that torch's OneCycleLR has.
        """
        turn = max(1.0, self.options["peak"] * self.total_steps - 1)
        if step < turn:
            low, done = self.options["start"], 1 - step / turn
        else:
            low, done = self.options["end"], (step - turn) / max(1.0, self.total_steps - 1 - turn)
        return base * (low + (1 - low) * (1 + math.cos(math.pi * min(1.0, done))) / 2)

    def _cosine_restarts(self, base, step):
        """SGDR (Loshchilov & Hutter 2017, eq. 5): cosine from base to `min`, restarted after t0, t0·mult, … epochs."""
        position, period = step / self.steps_per_epoch, float(self.options["t0"])
        while position >= period:
            position, period = position - period, period * self.options["mult"]
        low = min(self.options["min"], base)
        return low + (base - low) * (1 + math.cos(math.pi * position / period)) / 2
