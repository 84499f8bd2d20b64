"""What the doctor found, to look at and to read: exhibits as pictures, findings in order, the terminal's table.

An exhibit is any object with `caption`, `tiles`, `confusion` and `curves`, a tile one with `title`, `image` and `mask`;
probes_finding.py declares both. Findings are taken as a diagnosis's JSON holds them.
"""

import io
import shutil
import textwrap
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from report.charts import finite, round_ticks, thin, tick_text
from report.colours import colour_mask
from report.pictures import (
    GAP,
    INK,
    MUTED,
    PAPER,
    _font,
    _grow,
    _ids,
    _legend,
    _legend_entries,
    _plain,
    _shorten,
    _stack,
    _text_block,
    confusion_picture,
)

PICTURE_WIDTH, TILE_HEIGHT, TITLE_WIDTH = 1200, 420, 120  # pixels: widest row, highest tile, narrowest title
PICTURE_LIMIT = 300_000  # bytes of one file
BORDER_COLOUR, BORDER_EDGE = (255, 240, 40), (0, 0, 0)  # one of the two stands out on any photograph
UNKNOWN = 254  # data_specs.UNKNOWN: in a mask as read, a value that is neither a class nor void

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
    return _stack(parts)


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
    heads = [_title(tile.title, max(picture.width, least)) for tile, picture in zip(tiles, drawn, strict=True)]
    above = max(head.height for head in heads)
    columns = []
    for head, picture in zip(heads, drawn, strict=True):
        head = ImageOps.pad(head, (head.width, above), color=PAPER, centering=(0, 1))  # titles stand on their tile
        columns.append(_stack([head, picture], gap=4))
    row = Image.new("RGB", (sum(part.width + GAP for part in columns) + GAP, columns[0].height + 2 * GAP), PAPER)
    across = GAP
    for column in columns:
        row.paste(column, (across, GAP))
        across += column.width + GAP
    ids = _ids(*(tile.mask for tile in tiles if tile.image is None))
    if not ids:
        return row
    legend = _legend(_exhibit_entries(ids, classes, palette), max(row.width - 2 * GAP, 260))
    return _stack([row, _stack([legend], margin=GAP)], gap=0)


def _row_height(tiles):
    """The height at which tiles and titles fill PICTURE_WIDTH, at most TILE_HEIGHT, and the narrowest title."""
    aspects = [_size(tile)[1] / _size(tile)[0] for tile in tiles]
    room = PICTURE_WIDTH - GAP * (len(tiles) + 1)
    least = min(TITLE_WIDTH, room // len(tiles))
    heights = range(TILE_HEIGHT, 1, -1)
    return next((h for h in heights if sum(max(h * aspect, least) for aspect in aspects) <= room), 1), least


def _title(text, width):
    """A tile's title wrapped to `width` pixels; a file name that is longer goes on in the next line."""
    font, words_that_fit = _font(17), []
    for word in _plain(text).split():
        while font.getlength(word) > width:
            fits = next(end for end in range(len(word) - 1, 0, -1) if font.getlength(word[:end]) <= width)
            words_that_fit.append(word[:fits])
            word = word[fits:]
        words_that_fit.append(word)
    return _text_block(" ".join(words_that_fit), width, size=17)


def _exhibit_entries(ids, classes, palette):
    """The legend of the ids; black is said to hold undeclared values where it does."""
    entries = _legend_entries(ids, classes, palette)
    if UNKNOWN in ids and len(classes) < UNKNOWN:
        name = "a value of no class, or not labelled" if ids & {255} else "a value of no class"
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
    picture[_grow(line)] = BORDER_EDGE
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


class Frame(NamedTuple):
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
    plain = {name: [(float(x), None if y is None else float(y)) for x, y in line] for name, line in curves.items()}
    lines = {name: points for name, line in plain.items() if (points := thin(finite(line)))}
    if not lines:
        return _stack([_text_block(f"No finite value: {', '.join(curves)}", CHART_WIDTH)], margin=GAP)
    xs, ys = ([point[axis] for line in lines.values() for point in line] for axis in (0, 1))
    y_ticks = round_ticks(min(0.0, *ys), max(ys) or 1.0)
    first, last = min(xs), max(xs)
    slack = (last - first) / 1000
    x_ticks = [tick for tick in round_ticks(first, last) if first - slack <= tick <= last + slack] or [first]
    left = 20 + max(_font(16).getlength(tick_text(tick)) for tick in y_ticks)
    names = min(NAME_WIDTH, max(_font(16).getlength(_plain(name)) for name in lines))
    bottom = max(CHART_HEIGHT - FOOT, LINE * (len(lines) + 1))
    frame = Frame(left, CHART_WIDTH - 44 - names, 16, bottom, (first, last), (y_ticks[0], y_ticks[-1]))
    spots = {name: [frame.place(x, y) for x, y in line] for name, line in lines.items()}
    sheet = _draw_curves(frame, spots, y_ticks)
    _write_numbers(ImageDraw.Draw(sheet), frame, x_ticks, y_ticks)
    for name, height in _name_heights(frame, spots).items():
        text = _shorten(_plain(name), _font(16), NAME_WIDTH)
        ImageDraw.Draw(sheet).text((frame.right + 34, height), text, INK, _font(16), anchor="lm")
    return sheet


def _draw_curves(frame, spots, y_ticks):
    """Grid, curves and marks, drawn large and shrunk."""
    sheet = Image.new("RGB", (CHART_WIDTH * SHARP, round(frame.bottom + FOOT) * SHARP), PAPER)
    draw, heights = ImageDraw.Draw(sheet), _name_heights(frame, spots)
    for tick in y_ticks:
        height = frame.place(0, tick)[1] * SHARP
        draw.line((frame.left * SHARP, height, frame.right * SHARP, height), GRID_COLOUR, SHARP)
    for number, (name, line) in enumerate(spots.items()):
        colour = CURVE_COLOURS[number % len(CURVE_COLOURS)]
        draw.line([(x * SHARP, y * SHARP) for x, y in line], colour, 2 * SHARP, joint="curve")
        marked = np.unique(np.linspace(0, len(line) - 1, min(6, len(line))).round().astype(int))
        for x, y in [*(line[index] for index in marked), (frame.right + 22, heights[name])]:
            sides, turn = MARKS[number % len(MARKS)]
            draw.regular_polygon((x * SHARP, y * SHARP, 6 * SHARP), sides, turn, fill=colour)
    return sheet.resize((CHART_WIDTH, sheet.height // SHARP), Image.Resampling.LANCZOS)


def _name_heights(frame, spots):
    """Where each curve's name stands: beside its last point, moved apart where names would overlap."""
    order = sorted(spots, key=lambda name: spots[name][-1][1])
    heights = [spots[name][-1][1] for name in order]
    for index in range(1, len(heights)):  # down, each below the one before
        heights[index] = max(heights[index], heights[index - 1] + LINE)
    heights[-1] = min(heights[-1], frame.bottom)
    for index in reversed(range(len(heights) - 1)):  # and up again from the axis
        heights[index] = min(heights[index], heights[index + 1] - LINE)
    return dict(zip(order, heights, strict=True))


def _write_numbers(draw, frame, x_ticks, y_ticks):
    """The numbers of both axes."""
    for tick in y_ticks:
        draw.text((frame.left - 8, frame.place(0, tick)[1]), tick_text(tick), MUTED, _font(16), anchor="rm")
    for tick in x_ticks:
        across = frame.place(tick, 0)[0]
        draw.line((across, frame.bottom, across, frame.bottom + 5), INK)
        draw.text((across, frame.bottom + 18), tick_text(tick), MUTED, _font(16), anchor="mm")


# ---------------------------------------------------------------------------------------------------------------------
# Findings in order


def words(name):
    """A cause as a person says it: shuffled_masks -> shuffled masks."""
    return str(name).replace("_", " ")


def group_faults(findings):
    """[(fault, [faults that it explains])], in the order of the findings: the root cause first.

    Faults are failures and warnings. One is explained by the probe it names in "explained_by" where a finding of that
    probe stands before it; what stands alone, or names nothing that is there, is a group of its own.
    """
    groups, group_of = [], {}
    for one in findings:
        if one["verdict"] not in ("fail", "warn"):
            continue
        group = group_of.get(one.get("explained_by"))
        if group is None:
            group = (one, [])
            groups.append(group)
        else:
            group[1].append(one)
        group_of.setdefault(one["probe"], group)
    return groups


FEW = 10  # passes that are told in full where nothing failed


def diagnosis_table(diagnosis, width=None):
    """A diagnosis for the terminal: root cause and what it explains, further faults, warnings, what passed, skipped.

    width: columns; None: the terminal's, between 60 and 100.
    """
    width = width or min(100, max(60, shutil.get_terminal_size().columns))
    findings, blocks = diagnosis["findings"], []
    for one, explained in group_faults(findings):
        label = "WARNING" if one["verdict"] == "warn" else "FAULT" if blocks else "ROOT CAUSE"
        lines = [_sentence(one), f"remedy: {one['remedy']}" if one.get("remedy") else ""]
        blocks.append((label, [*lines, *(f"explains {_sentence(other)}" for other in explained)]))
    if all(one["verdict"] == "skip" for one in findings):
        blocks.insert(0, ("NOT JUDGED", ["every probe was skipped: nothing is known"]))
    elif not any(one["verdict"] == "fail" for one in findings):
        blocks.insert(0, ("NO FAULT", ["no probe found a fault"]))
    passed = [one for one in findings if one["verdict"] == "pass"]
    names = ", ".join(one["probe"] for one in passed)
    few = len(passed) <= FEW and not any(one["verdict"] == "fail" for one in findings)  # what was asked for is shown
    blocks.append(("PASSED", [*map(_sentence, passed)] if few else [f"{len(passed)}: {names}" if passed else ""]))
    blocks.append(("SKIPPED", [f"{', '.join(names)}: {why}" for why, names in skip_reasons(findings).items()]))
    return "\n".join(line for label, texts in blocks for line in _block(label, texts, width))


def skip_reasons(findings):
    """{reason: [probes that were skipped for it]}."""
    reasons = {}
    for one in findings:
        if one["verdict"] == "skip":
            reasons.setdefault(one["why"], []).append(one["probe"])
    return reasons


def _sentence(one):
    """A fault in a line: cause, probe, and why."""
    probe = one["probe"]
    return f"{words(one['cause'])} ({probe}): {one['why']}" if one.get("cause") else f"{probe}: {one['why']}"


def _block(label, texts, width):
    """Texts wrapped to the width beside their label, each with a hanging indent."""
    lines = []
    for text in filter(None, texts):
        start = f"{'' if lines else label:<12}"
        lines += textwrap.wrap(text, width, initial_indent=start, subsequent_indent=" " * 14, break_on_hyphens=False)
    return lines
