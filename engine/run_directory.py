"""A run's directory: its log, its checkpoints, and what stops it."""

import json
import math
import os
import signal
import statistics
import time
from pathlib import Path

import cli
from engine.checkpoint import save_checkpoint
from engine.devices import all_gather


class Interrupted(Exception):
    """SIGINT or SIGTERM came; the run stops at the next step, with a checkpoint."""


class StopSignal:
    """Notes SIGINT and SIGTERM. A second one ends the process at once, as if nothing had been noted."""

    def __init__(self):
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.note)

    def note(self, number, _frame):
        """The signal handler."""
        self.number = number
        signal.signal(number, signal.SIG_DFL)

    def check(self, processes=1, step=0):
        """Raise Interrupted when a signal has come; several processes agree on that at every tenth step."""
        if self.number if processes == 1 else step % 10 == 0 and any(all_gather(self.number)):
            raise Interrupted


class Log:
    """log.jsonl: one JSON object a line; a training line is the mean over the steps since the one before.

    A checkpoint keeps the file's length and the steps not yet written, so that a resumed run's log has no seam.
    """

    def __init__(self, path, every, main=True, length=0, window=(), board=None):
        self.every, self.main, self.window = every, main, list(window)
        self.board = open_board(path.parent, board) if board is not None and main else None
        self.clock, self.timed = time.perf_counter(), 0
        self.file = open(path, "ab") if main else None  # noqa: SIM115  open as long as the run
        if main:
            size = self.file.seek(0, os.SEEK_END)
            if size < length:
                cli.warn(f"{path} is shorter than when the checkpoint was written: lines are missing")
            self.file.truncate(min(size, length))  # lines after the checkpoint are written again

    def write(self, entry):
        """Add one line."""
        if self.main:
            self.file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
            self.file.flush()
        if self.board:
            for name, value in figures_of(entry):
                self.board.add_scalar(name, value, entry["step"])

    def add_step(self, result, training):
        """Note a step's result; returns the line written if it was time for one."""
        self.window.append(result)
        self.timed += result["images"] * training.processes
        return self.flush(training) if training.step % self.every == 0 else None

    def flush(self, training):
        """Write the mean over the noted steps. Raises FloatingPointError naming the first step that is not finite."""
        rows = self.read(training.step)
        if not rows:
            return None
        self.window = []
        mean = {name: sum(row["terms"][name] for row in rows) / len(rows) for name in rows[0]["terms"]}
        norms = [row["gradient_norm"] for row in rows]
        parts = {name: [row["module_norms"][name] for row in rows] for name in rows[0]["module_norms"]}
        now = time.perf_counter()
        line = {
            "kind": "train",
            "step": training.step,
            "epoch": training.epoch,
            "loss": sum(row["loss"] for row in rows) / len(rows),
            "terms": mean,
            "gradient_norm": spread_of(norms)["mean"],
            "gradient_norms": {name: spread_of(values) for name, values in parts.items()},
            "lr": sorted({group["lr"] for group in training.optimizer.param_groups}),
            "images_per_second": self.timed / max(now - self.clock, 1e-9),
        }
        self.clock, self.timed = now, 0
        self.write(line)
        return line

    def read(self, step):
        """The noted steps as plain numbers, each checked. Raises FloatingPointError."""
        for i, row in enumerate(self.window):
            row.update(loss=float(row["loss"]), gradient_norm=float(row["gradient_norm"]))
            for group in ("terms", "module_norms"):
                row[group] = {name: float(value) for name, value in row[group].items()}
            if not math.isfinite(row["loss"]):
                raise FloatingPointError(
                    f"loss is {row['loss']} at step {step - len(self.window) + i + 1}; lower --lr, add --clip 1 or "
                    "--warmup 100, or use --amp off"
                )
        return self.window

    def close(self):
        """Close the file."""
        if self.main:
            self.file.close()
        if self.board:
            self.board.close()

    def restart_clock(self):
        """Leave what lies between (a validation) out of the images per second."""
        self.clock, self.timed = time.perf_counter(), 0


def spread_of(values):
    """{"mean", "spread"} (standard deviation) of the finite ones, None where there are none: fp16 skips a step that
    overflows."""
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return {"mean": None, "spread": None}
    return {"mean": statistics.fmean(values), "spread": statistics.pstdev(values)}


def open_board(folder, step):
    """A TensorBoard writer into the run directory that forgets what came after `step`, as the log does.

    The package must be installed.
    """
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder / "tensorboard", purge_step=step + 1)


def figures_of(entry, prefix=""):
    """(name, value) of every figure in a line of the log, the names joined by '/' under its kind."""
    prefix = prefix or entry["kind"]
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from figures_of(value, f"{prefix}/{name}")
        elif isinstance(value, list):  # the groups' learning rates
            yield from ((f"{prefix}/{name}/{i}", one) for i, one in enumerate(value))
        elif isinstance(value, (int, float)) and name != "step":
            yield f"{prefix}/{name}", value


def read_log(run_dir):
    """The lines of a run's log.jsonl, [] where there is none."""
    path = Path(run_dir) / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


class Run:
    """A run's directory: what is written there, and when.

    path: the directory; about: the constant part of its checkpoints; main: whether this process writes; last: the
    checkpoint to go on from, None for a new run. log_every: steps between lines of the log; monitor: "miou" or
    "accuracy", what best.pth is best in; tensorboard: write the log's figures for TensorBoard as well.
    """

    def __init__(self, path, about, *, log_every=10, monitor="miou", tensorboard=False, main=True, last=None):
        self.path, self.about, self.monitor, self.main = Path(path), about, monitor, main
        new = {"step": 0, "best": None, "validation": None, "log_bytes": 0, "window": []}
        progress = last["progress"] if last else new
        self.best, self.validation = progress["best"], progress["validation"]
        self.path.mkdir(parents=True, exist_ok=True)
        self.log = Log(
            self.path / "log.jsonl",
            log_every,
            main,
            progress["log_bytes"],
            progress["window"],
            progress["step"] if tensorboard else None,
        )

    def save(self, training):
        """Write last.pth, keeping the one before it."""
        window = self.log.read(training.step)  # before anything is believed: is it finite?
        state = training.state()  # asks every process
        if self.main:
            os.fsync(self.log.file.fileno())  # the log is on disk before the checkpoint that relies on it
            progress = {
                "step": training.step,
                "best": self.best,
                "validation": self.validation,
                "log_bytes": self.log.file.tell(),
                "window": window,
            }
            content = {**self.content(training.model), "progress": progress, "training": state}
            save_checkpoint(self.path / "last.pth", content, keep_previous=True)

    def content(self, model):
        """What best.pth and last.pth have in common."""
        return {**self.about, "state": model.state_dict(), "metrics": self.validation}

    def note_validation(self, line, training):
        """Log a validation; write best.pth if it is the best so far; tell the schedule."""
        score = line["miou" if self.monitor == "miou" else "pixel_accuracy"] or 0.0
        self.log.write(line)
        self.log.restart_clock()
        self.validation = line
        training.schedule.observe(score)
        if self.best is None or score >= self.best:  # of equals the newest: a residual head trains without moving it
            self.best = score
            if self.main:
                progress = {"step": training.step, "best": score}
                save_checkpoint(self.path / "best.pth", {**self.content(training.best), "progress": progress})
