"""What pictures are put together from: text, legends, tiles in stacks and grids, outlines, scores as colours."""

import unicodedata
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import make_grid

from datasets.spec import NORMAL
from report.colours import ANOMALY_COLOUR, HEAT_RAMP, NORMAL_COLOUR, UNKNOWN_COLOUR, VOID_COLOUR

# ---------------------------------------------------------------------------------------------------------------------
# Text

PAPER, INK, MUTED = (255, 255, 255), (26, 28, 33), (98, 102, 112)
TEXT, ROW, GAP = 19, 30, 12  # pixels: height of small text and of its row, space between the parts of a picture


@lru_cache(maxsize=32)
def load_font(size):
    """The font that Pillow brings, `size` pixels high."""
    return ImageFont.load_default(size=size)


def plain(text):
    """The text in characters that the built-in font has: accents dropped, what remains unknown as '?'."""
    text = str(text).translate(str.maketrans({"ß": "ss", "–": "-", "—": "-", "−": "-", "×": "x"}))
    letters = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() or letter in "±·" else "?" for letter in letters)


def shorten(text, font, width):
    """The text as one line of plain characters, cut to `width` pixels with three dots where something is missing."""
    line = " ".join(plain(text).split())
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line + "..."


def text_block(text, width, size=TEXT, fill=INK):
    """Text wrapped at words to `width` pixels, as an image of that width."""
    font, lines = load_font(size), []
    for paragraph in plain(text).splitlines() or [""]:
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
        draw.text((0, row * leading + leading / 2), shorten(line, font, width), fill, font, anchor="lm")
    return block


def legend(entries, width):
    """Colour chips with their names [(name, colour)], flowing over as many rows as `width` pixels need."""
    font, chip, space, spots, x, y = load_font(TEXT), TEXT, 26, [], 0, 0
    for name, colour in entries:
        name = shorten(name, font, width - chip - 8)
        length = chip + 8 + int(font.getlength(name)) + 1
        if x and x + length > width:
            x, y = 0, y + ROW
        spots.append((x, y, name, colour))
        x += length + space
    block = Image.new("RGB", (width, y + ROW), PAPER)
    draw = ImageDraw.Draw(block)
    for x, y, name, colour in spots:
        top = y + (ROW - chip) // 2
        draw.rectangle((x, top, x + chip - 1, top + chip - 1), tuple(colour), outline=MUTED)
        draw.text((x + chip + 8, y + ROW / 2), name, INK, font, anchor="lm")
    return block


def legend_entries(ids, classes, palette):
    """The legend of the given ids, [(name, colour)]: classes in order, then anomaly, NORMAL, pixels without a label."""
    entries = [(classes[i], palette[i]) for i in sorted(ids) if i < len(classes)]
    anomaly = [("anomaly", ANOMALY_COLOUR)] if len(classes) in ids else []
    others = {i for i in ids if i > len(classes)}
    normal = [("normal, class not known", NORMAL_COLOUR)] if NORMAL in others else []
    void = [("not labelled", VOID_COLOUR)] if others - {NORMAL} else []
    return entries + anomaly + normal + void


def stack(parts, gap=GAP, margin=0):
    """Images one under the other, left-aligned on white."""
    width, height = max(part.width for part in parts), sum(part.height for part in parts) + gap * (len(parts) - 1)
    sheet, y = Image.new("RGB", (width + 2 * margin, height + 2 * margin), PAPER), margin
    for part in parts:
        sheet.paste(part, (margin, y))
        y += part.height + gap
    return sheet


def grid(tiles, columns):
    """Tiles of one size in rows of `columns`, GAP pixels between and around them."""
    batch = [pil_to_tensor(tile) for tile in tiles]
    return to_pil_image(make_grid(batch, nrow=columns, padding=GAP, pad_value=255))


def fit(array, longest, method=Image.Resampling.NEAREST):
    """An array enlarged or shrunk to `longest` pixels at its longer side; ids stay ids (nearest).

    array: (H, W, 3) uint8, (H, W) uint8 or (H, W) float32; the result has its type.
    """
    return np.asarray(ImageOps.contain(Image.fromarray(array), (longest, longest), method))


def label_tile(tile, label, bar=None):
    """A tile under its name, with the colour bar of (low, high) at the right end where bar is given and fits."""
    head = text_block(label, tile.width)
    length = min(190, tile.width - int(load_font(TEXT).getlength(label)) - 20)
    if bar and length > 40 + sum(load_font(TEXT).getlength(f"{number:.3g}") for number in bar):
        head = Image.new("RGB", (tile.width, ROW), PAPER)
        head.paste(text_block(label, tile.width - length - 10), (0, 2))
        head.paste(colour_bar(*bar, length), (tile.width - length, 0))
    return stack([ImageOps.pad(head, (tile.width, ROW), color=PAPER), tile], gap=2)


def ids_in(*masks):
    """The ids that occur in any of the masks."""
    return set().union(*(np.unique(mask).tolist() for mask in masks))


def frame(sheet, caption=None, entries=(), least=0):
    """A sheet of tiles between its caption and its legend, either of which may be missing.

    entries: as `legend` takes them; least: pixels, the legend's smallest width.
    """
    width, parts = sheet.width - 2 * GAP, [sheet]
    if caption is not None:
        parts.insert(0, stack([text_block(caption, width, size=24)], margin=GAP))
    if entries:
        parts.append(stack([legend(entries, max(width, least))], margin=GAP))
    return stack(parts, gap=0)


# ---------------------------------------------------------------------------------------------------------------------
# Outlines and scores


def grow(mask):
    """The mask and its four neighbours."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown


def outlines(ids):
    """Where two classes meet, as a mask image: 1 pixel on either side, one more for each 600 pixels of the picture."""
    border = np.zeros(ids.shape, dtype=bool)
    down, right = ids[1:] != ids[:-1], ids[:, 1:] != ids[:, :-1]
    border[1:] |= down
    border[:-1] |= down
    border[:, 1:] |= right
    border[:, :-1] |= right
    for _ in range(max(ids.shape) // 600):
        border = grow(border)
    return Image.fromarray(border)


def heat_colours(scores, low, high):
    """Scores (H, W) as colours of HEAT_RAMP, clipped to low..high: an RGB image; what is not finite is grey."""
    points, steps = np.linspace(0, 255, len(HEAT_RAMP)), np.arange(256)
    table = np.stack([np.interp(steps, points, channel) for channel in np.transpose(HEAT_RAMP)], 1).round()  # (256, 3)
    finite = np.isfinite(scores)
    place = (np.where(finite, scores, low) - low) / ((high - low) or 1)
    colours = table.astype(np.uint8)[(np.clip(place, 0, 1) * 255).round().astype(np.uint8)]
    colours[~finite] = UNKNOWN_COLOUR
    return Image.fromarray(colours)


def colour_bar(low, high, width, size=TEXT):
    """The ramp with its two numbers, `width` pixels wide."""
    font, height = load_font(size), round(size * 1.6)
    left, right = f"{low:.3g}", f"{high:.3g}"
    start, end = int(font.getlength(left)) + 12, width - int(font.getlength(right)) - 12
    strip = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(strip)
    draw.text((3, height / 2), left, INK, font, anchor="lm")
    draw.text((width - 3, height / 2), right, INK, font, anchor="rm")
    ramp = heat_colours(np.linspace(0, 1, end - start)[None].repeat(size, 0), 0, 1)
    strip.paste(ramp, (start, (height - size) // 2))
    return strip


def finite_range(scores):
    """The smallest and the largest finite score; (0, 0) where there is none."""
    finite = scores[np.isfinite(scores)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
