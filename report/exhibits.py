"""A finding's exhibits as pictures: tiles, a confusion matrix, curves.

An exhibit is any object with `caption`, `tiles`, `confusion` and `curves`, a tile one with `title`, `image` and `mask`;
probes/finding.py declares both.
"""

import io
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from datasets.spec import UNKNOWN, VOID
from report.canvas import (
    GAP,
    INK,
    MUTED,
    PAPER,
    frame,
    grow,
    ids_in,
    legend_entries,
    load_font,
    plain,
    shorten,
    stack,
    text_block,
)
from report.charts import finite, thin, tick_text, x_ticks, y_ticks
from report.colours import colour_mask
from report.pictures import confusion_picture

PICTURE_WIDTH, TILE_HEIGHT, TITLE_WIDTH = 1200, 420, 120  # pixels: widest row, highest tile, narrowest title
PICTURE_LIMIT = 300_000  # bytes of one file
BORDER_COLOUR, BORDER_EDGE = (255, 240, 40), (0, 0, 0)  # one of the two stands out on any photograph

# ---------------------------------------------------------------------------------------------------------------------
# Exhibits


def draw_exhibit(exhibit, classes, palette):
    """An exhibit as one picture: its tiles in a row, its confusion matrix, its curves, whichever it holds.

    classes: names; palette: [(r, g, b)] in their order. The caption is left to whoever shows the picture. Raises
    ValueError for an exhibit, or a tile, that holds nothing.
    """
    parts = []
    if exhibit.tiles:
        parts.append(tile_row(exhibit.tiles, classes, palette))
    if exhibit.confusion is not None:
        parts.append(confusion_picture(exhibit.confusion, classes))
    if exhibit.curves:
        parts.append(curve_picture(exhibit.curves))
    if not parts:
        raise ValueError(f"exhibit {exhibit.caption!r} holds nothing to draw")
    return stack(parts)


def encode(picture):
    """A picture as (bytes, file ending), at most PICTURE_LIMIT bytes.

    PNG where that is enough, which keeps every colour exact; else JPEG, smaller and smaller: photographs.
    """
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    if buffer.tell() <= PICTURE_LIMIT:
        return buffer.getvalue(), "png"
    while True:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=88, subsampling=0)  # colours at full size: thin borders
        if buffer.tell() <= PICTURE_LIMIT:
            return buffer.getvalue(), "jpg"
        picture = picture.resize((picture.width * 4 // 5, picture.height * 4 // 5), Image.Resampling.LANCZOS)


def tile_row(tiles, classes, palette):
    """Tiles of one height side by side under their titles, and the legend of the classes that masks show as colours."""
    height, least = _row_height(tiles)
    drawn = [_draw_tile(tile, height, palette) for tile in tiles]
    heads = [title_block(tile.title, max(picture.width, least)) for tile, picture in zip(tiles, drawn, strict=True)]
    above = max(head.height for head in heads)
    columns = []
    for head, picture in zip(heads, drawn, strict=True):
        head = ImageOps.pad(head, (head.width, above), color=PAPER, centering=(0, 1))  # titles stand on their tile
        columns.append(stack([head, picture], gap=4))
    row = Image.new("RGB", (sum(part.width + GAP for part in columns) + GAP, columns[0].height + 2 * GAP), PAPER)
    across = GAP
    for column in columns:
        row.paste(column, (across, GAP))
        across += column.width + GAP
    ids = ids_in(*(tile.mask for tile in tiles if tile.image is None))
    return frame(row, entries=exhibit_entries(ids, classes, palette) if ids else (), least=260)


def _row_height(tiles):
    """The height at which tiles and titles fill PICTURE_WIDTH, at most TILE_HEIGHT, and the narrowest title."""
    aspects = [_size(tile)[1] / _size(tile)[0] for tile in tiles]
    room = PICTURE_WIDTH - GAP * (len(tiles) + 1)
    least = min(TITLE_WIDTH, room // len(tiles))
    heights = range(TILE_HEIGHT, 1, -1)
    return next((h for h in heights if sum(max(h * aspect, least) for aspect in aspects) <= room), 1), least


def title_block(text, width):
    """A tile's title wrapped to `width` pixels; a file name that is longer goes on in the next line."""
    font, words_that_fit = load_font(17), []
    for word in plain(text).split():
        while font.getlength(word) > width:
            fits = next(end for end in range(len(word) - 1, 0, -1) if font.getlength(word[:end]) <= width)
            words_that_fit.append(word[:fits])
            word = word[fits:]
        words_that_fit.append(word)
    return text_block(" ".join(words_that_fit), width, size=17)


def exhibit_entries(ids, classes, palette):
    """The legend of the ids; black is said to hold undeclared values where it does."""
    entries = legend_entries(ids, classes, palette)
    if UNKNOWN in ids and len(classes) < UNKNOWN:
        name = "a value of no class, or not labelled" if VOID in ids else "a value of no class"
        entries[-1] = (name, entries[-1][1])
    return entries


def _size(tile):
    """(height, width) of a tile's image, or of its mask where there is no image."""
    shown = tile.mask if tile.image is None else tile.image
    if shown is None:
        raise ValueError(f"tile {tile.title!r} holds neither an image nor a mask")
    return shown.shape[:2]


def _draw_tile(tile, height, palette):
    """The image, the mask in the classes' colours, or the mask's borders on the image, `height` pixels high."""
    rows, columns = _size(tile)
    size = (max(1, round(columns * height / rows)), height)
    ids = None
    if tile.mask is not None:
        ids = np.asarray(Image.fromarray(tile.mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST))
    if tile.image is None:
        return colour_mask(ids, palette)
    photo = Image.fromarray(tile.image).resize(size, Image.Resampling.LANCZOS)
    return photo if ids is None else draw_borders(photo, ids)


def draw_borders(photo, ids):
    """The photograph with the borders between ids (H, W) drawn on it: a bright line of 1 pixel between dark edges."""
    line = np.zeros(ids.shape, dtype=bool)
    line[1:] |= ids[1:] != ids[:-1]
    line[:, 1:] |= ids[:, 1:] != ids[:, :-1]
    picture = np.array(photo)
    picture[grow(line)] = BORDER_EDGE
    picture[line] = BORDER_COLOUR
    return Image.fromarray(picture)


# ---------------------------------------------------------------------------------------------------------------------
# Curves

# Okabe and Ito 2008, without the yellow that white paper swallows. Seven colours and five marks: 35 curves differ.
CURVE_COLOURS = [
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
]
MARKS = [(24, 0), (4, 0), (3, 0), (4, 45), (3, 180)]  # sides and turn: disc, square, triangle, diamond, triangle
CHART_WIDTH, CHART_HEIGHT, FOOT, LINE = 960, 360, 34, 22  # pixels; FOOT: x axis, LINE: room of one curve's name
NAME_WIDTH = 300  # pixels: a longer name is cut
GRID_COLOUR = (222, 225, 230)
SHARP = 3  # curves are drawn this many times larger, then shrunk: smooth lines


class Axes(NamedTuple):
    """Where the axes of a chart stand: pixels, and the values at their ends."""

    left: float
    right: float
    top: float
    bottom: float
    xs: tuple
    ys: tuple

    def place(self, x, y):
        """The pixel of a point."""
        across = (x - self.xs[0]) / ((self.xs[1] - self.xs[0]) or 1)
        up = (y - self.ys[0]) / (self.ys[1] - self.ys[0])
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)


def curve_picture(curves):
    """A line chart, each curve named at its end. curves: {name: [(x, y)]}; a y that is None or not finite is left out.

    The y axis starts at 0, below it only for negative values.
    """
    series = {name: [(float(x), None if y is None else float(y)) for x, y in line] for name, line in curves.items()}
    lines = {name: points for name, line in series.items() if (points := thin(finite(line)))}
    if not lines:
        return stack([text_block(f"No finite value: {', '.join(curves)}", CHART_WIDTH)], margin=GAP)
    xs, ys = ([point[axis] for line in lines.values() for point in line] for axis in (0, 1))
    heights, places = y_ticks(ys), x_ticks(min(xs), max(xs))
    left = 20 + max(load_font(16).getlength(tick_text(tick)) for tick in heights)
    names = min(NAME_WIDTH, max(load_font(16).getlength(plain(name)) for name in lines))
    bottom = max(CHART_HEIGHT - FOOT, LINE * (len(lines) + 1))
    axes = Axes(left, CHART_WIDTH - 44 - names, 16, bottom, (min(xs), max(xs)), (heights[0], heights[-1]))
    spots = {name: [axes.place(x, y) for x, y in line] for name, line in lines.items()}
    sheet = _draw_curves(axes, spots, heights)
    _write_numbers(ImageDraw.Draw(sheet), axes, places, heights)
    for name, height in name_heights(axes, spots).items():
        text = shorten(name, load_font(16), NAME_WIDTH)
        ImageDraw.Draw(sheet).text((axes.right + 34, height), text, INK, load_font(16), anchor="lm")
    return sheet


def _draw_curves(axes, spots, ticks):
    """Grid, curves and marks, drawn large and shrunk."""
    sheet = Image.new("RGB", (CHART_WIDTH * SHARP, round(axes.bottom + FOOT) * SHARP), PAPER)
    draw, heights = ImageDraw.Draw(sheet), name_heights(axes, spots)
    for tick in ticks:
        height = axes.place(0, tick)[1] * SHARP
        draw.line((axes.left * SHARP, height, axes.right * SHARP, height), GRID_COLOUR, SHARP)
    for number, (name, line) in enumerate(spots.items()):
        colour = CURVE_COLOURS[number % len(CURVE_COLOURS)]
        draw.line([(x * SHARP, y * SHARP) for x, y in line], colour, 2 * SHARP, joint="curve")
        marked = np.unique(np.linspace(0, len(line) - 1, min(6, len(line))).round().astype(int))
        for x, y in [*(line[index] for index in marked), (axes.right + 22, heights[name])]:
            sides, turn = MARKS[number % len(MARKS)]
            draw.regular_polygon((x * SHARP, y * SHARP, 6 * SHARP), sides, turn, fill=colour)
    return sheet.resize((CHART_WIDTH, sheet.height // SHARP), Image.Resampling.LANCZOS)


def name_heights(axes, spots):
    """Where each curve's name stands: beside its last point, moved apart where names would overlap."""
    order = sorted(spots, key=lambda name: spots[name][-1][1])
    heights = [spots[name][-1][1] for name in order]
    for index in range(1, len(heights)):  # down, each below the one before
        heights[index] = max(heights[index], heights[index - 1] + LINE)
    heights[-1] = min(heights[-1], axes.bottom)
    for index in reversed(range(len(heights) - 1)):  # and up again from the axis
        heights[index] = min(heights[index], heights[index + 1] - LINE)
    return dict(zip(order, heights, strict=True))


def _write_numbers(draw, axes, across, up):
    """The numbers of both axes: the ticks across and those up."""
    for tick in up:
        draw.text((axes.left - 8, axes.place(0, tick)[1]), tick_text(tick), MUTED, load_font(16), anchor="rm")
    for tick in across:
        x = axes.place(tick, 0)[0]
        draw.line((x, axes.bottom, x, axes.bottom + 5), INK)
        draw.text((x, axes.bottom + 18), tick_text(tick), MUTED, load_font(16), anchor="mm")
