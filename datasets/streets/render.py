"""The embedded data set `streets`: street scenes with hazards, drawn here, in StreetHazards' own layout and coding.

Every picture depends on (seed, split, index) alone, not on order, workers or machine: integer arithmetic throughout.
Labels on disk are class id + 1; 14, the anomaly, stands in the test split only. Written by

    python download.py streets
"""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import pathlib
import tempfile
from typing import NamedTuple

import numpy as np
from PIL import Image

from cli import UserError
from datasets.streets.canvas import ANOMALY, HEIGHT, SKY, WIDTH, Canvas, Stream, View, pixels, rgb, speckle
from datasets.streets.objects import PAVED, draw_furniture, draw_hazards, draw_thing, draw_traffic
from datasets.streets.scenery import draw_street, paint_ground, paint_row, paint_sky, paint_skyline

SPLITS = ("train", "validation", "test")
COUNTS = {"train": 480, "validation": 80, "test": 120}
LEAST_HAZARD = 200  # pixels of anomaly that every test picture has


class Mood(NamedTuple):
    """The light and the weather."""

    sky: tuple  # colours at the top and at the horizon
    cloud: tuple
    light: tuple  # per cent of red, green and blue
    lit: int = 8  # of 256 windows
    dark: bool = False


MOODS = (
    Mood(((96, 142, 208), (186, 208, 228)), (232, 232, 232), (104, 102, 98)),
    Mood(((70, 112, 176), (206, 208, 206)), (238, 236, 230), (108, 102, 92)),
    Mood(((176, 180, 186), (214, 215, 216)), (196, 198, 200), (94, 96, 98)),
    Mood(((124, 128, 134), (164, 166, 168)), (104, 108, 114), (80, 82, 86)),
    Mood(((150, 146, 138), (196, 186, 168)), (170, 160, 146), (92, 88, 80)),
    Mood(((116, 126, 166), (238, 186, 132)), (214, 160, 130), (106, 88, 70), 60),
    Mood(((66, 66, 100), (176, 122, 108)), (110, 84, 96), (80, 70, 75), 90, True),
    Mood(((22, 26, 44), (64, 62, 78)), (48, 48, 58), (56, 58, 70), 110, True),
)


def draw_view(stream, street):
    """A random camera in one of the road's right-hand lanes."""
    lane = street.lane * stream.between(0, (street.half - 40) // street.lane - 1) + street.lane // 2
    return View(
        horizon=stream.between(72, 88),
        height=stream.between(130, 190),
        focal=stream.between(230, 300),
        vanish=WIDTH // 2 + stream.between(-20, 20),
        bend=stream.between(-320, 320) if stream.chance(60) else 0,
        offset=lane + stream.between(-30, 30),
    )


def paint_scene(stream, view, street, mood, hazards):
    """The Canvas of a whole scene, before the camera's and the weather's effects."""
    canvas = Canvas()
    paint_sky(canvas, stream, mood)
    paint_skyline(canvas, view, stream)
    paint_ground(canvas, view, street, stream)
    for side in (-1, 1):
        front, behind = street.parcels[side > 0]
        edge = street.half + street.walks[side > 0] + street.verges[side > 0]
        paint_row(canvas, view, stream, side * (edge + stream.between(900, 1800)), behind, mood)
        paint_row(canvas, view, stream, side * (edge + 20), front, mood)
    things = [*draw_traffic(stream, street), *draw_furniture(stream, street, -1), *draw_furniture(stream, street, 1)]
    if hazards:
        things += draw_hazards(stream, street)
    for thing in sorted(things, key=lambda thing: -thing.distance):
        draw_thing(canvas, view, thing)
    while hazards and np.count_nonzero(canvas.labels == ANOMALY) < LEAST_HAZARD:  # hidden by a car, say
        draw_thing(canvas, view, next(draw_hazards(stream, street))._replace(distance=800))
    return canvas


def expose(canvas, view, stream, mood):
    """The photograph of a scene: shadow, light, haze, rain, a soft lens, a noisy sensor. Returns (H, W, 3) uint8."""
    image = canvas.image
    if not mood.dark and stream.chance(60):
        _cast_shadow(canvas, view, stream)
    light = rgb(mood.light) * stream.between(84, 112) // 100
    if mood.dark:  # headlights
        light = light + np.minimum(canvas.near, 1200)[..., None] // stream.between(24, 60)
    sky = (canvas.labels == SKY)[..., None]
    image = np.where(sky, image, image * light // 100)
    image = _haze(image, canvas.near, stream, mood)
    if stream.chance(18):
        image = _rain(image, stream)
    grey = image.sum(axis=2, keepdims=True) // 3
    image = grey + (image - grey) * stream.between(80, 125) // 100
    image = _soften(image)
    image = image + _grains(stream.bits()) * stream.between(2, 6) // 128
    return np.clip(image, 0, 255).astype(np.uint8)


def _grains(key):
    """Sensor noise, nearly normal: (H, W, 3) int32 around 0, standard deviation about 104."""
    rows, columns = pixels(HEIGHT, 3 * WIDTH)
    grains = speckle(key, rows, columns) + speckle(key + 1, rows, columns) - 255
    return grains.reshape(HEIGHT, WIDTH, 3)


def _cast_shadow(canvas, view, stream):
    """The shadow that one side of the street throws on the ground."""
    window, near = view.ground()
    border = view.column(stream.between(-500, 500) + speckle(stream.bits(), view.distance(near) // 700) * 2, near)
    _, columns = pixels()
    side = columns < border if stream.chance(50) else columns > border
    canvas.shade(window, side & PAVED[canvas.labels[window]], stream.between(50, 75))


def _haze(image, near, stream, mood):
    """Blend what is far into the horizon's colour; a foggy day in seven."""
    density = stream.between(100, 300) if stream.chance(14) else stream.between(4, 30)
    veil = rgb(mood.sky[1])
    thickness = 256 * density // (density + np.maximum(near, 24))
    thickness = np.where(near == 0, min(200, density // 2), thickness)[..., None]
    return image + (veil - image) * thickness // 256


def _rain(image, stream):
    rows, columns = pixels()
    drops = speckle(stream.bits(), rows // 9, columns + rows // stream.between(3, 7)) > 246
    return image + np.where(drops, stream.between(14, 40), 0)[..., None]


def _soften(image):
    """A lens that spreads each pixel over its neighbours, 1-2-1 in both directions."""
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    return (rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]) // 16


def render(seed, split, index):
    """One street scene.

    Returns image (180, 320, 3) uint8 and labels (180, 320) uint8 as on disk: 1..13, and 14 in the split "test".
    """
    stream = Stream(seed, SPLITS.index(split), index)
    street = draw_street(stream)
    view, mood = draw_view(stream, street), stream.pick(MOODS)
    canvas = paint_scene(stream, view, street, mood, split == "test")
    return expose(canvas, view, stream, mood), canvas.labels + np.uint8(1)


def folders(root, split):
    """Where the images and the annotations of a split lie."""
    top = "test" if split == "test" else "train"
    inner = "training" if split == "train" else split
    return [pathlib.Path(root).joinpath(top, kind, inner, "t1") for kind in ("images", "annotations")]


def write_pair(job):
    """Render one scene into its two files. job: (root, seed, split, index)."""
    root, seed, split, index = job
    for folder, picture in zip(folders(root, split), render(seed, split, index), strict=True):
        Image.fromarray(picture).save(folder.joinpath(f"{index:03d}.png"), compress_level=1)


@contextlib.contextmanager
def _processes(workers):
    """A `map` over that many processes; work not yet begun is dropped when the block is left."""
    if workers == 1:
        yield map
        return
    pool = concurrent.futures.ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"))
    try:
        yield functools.partial(pool.map, chunksize=4)
    finally:
        pool.shutdown(cancel_futures=True)


def write_streets(root, seed=0, counts=COUNTS, workers=None, progress=None):
    """Render the data set into the folder `root`, which appears only once it is complete.

    counts: images per split; workers: processes (None: one per core); progress: called with the number of images done
    after each. Returns root as a Path. Raises UserError where root exists already.
    """
    root = pathlib.Path(root)
    if root.exists():
        raise UserError(f"the folder exists already ({root})", remedy="remove it or name another")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}.", suffix=".part", dir=root.parent) as part:
        scenes = pathlib.Path(part, root.name)
        for split in counts:
            for folder in folders(scenes, split):
                folder.mkdir(parents=True)
        jobs = [(scenes, seed, split, index) for split, count in counts.items() for index in range(count)]
        with _processes(workers or os.cpu_count()) as run:
            for done, _ in enumerate(run(write_pair, jobs), 1):
                if progress:
                    progress(done)
        scenes.rename(root)
    return root
