"""The training loop: all that changes while training, one step, one epoch, and the validation after it.

One uint8 batch goes to the device, is augmented there with one grid for image and target, and the criterion turns it
into named terms; their weighted sum is the step.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.optim.swa_utils import AveragedModel

import cli
import data
import models
from cli import UserError
from engine.devices import all_gather, all_reduce_mean
from engine.evaluation import evaluate_sets, merge_all, merge_counts
from engine.optim import Schedule
from engine.sampling import Sampling, share_batches

EPSILON = 1e-6  # a step whose weights add up to less is all void: its loss is 0


@dataclass
class Training:
    """All that changes while training; `state` holds it, so that a run goes on as if it had not stopped.

    What is not given is plain: a constant rate, no augmentation, float32 on the CPU, no clipping; an epoch needs
    `sampling`, a single `train_step` does not.
    sampling: what draws an epoch's requests; order: its generator; epoch_order: the generator's state at the epoch's
    start, from which a resumed run draws the same epoch again; offset: batches of the epoch already done. accumulate:
    parts that a batch is cut into, one after the other. ema: decay of the averaged weights a step, 0 for none.
    """

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule = field(default_factory=lambda: Schedule("constant", 1, 1))
    sampling: Sampling | None = None
    augment: data.Augment = field(default_factory=lambda: data.Augment({}))
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype | None = None
    clip: float = 0.0
    seed: int = 0
    accumulate: int = 1
    ema: float = 0.0
    rank: int = 0
    processes: int = 1
    step: int = 0
    epoch: int = 0
    offset: int = 0

    def __post_init__(self):
        self.order = torch.Generator().manual_seed(self.seed)
        self.epoch_order = self.order.get_state()
        self.varying = torch.Generator(self.device).manual_seed(self.seed + 1 + self.rank)
        scaling = self.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type) if scaling else None
        self.network = self.model  # what is called: the model, or the model and its gradient exchange
        if self.processes > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            # Buffers stay each process's own until `share_buffers`: training never reads them, so sending them at every
            # pass would be for nothing.
            self.network = torch.nn.parallel.DistributedDataParallel(
                self.model, device_ids=ids, broadcast_buffers=False
            )
        self.average = None
        if self.ema:
            self.average = AveragedModel(self.model, multi_avg_fn=self._approach, use_buffers=True)

    def _approach(self, averages, current, _updates):
        """One step of the moving average, in place; its decay rises to `ema`, so that the start is soon forgotten."""
        decay = min(self.ema, (1 + self.step) / (10 + self.step))  # `step` is on the host: nothing waits for it
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, current, 1 - decay)
        else:
            torch._foreach_copy_(averages, current)  # batch norm's counters

    @property
    def best(self):
        """The model that is validated and kept in best.pth: the averaged one, where there is one."""
        return self.average.module if self.average else self.model

    def state(self):
        """Everything but the weights, as plain values and CPU tensors."""
        cuda = self.device.type == "cuda"
        random = {
            "varying": self.varying.get_state(),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if cuda else None,
        }
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "average": self.average.state_dict() if self.average else None,
            "epoch_order": self.epoch_order,
            "random": all_gather(random),  # one a process
            "step": self.step,
            "epoch": self.epoch,
            "offset": self.offset,
            "threads": torch.get_num_threads(),
        }

    def restore(self, state):
        """Put `state` back. Warns when the thread count differs: sums are then added up in another order."""
        if state["threads"] != torch.get_num_threads():
            cli.warn(
                f"the run began with {state['threads']} threads, now {torch.get_num_threads()}: the result will be "
                "close but not the same bit for bit"
            )
        if len(state["random"]) != self.processes:
            raise UserError(f"the run began with {len(state['random'])} processes", remedy="resume with as many")
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.order.set_state(state["epoch_order"])
        self.epoch_order = state["epoch_order"]
        random = state["random"][self.rank]
        if random["varying"].shape == self.varying.get_state().shape:
            self.varying.set_state(random["varying"])
        else:  # a CPU's generator has another state than CUDA's
            cli.warn("the run began on another kind of device: its augmentation goes on from a new seed")
            self.varying.manual_seed(self.seed + 1 + self.rank + state["step"])
        torch.set_rng_state(random["torch"])
        if random["cuda"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(random["cuda"], self.device)
        self.step, self.epoch, self.offset = state["step"], state["epoch"], state["offset"]

    def draw_epoch(self, batch_size):
        """This process's batches of requests for the current epoch, drawn anew from the epoch's own order state."""
        self.order.set_state(self.epoch_order)
        return share_batches(self.sampling.draw(self.order, batch_size), self.rank, self.processes)

    def finish_epoch(self):
        """Go on to the next epoch; called once all that belongs to this one (its validation too) is done."""
        self.epoch, self.offset = self.epoch + 1, 0
        self.epoch_order = self.order.get_state()


def train_one_epoch(training, criterion, split, geometry, batch_size, workers, last_step):
    """Train from `training.offset` to the epoch's end, or to step `last_step`, yielding after each step.

    Yields {"loss": scalar tensor, "terms": {name: scalar tensor}, "gradient_norm": scalar tensor, "module_norms":
    {part of the model: scalar tensor}, "images": N}, on the device and not yet read, so that nothing waits for it.
    """
    remaining = training.draw_epoch(batch_size)
    remaining = remaining[training.offset :][: last_step - training.step]
    models.train_mode(training.model)
    pinned = training.device.type == "cuda"
    batches = data.training_batches(split, geometry, remaining, workers, pinned, training.sampling.outliers)
    for images, targets in batches:
        result = train_step(training, criterion, images, targets)
        training.step += 1
        training.offset += 1
        yield result


def train_step(training, criterion, images, targets):
    """One step on images (N, h, w, 3) uint8 and targets (N, h, w) uint8 from the loader."""
    images = images.to(training.device, non_blocking=True)
    targets = targets.to(training.device, non_blocking=True)
    images, targets = training.augment(images, targets, training.varying)  # (N, 3, h, w) float32, (N, h, w) uint8
    images = images.contiguous(memory_format=torch.channels_last)
    training.schedule.apply(training.optimizer, training.step)
    training.optimizer.zero_grad(set_to_none=True)
    parts = split_batch(len(images), training.accumulate)
    weights = share_weights([criterion.weights(targets[part]) for part in parts], training.processes)
    shown = {}
    for part in parts:
        with sync_on_last(training, last=part is parts[-1]):
            terms = backward(training, criterion, images[part], targets[part], weights)
        shown = {name: shown.get(name, 0) + value for name, value in terms.items()}
    norm, module_norms = optimise(training)
    shown = {name: all_reduce_mean(value, training.processes) for name, value in shown.items()}
    total = sum(shown.values())
    return {"loss": total, "terms": shown, "gradient_norm": norm, "module_norms": module_norms, "images": len(images)}


def split_batch(images, parts):
    """Slices that cut a batch into parts, at most half as many as images: batch norm refuses a part of one."""
    parts = max(1, min(parts, images // 2))
    return [slice(images * part // parts, images * (part + 1) // parts) for part in range(parts)]


def backward(training, criterion, images, targets, weights):
    """Add one part's gradient; returns its terms {name: scalar tensor}.

    weights: what each term is divided by: the whole step's, all parts and processes together. Gradients are averaged
    over processes afterwards, so each one's part is multiplied by their number.
    """
    with torch.autocast(training.device.type, training.dtype, enabled=training.dtype is not None):
        totals = criterion(training.network, images, targets)
    terms = {name: total * training.processes / weights[name].clamp(min=EPSILON) for name, total in totals.items()}
    loss = sum(terms.values())
    if not loss.requires_grad:
        raise UserError("no term of the loss reaches a parameter that trains", "--loss and --freeze", "freeze less")
    (training.scaler.scale(loss) if training.scaler else loss).backward()
    return {name: value.detach() for name, value in terms.items()}


def batch_loss(model, criterion, images, targets):
    """The loss of one batch alone, a scalar with gradient: images (N, 3, H, W) in [0, 1], targets (N, H, W) uint8."""
    weights, totals = criterion.weights(targets), criterion(model, images, targets)
    return sum(total / weights[name].clamp(min=EPSILON) for name, total in totals.items())


def sync_on_last(training, last):
    """Processes exchange their gradients once a step: with its last part."""
    return nullcontext() if last or training.processes == 1 else training.network.no_sync()


def share_weights(parts, processes):
    """The sum over parts and processes of a criterion's weights."""
    weights = {name: sum(part[name] for part in parts) for name in parts[0]}
    if processes > 1:
        for weight in weights.values():
            dist.all_reduce(weight)
    return weights


def share_buffers(training):
    """Give every process the first one's batch-norm statistics, the ones a checkpoint keeps."""
    if training.processes > 1:
        for module in dict.fromkeys((training.model, training.best)):  # the same order in every process
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)


def optimise(training):
    """Step, with the scaler in fp16; returns the gradient norm before clipping, whole and by part of the model."""
    optimizer, scaler = training.optimizer, training.scaler
    if scaler:
        scaler.unscale_(optimizer)
    module_norms = {
        name: torch.nn.utils.get_total_norm(gradients)
        for name, module in training.model.named_children()
        if (gradients := [p.grad for p in module.parameters() if p.grad is not None])
    }
    norm = torch.stack(list(module_norms.values())).norm()
    if training.clip:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        torch.nn.utils.clip_grads_with_norm_(parameters, training.clip, norm)
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    if training.average:
        training.average.update_parameters(training.model)
    return norm, module_norms


def validate(training, predictor, split, layout_map, batch_size=8, workers=0, stop=None):
    """Evaluate a validation split over all processes; returns the log's line, JSON values only.

    layout_map: of the floor beside the mIoU; stop: a StopSignal, which ends this with Interrupted.
    """
    share_buffers(training)
    indices = range(training.rank, len(split), training.processes)
    sets = evaluate_sets(
        predictor,
        split,
        batch_size=batch_size,
        workers=workers,
        layout_map=layout_map,
        indices=indices,
        observe=stop and (lambda *_: stop.check(training.processes, step=1)),  # alone only: others are at other images
    )
    processes = all_gather(sets)
    sets = {name: merge_all([part[name] for part in processes]) for name in sets}
    totals = merge_counts(list(sets.values()))
    scores = totals.scores()
    return {
        "kind": "validation",
        "step": training.step,
        "epoch": training.epoch,
        "loss": totals.loss(),
        "layout_floor": totals.layout_floor(),
        **{name: scores[name] for name in ("miou", "pixel_accuracy", "active_classes", "classes_averaged")},
        "iou": dict(zip(split.spec.classes, scores["iou"], strict=True)),
        **({"sets": {name: one.scores()["miou"] for name, one in sets.items()}} if len(sets) > 1 else {}),
    }
