"""Pictures: masks over photographs, panels, heat maps, the confusion matrix, what the stages of a network see.

Each carries its own legend, so that it can be sent alone.
"""

import unicodedata
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from report.colours import (
    ALARM_COLOUR,
    ANOMALY_COLOUR,
    ERROR_COLOUR,
    HEAT_RAMP,
    NORMAL,
    NORMAL_COLOUR,
    UNKNOWN_COLOUR,
    VOID_COLOUR,
    colour_mask,
)

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
    """The legend of the given ids: known classes in order, then anomaly, NORMAL, and pixels without a label."""
    entries = [(classes[i], palette[i]) for i in sorted(ids) if i < len(classes)]
    anomaly = [("anomaly", ANOMALY_COLOUR)] if len(classes) in ids else []
    others = {i for i in ids if i > len(classes)}
    normal = [("normal, class not known", NORMAL_COLOUR)] if NORMAL in others else []
    void = [("not labelled", VOID_COLOUR)] if others - {NORMAL} else []
    return entries + anomaly + normal + void


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


def _finite_range(scores):
    """The smallest and the largest finite score; (0, 0) where there is none."""
    finite = scores[np.isfinite(scores)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def heat_map(scores, low=None, high=None):
    """Scores as colours, dark (low) to bright (high), over a bar that gives the two numbers.

    scores: (H, W) float; low, high: the values of the first and last colour (default: smallest and largest finite
    score). Scores that are not finite are grey. The picture's first H rows and W columns are the map, pixel for pixel.
    """
    scores = np.asarray(scores, dtype=np.float32)
    least, largest = _finite_range(scores)
    low, high = least if low is None else low, largest if high is None else high
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


def _label_tile(tile, label, bar=None):
    """A tile under its name, with the colour bar of (low, high) at the right end where bar is given and fits."""
    head = _text_block(label, tile.width)
    length = min(190, tile.width - int(_font(TEXT).getlength(label)) - 20)
    if bar and length > 40 + sum(_font(TEXT).getlength(f"{number:.3g}") for number in bar):
        head = Image.new("RGB", (tile.width, round(TEXT * 1.6)), PAPER)
        head.paste(_text_block(label, tile.width - length - 10), (0, 2))
        head.paste(_colour_bar(*bar, length), (tile.width - length, 0))
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
    bars = {"confidence": (0, 1)}
    sheet = _grid([_label_tile(tile, labels.get(name, name), bars.get(name)) for name, tile in tiles.items()], 3)
    return _frame(sheet, caption, _legend_entries(_ids(target, prediction), classes, palette))


def _ids(*masks):
    """The ids that occur in any of the masks."""
    return set().union(*(np.unique(mask).tolist() for mask in masks))


def _frame(sheet, caption, entries):
    """A sheet of tiles between its caption and its legend."""
    width = sheet.width - 2 * GAP
    head = _stack([_text_block(caption, width, size=24)], margin=GAP)
    return _stack([head, sheet, _stack([_legend(entries, width)], margin=GAP)], gap=0)


def _alarm_outline(alarm):
    """The pixels of a mask that have a neighbour outside it, 2 deep: seen where the picture is shown smaller."""
    return alarm & _grow(_grow(~alarm))


def anomaly_tiles(image, target, prediction, score, threshold, palette, longest=480):
    """The four pictures of `anomaly_panel`, `longest` pixels at their longer side: {name: RGB image}.

    All but the input are taken pixel by pixel (nearest), so that the outline holds exactly the scores it speaks of.
    """
    truth, guess = (np.asarray(_fit(Image.fromarray(ids.astype(np.uint8)), longest)) for ids in (target, prediction))
    shown = np.asarray(_fit(Image.fromarray(score.astype(np.float32)), longest))
    heat = np.array(_heat_colours(shown, *_finite_range(score)))
    if threshold is not None:
        heat[_alarm_outline(shown >= threshold)] = ALARM_COLOUR  # a score that is not a number raises no alarm
    return {
        "input": _fit(Image.fromarray(image), longest, Image.Resampling.LANCZOS),
        "truth": colour_mask(truth, palette),
        "prediction": colour_mask(guess, palette),
        "score": Image.fromarray(heat),
    }


def anomaly_panel(image, target, prediction, score, threshold, classes, palette, caption):
    """One image and its anomaly score: input, truth, prediction and heat map, with a legend and a caption.

    image: (H, W, 3) uint8; target, prediction: (H, W) uint8 ids, 0 … C-1 classes, C anomaly, NORMAL, 255 void; score:
    (H, W) float32, larger is more anomalous; threshold: pixels at or above it are outlined, None: no outlines; caption:
    one or more lines with the figures.
    """
    tiles = anomaly_tiles(image, target, prediction, score, threshold, palette)
    bars = {"score": _finite_range(score)}
    sheet = _grid([_label_tile(tile, name, bars.get(name)) for name, tile in tiles.items()], 2)
    entries = _legend_entries(_ids(target, prediction), classes, palette)
    if threshold is not None:
        entries.append((f"outline: alarm, score from {threshold:.4g} on", ALARM_COLOUR))
    return _frame(sheet, caption, entries)


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
# The confusion matrix

ABSENT_COLOUR = (226, 228, 233)  # the row of a class without a pixel in the targets
LEAST_SHARE = 0.005  # a smaller share is written as nothing and drawn as paper


def _share_text(share):
    """A share in the fewest characters: '.07', '1', nothing where it rounds to .00."""
    return "" if share < LEAST_SHARE else "1" if share >= 0.995 else f"{share:.2f}"[1:]


def confusion_picture(confusion, classes):
    """The confusion matrix, each row divided by its sum: a row tells what one class's pixels were taken for.

    confusion: (C, C) counts [target, prediction]; classes: C names. A class without a pixel has an empty, grey row.
    Numbers are written where they fit: up to 40 classes.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    totals = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(totals, 1)  # (C, C), rows sum to 1 or 0
    cell = int(np.clip(1200 // len(classes), 8, 64))
    colours = np.array(_heat_colours(1 - shares, 0, 1))  # the darker, the more
    colours[shares < LEAST_SHARE] = PAPER
    colours[totals[:, 0] == 0] = ABSENT_COLOUR
    square = Image.fromarray(colours).resize((cell * len(classes),) * 2, Image.Resampling.NEAREST)
    if cell >= 30:
        _write_shares(square, shares, colours, cell)
    draw = ImageDraw.Draw(square)
    for place in range(0, square.width + 1, cell):
        edge = min(place, square.width - 1)
        draw.line((edge, 0, edge, square.height), ABSENT_COLOUR)
        draw.line((0, edge, square.width, edge), ABSENT_COLOUR)
    return _frame_matrix(square, classes, totals[:, 0] == 0, cell)


def _write_shares(square, shares, colours, cell):
    """Each share in its cell, in black or white, whichever stands out."""
    draw, font = ImageDraw.Draw(square), _font(min(20, round(cell * 0.42)))
    for row, column in np.argwhere(shares >= LEAST_SHARE):
        red, green, blue = (int(part) for part in colours[row, column])
        ink = INK if 0.3 * red + 0.59 * green + 0.11 * blue > 140 else PAPER
        place = ((column + 0.5) * cell, (row + 0.5) * cell)
        draw.text(place, _share_text(shares[row, column]), ink, font, anchor="mm")


def _frame_matrix(square, classes, absent, cell):
    """The matrix under what its axes are and the bar of its colours; class names beside it and, turned, above it."""
    font = _font(min(TEXT, max(8, round(cell * 0.62))))
    names = [_shorten(" ".join(_plain(name).split()), font, 240) for name in classes]
    room = 14 + max(int(font.getlength(name)) for name in names)
    places = [(index + 0.5) * cell for index in range(len(names))]
    rows, columns = (Image.new("RGB", (room, square.height), PAPER) for _ in range(2))
    for name, place, missing in zip(names, places, absent, strict=True):
        ImageDraw.Draw(rows).text((room - 7, place), name, MUTED if missing else INK, font, anchor="rm")
        ImageDraw.Draw(columns).text((7, place), name, INK, font, anchor="lm")
    matrix = Image.new("RGB", (room + square.width, room + square.height), PAPER)
    matrix.paste(rows, (0, room))
    matrix.paste(columns.transpose(Image.Transpose.ROTATE_90), (room, 0))
    matrix.paste(square, (room, room))
    width = max(matrix.width, 560)
    text = (
        "Each row: what the pixels of one class were taken for (columns), as shares that sum to 1. White: below .005."
    )
    grey = " Grey row: no pixel of that class in the targets." if absent.any() else ""
    bar = ImageOps.mirror(_heat_colours(np.linspace(0, 1, 200)[None].repeat(TEXT, 0), 0, 1))
    key = Image.new("RGB", (300, round(TEXT * 1.6)), PAPER)
    key.paste(bar, (20, 5))
    for place, number in ((4, "0"), (226, "1")):
        ImageDraw.Draw(key).text((place, key.height / 2), number, INK, _font(TEXT), anchor="lm")
    return _stack([_text_block(text + grey, width), key, matrix], margin=GAP)


# ---------------------------------------------------------------------------------------------------------------------
# What the stages see


def feature_picture(maps, title, size, columns=3, photo=None):
    """Maps of one image side by side, each in heat colours from its own smallest to its own largest value.

    maps: {name: (rows, columns) float array}; title: one or more lines above; size: (height, width) of the image that
    entered the network, whose shape every map is drawn in, its cells as they are; photo: (H, W, 3) uint8, the first
    tile, or None.
    """
    longest = 300
    width, height = (max(1, round(side * longest / max(size))) for side in size[::-1])
    tiles = []
    if photo is not None:
        tiles.append(_label_tile(Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS), "input"))
    for name, values in maps.items():
        values = np.asarray(values, dtype=np.float32)
        low, high = _finite_range(values)
        tile = _heat_colours(values, low, high).resize((width, height), Image.Resampling.NEAREST)
        tiles.append(_label_tile(tile, f"{name}: {low:.3g} to {high:.3g}"))
    sheet = _grid(tiles, columns)
    return _stack([_stack([_text_block(title, sheet.width - 2 * GAP, size=24)], margin=GAP), sheet], gap=0)
