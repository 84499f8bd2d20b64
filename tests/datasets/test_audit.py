"""The audit against a slow count of every pixel, on masks of every kind of stretch, coding and fault."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import data
from datasets.audit import audit_split, class_places
from datasets.catalogue import build_spec
from datasets.driving import STREETS
from datasets.masks import count_values, find_runs, read_labels
from datasets.spec import UNKNOWN, VOID
from tests.datasets.miniatures import open_folder, rewrite
from tests.folder_set import write_folder_set

GRID = (6, 8)


def draw_target(rng, kind, shape):
    """A target of 0 … 4 and 255: blocks, single pixels, stretches over the ends of rows, or one value."""
    height, width = shape
    if kind == "noise":
        return rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), shape)
    if kind == "constant":
        return np.full(shape, rng.randint(5), np.uint8)
    if kind == "stretches":  # that know nothing of rows
        ends = np.sort(rng.randint(0, height * width, 12))
        return rng.randint(0, 5, 13).astype(np.uint8)[np.searchsorted(ends, np.arange(height * width))].reshape(shape)
    small = rng.choice(np.array([0, 1, 2, 4, 255], np.uint8), (4, 5))
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST))


def slow_place(target, train_id):
    """The middle pixel of a class's pixels in its median row, pixel by pixel; None where it is absent."""
    pixels = [(y, x) for y in range(target.shape[0]) for x in range(target.shape[1]) if target[y, x] == train_id]
    if not pixels:
        return None
    row = pixels[len(pixels) // 2][0]
    # "The middle" counts along the class's whole list, so of two middle ones the later where pixels lie before it.
    first = sum(y < row for y, _ in pixels)
    after = sum(y <= row for y, _ in pixels)
    return pixels[(first + after) // 2]


@pytest.mark.parametrize("kind", ["noise", "constant", "stretches", "blocks"])
def test_runs_count_and_place_as_pixel_by_pixel_does(kind):
    rng = np.random.RandomState(0)
    for shape in ((7, 9), (1, 40), (40, 1), (24, 31)):
        target = draw_target(rng, kind, shape)
        starts, lengths = find_runs(target.ravel())
        assert lengths.sum() == target.size
        assert np.array_equal(np.repeat(target.ravel()[starts], lengths), target.ravel())
        assert count_values(target) == dict(sorted(Counter(target.ravel().tolist()).items()))
        places = class_places((target.ravel()[starts], starts, lengths), shape, 6)
        for train_id in range(6):
            place = slow_place(target, train_id)
            expected = (-1, -1) if place is None else [(p + 0.5) / n for p, n in zip(place, shape, strict=True)]
            assert places[train_id].tolist() == pytest.approx(expected, abs=1e-6)


def test_no_pixel_has_no_runs():
    assert [part.tolist() for part in find_runs(np.zeros(0, np.uint8))] == [[], []]
    assert count_values(np.zeros((0, 4), np.uint8)) == {}


def write_set(root, form):
    """A folder set of 6 pairs whose masks are drawn in `form`, with an undeclared value in two of them."""
    write_folder_set(root, counts=(("train", 6), ("val", 1), ("test", 1)), classes=3)
    rng, codes = np.random.RandomState(1), np.array([0, 1, 2, 255], np.uint8)
    palette = {0: (200, 40, 40), 1: (40, 200, 40), 2: (40, 40, 200), 255: (0, 0, 0), 77: (9, 8, 7)}
    for i, path in enumerate(sorted((root / "masks" / "train").iterdir())):
        mask = np.asarray(Image.fromarray(rng.choice(codes, (5, 7))).resize((56, 40), Image.Resampling.NEAREST)).copy()
        if i in (1, 4):
            mask[3 : 5 + i, 2:9] = 77
        if form == "colours":
            mask = np.array([palette.get(v, (0, 0, 0)) for v in range(256)], np.uint8)[mask]
        elif form == "sixteen bits":
            mask = mask.astype(np.uint16)
        Image.fromarray(mask).save(path)
    about = json.loads((root / "classes.json").read_text())
    if form == "colours":
        about["void"] = [[0, 0, 0]]
    (root / "classes.json").write_text(json.dumps(about))
    spec = build_spec("folder", root)
    return data.open_split(spec, root, "train")


@pytest.mark.parametrize("form", ["numbers", "sixteen bits", "colours"])
def test_the_audit_equals_a_count_of_every_pixel(tmp_path, form):
    split = write_set(tmp_path, form)
    found = audit_split(split, GRID)
    values, unknown, void = Counter(), Counter(), 0
    for i, (_, mask_path) in enumerate(split.pairs):
        raw = np.asarray(Image.open(mask_path)).astype(np.int64)
        if form == "colours":
            raw = raw[..., 0] * 65536 + raw[..., 1] * 256 + raw[..., 2]
        target = read_labels(mask_path, split.spec)[0]
        values.update(raw.ravel().tolist())
        unknown.update(raw[target == UNKNOWN].tolist())
        void += int((target == VOID).sum())
        assert found.image_counts[i].tolist() == [int((target == c).sum()) for c in range(3)]
        small = Image.fromarray(target).resize(GRID[::-1], Image.Resampling.NEAREST)
        assert np.array_equal(found.grids[i], np.asarray(small))
        for c in range(3):
            place = slow_place(target, c)
            expected = (-1, -1) if place is None else [(p + 0.5) / n for p, n in zip(place, (40, 56), strict=True)]
            assert found.places[i, c].tolist() == pytest.approx(expected, abs=1e-6)
    assert found.values == values
    assert found.unknown_values == unknown
    assert list(found.unknown) == [str(split.pairs[i][1]) for i in (1, 4)]
    assert sum(found.unknown.values()) == sum(unknown.values()) == 3 * 7 + 6 * 7
    assert found.void == void
    assert found.image_sizes.tolist() == [[40, 56]] * 6


def test_masks_alone_say_the_same_and_open_no_image(folder_set):
    split = data.open_split(build_spec("folder", folder_set), folder_set, "train")
    whole = audit_split(split, GRID)
    for image_path, _ in split.pairs:
        image_path.write_bytes(b"no image")
    alone = audit_split(split, GRID, images=False)
    assert not alone.broken
    assert len(audit_split(split, GRID).broken) == len(split)
    for name in ("grids", "image_counts", "places", "image_sizes"):
        assert np.array_equal(getattr(whole, name), getattr(alone, name))
    assert (whole.values, whole.void, whole.sizes) == (alone.values, alone.void, alone.sizes)


def test_audit_counts_and_finds_every_fault(folder_set):
    split = open_folder(folder_set)
    clean = audit_split(split, GRID)
    assert clean.error() is None
    assert clean.counts.sum() + clean.void == clean.pixels == 8 * 40 * 56
    assert clean.grids.shape == (8, *GRID)
    rewrite(split.pairs[1][1], lambda mask: mask[:30])
    assert "differ in size" in str(audit_split(split, GRID).error())
    path = split.pairs[3][0]
    path.write_bytes(path.read_bytes()[:-40])
    broken = audit_split(split, GRID)
    assert len(broken.broken) == 2
    assert "1 more" in str(broken.error())


def test_anomaly_pixels_in_training_are_an_error(tmp_path):
    spec = STREETS
    for part in spec.splits["train"]:
        (tmp_path / part).mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / spec.splits["train"][0] / f"{i}.png")
        Image.new("L", (8, 8), 3 if i else 14).save(tmp_path / spec.splits["train"][1] / f"{i}.png")
    audit = audit_split(data.open_split(spec, tmp_path, "train"), GRID)
    assert audit.anomaly == 64
    assert "64 anomaly pixels" in str(audit.error())
