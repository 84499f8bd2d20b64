"""Writing what a person looks at: JSON, pictures, masks, pages. A file appears under its name only when complete."""

import contextlib
import io
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from cli import UserError
from report.colours import colour_table
from report.exhibits import draw_exhibit, encode
from report.page import diagnosis_page, page


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
