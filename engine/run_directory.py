"""A run's directory: its log, and what stops it."""

import json
import math
import os
import signal
import statistics
import time

import cli
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
    """log.jsonl: one JSON object a line; the training lines gather the steps between two of them.

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

    The package is asked for in `read_args`.
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
