"""Everything a person looks at: palettes, coloured masks, panels, heat maps, terminal tables, progress, the page.

Only this module and its parts draw. Masks are looked up, never blended, so a pixel shows exactly its class's colour;
pictures carry their own legend; files appear under their name only when they are complete. Palettes are in
report_colours.py, pictures in report_pictures.py, what the doctor found in report_evidence.py, the page in
report_html.py, its section on anomaly scores in report_anomaly.py; all are reached from here.
"""

import contextlib
import io
import json
import os
import re
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from flags import UserError
from report_anomaly import certified, chance_figures, figure, ranked
from report_colours import (
    ALARM_COLOUR,
    ANOMALY_COLOUR,
    ERROR_COLOUR,
    HEAT_RAMP,
    NORMAL,
    NORMAL_COLOUR,
    UNKNOWN_COLOUR,
    VOID_COLOUR,
    colour_mask,
    colour_table,
    distinct_palette,
)
from report_evidence import diagnosis_table, draw_exhibit, encode
from report_html import confusion_words, diagnosis_page, page
from report_pictures import (
    anomaly_panel,
    anomaly_tiles,
    confusion_picture,
    contact_sheet,
    error_picture,
    feature_picture,
    heat_map,
    overlay,
    panel,
    panel_tiles,
)
from report_sets import sets_table
from report_svg import score_text

__all__ = [
    "ALARM_COLOUR",
    "ANOMALY_COLOUR",
    "ERROR_COLOUR",
    "HEAT_RAMP",
    "NORMAL",
    "NORMAL_COLOUR",
    "Progress",
    "UNKNOWN_COLOUR",
    "VOID_COLOUR",
    "anomaly_panel",
    "anomaly_table",
    "anomaly_tiles",
    "class_table",
    "colour_mask",
    "confusion_picture",
    "confusion_words",
    "contact_sheet",
    "diagnosis_table",
    "distinct_palette",
    "draw_exhibit",
    "error_picture",
    "feature_picture",
    "feature_table",
    "heat_map",
    "overlay",
    "panel",
    "panel_tiles",
    "save_exhibits",
    "save_mask",
    "save_picture",
    "score_text",
    "sets_table",
    "write_diagnosis_page",
    "write_json",
    "write_report",
]

# ---------------------------------------------------------------------------------------------------------------------
# Files


def _write(path, data):
    """Write bytes under another name in the same folder, then rename: a file is complete or absent.

    Raises UserError where the place cannot be written.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(f"cannot write ({error.strerror})", path, "free some space or choose another place") from None


def write_json(path, content):
    """Write JSON (finite numbers only, null where undefined), whole or not at all; a list of numbers is one line."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    text = re.sub(r'\[\n([^][{}"]+)\n *\]', lambda found: f"[{' '.join(found[1].split())}]", text)  # no string inside
    _write(path, (text + "\n").encode("utf-8"))


def save_picture(image, path):
    """Save an image as PNG; the folder is made, and an older file stays whole until the new one is complete."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    _write(path, buffer.getvalue())


def save_mask(path, prediction, palette):
    """Save class ids (H, W) uint8 as a palette PNG: a program reads the ids back, a person sees the colours."""
    image = Image.fromarray(np.ascontiguousarray(prediction, dtype=np.uint8))
    image.putpalette(colour_table(palette).tobytes())  # turns mode L into P, the ids untouched
    save_picture(image, path)


def write_report(path, *, title, config, evaluation, log, pictures, diagnosis, palette, confusion=None, features=None):
    """Write the run's report: one HTML file that needs no network and no script.

    config: all flags; evaluation: evaluate's JSON or None; log: the lines of log.jsonl; pictures: [(caption, file)];
    diagnosis: diagnose's JSON or None, its pictures relative to the page's folder; palette: [(r, g, b)] in the order of
    evaluation["iou"]; confusion: the file of `confusion_picture`, or None; features: {"stages": rows as `feature_table`
    takes them, "pictures": as pictures}, or None. evaluation["pixel_share"] {class: share of the target pixels} is
    shown where it is there, and so are "confusions" and "worst_images". Without mIoU (no known class is labelled) the
    page leads with "anomaly" beside "anomaly_share", and leaves out what the classes' labels would have given.
    """
    folder = Path(path).parent
    text = page(title, config, evaluation, log, pictures, diagnosis, palette, folder, confusion, features)
    _write(path, text.encode("utf-8"))


def write_diagnosis_page(path, title, diagnosis, folder):
    """Write a page of the diagnosis alone, for a run without an evaluation; it needs no network and no script.

    diagnosis: diagnose's JSON; folder: what the files of its evidence["pictures"] are relative to.
    """
    _write(path, diagnosis_page(title, diagnosis, folder).encode("utf-8"))


def save_exhibits(folder, findings, classes, palette):
    """Draw every finding's exhibits into folder/diagnosis/PROBE-N.png (.jpg where a photograph needs it).

    findings: objects with `probe` and `exhibits`; classes, palette: names and [(r, g, b)]. Returns, in the order of the
    findings, [[{"caption", "file" (relative to folder)}]], what evidence["pictures"] holds.
    """
    drawn, number_of = [], Counter()
    for finding in findings:
        pictures = []
        for exhibit in finding.exhibits:
            name = re.sub(r"[^\w-]+", "-", finding.probe)
            number_of[name] += 1
            data, ending = encode(draw_exhibit(exhibit, classes, palette))
            file = f"diagnosis/{name}-{number_of[name]}.{ending}"
            _write(Path(folder) / file, data)
            pictures.append({"caption": exhibit.caption, "file": file})
        drawn.append(pictures)
    return drawn


# ---------------------------------------------------------------------------------------------------------------------
# Terminal


def class_table(classes, iou, shares=None):
    """The per-class table for the terminal.

    classes: names; iou: 0..1 or None (absent) each; shares: each class's share of the target pixels, or None.
    """
    width = max([5, *(len(name) for name in classes)])
    lines = [f"{'class':<{width}}    IoU  {'':24}" + ("  share of pixels" if shares else "")]
    for index, (name, value) in enumerate(zip(classes, iou, strict=True)):
        figure = "     -" if value is None else f"{value:6.3f}"
        share = f"  {shares[index]:15.4f}" if shares else ""
        lines.append(f"{name:<{width}} {figure}  {'#' * round(24 * (value or 0)):24}{share}")
    return "\n".join(line.rstrip() for line in lines)


def feature_table(stages):
    """The stages' maps for the terminal. stages: [{"stage", "shape", "mean", "std", "zeros"}], figures may be None."""
    width = max([5, *(len(row["stage"]) for row in stages)])
    lines = [f"{'stage':<{width}}  {'shape':>15} {'mean':>10} {'std':>10}  zeros"]
    for row in stages:
        mean, std, zeros = (_figure(row[name]) for name in ("mean", "std", "zeros"))
        shape = " x ".join(map(str, row["shape"]))
        lines.append(f"{row['stage']:<{width}}  {shape:>15} {mean:>10} {std:>10}  {zeros}")
    return "\n".join(lines)


ANOMALY_COLUMNS = {
    "AUROC": "auroc",
    "FPR95": "fpr95",
    "per image": "per_image/aupr",
    "found at 1 %": "found_at/0.01",
    "comp. F1": "components/f1",
}


def anomaly_table(anomaly, chance=None):
    """The anomaly scores for the terminal, the largest AUPR first: AUPR ± its certified error and [95 % interval].

    anomaly: evaluation["anomaly"]; chance: the share of anomalous pixels, whose row comes last, or None. "per image" is
    the mean AUPR of single images; component F1 is shown where a score has it. Of a name longer
    than 24 letters the middle is left out.
    """
    rows = [*ranked(anomaly), *([("chance", chance_figures(chance))] if chance is not None else [])]
    columns = dict(ANOMALY_COLUMNS)
    if all(figure(scores, columns["comp. F1"]) is None for _, scores in rows):
        del columns["comp. F1"]
    table = [["score", "AUPR", *columns]]
    for name, scores in rows:
        figures = [figure(scores, place) for place in columns.values()]
        name = name if len(name) <= 24 else f"{name[:11]}..{name[-11:]}"
        table.append([name, _aupr(scores), *("-" if value is None else f"{value:.4f}" for value in figures)])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(_line(cells, widths) for cells in table)


def _aupr(scores):
    value, bound = certified(scores, "aupr")
    interval = scores.get("aupr_interval")
    parts = ["-" if scores.get("aupr") is None else value, f"± {bound}" if bound else ""]
    return " ".join(part for part in [*parts, "[{:.3f}, {:.3f}]".format(*interval) if interval else ""] if part)


def _line(cells, widths):
    """Cells under each other in columns, the first two from the left, the others from the right."""
    places = [
        f"{cell:{'<' if at < 2 else '>'}{width}}" for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(places).rstrip()


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _figure(value):
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)


class Progress:
    """How far a long job is, on standard error.

    On a terminal one line that rewrites itself up to ten times a second; elsewhere a plain line at most every 15
    seconds, and one at the end. `contextlib.closing` ends the line when the job fails half-way.
    total: number of units in the whole job; done: how many of them an earlier run did.
    """

    def __init__(self, total, label, unit="images", done=0):
        self.total, self.label, self.unit = total, label, unit
        self.first = self.done = done
        self.figures, self.shown = {}, None
        self.start = self.last = time.monotonic()
        self.live = sys.stderr.isatty()

    def update(self, done, **figures):
        """`done` units of the total are finished; figures are printed by their names."""
        self.done, self.figures = done, figures
        now = time.monotonic()
        if now - self.last >= (0.1 if self.live else 15):
            self._print(now)

    def close(self):
        """Print the last state, the time taken in place of the time left, and end the line."""
        if self.start is not None:
            self._print(time.monotonic(), end=True)
            self.start = None

    def _line(self, now, end):
        seconds, new = now - self.start, self.done - self.first
        parts = [self.label, f"{self.done}/{self.total} {self.unit}"]
        if new > 0 and seconds > 0:
            rate = new / seconds
            left = max(self.total - self.done, 0) / rate
            parts += [f"{rate:.3g}/s", f"{_clock(seconds)} taken" if end else f"{_clock(left)} left"]
        return "  ".join(parts + [f"{name.replace('_', ' ')} {_figure(value)}" for name, value in self.figures.items()])

    def _print(self, now, end=False):
        line = self._line(now, end)
        self.last = now
        if self.live:
            line = "\r" + line[: _columns() - 1] + "\x1b[K"  # a full line would wrap and could not be rewritten
        sys.stderr.write(line + ("\n" if end or not self.live else ""))
        sys.stderr.flush()


def _columns():
    """Width of the terminal on standard error; some report 0."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
