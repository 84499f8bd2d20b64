"""Pictures: masks over photographs, panels, heat maps, the confusion matrix, what the stages of a network see.

Each carries its own legend, so that it can be sent alone.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from datasets.spec import VOID
from report.canvas import (
    GAP,
    INK,
    MUTED,
    PAPER,
    ROW,
    TEXT,
    colour_bar,
    finite_range,
    fit,
    frame,
    grid,
    grow,
    heat_colours,
    ids_in,
    label_tile,
    legend_entries,
    load_font,
    outlines,
    shorten,
    stack,
    text_block,
)
from report.colours import ALARM_COLOUR, ERROR_COLOUR, VOID_COLOUR, colour_mask

# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def overlay(image, prediction, palette, alpha=0.5):
    """The photograph tinted with the classes, each outlined in its own full colour; void stays as photographed.

    image: (H, W, 3) uint8; prediction: (H, W) uint8 ids; alpha: 0 (photograph) .. 1 (mask).
    """
    photo, mask = Image.fromarray(image), colour_mask(prediction, palette)
    known = Image.fromarray((prediction <= len(palette)) & (prediction != VOID))
    tinted = Image.composite(Image.blend(photo, mask, alpha), photo, known)
    tinted.paste(mask, mask=outlines(prediction))
    return tinted


def heat_map(scores, low=None, high=None):
    """Scores as colours, dark (low) to bright (high), over a bar that gives the two numbers.

    scores: (H, W) float; low, high: the values of the first and last colour (default: smallest and largest finite
    score). Scores that are not finite are grey. The picture's first H rows and W columns are the map, pixel for pixel.
    """
    scores = np.asarray(scores, dtype=np.float32)
    least, largest = finite_range(scores)
    low, high = least if low is None else low, largest if high is None else high
    size = max(14, scores.shape[1] // 45)
    bar = colour_bar(low, high, max(min(scores.shape[1], size * 24), size * 12), size)
    return stack([heat_colours(scores, low, high), bar], gap=size // 3)


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
    photo = fit(image, longest, Image.Resampling.LANCZOS)
    truth, guess = (fit(ids.astype(np.uint8), longest) for ids in (target, prediction))
    certain = fit(confidence.astype(np.float32), longest, Image.Resampling.BILINEAR)
    return {
        "input": Image.fromarray(photo),
        "truth": colour_mask(truth, palette),
        "prediction": colour_mask(guess, palette),
        "overlay": overlay(photo, guess, palette),
        "confidence": heat_colours(certain, 0, 1),
        "errors": error_picture(photo, truth, guess, len(palette)),
    }


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
    sheet = grid([label_tile(tile, labels.get(name, name), bars.get(name)) for name, tile in tiles.items()], 3)
    return frame(sheet, caption, legend_entries(ids_in(target, prediction), classes, palette))


def _alarm_outline(alarm):
    """The pixels of a mask that have a neighbour outside it, 2 deep: seen where the picture is shown smaller."""
    return alarm & grow(grow(~alarm))


def anomaly_tiles(image, target, prediction, score, threshold, palette, longest=480):
    """The four pictures of `anomaly_panel`, `longest` pixels at their longer side: {name: RGB image}.

    All but the input are taken pixel by pixel (nearest), so that the outline holds exactly the scores it speaks of.
    """
    truth, guess = (fit(ids.astype(np.uint8), longest) for ids in (target, prediction))
    shown = fit(score.astype(np.float32), longest)
    heat = np.array(heat_colours(shown, *finite_range(score)))
    if threshold is not None:
        heat[_alarm_outline(shown >= threshold)] = ALARM_COLOUR  # a score that is not a number raises no alarm
    return {
        "input": Image.fromarray(fit(image, longest, Image.Resampling.LANCZOS)),
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
    bars = {"score": finite_range(score)}
    sheet = grid([label_tile(tile, name, bars.get(name)) for name, tile in tiles.items()], 2)
    entries = legend_entries(ids_in(target, prediction), classes, palette)
    if threshold is not None:
        entries.append((f"outline: alarm, score from {threshold:.4g} on", ALARM_COLOUR))
    return frame(sheet, caption, entries)


def contact_sheet(samples, classes, palette):
    """Samples beside their masks, two pairs to a row, over the legend of all classes.

    samples: [(image (H, W, 3) uint8, target (H, W) uint8 ids, caption)], at least one; the sizes may differ.
    """
    longest, pairs = 300, []
    for image, target, caption in samples:
        photo = Image.fromarray(fit(image, longest, Image.Resampling.LANCZOS))
        mask = colour_mask(fit(target, longest), palette)
        pair = Image.new("RGB", (photo.width + mask.width + 4, photo.height), PAPER)
        pair.paste(photo, (0, 0))
        pair.paste(mask, (photo.width + 4, 0))
        pairs.append((pair, caption))
    width, height = max(pair.width for pair, _ in pairs), max(pair.height for pair, _ in pairs)
    font, tiles = load_font(TEXT), []
    for pair, caption in pairs:
        tile = Image.new("RGB", (width, height + ROW), PAPER)
        tile.paste(pair, (0, 0))
        ImageDraw.Draw(tile).text((0, height + 6), shorten(caption, font, width), INK, font)
        tiles.append(tile)
    sheet = grid(tiles, min(2, len(tiles)))
    ids = ids_in(*(target for _, target, _ in samples)) | set(range(len(classes)))
    return frame(sheet, entries=legend_entries(ids, classes, palette))


# ---------------------------------------------------------------------------------------------------------------------
# The confusion matrix

ABSENT_COLOUR = (226, 228, 233)  # the row of a class without a pixel in the targets
LEAST_SHARE = 0.005  # a smaller share is written as nothing and drawn as paper


def share_text(share):
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
    colours = np.array(heat_colours(1 - shares, 0, 1))  # the darker, the more
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
    draw, font = ImageDraw.Draw(square), load_font(min(20, round(cell * 0.42)))
    for row, column in np.argwhere(shares >= LEAST_SHARE):
        red, green, blue = (int(part) for part in colours[row, column])
        ink = INK if 0.3 * red + 0.59 * green + 0.11 * blue > 140 else PAPER
        place = ((column + 0.5) * cell, (row + 0.5) * cell)
        draw.text(place, share_text(shares[row, column]), ink, font, anchor="mm")


def _frame_matrix(square, classes, absent, cell):
    """The matrix under what its axes are and the bar of its colours; class names beside it and, turned, above it."""
    font = load_font(min(TEXT, max(8, round(cell * 0.62))))
    names = [shorten(name, font, 240) for name in classes]
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
    bar = ImageOps.mirror(heat_colours(np.linspace(0, 1, 200)[None].repeat(TEXT, 0), 0, 1))
    key = Image.new("RGB", (300, ROW), PAPER)
    key.paste(bar, (20, 5))
    for place, number in ((4, "0"), (226, "1")):
        ImageDraw.Draw(key).text((place, key.height / 2), number, INK, load_font(TEXT), anchor="lm")
    return stack([text_block(text + grey, width), key, matrix], margin=GAP)


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
        tiles.append(label_tile(Image.fromarray(photo).resize((width, height), Image.Resampling.LANCZOS), "input"))
    for name, values in maps.items():
        values = np.asarray(values, dtype=np.float32)
        low, high = finite_range(values)
        tile = heat_colours(values, low, high).resize((width, height), Image.Resampling.NEAREST)
        tiles.append(label_tile(tile, f"{name}: {low:.3g} to {high:.3g}"))
    return frame(grid(tiles, columns), title)
