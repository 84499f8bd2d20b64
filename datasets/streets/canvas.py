"""What the embedded street scenes are drawn with: a hash, a random stream, noise, a camera, shapes and a canvas.

Integer arithmetic only, so that the same seed gives the same pixels on every machine: lengths in the world are whole
centimetres, positions along an object's box are 1/32 per cent of it, and "near" is how far below the horizon the
ground at some distance is seen, in 1/16 pixel. It grows as the distance shrinks, so that a thing's size on the picture
is its size in the world times its nearness, and the larger of two nearnesses hides the other.
"""

import functools
import math
from typing import NamedTuple

import numpy as np

HEIGHT, WIDTH = 180, 320
SKY, BUILDING, FENCE, OTHER, PEDESTRIAN, POLE, LINE, ROAD, SIDEWALK, VEGETATION, CAR, WALL, SIGN, ANOMALY = range(14)
FINE = 32  # steps in one per cent of an object's box
NEAR = 16  # steps of nearness in one pixel


def scramble(bits):
    """Mix 32 bits thoroughly. bits: int or uint32 array.

    Source: C. Wellons, "Prospecting for Hash Functions" (2018), lowbias32.
    """
    bits = bits ^ (bits >> 16)
    bits = (bits * 0x7FEB352D) & 0xFFFFFFFF
    bits = bits ^ (bits >> 15)
    bits = (bits * 0x846CA68B) & 0xFFFFFFFF
    return bits ^ (bits >> 16)


def speckle(key, *coordinates):
    """A random value for each cell. coordinates: int32 arrays that broadcast together. Returns int32, 0..255."""
    bits = scramble(key & 0xFFFFFFFF)
    for coordinate in coordinates:
        bits = scramble(coordinate.astype(np.uint32) ^ bits)
    return (bits >> 24).astype(np.int32)


def rgb(colour):
    """A colour (red, green, blue) as an array (3,) int32."""
    return np.array(colour, np.int32)


def pixels(rows=HEIGHT, columns=WIDTH):
    """Row and column numbers, (rows, 1) and (1, columns) int32."""
    return np.arange(rows, dtype=np.int32)[:, None], np.arange(columns, dtype=np.int32)[None]


class Stream:
    """A stream of random whole numbers that its key (a few integers) fixes on every machine."""

    def __init__(self, *key):
        self.state = functools.reduce(lambda state, part: scramble((state ^ part) & 0xFFFFFFFF), key, 0x9E3779B9)
        self.drawn = 0

    def bits(self):
        """The next 32 random bits."""
        self.drawn += 1
        return scramble(scramble(self.drawn) ^ self.state)

    def between(self, low, high):
        """A whole number from low to high, both included."""
        return low + (self.bits() * (high - low + 1) >> 32)

    def chance(self, percent):
        """True in `percent` of 100 draws."""
        return self.between(1, 100) <= percent

    def pick(self, items):
        """One of a sequence."""
        return items[self.between(0, len(items) - 1)]

    def near_colour(self, colour, spread=14):
        """A colour close to the one given: brightness and each channel moved a little."""
        brightness = self.between(-spread, spread)
        return tuple(max(4, channel + brightness + self.between(-spread, spread) // 2) for channel in colour)


def smooth_noise(key, cell, shape=(HEIGHT, WIDTH)):
    """Value noise: random values on a lattice every `cell` pixels, linear in between. Returns shape, int32, 0..255."""
    lattice = speckle(key, *pixels(shape[0] // cell + 2, shape[1] // cell + 2))
    rows, columns = np.arange(shape[0], dtype=np.int32), np.arange(shape[1], dtype=np.int32)
    top, down = rows // cell, (rows % cell)[:, None]
    strips = lattice[top] * (cell - down) + lattice[top + 1] * down  # (H, lattice columns)
    left, right = columns // cell, columns % cell
    return (strips[:, left] * (cell - right) + strips[:, left + 1] * right) // (cell * cell)


class View(NamedTuple):
    """The camera over the street. The road's middle is at 0 cm; it bends away with the square of the distance."""

    horizon: int  # row
    height: int  # of the camera over the ground, cm
    focal: int  # pixels
    vanish: int  # column in which a straight road ends
    bend: int  # pixels to the right at one pixel under the horizon
    offset: int  # cm from the road's middle to the camera, positive to the right

    def near(self, distance):
        """Nearness of the ground at a distance in cm (int or array)."""
        return NEAR * self.focal * self.height // distance

    def distance(self, near):
        """Distance in cm of the ground at a nearness."""
        return NEAR * self.focal * self.height // near

    def ground(self):
        """The window (rows, columns) of the picture below the horizon and the ground's nearness there, (h, 1) int32."""
        rows = np.arange(self.horizon, HEIGHT, dtype=np.int32)[:, None]
        return (slice(self.horizon, HEIGHT), slice(0, WIDTH)), (rows - self.horizon) * NEAR + NEAR // 2

    def column(self, across, near):
        """The column where a point `across` cm to the right of the road's middle is seen."""
        return self.vanish + NEAR * self.bend // near + (across - self.offset) * near // (NEAR * self.height)

    def box(self, across, near, width, height, lift=0):
        """The box (top, left, height, width), in pixels, of a thing of width × height cm that stands `lift` cm high."""
        pixels = [max(1, size * near // (NEAR * self.height)) for size in (height, width)]
        foot = self.horizon + (near - lift * near // self.height) // NEAR
        return foot - pixels[0], self.column(across, near) - pixels[1] // 2, *pixels


class Canvas:
    """Image, labels and nearness of what is painted so far; what is nearer hides what is farther."""

    def __init__(self):
        self.image = np.zeros((HEIGHT, WIDTH, 3), np.int32)
        self.labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        self.near = np.zeros((HEIGHT, WIDTH), np.int32)

    def paint(self, window, mask, colour, label, near):
        """Paint colour and label where the mask is true and nothing nearer stands. window: (rows, columns) slices."""
        mask = mask & (self.near[window] <= near)
        np.copyto(self.image[window], colour, where=mask[..., None])
        np.copyto(self.labels[window], np.uint8(label), where=mask)
        np.copyto(self.near[window], near, where=mask)

    def shade(self, window, mask, percent):
        """Darken (or lighten) to `percent` of the brightness where the mask is true; labels stay."""
        region = self.image[window]
        np.copyto(region, region * percent // 100, where=mask[..., None])


class Frame(NamedTuple):
    """The visible part of an object's box and the position of each pixel's middle in it, in FINE steps per cent."""

    window: tuple  # (rows, columns) slices of the canvas
    across: np.ndarray  # (1, w) int32
    down: np.ndarray  # (h, 1) int32


def frame(box, mirrored=False):
    """The Frame of a box (top, left, height, width) in pixels, or None where it is out of sight."""
    top, left, height, width = box
    rows = np.arange(max(0, top), min(HEIGHT, top + height), dtype=np.int32)
    columns = np.arange(max(0, left), min(WIDTH, left + width), dtype=np.int32)
    if not len(rows) or not len(columns):
        return None
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    across = (2 * (columns - left) + 1) * 50 * FINE // width
    down = (2 * (rows - top) + 1) * 50 * FINE // height
    return Frame(window, (100 * FINE - across if mirrored else across)[None], down[:, None])


def shape_mask(kind, points, place, key):
    """Where a shape lies in a Frame. points in FINE steps. Returns (h, w) bool.

    box, oval and leaf: x0 y0 x1 y1 (leaf is an oval with a ragged rim); poly: the corners of a convex polygon;
    bar: x0 y0 x1 y1 thickness.
    """
    x, y = place.across, place.down
    if kind == "poly":
        return _polygon_mask(points, x, y)
    if kind == "bar":
        return _bar_mask(*points, x, y)
    x0, y0, x1, y1 = points
    if kind == "box":
        return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    aside = np.minimum(abs(2 * x - x0 - x1) * 512 // (x1 - x0), 1024)  # bounded, so that squares stay in 32 bits
    radius = aside**2 + np.minimum(abs(2 * y - y0 - y1) * 512 // (y1 - y0), 1024) ** 2
    if kind == "oval":
        return radius <= 512 * 512
    return radius <= 512 * (300 + speckle(key, y // (5 * FINE), x // (5 * FINE)))


def _polygon_mask(points, x, y):
    corners = list(zip(points[::2], points[1::2], strict=True))
    sides = [
        (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)
        for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1], strict=True)
    ]
    inside = np.logical_and.reduce([side >= 0 for side in sides])
    return inside | np.logical_and.reduce([side <= 0 for side in sides])


def _bar_mask(x0, y0, x1, y1, thickness, x, y):
    dx, dy = x1 - x0, y1 - y0
    along = dx * (x - x0) + dy * (y - y0)
    aside = dx * (y - y0) - dy * (x - x0)
    return (along >= 0) & (along <= dx * dx + dy * dy) & (2 * abs(aside) <= thickness * math.isqrt(dx * dx + dy * dy))


def texture(kind, place, key):
    """Brightness to add over a Frame, (h, w) int32. kind: plain, rough, leaves, fur, stripes, rows, checks or dots."""
    x, y = place.across, place.down
    light = (50 * FINE - y) // 80 + (50 * FINE - x) // 160  # the light falls from above, a little from the left
    if kind == "plain":
        return light
    if kind == "rough":
        rows, columns = (np.arange(part.start, part.stop, dtype=np.int32) for part in place.window)
        return light + (speckle(key, rows[:, None], columns[None]) - 128) // 5
    cell = FINE * {"leaves": 4, "fur": 3, "stripes": 9, "rows": 8, "checks": 12, "dots": 14}[kind]
    if kind == "leaves":
        fine = speckle(key + 1, 3 * y // cell, 3 * x // cell)
        return 2 * light + (speckle(key, y // cell, x // cell) + fine - 256) // 4
    if kind == "fur":
        return light + (speckle(key, y // (3 * cell), x // cell) - 128) // 3
    if kind == "dots":
        return light - 60 * ((x % cell - cell // 2) ** 2 + (y % cell - cell // 2) ** 2 < cell * cell // 9)
    pattern = {"stripes": (x + y // 3) // cell, "rows": y // cell, "checks": x // cell + y // cell}[kind]
    return light - 55 * (pattern & 1)


class Sprite(NamedTuple):
    """A thing drawn from shapes."""

    name: str
    width: int  # cm
    height: int  # cm
    parts: tuple  # ((shape, corners in FINE steps, colour name, texture), ...), painted in this order


def read_sprites(text):
    """Sprites from their descriptions: a line "NAME WIDTH HEIGHT" (cm), then indented lines of parts with ";" between.

    A part is "SHAPE CORNERS COLOUR" or "SHAPE CORNERS COLOUR:TEXTURE", corners in per cent of the box, down from the
    top.
    """
    sprites = []
    for line in text.strip().splitlines():
        if not line.startswith(" "):
            name, width, height = line.split()
            sprites.append(Sprite(name, int(width), int(height), ()))
        else:
            parts = tuple(_read_part(part) for part in line.strip("; ").split(";"))
            sprites[-1] = sprites[-1]._replace(parts=sprites[-1].parts + parts)
    return tuple(sprites)


def _read_part(part):
    kind, *corners, paint = part.split()
    colour, _, pattern = paint.partition(":")
    return kind, tuple(FINE * int(corner) for corner in corners), colour, pattern or "plain"


def draw_sprite(canvas, sprite, colours, box, label, near, key=0, mirrored=False):
    """Paint a sprite into a box (top, left, height, width) in pixels. colours: {name: (r, g, b)}; label: class id."""
    place = frame(box, mirrored)
    if place is None:
        return
    for number, (kind, corners, colour, pattern) in enumerate(sprite.parts, key):
        mask = shape_mask(kind, corners, place, number)
        shade = texture(pattern, place, number)
        canvas.paint(place.window, mask, rgb(colours[colour]) + shade[..., None], label, near)
