"""Everything a person looks at: palettes, coloured masks, panels, heat maps, terminal tables, progress, the page.

Only this module and its parts draw. Masks are looked up, never blended, so a pixel shows exactly its class's colour;
pictures carry their own legend; files appear under their name only when they are complete.
"""

import contextlib
import io
import json
import os
import sys
import time
import unicodedata
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from flags import UserError
from report_html import page

# ---------------------------------------------------------------------------------------------------------------------
# Colours

VOID_COLOUR = (0, 0, 0)
ANOMALY_COLOUR = (255, 72, 0)
ERROR_COLOUR = (220, 0, 90)  # on a grey picture: no other pixel of the errors tile has a hue
UNKNOWN_COLOUR = (128, 128, 128)  # a score that is not finite

# Smallest CIEDE2000 over all pairs, black and the anomaly's orange-red included: 14.6, taken over normal sight,
# protanopia and deuteranopia (Machado 2009, Viénot 1999) and tritanopia (Machado 2009, Brettel 1997). Found by
# annealing over the RGB cube; ordered so that the first n are always far apart.
DISTINCT = [
    (150, 30, 255),
    (150, 240, 225),
    (105, 45, 105),
    (45, 165, 135),
    (255, 210, 30),
    (165, 15, 0),
    (180, 135, 240),
    (30, 105, 75),
    (150, 90, 135),
]

# Lightness rises evenly and hue turns from blue over red to yellow, so that order survives grey print and colour
# blindness. Eleven points spaced evenly in OKLCH; colours between them are interpolated.
HEAT_RAMP = [
    (11, 9, 34),
    (34, 18, 72),
    (65, 23, 110),
    (106, 34, 123),
    (156, 42, 112),
    (195, 66, 86),
    (223, 97, 77),
    (246, 131, 68),
    (253, 172, 89),
    (255, 212, 128),
    (255, 248, 188),
]

# Linear RGB as seen without one kind of cone. Source: Machado, Oliveira and Fernandes 2009, severity 1.0.
_PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
_DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
_TRITANOPIA = [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
# Linear RGB to OKLab. Source: Ottosson 2020.
_RGB_TO_LMS = [
    [0.41222147, 0.53633254, 0.05144599],
    [0.2119035, 0.68069955, 0.10739696],
    [0.08830246, 0.28171884, 0.6299787],
]
_LMS_TO_LAB = [
    [0.21045426, 0.7936178, -0.00407205],
    [1.977998, -2.4285922, 0.45059371],
    [0.02590404, 0.78277177, -0.80867577],
]


def _appearance(colours):
    """OKLab of (M, 3) colours in 0..255 for normal sight and three colour blindnesses: (4, M, 3).

    The colour-blind coordinates count 1.5 times: they have a dimension less, and would lose to the normal ones.
    """
    srgb = np.asarray(colours, dtype=np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = [linear] + [np.clip(linear @ np.transpose(m), 0, 1) for m in (_PROTANOPIA, _DEUTERANOPIA, _TRITANOPIA)]
    lab = np.cbrt(np.stack(seen) @ np.transpose(_RGB_TO_LMS)) @ np.transpose(_LMS_TO_LAB)  # (4, M, 3)
    return lab * np.array([1, 1.5, 1.5, 1.5])[:, None, None]


def distinct_palette(n):
    """n colours that stay distinct for the common kinds of colour blindness: [(r, g, b)] in 0..255, always the same.

    Up to nine colours any two differ by at least 14 in CIEDE2000 for every kind of sight (and from black, void, and
    orange-red, anomaly). Each further one is the colour of an RGB grid in steps of 15, neither near black nor near
    white, that is farthest from all before it: smallest CIEDE2000 10 for 11, 8 for 13 and 7 for 19 colours.
    """
    chosen = list(DISTINCT[:n])
    if n <= len(DISTINCT):
        return chosen
    steps = np.arange(0, 256, 15)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)  # (5832, 3)
    lightness = _appearance(grid)[0, :, 0]
    grid = grid[(lightness > 0.35) & (lightness < 0.97)]
    seen = _appearance(grid)
    distance = np.full(len(grid), np.inf)
    taken = _appearance([*DISTINCT, VOID_COLOUR, ANOMALY_COLOUR])
    for index in range(taken.shape[1]):
        distance = np.minimum(distance, np.linalg.norm(seen - taken[:, index, None], axis=2).min(0))
    while len(chosen) < n:
        farthest = int(distance.round(6).argmax())  # rounded: the last bits differ between machines
        chosen.append(tuple(int(value) for value in grid[farthest]))
        distance = np.minimum(distance, np.linalg.norm(seen - seen[:, farthest, None], axis=2).min(0))
    return chosen


def _colour_table(palette):
    """The colour of every id 0..255: the palette, then the anomaly's, then void's; (256, 3) uint8."""
    table = np.tile(np.array(VOID_COLOUR, dtype=np.uint8), (256, 1))
    colours = [*palette, ANOMALY_COLOUR][:255]
    table[: len(colours)] = np.asarray(colours, dtype=np.uint8)
    return table


def colour_mask(target, palette):
    """Class ids as a picture.

    target: (H, W) uint8 ids. Ids below len(palette) take its colours, len(palette) (anomaly) is orange-red, everything
    beyond (void) is black. Returns an RGB image of the same size.
    """
    return Image.fromarray(_colour_table(palette)[np.asarray(target)])


# ---------------------------------------------------------------------------------------------------------------------
# Text on pictures

PAPER, INK, MUTED = (255, 255, 255), (26, 28, 33), (98, 102, 112)
TEXT, GAP = 19, 12  # pixels: height of small text, space between the parts of a picture


@lru_cache(maxsize=32)
def _font(size):
    return ImageFont.load_default(size=size)


def _plain(text):
    """The text in characters that the built-in font has: accents dropped, what remains unknown as '?'."""
    text = str(text).translate(str.maketrans({"ß": "ss", "–": "-", "—": "-", "−": "-", "×": "x"}))
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() or letter in "±·" else "?" for letter in letters)


def _shorten(line, font, width):
    """The line cut to `width` pixels, with three dots where something is missing."""
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."


def _text_block(text, width, size=TEXT, fill=INK):
    """Text wrapped at words to `width` pixels, as an image of that width."""
    font, lines = _font(size), []
    for paragraph in _plain(text).splitlines() or [""]:
        line = ""
        for word in paragraph.split():
            if line and font.getlength(f"{line} {word}") > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}".strip()
        lines.append(line)
    leading = round(size * 1.35)
    block = Image.new("RGB", (width, leading * len(lines)), PAPER)
    draw = ImageDraw.Draw(block)
    for row, line in enumerate(lines):
        draw.text((0, row * leading + leading / 2), _shorten(line, font, width), fill, font, anchor="lm")
    return block


def _legend(entries, width):
    """Colour chips with their names [(name, colour)], flowing over as many rows as `width` pixels need."""
    font, row, chip, space, spots, x, y = _font(TEXT), round(TEXT * 1.6), TEXT, 26, [], 0, 0
    for name, colour in entries:
        name = _shorten(" ".join(_plain(name).split()), font, width - chip - 8)
        length = chip + 8 + int(font.getlength(name)) + 1
        if x and x + length > width:
            x, y = 0, y + row
        spots.append((x, y, name, colour))
        x += length + space
    block = Image.new("RGB", (width, y + row), PAPER)
    draw = ImageDraw.Draw(block)
    for x, y, name, colour in spots:
        top = y + (row - chip) // 2
        draw.rectangle((x, top, x + chip - 1, top + chip - 1), tuple(colour), outline=MUTED)
        draw.text((x + chip + 8, y + row / 2), name, INK, font, anchor="lm")
    return block


def _legend_entries(ids, classes, palette):
    """The legend of the given ids: known classes in order, then anomaly, then pixels without a label."""
    entries = [(classes[i], palette[i]) for i in sorted(ids) if i < len(classes)]
    anomaly = [("anomaly", ANOMALY_COLOUR)] if len(classes) in ids else []
    void = [("not labelled", VOID_COLOUR)] if any(i > len(classes) for i in ids) else []
    return entries + anomaly + void


def _stack(parts, gap=GAP, margin=0):
    """Images one under the other, left-aligned on white."""
    width, height = max(part.width for part in parts), sum(part.height for part in parts) + gap * (len(parts) - 1)
    sheet, y = Image.new("RGB", (width + 2 * margin, height + 2 * margin), PAPER), margin
    for part in parts:
        sheet.paste(part, (margin, y))
        y += part.height + gap
    return sheet


def _grid(tiles, columns):
    """Tiles of one size in rows of `columns`, GAP pixels between and around them."""
    batch = [pil_to_tensor(tile) for tile in tiles]
    return to_pil_image(make_grid(batch, nrow=columns, padding=GAP, pad_value=255))


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def _grow(mask):
    """The mask and its four neighbours."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def _outlines(ids):
    """Where two classes meet, as a mask image: 1 pixel on either side, one more for each 600 pixels of the picture."""
    border = np.zeros(ids.shape, dtype=bool)
    down, right = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= right
    border[:, :-1] |= right
    for _ in range(max(ids.shape) // 600):
        border = _grow(border)
    return Image.fromarray(border)


def overlay(image, prediction, palette, alpha=0.5):
    """The photograph tinted with the classes, each outlined in its own full colour; void stays as photographed.

    image: (H, W, 3) uint8; prediction: (H, W) uint8 ids; alpha: 0 (photograph) .. 1 (mask).
    """
    photo, mask = Image.fromarray(image), colour_mask(prediction, palette)
    known = Image.fromarray((prediction <= len(palette)) & (prediction != 255))
    tinted = Image.composite(Image.blend(photo, mask, alpha), photo, known)
    tinted.paste(mask, mask=_outlines(prediction))
    return tinted


def _heat_colours(scores, low, high):
    """Scores as colours of HEAT_RAMP, clipped to low..high; (H, W, 3) uint8."""
    points, steps = np.linspace(0, 255, len(HEAT_RAMP)), np.arange(256)
    table = np.stack([np.interp(steps, points, channel) for channel in np.transpose(HEAT_RAMP)], 1).round()  # (256, 3)
    finite = np.isfinite(scores)
    place = (np.where(finite, scores, low) - low) / ((high - low) or 1)
    colours = table.astype(np.uint8)[(np.clip(place, 0, 1) * 255).round().astype(np.uint8)]
    colours[~finite] = UNKNOWN_COLOUR
    return Image.fromarray(colours)


def _colour_bar(low, high, width, size=TEXT):
    """The ramp with its two numbers, `width` pixels wide."""
    font, height = _font(size), round(size * 1.6)
    left, right = f"{low:.3g}", f"{high:.3g}"
    start, end = int(font.getlength(left)) + 12, width - int(font.getlength(right)) - 12
    strip = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((3, height / 2), left, INK, font, anchor="lm")
    draw.text((width - 3, height / 2), right, INK, font, anchor="rm")
    ramp = _heat_colours(np.linspace(0, 1, end - start)[None].repeat(size, 0), 0, 1)
    strip.paste(ramp, (start, (height - size) // 2))
    return strip


def heat_map(scores, low=None, high=None):
    """Scores as colours, dark (low) to bright (high), over a bar that gives the two numbers.

    scores: (H, W) float; low, high: the values of the first and last colour (default: smallest and largest finite
    score). Scores that are not finite are grey. The picture's first H rows and W columns are the map, pixel for pixel.
    """
    scores = np.asarray(scores, dtype=np.float32)
    finite = scores[np.isfinite(scores)] if np.isfinite(scores).any() else np.zeros(1)
    low = float(finite.min()) if low is None else low
    high = float(finite.max()) if high is None else high
    size = max(14, scores.shape[1] // 45)
    bar = _colour_bar(low, high, max(min(scores.shape[1], size * 24), size * 12), size)
    return _stack([_heat_colours(scores, low, high), bar], gap=size // 3)


def _fit(picture, longest, method=Image.Resampling.NEAREST):
    """The picture enlarged or shrunk to `longest` pixels at its longer side; ids stay ids (nearest)."""
    return ImageOps.contain(picture, (longest, longest), method)


def error_picture(image, target, prediction, num_classes):
    """Wrong pixels in ERROR_COLOUR on the faded grey photograph; pixels without a known label black.

    image: (H, W, 3) uint8; target, prediction: (H, W) uint8 ids.
    """
    grey = np.asarray(Image.fromarray(image).convert("L")) // 2 + 120  # 120..247: neither void nor paper
    picture = np.repeat(grey[:, :, None], 3, axis=2)
    known = target < num_classes
    picture[~known] = VOID_COLOUR
    picture[known & (prediction != target)] = ERROR_COLOUR
    return Image.fromarray(picture)


def panel_tiles(image, target, prediction, confidence, palette, longest=480):
    """The six pictures of a panel, `longest` pixels at their longer side: {name: RGB image}; see `panel`."""
    photo = _fit(Image.fromarray(image), longest, Image.Resampling.LANCZOS)
    small = np.asarray(photo)
    truth, guess = (np.asarray(_fit(Image.fromarray(ids.astype(np.uint8)), longest)) for ids in (target, prediction))
    certain = _fit(Image.fromarray(confidence.astype(np.float32)), longest, Image.Resampling.BILINEAR)
    return {
        "input": photo,
        "truth": colour_mask(truth, palette),
        "prediction": colour_mask(guess, palette),
        "overlay": overlay(small, guess, palette),
        "confidence": _heat_colours(np.asarray(certain), 0, 1),
        "errors": error_picture(small, truth, guess, len(palette)),
    }


def _label_tile(tile, label, bar=False):
    """A tile under its name, with the colour bar 0..1 at the right end where asked."""
    head = _text_block(label, tile.width)
    if bar:
        length = min(190, tile.width - int(_font(TEXT).getlength(label)) - 20)
        head = Image.new("RGB", (tile.width, round(TEXT * 1.6)), PAPER)
        head.paste(_text_block(label, tile.width - length - 10), (0, 2))
        head.paste(_colour_bar(0, 1, length), (tile.width - length, 0))
    return _stack([ImageOps.pad(head, (tile.width, round(TEXT * 1.6)), color=PAPER), tile], gap=2)


def panel(image, target, prediction, confidence, classes, palette, caption):
    """One image judged: input, truth, prediction, overlay, confidence and errors, with a legend and a caption.

    image: (H, W, 3) uint8; target, prediction: (H, W) uint8 ids; confidence: (H, W) float32 in 0..1; caption: one or
    more lines with the figures. The legend names the classes that the truth or the prediction holds.
    """
    tiles = panel_tiles(image, target, prediction, confidence, palette)
    known = target < len(classes)
    wrong = f"errors: {(prediction != target)[known].mean():.3f} of labelled pixels" if known.any() else "errors"
    labels = {"overlay": "prediction on input", "errors": wrong}
    sheet = _grid([_label_tile(t, labels.get(n, n), bar=n == "confidence") for n, t in tiles.items()], 3)
    width = sheet.width - 2 * GAP
    legend = _legend(_legend_entries(set(np.unique(target)) | set(np.unique(prediction)), classes, palette), width)
    head = _stack([_text_block(caption, width, size=24)], margin=GAP)
    return _stack([head, sheet, _stack([legend], margin=GAP)], gap=0)


def contact_sheet(samples, classes, palette):
    """Samples beside their masks, two pairs to a row, over the legend of all classes.

    samples: [(image (H, W, 3) uint8, target (H, W) uint8 ids, caption)], at least one; the sizes may differ.
    """
    longest, pairs = 300, []
    for image, target, caption in samples:
        photo = _fit(Image.fromarray(image), longest, Image.Resampling.LANCZOS)
        mask = _fit(colour_mask(target, palette), longest)
        pair = Image.new("RGB", (photo.width + mask.width + 4, photo.height), PAPER)
        pair.paste(photo, (0, 0))
        pair.paste(mask, (photo.width + 4, 0))
        pairs.append((pair, caption))
    width, height = max(pair.width for pair, _ in pairs), max(pair.height for pair, _ in pairs)
    font, tiles = _font(TEXT), []
    for pair, caption in pairs:
        tile = Image.new("RGB", (width, height + round(TEXT * 1.6)), PAPER)
        tile.paste(pair, (0, 0))
        ImageDraw.Draw(tile).text((0, height + 6), _shorten(_plain(caption), font, width), INK, font)
        tiles.append(tile)
    sheet = _grid(tiles, min(2, len(tiles)))
    ids = set(range(len(classes))).union(*(set(np.unique(target)) for _, target, _ in samples))
    return _stack(
        [sheet, _stack([_legend(_legend_entries(ids, classes, palette), sheet.width - 2 * GAP)], margin=GAP)], 0
    )


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
    """Write JSON (finite numbers only, null where undefined), whole or not at all."""
    _write(path, (json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8"))


def save_picture(image, path):
    """Save an image as PNG; the folder is made, and an older file stays whole until the new one is complete."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    _write(path, buffer.getvalue())


def save_mask(path, prediction, palette):
    """Save class ids (H, W) uint8 as a palette PNG: a program reads the ids back, a person sees the colours."""
    image = Image.fromarray(np.ascontiguousarray(prediction, dtype=np.uint8))
    image.putpalette(_colour_table(palette).tobytes())  # turns mode L into P, the ids untouched
    save_picture(image, path)


def write_report(path, *, title, config, evaluation, log, pictures, diagnosis, palette):
    """Write the run's report: one HTML file that needs no network and no script.

    config: all flags; evaluation: evaluate's JSON or None; log: the lines of log.jsonl; pictures: [(caption, file)];
    diagnosis: diagnose's JSON or None; palette: [(r, g, b)] in the order of evaluation["iou"].
    evaluation["pixel_share"] {class: share of the target pixels} is shown where it is there.
    """
    text = page(title, config, evaluation, log, pictures, diagnosis, palette)
    _write(path, text.encode("utf-8"))


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
