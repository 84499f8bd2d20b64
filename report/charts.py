"""Drawings of the report page as inline SVG: line charts with round ticks, and the bar of a score against its floor.

A chart is drawn 380 units wide with 12-unit text, and the page shows it about 340 to 520 pixels wide: legible on a
phone and on a desk. Colours come from the page's style sheet (classes s0 … s5), so they follow light and dark.
"""

import math
from html import escape

from report.elements import paragraph

WIDTH, HEIGHT = 380, 230
TOP, BOTTOM, RIGHT = 10, 40, 14
STYLES = 6  # the style sheet has s0 … s5: colour and dash pattern of a curve
POINTS = 240  # most points of one curve


def round_ticks(low, high, count=5):
    """Multiples of 1, 2 or 5 times a power of ten that cover low..high, about `count` of them."""
    span = high - low or abs(high) or 1.0
    rough = span / count
    power = 10 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    return [float(f"{index * step:.10g}") for index in range(first, last + 1)]


def y_ticks(values):
    """The ticks of a y axis that starts at 0, below it only for negative values."""
    return round_ticks(min(0.0, *values), max(values) or 1.0)


def x_ticks(first, last):
    """The round ticks of an x axis that begins and ends with the values."""
    slack = (last - first) / 1000
    return [tick for tick in round_ticks(first, last) if first - slack <= tick <= last + slack] or [first]


def tick_text(value):
    """A tick's number, short: 0.6, 1500, 20k, 5e-5."""
    if abs(value) >= 10000:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    if abs(value) >= 1:  # three digits would be an exponent from 1000 on
        return f"{value:.4g}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else f"{value:.4g}"


def finite(points):
    """The points (x, y) whose y is a finite number."""
    return [(x, y) for x, y in points if isinstance(y, (int, float)) and math.isfinite(y)]


def thin(points):
    """At most POINTS points, each the mean of as many neighbours as needed."""
    many = math.ceil(len(points) / POINTS)
    groups = [points[start : start + many] for start in range(0, len(points), max(many, 1))]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _axes(xs, ys, left, place, x_label):
    """Grid lines, tick numbers and the name of the x axis."""
    parts = []
    for y in ys:
        height = place(xs[0], y)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text x="{left - 6}" y="{height + 4:.1f}" text-anchor="end">{tick_text(y)}</text>')
    for x in xs:
        across = place(x, ys[0])[0]
        bottom = HEIGHT - BOTTOM
        parts.append(f'<line class="axis" x1="{across:.1f}" x2="{across:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{across:.1f}" y="{bottom + 17}" text-anchor="middle">{tick_text(x)}</text>')
    middle = (left + WIDTH - RIGHT) / 2
    parts.append(f'<text class="name" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return parts


def _curve(points, style, place):
    """One curve; a single point is a dot."""
    spots = [place(x, y) for x, y in points]
    if len(spots) == 1:
        return _dot(spots[0], style, 3)
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    return f'<polyline class="curve {style}" points="{path}"/>'


def _dot(spot, style, radius):
    return f'<circle class="dot {style}" cx="{spot[0]:.1f}" cy="{spot[1]:.1f}" r="{radius}"/>'


def _key(name, style):
    return (
        f'<span class="key"><svg width="26" height="10" aria-hidden="true"><line class="curve {style}" x1="1" x2="25" '
        f'y1="5" y2="5"/></svg> {escape(name)}</span>'
    )


def _drawable(series):
    """The curves that have a point, thinned."""
    thinned = [(name, thin(finite(points))) for name, points in series]
    return [(name, points) for name, points in thinned if points]


def line_chart(title, series, x_label, note="", *, span=None, base=(), dots=None):
    """A chart as an HTML figure, or "" where there is nothing to draw.

    series: [(name, [(x, y)])]; values that are None or not finite are left out. The y axis starts at 0, below it only
    for negative values; beyond the sixth curve the styles repeat. span: (first, last) x, or None: 0 to the last point.
    base: as series, grey lines that the curves are held against. dots: {name of a curve: (x, y)}, a mark on it.
    """
    series, base = _drawable(series), _drawable(base)
    if not series:
        return ""
    ys = y_ticks([y for _, points in [*series, *base] for _, y in points])
    first, last = span or (0, max(x for _, points in series for x, _ in points))
    xs = x_ticks(first, last)
    left = 14 + 7 * max(len(tick_text(y)) for y in ys)

    def place(x, y):
        across = left + (x - first) / ((last - first) or 1) * (WIDTH - RIGHT - left)
        return across, HEIGHT - BOTTOM - (y - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - BOTTOM - TOP)

    styles = {name: f"s{index % STYLES}" for index, (name, _) in enumerate(series)}
    body = _axes(xs, ys, left, place, x_label)
    body += [_curve(points, "base", place) for _, points in base]
    body += [_curve(points, f"s{index % STYLES}", place) for index, (_, points) in enumerate(series)]
    body += [_dot(place(x, y), styles[name], 4.5) for name, (x, y) in (dots or {}).items() if name in styles]
    keys = "".join(_key(name, f"s{index % STYLES}") for index, (name, _) in enumerate(series))
    keys += "".join(_key(name, "base") for name, _ in base)
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption><div class="keys">{keys}</div>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg>'
        f"{paragraph(note, 'note')}</figure>"
    )


def chart_grid(charts, kind="charts"):
    """Charts, HTML one after the other, in as many columns as fit; kind: "charts two" for at most two columns."""
    return f'<div class="{kind}">{charts}</div>' if charts else ""


def _mark(value, row, text):
    """A name at a place of the bar, written to the side where there is room."""
    end = value > 0.5
    anchor, shift = ("end", -6) if end else ("start", 6)
    return f'<text x="{value:.2%}" dx="{shift}" y="{row}" text-anchor="{anchor}">{escape(text)}</text>'


def floor_bar(score, floor, interval=None, names=("mIoU", "layout floor")):
    """The score as a bar from 0 to 1, the part that the floor explains hatched; interval: [low, high] or None.

    Places are shares of the width, so text keeps its size on every screen.
    """
    common = min(floor, score) if floor is not None else 0
    parts = [
        '<rect class="track" x="0" y="26" width="100%" height="26"/>',
        f'<rect class="gain" x="0" y="26" width="{score:.2%}" height="26"/>',
        f'<rect class="floor" x="0" y="26" width="{common:.2%}" height="26"/>',
        f'<rect fill="url(#hatch)" x="0" y="26" width="{common:.2%}" height="26"/>',
        f'<line class="mark" x1="{score:.2%}" x2="{score:.2%}" y1="6" y2="52"/>',
        _mark(score, 16, f"{names[0]} {score:.3f}"),
    ]
    if floor is not None:
        parts.append(f'<line class="mark" x1="{floor:.2%}" x2="{floor:.2%}" y1="26" y2="74"/>')
        parts.append(_mark(floor, 72, f"{names[1]} {floor:.3f}"))
    if interval:
        low, high = interval
        parts.append(f'<line class="whisker" x1="{low:.2%}" x2="{high:.2%}" y1="39" y2="39"/>')
        parts += [f'<line class="whisker" x1="{x:.2%}" x2="{x:.2%}" y1="33" y2="45"/>' for x in (low, high)]
    for tick in range(6):
        parts.append(f'<line class="axis" x1="{tick * 20}%" x2="{tick * 20}%" y1="80" y2="85"/>')
        parts.append(f'<text class="tick" x="{tick * 20}%" y="98" text-anchor="middle">{tick / 5:g}</text>')
    hatch = (
        '<defs><pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
        '<line class="hatch" x1="0" x2="0" y1="0" y2="7"/></pattern></defs>'
    )
    label = f"{names[0]} {score:.3f}" + ("" if floor is None else f", {names[1]} {floor:.3f}")
    return f'<svg class="bar" width="100%" height="104" role="img" aria-label="{label}">{hatch}{"".join(parts)}</svg>'
