"""What stands in the embedded street scenes and where: cars, lamps, signs, people, furniture, trees, hazards."""

from typing import NamedTuple

import numpy as np

from datasets.streets.canvas import (
    ANOMALY,
    CAR,
    LINE,
    OTHER,
    PEDESTRIAN,
    POLE,
    ROAD,
    SIDEWALK,
    SIGN,
    VEGETATION,
    Sprite,
    draw_sprite,
    frame,
)
from datasets.streets.sprites import (
    CAR_BODY,
    CAR_REAR,
    COLOURS,
    FURNITURE,
    HAZARDS,
    LEAVES,
    MATERIALS,
    ODD_HUES,
    PAINTS,
    PEOPLE,
    POLES,
    SIGNS,
    SKINS,
    TREES,
)

PAVED = np.isin(np.arange(14), (LINE, ROAD, SIDEWALK))  # by class id: what shadows fall on
MIXED = PAINTS + MATERIALS
HUES = {CAR: PAINTS, PEDESTRIAN: PAINTS, SIGN: PAINTS, ANOMALY: ODD_HUES}
CARS = CAR_REAR[:2] * 3 + CAR_REAR[2:]


class Thing(NamedTuple):
    """An object in its place."""

    distance: int  # cm
    across: int  # cm from the road's middle
    sprite: Sprite
    label: int
    colours: dict
    lift: int = 0  # cm over the ground
    length: int = 0  # cm; 0 is flat
    percent: int = 100  # of the sprite's size
    mirrored: bool = False
    key: int = 0


def place(stream, kinds, label, distance, across, **details):
    """A Thing: one of several kinds of sprite, in colours of its own."""
    own = {name: stream.near_colour(stream.pick(HUES.get(label, MIXED))) for name in "abc"}
    own |= {"skin": stream.pick(SKINS), "leaves": stream.near_colour(stream.pick(LEAVES))}
    thing = Thing(distance, across, stream.pick(kinds), label, COLOURS | own)
    varied = thing._replace(percent=stream.between(88, 112), mirrored=stream.chance(50), key=stream.bits())
    return varied._replace(**details)


def draw_thing(canvas, view, thing):
    """Paint a Thing, its shadow before it; one with a length as a row of slices, the farthest first."""
    near = view.near(thing.distance)
    width, height = (size * thing.percent // 100 for size in (thing.sprite.width, thing.sprite.height))
    if not thing.lift:
        _draw_shadow(canvas, view.box(thing.across, near, width * 5 // 4, width // 5, -width // 10))
    if thing.length:
        _draw_body(canvas, view, thing, width, height)
    top, left, rows, columns = view.box(thing.across, near, width, height, thing.lift)
    box = (top, left, max(rows, 2), max(columns, 2))
    draw_sprite(canvas, thing.sprite, thing.colours, box, thing.label, near, thing.key, thing.mirrored)


def _draw_shadow(canvas, box):
    spot = frame(box)
    if spot is None:
        return
    ground = PAVED[canvas.labels[spot.window]]
    oval = (spot.across - 1600) ** 2 + (spot.down - 1600) ** 2 < 1600**2
    canvas.shade(spot.window, ground & oval, 55)


def _draw_body(canvas, view, thing, width, height):
    """The cross-sections of a car from its far end to its rear; the last fifth is the bonnet."""
    body = next(body for body in CAR_BODY if body.name == thing.sprite.name)
    lower, windows, roof, *wheels = body.parts
    pillar = (*windows[:2], *lower[2:])
    colours = {name: tuple(channel * 3 // 4 for channel in colour) for name, colour in thing.colours.items()}
    ends = [view.column(thing.across, view.near(thing.distance + part)) for part in (0, thing.length)]
    steps = min(36, 5 + abs(ends[0] - ends[1]) * 2 // 3)
    for step in range(steps, 0, -1):
        tenth = 10 * step // steps
        near = view.near(thing.distance + thing.length * step // steps)
        cabin = (pillar if tenth in (0, 3, 7) else windows, roof) if tenth < 8 else ()
        slice_of_car = body._replace(parts=(lower, *cabin, *(wheels if tenth in (1, 8) else ())))
        draw_sprite(canvas, slice_of_car, colours, view.box(thing.across, near, width, height), thing.label, near)


def draw_traffic(stream, street):
    """Cars in the lanes, seen from behind on our side and from the front on the other, and parked at the kerbs."""
    right = list(range(street.lane // 2, street.half - 80, street.lane))
    parked = [side * (street.half - 95) for side in (-1, 1) if stream.chance(35)]
    for across in (*right, *(-lane for lane in right), *parked):
        distance = stream.between(500, 2600)
        while distance < 4800:
            car = place(stream, CARS, CAR, distance, across, length=stream.between(360, 480))
            if across < 0 and stream.chance(80):
                car.colours["light"] = COLOURS["head"]
            yield car
            distance += 480 + (stream.between(100, 900) if across in parked else stream.between(800, 5000))


def draw_furniture(stream, street, side):
    """What stands on one side of the street: lamps, signs, people, things, trees."""
    kerb, walk = street.half + 30, max(street.walks[side > 0], 120)
    for distance in range(stream.between(500, 1500), 3300, stream.between(1100, 2400)):
        yield place(stream, POLES, POLE, distance, side * kerb)
    if stream.chance(44):
        yield from draw_sign(stream, stream.between(800, 1800), side * (kerb + stream.between(0, 60)))
    for kinds, label, counts, farthest in (
        (PEOPLE, PEDESTRIAN, (0, 1, 1, 1), 1500),
        (FURNITURE, OTHER, (0, 1, 1, 2), 2000),
    ):
        for _ in range(stream.pick(counts)):
            across = side * (kerb + stream.between(0, walk - 30))
            yield place(stream, kinds, label, stream.between(700, farthest), across)
    if stream.chance(60):
        for distance in range(stream.between(600, 2000), 7000, stream.between(700, 1800)):
            across = street.half + walk + stream.between(40, max(street.verges[side > 0], 60))
            yield place(stream, TREES, VEGETATION, distance, side * across)


def draw_sign(stream, distance, across):
    """A post and one or two signs on it."""
    post, lift = POLES[0], stream.between(190, 290)
    yield place(stream, (post,), POLE, distance, across, percent=100 * (lift + 60) // post.height)
    yield place(stream, SIGNS, SIGN, distance - 10, across, lift=lift)
    if stream.chance(8):
        yield place(stream, SIGNS[:8], SIGN, distance - 10, across, lift=lift - 86)


def draw_hazards(stream, street):
    """One or two anomalies on the road or beside it, some in the air."""
    for _ in range(stream.between(1, 2)):
        sprite = stream.pick(HAZARDS)
        size = stream.between(40, 84)  # pixels, more or less, of the larger side
        distance = min(max(270 * max(sprite.width, sprite.height) // size, 550), 2200)
        across = stream.between(-street.half - 100, street.half + 100)
        lift = stream.between(60, 200) if sprite.name in ("balloon", "helicopter", "rocket") else 0
        yield place(stream, (sprite,), ANOMALY, distance, across, lift=lift)
