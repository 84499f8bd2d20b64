"""The street itself in the embedded scenes: sky, ground, and what lines it: houses, walls, fences, hedges."""

from typing import NamedTuple

import numpy as np

from datasets.streets.canvas import (
    BUILDING,
    FENCE,
    HEIGHT,
    LINE,
    NEAR,
    ROAD,
    SIDEWALK,
    SKY,
    VEGETATION,
    WALL,
    WIDTH,
    pixels,
    rgb,
    smooth_noise,
    speckle,
)
from datasets.streets.sprites import LEAVES, MATERIALS

FARTHEST = 32000  # cm; beyond it stands the skyline


class Street(NamedTuple):
    """The plan of a street, in cm from its middle; pairs are left and right."""

    half: int  # half the road's width
    lane: int
    walks: tuple  # widths of the sidewalks (0: none)
    verges: tuple  # widths of the green strips behind them
    parcels: tuple  # kinds of parcel along them, in the front row and in the row behind, to be picked from


HOMES = (("house", "house", "house", "house", "house", "wall", "fence", "hedge"), ("house", "house", "wood", "open"))
GARDENS = (("hedge", "fence", "fence", "wall", "wall", "wall", "house"), ("wood", "wood", "wood", "house", "open"))


def draw_street(stream):
    """A random Street; most have houses on the right and gardens on the left."""
    lane = stream.between(310, 350)
    walks = (stream.between(180, 280) if stream.chance(75) else 0, stream.between(220, 380) if stream.chance(95) else 0)
    verges = (
        stream.between(100, 300) if stream.chance(55) else 30,
        stream.between(100, 300) if stream.chance(25) else 10,
    )
    parcels = stream.pick(
        ((GARDENS, HOMES), (GARDENS, HOMES), (GARDENS, HOMES), (GARDENS, HOMES), (HOMES, HOMES), (GARDENS, GARDENS))
    )
    return Street(lane * stream.pick((1, 1, 1, 1, 2)) + stream.between(40, 110), lane, walks, verges, parcels)


def paint_sky(canvas, stream, mood):
    """Sky from the top of the picture to the bottom; whatever comes later stands before it."""
    down = np.arange(HEIGHT, dtype=np.int32)[:, None, None]
    top, low = (rgb(stream.near_colour(colour, 10)) for colour in mood.sky)
    colour = top + (low - top) * np.minimum(down, 90) // 90
    cloud = smooth_noise(stream.bits(), 32) + smooth_noise(stream.bits(), 12) // 2
    cover = np.clip(cloud - stream.between(120, 330), 0, 120)[..., None]
    canvas.image[:] = colour + (rgb(mood.cloud) - colour) * cover // stream.between(140, 260)
    canvas.labels[:] = SKY


def paint_ground(canvas, view, street, stream):
    """Road with its markings, sidewalks, and grass beyond them."""
    window, near = view.ground()  # near: (h, 1)
    _, columns = pixels()
    across = view.offset + (columns - view.vanish - NEAR * view.bend // near) * NEAR * view.height // near  # (h, w)
    along = view.distance(near)
    everywhere = np.ones(across.shape, bool)
    canvas.paint(window, everywhere, _grass(stream, across, along), VEGETATION, near)
    edge = np.where(across < 0, *street.walks) + street.half
    canvas.paint(window, abs(across) < edge, _slabs(stream, across, along, near, street), SIDEWALK, near)
    road = abs(across) < street.half
    canvas.paint(window, road, _asphalt(stream, across, along), ROAD, near)
    for mask, colour in _markings(stream, street, across, along):
        worn = colour + (speckle(stream.bits(), along // 12, across // 12) - 128)[..., None] // 7
        canvas.paint(window, mask & road, worn, LINE, near)


def _grass(stream, across, along):
    base = rgb(stream.near_colour(stream.pick(LEAVES)))
    blades = speckle(stream.bits(), along // 9, across // 6) - 128
    patches = speckle(stream.bits(), along // 160, across // 110) - 128
    return base + (blades // 4 + patches // 8)[..., None]


def _slabs(stream, across, along, near, street):
    base = rgb(stream.near_colour(stream.pick(MATERIALS)))
    size = stream.between(60, 130)
    shade = (speckle(stream.bits(), along // size, across // size) - 128) // 9
    joints = ((across % size < size // 9) | (along % size < size // 8)) & (near > 15 * NEAR)
    kerb = (abs(across) - street.half < 22) & (near > 6 * NEAR)
    grain = (speckle(stream.bits(), along // 5, across // 5) - 128) // 14
    return base + (shade + grain - 30 * joints + 26 * kerb)[..., None]


def _asphalt(stream, across, along):
    base = rgb(stream.near_colour(stream.pick(MATERIALS[:7] + MATERIALS[11:13]), 8)) * stream.between(65, 100) // 100
    grain = (speckle(stream.bits(), along // 4, across // 4) - 128) // 8
    repairs = speckle(stream.bits(), along // 420, (across + 9000) // 260) > 215
    tracks = abs(across % 330 - 165) < 60
    return base + (grain - 12 * repairs - 5 * tracks)[..., None]


def _markings(stream, street, across, along):
    """Masks and colours of lane lines, edge lines, a zebra crossing."""
    white, yellow = rgb((206, 206, 200)), rgb((206, 160, 60))
    half, phase = stream.between(11, 17), stream.between(0, 900)
    period = stream.between(600, 1000)
    dashes = (along + phase) % period < period * stream.between(45, 65) // 100
    middle = white if stream.chance(65) else yellow
    if stream.chance(35):  # double line
        yield (abs(abs(across) - 2 * half) < half), middle
    else:
        yield (abs(across) < half) & (dashes | stream.chance(30)), middle
    for line in range(street.lane, street.half - 150, street.lane):
        yield (abs(abs(across) - line) < half) & dashes, white
    if stream.chance(80):
        yield abs(abs(across) - street.half + 40) < half, white if stream.chance(80) else yellow
    if stream.chance(30):
        start = stream.between(700, 2600)
        yield (along >= start) & (along < start + 350) & (across % 110 < 60), white


class Surface(NamedTuple):
    """A standing plane as the camera sees it: each pixel's place on it in cm, each column's nearness."""

    window: tuple  # (rows, columns) slices of the canvas
    along: np.ndarray  # (1, w) int32
    up: np.ndarray  # (h, w) int32
    near: np.ndarray  # (1, w) int32
    seen: np.ndarray  # (1, w) bool


def stand(view, columns, near, along, seen, height):
    """The Surface over consecutive columns, cropped to what can lie between the ground and `height` cm."""
    foot = view.horizon * NEAR + near
    top = max(0, int((foot - height * near // view.height).min()) // NEAR)
    rows = np.arange(top, min(HEIGHT, int(foot.max()) // NEAR + 1), dtype=np.int32)[:, None]
    up = (foot[None] - rows * NEAR - NEAR // 2) * view.height // near[None]
    window = slice(top, top + len(rows)), slice(int(columns[0]), int(columns[-1]) + 1)
    return Surface(window, along[None], up, near[None], seen[None])


def frontage(view, across):
    """For each column the nearness of the plane along the road, `across` cm beside its middle; 0 where not seen."""
    near = np.arange(NEAR // 2, NEAR * HEIGHT, dtype=np.int32)
    columns = view.column(across, near)
    inside = (columns >= 0) & (columns < WIDTH)
    nearest = np.zeros(WIDTH, np.int32)
    np.maximum.at(nearest, columns[inside], near[inside])
    if across > 0:  # far columns are farther apart than one pixel: close the gaps from the far side
        return np.maximum.accumulate(nearest)
    return np.maximum.accumulate(nearest[::-1])[::-1]


def paint_row(canvas, view, stream, across, kinds, mood):
    """One row of parcels along the street, each as a plane towards the road and, where it is seen, one towards us."""
    near = frontage(view, across)
    distance = np.where(near > 0, view.distance(np.maximum(near, 1)), 10 * FARTHEST)
    start, lower = stream.between(-1500, 300), False
    while start < FARTHEST:
        length, kind = stream.between(700, 2400), stream.pick(kinds)
        parcel = PARCELS[kind](stream, mood) if kind != "open" else None
        if parcel:
            _paint_side(canvas, view, parcel, near, distance, start, length)
            if lower and kind == "house" and start > 300:
                _paint_end(canvas, view, parcel, across, start)
        lower, start = kind != "house", start + length


def _paint_side(canvas, view, parcel, near, distance, start, length):
    columns = np.flatnonzero((distance >= start) & (distance < start + length))
    if not len(columns):
        return
    columns = np.arange(columns[0], columns[-1] + 1)
    seen = (distance[columns] >= start) & (distance[columns] < start + length)
    plane = stand(view, columns, np.maximum(near[columns], 1), distance[columns] - start, seen, parcel.height)
    parcel.paint(canvas, plane, parcel.height)


def _paint_end(canvas, view, parcel, across, start):
    depth = 1000
    near = view.near(start)
    left, right = sorted(view.column(across + shift, near) for shift in (0, depth if across > 0 else -depth))
    columns = np.arange(max(left, 0), min(right, WIDTH), dtype=np.int32)
    if not len(columns):
        return
    along = (columns - left) * depth // (right - left)
    level = np.full(len(columns), near, np.int32)
    plane = stand(view, columns, level, along, np.ones(len(columns), bool), parcel.height)
    gable = parcel.height + parcel.roof * (depth - abs(2 * along - depth)) // depth - parcel.roof
    parcel.paint(canvas, plane, gable[None])


class House(NamedTuple):
    """A house front: storeys of windows, perhaps a shop below and a roof above."""

    key: int
    height: int  # to the top of the roof
    roof: int  # the roof's part of it
    colour: np.ndarray
    cover: str  # plaster, brick, boards
    storey: int
    bay: int
    pane: tuple  # width and height of a window
    lit: int  # of 256 windows
    shop: bool

    def paint(self, canvas, plane, top):
        """Paint the front over a Surface, up to `top` cm."""
        colour = self.colour + self._cover(plane)[..., None]
        wall = self.height - self.roof
        bay, storey = plane.along % self.bay - self.bay // 2, plane.up % self.storey - self.storey // 2
        below = plane.up < wall - 50
        frame = (2 * abs(bay) < self.pane[0] + 24) & (2 * abs(storey) < self.pane[1] + 24) & below
        pane = (2 * abs(bay) < self.pane[0]) & (2 * abs(storey) < self.pane[1]) & below
        room = speckle(self.key + 1, plane.up // self.storey, plane.along // self.bay)
        glass = np.where((room < self.lit)[..., None], rgb((400, 330, 190)), rgb((46, 56, 68)) + room[..., None] // 5)
        colour = np.where(frame[..., None], colour * 3 // 4 + 44, colour)
        colour = np.where(pane[..., None], glass, colour)
        if self.shop:
            band = (plane.up > self.storey - 90) & (plane.up < self.storey - 20)
            colour = np.where(band[..., None], self.colour[::-1] * 3 // 4, colour)
        slates = self.colour // 2 + 16 - 14 * ((plane.up // 35) & 1)[..., None]
        colour = np.where((plane.up > wall)[..., None], slates, colour)
        canvas.paint(plane.window, plane.seen & (plane.up <= top), colour, BUILDING, plane.near)

    def _cover(self, plane):
        if self.cover == "brick":
            return (speckle(self.key, plane.up // 14, plane.along // 28) - 128) // 8 - 10 * (plane.up % 14 < 3)
        if self.cover == "boards":
            return 6 - 22 * (plane.up % 34 < 7)
        return (speckle(self.key, plane.up // 8, plane.along // 8) - 128) // 16


def draw_house(stream, mood):
    """A random House."""
    storey, bay = stream.between(270, 360), stream.between(180, 380)
    storeys = stream.pick((1, 2, 2, 2, 3, 3, 4, 5))
    roof = stream.between(120, 260) if storeys < 4 and stream.chance(65) else 0
    return House(
        key=stream.bits(),
        height=storeys * storey + 60 + roof,
        roof=roof,
        colour=rgb(stream.near_colour(stream.pick(MATERIALS))) * stream.between(80, 112) // 100,
        cover=stream.pick(("plaster", "plaster", "brick", "boards")),
        storey=storey,
        bay=bay,
        pane=(bay * stream.between(35, 62) // 100, storey * stream.between(38, 60) // 100),
        lit=mood.lit,
        shop=stream.chance(30),
    )


class Masonry(NamedTuple):
    """A low wall of blocks under a coping."""

    key: int
    height: int
    colour: np.ndarray
    block: tuple  # length and height
    roof: int = 0

    def paint(self, canvas, plane, top):
        """Paint the wall over a Surface, up to `top` cm."""
        length, height = self.block
        course = plane.up // height
        shifted = plane.along + (course & 1) * (length // 2)
        shade = (speckle(self.key, course, shifted // length) - 128) // 6
        joints = (shifted % length < length // 10) | (plane.up % height < height // 6)
        grain = (speckle(self.key + 1, plane.up // 4, plane.along // 4) - 128) // 10
        coping = plane.up > top - 16
        shade = np.where(coping, 34, shade - 36 * joints) + grain
        canvas.paint(plane.window, plane.seen & (plane.up <= top), self.colour + shade[..., None], WALL, plane.near)


def draw_masonry(stream, mood):
    """A random Masonry."""
    colour = rgb(stream.near_colour(stream.pick(MATERIALS)))
    return Masonry(stream.bits(), stream.between(130, 260), colour, (stream.between(50, 120), stream.between(28, 50)))


class Railing(NamedTuple):
    """A fence of bars or pales; its label covers the gaps, through which one sees what stands behind."""

    key: int
    height: int
    colour: np.ndarray
    period: int
    bar: int  # width
    rails: tuple  # heights in per cent
    roof: int = 0

    def paint(self, canvas, plane, top):
        """Paint the fence over a Surface, up to `top` cm."""
        bars = plane.along % self.period < self.bar
        rails = np.logical_or.reduce([abs(plane.up - top * rail // 100) < 7 for rail in self.rails])
        posts = plane.along % 260 < 18
        inside = plane.seen & (plane.up <= top)
        shade = 24 * bars + 10 * posts + (speckle(self.key, plane.up // 6, plane.along // 6) - 128) // 12
        solid = inside & (bars | rails | posts)
        behind = canvas.image[plane.window] * 3 // 4
        colour = np.where(solid[..., None], self.colour + shade[..., None], behind)
        canvas.paint(plane.window, inside, colour, FENCE, plane.near)


def draw_railing(stream, mood):
    """A random Railing."""
    period = stream.between(24, 60)
    colour = rgb(stream.near_colour(stream.pick(MATERIALS))) * stream.pick((40, 70, 100, 120)) // 100
    rails = stream.pick(((8, 92), (15, 85), (10, 50, 90)))
    return Railing(
        stream.bits(), stream.between(110, 230), colour, period, period * stream.between(35, 70) // 100, rails
    )


class Hedge(NamedTuple):
    """A hedge, or the edge of a wood where it is high."""

    key: int
    height: int
    colour: np.ndarray
    roof: int = 0

    def paint(self, canvas, plane, top):
        """Paint the hedge over a Surface, up to about `top` cm."""
        leaves = (speckle(self.key, plane.up // 13, plane.along // 13) - 128) // 3
        clumps = (speckle(self.key + 1, plane.up // 60, plane.along // 70) - 128) // 6
        ragged = top - speckle(self.key + 2, plane.along // 40) * top // 1000
        mask = plane.seen & (plane.up <= ragged)
        canvas.paint(plane.window, mask, self.colour + (leaves + clumps)[..., None], VEGETATION, plane.near)


def draw_hedge(stream, mood):
    """A random Hedge."""
    return Hedge(stream.bits(), stream.between(90, 280), rgb(stream.near_colour(stream.pick(LEAVES))))


def draw_wood(stream, mood):
    """The edge of a wood."""
    return Hedge(stream.bits(), stream.between(500, 1000), rgb(stream.near_colour(stream.pick(LEAVES))))


PARCELS = {"house": draw_house, "wall": draw_masonry, "fence": draw_railing, "hedge": draw_hedge, "wood": draw_wood}


def paint_skyline(canvas, view, stream):
    """Far roofs or woods on the horizon, which hide where the ground ends."""
    rows, columns = pixels()
    key, label = stream.bits(), stream.pick((BUILDING, VEGETATION))
    step = stream.between(9, 24) if label == BUILDING else 3
    heights = 5 + speckle(key, columns // step) * stream.between(6, 20) // 256
    mask = (rows >= view.horizon - heights) & (rows <= view.horizon + 1)
    base = rgb(stream.near_colour(stream.pick(MATERIALS if label == BUILDING else LEAVES)))
    shade = (speckle(key + 1, rows // 2, columns // 2) - 128) // 8 + speckle(key + 2, columns // step) // 10
    canvas.near[view.horizon : view.horizon + 2] = 0
    canvas.paint((slice(0, HEIGHT), slice(0, WIDTH)), mask, base + shade[..., None], label, 8)
