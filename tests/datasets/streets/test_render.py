"""The embedded street scenes: coding, determinism, whole-number arithmetic, and a folder that is complete or absent."""

import ast
import hashlib
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from cli import UserError
from datasets.streets import objects, render
from datasets.streets.canvas import Canvas, Stream, View, frame, scramble, shape_mask, smooth_noise
from datasets.streets.objects import draw_thing
from datasets.streets.render import LEAST_HAZARD, SPLITS, write_streets
from datasets.streets.sprites import CAR_REAR, FURNITURE, HAZARDS, PEOPLE, POLES, SIGNS, TREES
from tests.scripts import ROOT

COUNTS = {"train": 3, "validation": 2, "test": 2}
SOURCES = sorted(pathlib.Path(render.__file__).parent.glob("[!_]*.py"))


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    """A small data set, written by two processes."""
    return write_streets(tmp_path_factory.mktemp("data") / "streets", seed=3, counts=COUNTS, workers=2)


@pytest.fixture(scope="module")
def scenes():
    """Labels of some scenes of each split, as on disk."""
    return {split: np.stack([render.render(0, split, i)[1] for i in range(12)]) for split in SPLITS}


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.png"))}


def test_files_lie_where_streethazards_has_them(streets):
    expected = [
        f"{top}/{kind}/{inner}/t1/{index:03d}.png"
        for top, inner, count in (("train", "training", 3), ("train", "validation", 2), ("test", "test", 2))
        for kind in ("images", "annotations")
        for index in range(count)
    ]
    assert sorted(contents(streets)) == sorted(expected)


def test_files_hold_what_render_returns(streets):
    for split, inner in (("train", "train/{}/training"), ("test", "test/{}/test")):
        image, labels = render.render(3, split, 1)
        with Image.open(streets / inner.format("images") / "t1/001.png") as file:
            assert file.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(file), image)
        with Image.open(streets / inner.format("annotations") / "t1/001.png") as file:
            assert file.mode == "L"
            np.testing.assert_array_equal(np.asarray(file), labels)
        assert image.shape == (180, 320, 3)
        assert labels.shape == (180, 320)
        assert image.dtype == labels.dtype == np.uint8


def test_number_of_workers_changes_nothing(streets, tmp_path):
    done = []
    alone = write_streets(tmp_path / "alone", seed=3, counts=COUNTS, workers=1, progress=done.append)
    assert contents(alone) == contents(streets)
    assert done == list(range(1, 8))


def test_pixels_are_the_same_on_every_machine():
    digest = hashlib.sha256()
    for split, index in (("train", 0), ("validation", 7), ("test", 11), ("test", 12)):
        for picture in render.render(0, split, index):
            digest.update(picture.tobytes())
    assert digest.hexdigest() == "3c13787738b2c648628ca9e17c4df10e51718a044789c6c62f653732822aea7a"


def test_seed_split_and_index_each_change_the_scene():
    keys = ((0, "train", 0), (1, "train", 0), (0, "validation", 0), (0, "train", 1))
    assert len({render.render(*key)[0].tobytes() for key in keys}) == 4


def test_source_holds_no_floating_point():
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Constant) and isinstance(node.value, float)), (
                f"{source.name}: {node.lineno}"
            )
            assert not isinstance(getattr(node, "op", None), ast.Div), f"{source.name}:{node.lineno} divides"


def test_no_value_while_rendering_is_a_float():
    names, floats, seen = {str(source) for source in SOURCES}, [], 0

    def look(frame, event, _):
        nonlocal seen
        if event == "return" and frame.f_code.co_filename in names:
            seen += 1
            for name, value in frame.f_locals.items():
                if isinstance(value, float) or (hasattr(value, "dtype") and value.dtype.kind not in "iub"):
                    floats.append(f"{frame.f_code.co_name}: {name}")

    sys.setprofile(look)
    try:
        render.render(0, "test", 5)
    finally:
        sys.setprofile(None)
    assert seen > 500
    assert not floats


def test_known_classes_everywhere_and_the_anomaly_in_the_test_split_only(scenes):
    for split, labels in scenes.items():
        last = 14 if split == "test" else 13
        assert np.unique(labels).tolist() == list(range(1, last + 1))
        often = [(labels == value).any((1, 2)).mean() for value in range(1, 14)]
        assert min(often) > 0.25, often
    anomaly = (scenes["test"] == 14).mean((1, 2))
    assert anomaly.min() * 180 * 320 >= LEAST_HAZARD
    assert 0.01 < anomaly.mean() < 0.04


def test_class_frequencies_span_nearly_two_orders_of_magnitude(scenes):
    counts = sum(np.bincount(labels.ravel(), minlength=15)[1:14] for labels in scenes.values())
    assert counts.max() > 70 * counts.min()  # 36 images; over the 480 of the training split it is more than 100


def test_twenty_kinds_of_hazard_none_of_them_a_known_thing():
    hazards = {sprite.name for sprite in HAZARDS}
    tables = (
        CAR_REAR, PEOPLE, FURNITURE, SIGNS,
        TREES, POLES,
    )  # fmt: skip
    assert len(hazards) >= 20
    assert not hazards & {sprite.name for table in tables for sprite in table}


@pytest.mark.parametrize("sprite", HAZARDS, ids=lambda sprite: sprite.name)
def test_hazard_is_seen_in_full_size(sprite):
    canvas = Canvas()
    view = View(horizon=100, height=160, focal=260, vanish=160, bend=0, offset=0)
    (thing,) = [objects.place(Stream(1), (sprite,), 13, 1200, 0)]
    draw_thing(canvas, view, thing._replace(percent=100))
    rows, columns = np.nonzero(canvas.labels == 13)
    foot = 100 + 260 * 160 // 1200
    assert abs(rows.max() + 1 - foot) <= 2 + sprite.height // 40
    assert 0.6 < np.ptp(columns) / (sprite.width * 260 / 1200) < 1.05
    assert 0.7 < np.ptp(rows) / (sprite.height * 260 / 1200) < 1.05
    assert len(rows) > 0.15 * np.ptp(rows) * np.ptp(columns)


def test_a_failure_leaves_nothing_behind(tmp_path):
    def fail(done):
        raise RuntimeError("no space")

    for workers in (1, 2):
        with pytest.raises(RuntimeError, match="no space"):
            write_streets(tmp_path / "streets", counts=COUNTS, workers=workers, progress=fail)
        assert not list(tmp_path.iterdir())


def test_a_killed_run_passes_for_nothing_and_can_be_run_again(tmp_path):
    kill = (
        "import os, sys; from datasets.streets.render import write_streets;"
        "stop = lambda done: os.kill(os.getpid(), 9);"
        "write_streets(sys.argv[1], workers=1, progress=stop)"
    )
    root = tmp_path / "streets"
    run = subprocess.run([sys.executable, "-c", kill, root], cwd=ROOT, env=os.environ, check=False)
    assert run.returncode == -signal.SIGKILL
    assert not root.exists()
    assert len(contents(write_streets(root, counts={"train": 1}, workers=1))) == 2


def test_a_folder_that_exists_is_left_alone(streets):
    before = contents(streets)
    with pytest.raises(UserError, match="exists already"):
        write_streets(streets, counts=COUNTS)
    assert contents(streets) == before


def test_hash_of_numbers_and_of_arrays_agree():
    numbers = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    mixed = scramble(np.array(numbers, np.uint32))
    assert mixed.tolist() == [scramble(number) for number in numbers]
    assert len(set(mixed.tolist())) == len(numbers)


def test_stream_is_even():
    stream = Stream(5, 1, 2)
    counts = np.bincount([stream.between(0, 9) for _ in range(5000)], minlength=10)
    assert counts.sum() == 5000
    assert abs(counts - 500).max() < 100  # 4.7 standard deviations


def test_noise_is_linear_between_lattice_points():
    noise = smooth_noise(9, 8, (33, 41))
    rows, columns = np.mgrid[:32, :40]
    low, high, left, right = rows // 8 * 8, rows // 8 * 8 + 8, columns // 8 * 8, columns // 8 * 8 + 8
    down, aside = (rows % 8) / 8, (columns % 8) / 8
    top = noise[low, left] * (1 - aside) + noise[low, right] * aside
    bottom = noise[high, left] * (1 - aside) + noise[high, right] * aside
    assert abs(top * (1 - down) + bottom * down - noise[:32, :40]).max() < 1


def test_shapes_against_floating_point_geometry():
    place = frame((10, 20, 90, 120))
    x, y = ((np.arange(size) + 0.5) * 100 / size for size in (120, 90))
    x, y = x[None], y[:, None]
    cases = {
        ("box", (10, 20, 60, 80)): (x >= 10) & (x < 60) & (y >= 20) & (y < 80),
        ("oval", (10, 20, 60, 90)): ((x - 35) / 25) ** 2 + ((y - 55) / 35) ** 2 <= 1,
        ("poly", (50, 0, 100, 100, 0, 100)): (y >= 2 * (50 - x)) & (y >= 2 * (x - 50)),
        ("poly", (0, 100, 100, 100, 50, 0)): (y >= 2 * (50 - x)) & (y >= 2 * (x - 50)),
        ("bar", (20, 20, 80, 80, 10)): (abs(x - y) <= 5 * 2**0.5) & (x + y >= 40) & (x + y <= 160),
    }
    for (kind, points), expected in cases.items():
        mask = shape_mask(kind, [32 * point for point in points], place, 0)
        assert (mask != expected).mean() < 0.01, kind


def test_nearer_hides_farther_in_any_order():
    window, mask = (slice(0, 4), slice(0, 4)), np.ones((4, 4), bool)
    for order in ((1, 2), (2, 1)):
        canvas = Canvas()
        for label in order:
            canvas.paint(window, mask, (label, label, label), label, near=100 * label)
        assert (canvas.labels[:4, :4] == 2).all()
        assert (canvas.image[:4, :4] == 2).all()


def test_ground_seen_by_the_camera_is_where_the_camera_sees_it():
    view = View(horizon=70, height=150, focal=250, vanish=150, bend=120, offset=170)
    for distance in (500, 1200, 4000):
        near = view.near(distance)
        assert near == pytest.approx(16 * 250 * 150 / distance, abs=1)
        straight = 150 + 250 * (300 - 170) / distance
        assert view.column(300, near) == pytest.approx(straight + 120 * distance / (250 * 150), abs=1.5)
        top, left, height, width = view.box(0, near, 100, 200)
        assert (height, width) == (
            pytest.approx(250 * 200 / distance, abs=1),
            pytest.approx(250 * 100 / distance, abs=1),
        )
        assert top + height == pytest.approx(70 + 250 * 150 / distance, abs=1)
