"""Colours are held against CIEDE2000 and simulated colour blindness, pictures against the ids they were drawn from, the
page against an HTML parser, the progress line against a real pseudo-terminal."""

import base64
import fcntl
import io
import itertools
import json
import os
import pty
import re
import struct
import sys
import termios
import threading
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

import cli
from cli import UserError
from report import files
from report.charts import BOTTOM, HEIGHT, POINTS, RIGHT, TOP, WIDTH, floor_bar, line_chart, round_ticks, thin, tick_text
from report.colours import (
    ALARM_COLOUR,
    ANOMALY_COLOUR,
    ERROR_COLOUR,
    HEAT_RAMP,
    NORMAL,
    NORMAL_COLOUR,
    UNKNOWN_COLOUR,
    VOID_COLOUR,
    colour_mask,
    distinct_palette,
)
from report.files import save_mask, save_picture, write_json, write_report
from report.page import confusion_words, reading
from report.pictures import (
    ABSENT_COLOUR,
    GAP,
    PAPER,
    _font,
    _legend_entries,
    _share_text,
    confusion_picture,
    contact_sheet,
    feature_picture,
    heat_map,
    overlay,
    panel,
    panel_tiles,
)
from report.tables import class_table, feature_table

# ---------------------------------------------------------------------------------------------------------------------
# References: colour difference and simulated colour blindness

# (L, a, b), (L, a, b), difference. Source: Sharma, Wu and Dalal 2005, table 1; the pairs that reveal wrong hue means.
SHARMA = [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.4900, -0.0010), (50, -2.4900, 0.0010), 7.1792),
    ((50, 2.4900, -0.0010), (50, -2.4900, 0.0011), 7.2195),
    ((50, -0.0010, 2.4900), (50, 0.0010, -2.4900), 4.8045),
    ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((50, 2.5, 0), (61, -5, 29), 22.8977),
    ((50, 2.5, 0), (56, -27, -3), 31.9030),
    ((50, 2.5, 0), (50, 3.2592, 0.3350), 1.0000),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((61.2901, 3.7196, -5.3901), (61.4292, 2.2480, -4.9620), 1.8731),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((90.9257, -0.5406, -0.9208), (88.6381, -0.8985, -0.7239), 1.5381),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]
# Linear RGB to linear RGB. Sources: Machado et al. 2009, severity 1.0; Viénot et al. 1999; Brettel et al. 1997 (two
# half planes, parted by BRETTEL_PLANE).
SIGHTS = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "protan, Viénot": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deutan, Viénot": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}
BRETTEL_TRITAN = [
    [[1.01277, 0.13548, -0.14826], [-0.01243, 0.86812, 0.14431], [0.07589, 0.80500, 0.11911]],
    [[0.93678, 0.18979, -0.12657], [0.06154, 0.81526, 0.12320], [-0.37562, 1.12767, 0.24796]],
]
BRETTEL_PLANE = [0.03960, -0.02831, -0.01129]


def ciede2000(first, second):
    """Colour difference of CIELAB colours (…, 3)."""
    L1, a1, b1 = np.moveaxis(np.asarray(first, float), -1, 0)
    L2, a2, b2 = np.moveaxis(np.asarray(second, float), -1, 0)
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    G = 0.5 * (1 - np.sqrt(mean**7 / (mean**7 + 25.0**7)))
    C1, C2 = np.hypot((1 + G) * a1, b1), np.hypot((1 + G) * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, (1 + G) * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    grey = C1 * C2 == 0
    dh = np.where(grey, 0, (h2 - h1 + 180) % 360 - 180)
    turn = np.where(h1 + h2 < 360, 360, -360) * (np.abs(h1 - h2) > 180)
    L, C, h = (L1 + L2) / 2, (C1 + C2) / 2, np.where(grey, h1 + h2, (h1 + h2 + turn) / 2)
    cos = lambda degrees: np.cos(np.radians(degrees))  # noqa: E731
    T = 1 - 0.17 * cos(h - 30) + 0.24 * cos(2 * h) + 0.32 * cos(3 * h + 6) - 0.20 * cos(4 * h - 63)
    SL, SC, SH = 1 + 0.015 * (L - 50) ** 2 / np.sqrt(20 + (L - 50) ** 2), 1 + 0.045 * C, 1 + 0.015 * C * T
    dL, dC, dH = (L2 - L1) / SL, (C2 - C1) / SC, 2 * np.sqrt(C1 * C2) * np.sin(np.radians(dh / 2)) / SH
    RC = 2 * np.sqrt(C**7 / (C**7 + 25.0**7))
    return np.sqrt(dL**2 + dC**2 + dH**2 - np.sin(np.radians(60 * np.exp(-(((h - 275) / 25) ** 2)))) * RC * dC * dH)


def cielab(linear):
    """CIELAB (D65) of linear RGB (…, 3)."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = linear @ np.transpose(to_xyz) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)


def seen(colours):
    """{kind of sight: CIELAB (N, 3)} of colours in 0..255."""
    srgb = np.asarray(colours, float) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    looks = {name: linear @ np.transpose(matrix) for name, matrix in SIGHTS.items()}
    half = (linear @ BRETTEL_PLANE >= 0)[:, None]
    looks["tritan, Brettel"] = np.where(half, *(linear @ np.transpose(matrix) for matrix in BRETTEL_TRITAN))
    return {name: cielab(np.clip(look, 0, 1)) for name, look in looks.items()}


def smallest_difference(colours):
    """Over all pairs and all kinds of sight."""
    pairs = np.array(list(itertools.combinations(range(len(colours)), 2)))
    return min(ciede2000(lab[pairs[:, 0]], lab[pairs[:, 1]]).min() for lab in seen(colours).values())


@pytest.mark.parametrize(("first", "second", "difference"), SHARMA)
def test_reference_agrees_with_published_ciede2000(first, second, difference):
    assert ciede2000(first, second) == pytest.approx(difference, abs=5e-5)


# ---------------------------------------------------------------------------------------------------------------------
# Colours


@pytest.mark.parametrize("n", range(1, 10))
def test_palette_is_distinct_for_every_kind_of_sight(n):
    palette = distinct_palette(n)
    assert len(palette) == n
    assert smallest_difference([*palette, VOID_COLOUR, ANOMALY_COLOUR]) >= 14


@pytest.mark.parametrize(("n", "least"), [(11, 10), (13, 8), (19, 6.8), (30, 5)])
def test_larger_palettes_stay_as_distinct_as_documented(n, least):
    assert smallest_difference([*distinct_palette(n), VOID_COLOUR, ANOMALY_COLOUR]) >= least


def test_palette_is_stable_and_never_repeats_a_colour():
    palette = distinct_palette(255)
    assert len(set(palette)) == 255
    assert all(distinct_palette(n) == palette[:n] for n in (0, 5, 9, 10, 40))
    assert not {VOID_COLOUR, ANOMALY_COLOUR} & set(palette)


def test_heat_ramp_keeps_its_order_for_every_kind_of_sight():
    ramp = np.asarray(heat_map(np.linspace(0, 1, 256)[None].repeat(4, 0)))[0]
    coarse = ramp[::5]  # rounding to 8 bits may make two neighbours equal
    for name, lab in seen(coarse).items():
        assert (np.diff(lab[:, 0]) > 0.3).all(), name
    steps = ciede2000(*(seen(coarse)["normal"][part] for part in (slice(None, -1), slice(1, None))))
    assert steps.max() < 4 * steps.min()  # no jump that would look like an edge


# ---------------------------------------------------------------------------------------------------------------------
# Masks

PALETTE = [(128, 64, 128), (0, 200, 10), (70, 70, 250)]
CLASSES = ["road", "tree", "sky"]


@pytest.fixture
def scene():
    """image, target (with void and anomaly), prediction, confidence: 40 × 60, every id in blocks."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (40, 60, 1), dtype=np.uint8)
    target = np.repeat(np.repeat(rng.choice([0, 1, 2, 3, 255], (8, 12)), 5, 0), 5, 1).astype(np.uint8)
    prediction = np.repeat(np.repeat(rng.integers(0, 3, (8, 12)), 5, 0), 5, 1).astype(np.uint8)
    return grey.repeat(3, 2), target, prediction, rng.random((40, 60), dtype=np.float32)


def test_colour_mask_shows_each_id_in_its_colour():
    target = np.array([[0, 1, 2], [3, 4, 255]], dtype=np.uint8)
    colours = np.asarray(colour_mask(target, PALETTE))
    expected = [[*PALETTE], [ANOMALY_COLOUR, (0, 0, 0), (0, 0, 0)]]
    assert colours.tolist() == np.array(expected).tolist()


def test_void_stays_black_beside_the_largest_palette():
    palette = distinct_palette(255)
    assert colour_mask(np.array([[255, 254]], dtype=np.uint8), palette).getpixel((0, 0)) == (0, 0, 0)
    assert colour_mask(np.array([[253]], dtype=np.uint8), palette).getpixel((0, 0)) == palette[253]


def test_normal_pixels_without_a_class_are_grey_in_every_picture(scene):
    image, target, prediction, confidence = scene
    target[target == 1] = NORMAL
    assert (np.asarray(colour_mask(target, PALETTE))[target == NORMAL] == NORMAL_COLOUR).all()
    assert (np.asarray(overlay(image, np.full((40, 60), 253, np.uint8), PALETTE)) == image).all()
    entries = _legend_entries({0, 3, NORMAL}, CLASSES, PALETTE)
    assert entries[1:] == [("anomaly", ANOMALY_COLOUR), ("normal, class not known", NORMAL_COLOUR)]
    assert ("not labelled", VOID_COLOUR) in _legend_entries({254, 253}, CLASSES, PALETTE)
    assert NORMAL_COLOUR in colours_of(panel(image, target, prediction, confidence, CLASSES, PALETTE, ""))
    assert NORMAL_COLOUR in colours_of(contact_sheet([(image, target, "")], CLASSES, PALETTE))


def test_grey_of_normal_pixels_and_outline_of_alarms_stand_out():
    others = [*distinct_palette(9), VOID_COLOUR, ANOMALY_COLOUR]
    grey, known = seen([NORMAL_COLOUR]), seen(others)
    assert min(ciede2000(grey[sight], known[sight]).min() for sight in grey) >= 8
    ramp = np.asarray(heat_map(np.linspace(0, 1, 256)[None]))[0]
    outline, heat = seen([ALARM_COLOUR]), seen([*ramp, UNKNOWN_COLOUR])
    assert min(ciede2000(outline[sight], heat[sight]).min() for sight in outline) >= 25


def test_saved_mask_reads_back_as_ids_and_as_colours(tmp_path, scene):
    path = tmp_path / "new" / "mask.png"
    save_mask(path, scene[1], PALETTE)
    with Image.open(path) as image:
        assert (image.mode, image.format) == ("P", "PNG")
        assert (np.asarray(image) == scene[1]).all()
        assert np.reshape(image.getpalette()[:12], (4, 3)).tolist() == [[*c] for c in [*PALETTE, ANOMALY_COLOUR]]
        assert (np.asarray(image.convert("RGB")) == np.asarray(colour_mask(scene[1], PALETTE))).all()
    assert [file.name for file in path.parent.iterdir()] == ["mask.png"]


def test_a_failed_save_leaves_the_older_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    save_picture(Image.new("RGB", (3, 2), "red"), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match=r"No space left on device.* at .*picture\.png"):
            save_picture(Image.new("RGB", (3, 2), "blue"), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
    with pytest.raises(UserError, match="cannot write"):
        write_json(path / "in a file.json", {})


def test_json_is_readable_and_holds_no_nan(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"iou": {"Straße": None}, "miou": 0.5})
    text = (tmp_path / "new" / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"iou": {"Straße": None}, "miou": 0.5}
    assert "Straße" in text
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"miou": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_json_writes_a_list_of_numbers_as_one_line_and_changes_nothing_else(tmp_path):
    content = {"a": [[1, 2], [3, -4e-9]], "b": ["[\n  1,\n  2\n]", "x"], "c": [], "d": [{"e": [None, True]}], "f": [[]]}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert "[1, 2],\n" in text
    assert '"e": [null, true]\n' in text


def test_overlay_tints_outlines_and_leaves_void(scene):
    image, prediction = scene[0], np.full((40, 60), 1, dtype=np.uint8)
    prediction[:, 30:] = 2
    prediction[30:] = 255
    drawn = np.asarray(overlay(image, prediction, PALETTE, alpha=0.25)).astype(int)
    tint = np.asarray(colour_mask(prediction, PALETTE)).astype(int)
    inside = np.s_[:29, :29]
    assert np.abs(drawn[inside] - (0.75 * image[inside] + 0.25 * tint[inside])).max() <= 1
    assert (drawn[31:] == image[31:]).all()
    assert (drawn[:29, 29] == PALETTE[1]).all()  # the border in full colour, one pixel on either side
    assert (drawn[:29, 30] == PALETTE[2]).all()
    assert (drawn[29, 31:] == PALETTE[2]).all()
    assert (drawn[30] == 0).all()
    assert (np.asarray(overlay(image, np.zeros((40, 60), np.uint8), PALETTE, alpha=1)) == PALETTE[0]).all()


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


def contains(picture, tile):
    """Whether the tile stands in the picture pixel for pixel."""
    picture, tile = np.asarray(picture), np.asarray(tile)
    height, width = tile.shape[:2]
    room = picture[: picture.shape[0] - height + 1, : picture.shape[1] - width + 1]
    corners = np.argwhere((room == tile[0, 0]).all(-1))
    return any((picture[y : y + height, x : x + width] == tile).all() for y, x in corners)


def colours_of(picture):
    return {colour for _, colour in picture.getcolors(1 << 24)}


def test_panel_holds_its_six_tiles_unchanged(scene):
    tiles = panel_tiles(*scene, PALETTE)
    assert list(tiles) == ["input", "truth", "prediction", "overlay", "confidence", "errors"]
    assert {tile.size for tile in tiles.values()} == {(480, 320)}
    picture = panel(*scene, CLASSES, PALETTE, "worst: a.png\nmIoU 0.1")
    for name, tile in tiles.items():
        assert contains(picture, tile), name
    broken = tiles["errors"].copy()
    broken.putpixel((7, 9), (1, 2, 3))
    assert not contains(picture, broken)


def test_panel_tiles_show_exactly_ids_and_errors(scene):
    image, target, prediction, confidence = scene
    tiles = panel_tiles(*scene, PALETTE, longest=60)  # one to one
    assert (np.asarray(tiles["input"]) == image).all()
    assert (np.asarray(tiles["truth"]) == np.asarray(colour_mask(target, PALETTE))).all()
    assert (np.asarray(tiles["prediction"]) == np.array(PALETTE)[prediction]).all()
    errors = np.asarray(tiles["errors"])
    wrong = (errors == ERROR_COLOUR).all(-1)
    assert (wrong == ((prediction != target) & (target < 3))).all()
    assert wrong.any()
    assert ((errors == 0).all(-1) == (target >= 3)).all()
    big = panel_tiles(*scene, PALETTE)
    nearest = colour_mask(prediction, PALETTE).resize((480, 320), Image.Resampling.NEAREST)
    assert (np.asarray(big["prediction"]) == np.asarray(nearest)).all()  # ids enlarged, never blended


def test_panel_legend_names_only_what_is_there(scene):
    image, _, _, confidence = scene
    target, prediction = np.zeros((40, 60), np.uint8), np.zeros((40, 60), np.uint8)
    target[:5] = 255
    colours = colours_of(panel(image, target, prediction, confidence, CLASSES, PALETTE, "a"))
    assert PALETTE[0] in colours
    assert not {PALETTE[1], PALETTE[2], ANOMALY_COLOUR} & colours
    target[5:9] = 3
    assert ANOMALY_COLOUR in colours_of(panel(image, target, prediction, confidence, CLASSES, PALETTE, ""))


@pytest.mark.parametrize("shape", [(37, 61), (61, 37), (3, 200), (700, 900)])
def test_panel_takes_any_shape_and_an_image_of_void(shape):
    void, image = np.full(shape, 255, np.uint8), np.zeros((*shape, 3), np.uint8)
    long_names = ["x" * 300, "Fußgängerüberweg", "道路\n2"]
    picture = panel(image, void, void // 200, np.zeros(shape, np.float32), long_names, PALETTE, "word " * 90)
    assert picture.width >= 3 * min(480, round(480 * shape[1] / max(shape)))


def test_contact_sheet_shows_samples_of_any_size_and_all_classes():
    samples, full = [], []
    for index, shape in enumerate([(30, 40), (40, 30), (60, 60)]):
        target = np.full(shape, index, np.uint8)
        target[:10] = 255 if index else 0
        samples.append((np.full((*shape, 3), 90, np.uint8), target, f"sample {index}"))
        full.append(
            colour_mask(target, PALETTE).resize((300 * shape[1] // max(shape), 300 * shape[0] // max(shape)), 0)
        )
    sheet = contact_sheet(samples, [*CLASSES, "rare"], [*PALETTE, (9, 99, 199)])
    assert all(contains(sheet, mask) for mask in full)
    assert (9, 99, 199) in colours_of(sheet)  # the legend names it, though no sample has it


def test_heat_map_is_the_scores_in_order_over_its_bar():
    scores = np.linspace(-3, 5, 400, dtype=np.float32).reshape(20, 20)
    scores[3, 4], scores[0, 0] = np.nan, -np.inf
    picture = heat_map(scores)
    drawn = np.asarray(picture)
    assert picture.height > 20
    assert tuple(drawn[3, 4]) == tuple(drawn[0, 0]) == UNKNOWN_COLOUR
    assert tuple(drawn[19, 19]) == HEAT_RAMP[-1]
    assert tuple(drawn[0, 1]) == HEAT_RAMP[0]
    clipped = np.asarray(heat_map(scores, low=0, high=1))
    assert (clipped[19, :20] == HEAT_RAMP[-1]).all()
    assert (np.asarray(heat_map(np.full((9, 9), 7.0)))[:9, :9] == HEAT_RAMP[0]).all()
    assert heat_map(np.full((2, 2), np.nan)).getpixel((1, 1)) == UNKNOWN_COLOUR


def matrix_corner(picture, classes, cell):
    """Where the square of a confusion picture begins: it ends where the margin does."""
    return picture.width - GAP - cell * classes, picture.height - GAP - cell * classes


def test_confusion_picture_shows_each_rows_shares():
    confusion = np.full((20, 20), 0)
    np.fill_diagonal(confusion, 600)
    confusion[3, 5], confusion[4, 6], confusion[7] = 400, 2, 0
    picture = confusion_picture(confusion, [f"class {i}" for i in range(20)])
    left, top = matrix_corner(picture, 20, 60)

    def colour(row, column):
        return picture.getpixel((left + 60 * column + 8, top + 60 * row + 8))  # beside the number

    ramp = np.asarray(heat_map(np.linspace(0, 1, 256)[None]))[0]
    assert colour(0, 0) == tuple(ramp[0])  # share 1 is the darkest
    assert colour(3, 5) == tuple(ramp[153])  # 0.4
    assert colour(3, 3) == tuple(ramp[102])
    assert colour(4, 6) == colour(0, 1) == PAPER  # 2 of 602 would be written .00
    assert {colour(7, column) for column in range(20)} == {ABSENT_COLOUR}
    numbers = np.asarray(picture)[top + 185 : top + 235, left + 305 : left + 355]
    assert len(np.unique(numbers.reshape(-1, 3), axis=0)) > 2  # 0.4 is written in its cell
    blank = np.asarray(picture)[top + 245 : top + 295, left + 365 : left + 415]
    assert (blank == 255).all()


@pytest.mark.parametrize("classes", [1, 2, 34, 41, 150])
def test_confusion_picture_takes_any_number_of_classes_and_any_name(classes):
    names = [("x" * 300, "道路\n2", "", "Fußgänger")[i % 4] for i in range(classes)]
    picture = confusion_picture(np.eye(classes, dtype=int)[::-1], names)
    assert max(picture.size) <= 1600
    if classes > 2:  # the text above is no wider than the matrix
        cell = min(64, 1200 // classes)
        left, top = matrix_corner(picture, classes, cell)
        assert picture.getpixel((left + cell * classes - cell + 3, top + 3)) == HEAT_RAMP[0]
    confusion_picture(np.zeros((classes, classes), int), names)


@pytest.mark.parametrize(
    ("share", "text"), [(0, ""), (0.0049, ""), (0.0051, ".01"), (0.314, ".31"), (0.994, ".99"), (0.996, "1"), (1, "1")]
)
def test_shares_in_cells_are_short(share, text):
    assert _share_text(share) == text
    width = _font(round(0.42 * 30)).getlength(text)
    assert width < 30 - 4  # fits the smallest cell that is written in


def test_feature_picture_draws_each_map_over_its_own_range():
    ramp, hole = np.linspace(-2, 3, 12, dtype=np.float32).reshape(3, 4), np.full((6, 8), np.nan, np.float32)
    maps = {"channel 0": ramp, "channel 1": 100 * ramp, "dead": np.zeros((3, 4)), "broken": hole}
    picture = feature_picture(maps, "a.png: backbone 1", (30, 40), photo=np.full((30, 40, 3), 77, np.uint8))
    tile = heat_map(ramp, -2, 3).crop((0, 0, 4, 3)).resize((300, 225), Image.Resampling.NEAREST)
    assert contains(picture, tile)
    assert contains(picture, Image.new("RGB", (300, 225), (77, 77, 77)))
    assert contains(picture, Image.new("RGB", (300, 225), UNKNOWN_COLOUR))
    assert contains(picture, Image.new("RGB", (300, 225), HEAT_RAMP[0]))


# ---------------------------------------------------------------------------------------------------------------------
# Terminal


STAGES = [
    {"stage": "backbone 1", "shape": [24, 40, 56], "mean": 0.12345, "std": 1.5, "zeros": 0.0},
    {"stage": "pyramid <1>", "shape": [96, 5, 7], "mean": None, "std": None, "zeros": 0.51},
]


def test_feature_table_lines_up():
    lines = feature_table(STAGES).splitlines()
    assert re.fullmatch(r"backbone 1 +24 x 40 x 56 +0\.1235 +1\.5  0", lines[1])
    assert re.fullmatch(r"pyramid <1> +96 x 5 x 7 +- +-  0\.51", lines[2])
    assert lines[1].index("56") + 2 == lines[0].index("shape") + 5 == lines[2].index(" 7") + 2


@pytest.mark.parametrize(
    ("share", "text"),
    [(1, "100 %"), (0.312, "31 %"), (0.0996, "10 %"), (0.034, "3.4 %"), (0.02, "2.0 %"), (0.00996, "1.0 %"),
     (0.00052, "0.052 %"), (0.0001, "0.010 %"), (0.005, "0.50 %"), (0.00003, "under 0.01 %")],
)  # fmt: skip
def test_confusions_in_words(share, text):
    row = {"target": "pavement", "prediction": "road", "share_of_all": share, "share_of_target": 0.31, "pixels": 9}
    expected = f"{text} of all pixels: pavement taken for road (31 % of pavement)"
    assert confusion_words(row) == expected


def test_class_table_lines_up_and_marks_absent_classes():
    lines = class_table(["sky", "traffic sign"], [0.5, None], [0.25, 0.0]).splitlines()
    assert re.fullmatch(r"sky           0\.500  #{12} +0\.2500", lines[1])
    assert re.fullmatch(r"traffic sign      -  +0\.0000", lines[2])
    assert lines[1].index("0.2500") == lines[2].index("0.0000")
    assert "share" not in class_table(["sky"], [1.0])


class Clock:
    """time.monotonic that moves only when told."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(files.time, "monotonic", lambda: self.now)


def test_progress_writes_few_plain_lines_to_a_pipe(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    progress = cli.Progress(600, "epoch 1/2")
    for step in range(1, 41):
        clock.now += 1
        progress.update(step * 10, loss=1 / step, miou=None)
    progress.close()
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "epoch 1/2  150/600 images  10/s  0:45 left  loss 0.06667  miou -",
        "epoch 1/2  300/600 images  10/s  0:30 left  loss 0.03333  miou -",
        "epoch 1/2  400/600 images  10/s  0:40 taken  loss 0.025  miou -",
    ]


def test_progress_counts_the_rate_from_where_it_resumed(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    progress = cli.Progress(20000, "train", "steps", done=9000)
    clock.now += 20
    progress.update(9100)
    progress.close()
    assert capsys.readouterr().err.splitlines()[0] == "train  9100/20000 steps  5/s  36:20 left"
    cli.Progress(0, "nothing").close()
    assert capsys.readouterr().err == "nothing  0/0 images\n"


def in_terminal(monkeypatch, columns, job):
    """What `job` writes to a standard error that is a terminal of that many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    pieces = []

    def read():  # beside the job: a terminal holds only a few kilobytes
        while not pieces or b"END" not in pieces[-1]:
            pieces.append(os.read(master, 1 << 12))

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        job()
        terminal.write("END")
        terminal.flush()
        reader.join(timeout=30)
    os.close(master)
    return b"".join(pieces).decode().removesuffix("END")


def test_progress_rewrites_one_line_on_a_terminal(monkeypatch):
    clock = Clock(monkeypatch)

    def job():
        progress = cli.Progress(100, "epoch 1/2")
        for done in range(1, 101):
            clock.now += 0.0625
            progress.update(done, loss=0.5, active_classes=11)
        progress.close()

    written = in_terminal(monkeypatch, 200, job)
    assert written.count("\n") == 1
    assert written.endswith("\n")
    states = written.split("\r")
    assert 45 <= len(states) <= 60  # ten times a second, not a hundred
    assert states[1] == "epoch 1/2  2/100 images  16/s  0:06 left  loss 0.5  active classes 11\x1b[K"
    assert "100/100 images  16/s  0:06 taken" in states[-2]
    narrow = in_terminal(monkeypatch, 30, job)
    assert all(len(state.replace("\x1b[K", "").strip()) <= 29 for state in narrow.split("\r"))
    assert "epoch 1/2" in in_terminal(monkeypatch, 0, job)  # some terminals report no width


# ---------------------------------------------------------------------------------------------------------------------
# Charts


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 0.613), (0, 3.7e-5), (-2.2, 17), (0, 123456), (5, 5), (0, 0), (0.1, 0.3)]
)
def test_ticks_are_round_cover_the_range_and_are_few(low, high):
    ticks = round_ticks(low, high)
    assert ticks[0] <= low
    assert ticks[-1] >= high
    steps = np.diff(ticks)
    assert np.allclose(steps, steps[0])
    mantissa = steps[0] / 10 ** np.floor(np.log10(steps[0]) + 1e-9)
    assert min(abs(mantissa - nice) for nice in (1, 2, 5)) < 1e-6
    assert 2 <= len(ticks) <= 8
    assert len({tick_text(tick) for tick in ticks}) == len(ticks)
    assert max(len(tick_text(tick)) for tick in ticks) <= 7


def points_of(chart):
    """[(class, [(x, y)])] of the curves in a chart."""
    found = re.findall(r'<polyline class="curve (s\d)" points="([^"]+)"', chart)
    return [(style, [tuple(map(float, pair.split(","))) for pair in text.split()]) for style, text in found]


def test_chart_puts_points_where_they_belong():
    chart = line_chart("a <b>", [("x & y", [(0, 0), (50, 0.5), (100, 1.0)]), ("floor", [(0, 0.5), (100, 0.5)])], "step")
    (_, line), (_, floor) = points_of(chart)
    top, bottom = TOP, HEIGHT - BOTTOM
    assert [y for _, y in line] == [bottom, (top + bottom) / 2, top]
    assert line[1][0] == pytest.approx((line[0][0] + line[2][0]) / 2, abs=0.1)
    assert {y for _, y in floor} == {(top + bottom) / 2}
    assert line[2][0] == WIDTH - RIGHT
    assert "a &lt;b&gt;" in chart
    assert "x &amp; y" in chart


def test_chart_takes_a_range_lines_to_compare_with_and_dots():
    curves = [("none", [(0, None)]), ("a", [(-4, 0.5), (6, 1.0)]), ("b", [(-4, 0), (6, 0.2)])]
    dots = {"b": (1, 0.5), "none": (1, 1), "<unknown>": (0, 0)}
    chart = line_chart("t", curves, "x", span=(-4, 6), base=[("<chance>", [(1, 0), (1, 1)])], dots=dots)
    (first, line), (second, _) = points_of(chart)
    assert (first, second) == ("s0", "s1")
    assert line[1][0] == WIDTH - RIGHT
    assert 0 < line[0][0] < 60  # the range fills the axis
    middle = (line[0][0] + line[1][0]) / 2
    (base,) = re.findall(r'class="curve base" points="([^"]+)"', chart)
    top, bottom = TOP, HEIGHT - BOTTOM
    assert base == f"{middle:.1f},{bottom:.1f} {middle:.1f},{top:.1f}"
    assert re.findall("<circle[^>]+>", chart) == [
        f'<circle class="dot s1" cx="{middle:.1f}" cy="{(top + bottom) / 2:.1f}" r="4.5"/>'
    ]
    assert "</svg> &lt;chance&gt;</span>" in chart
    assert re.findall(r'text-anchor="middle">(-?[\d.]+)<', chart) == ["-4", "-2", "0", "2", "4", "6"]
    assert ">0.3<" in line_chart("t", [("a", [(0.3, 1)])], "x", span=(0.3, 0.3))


def test_chart_leaves_out_what_is_not_a_number_and_keeps_single_points():
    values = [(1, None), (2, float("nan")), (3, float("inf")), (4, 0.5)]
    chart = line_chart("loss", [("training", values)], "step")
    assert chart.count("<circle") == 1
    assert "nan" not in chart
    assert line_chart("loss", [("training", values[:3])], "step") == ""


def test_thinning_keeps_means():
    points = [(x, x**2) for x in range(10000)]
    few = thin(points)
    assert len(few) <= POINTS
    assert few[0][1] == np.mean([y for _, y in points[:42]])
    assert thin([]) == []


# ---------------------------------------------------------------------------------------------------------------------
# The page

HOSTILE = ['<script>alert("x")</script>', "salt & 'pepper'", 'a"><img src=http-x onerror=y>']
EVALUATION = {
    "split": "test",
    "images": 233,
    "pixels": 40262400,
    "miou": 0.6123,
    "miou_interval": [0.588, 0.634],
    "layout_floor": 0.2204,
    "semantic_gain": 0.5027,
    "iou": {HOSTILE[0]: 0.91, HOSTILE[1]: None, HOSTILE[2]: 0.31},
    "active_classes": 2,
    "spurious_classes": [2],
    "ece": 0.0312,
    "anomaly": {
        "max<logit>": {
            "aupr": 0.312361,
            "aupr_error": 0.000041,
            "auroc": 0.9,
            "auroc_error": 0.0,
            "fpr95": None,
            "per_image": {"aupr": 0.28, "auroc": 0.91, "fpr95": 0.31, "images": 112},
            "components": {},
        }
    },
    "protocol": {"canvas": "240x320", "flip": False},
}
DIAGNOSIS = {
    "root_cause": "shuffled_masks",
    "verdict": "fail",
    "findings": [
        {
            "probe": "pairing",
            "verdict": "fail",
            "cause": "shuffled_masks",
            "value": 0.584,
            "reference": 0.756,
            "why": "borders <do> not match",
            "remedy": "match by name",
            "evidence": {"files": ["<a>.png"]},
            "consequences": ["low_miou"],
            "seconds": 3,
        },
        {"probe": "gradient_flow", "verdict": "pass", "cause": None, "value": None, "reference": None, "why": "all"},
        {"probe": "classes", "verdict": "warn", "cause": "rare", "value": {"sky": 0.1}, "reference": [1, 2], "why": ""},
        {"probe": "noise_test", "verdict": "skip", "cause": None, "value": None, "reference": None, "why": "trains"},
    ],
}
LOG = [
    {"kind": "train", "step": 10, "epoch": 0, "loss": 2.0, "terms": {"ce": 1.5, "aux": 0.5}, "lr": [1e-4, 1e-3]},
    {
        "kind": "train",
        "step": 20,
        "epoch": 0,
        "loss": float("nan"),
        "terms": {"ce": 1.0, "aux": 0.5},
        "lr": [1e-4, 1e-3],
    },
    {"kind": "validation", "step": 20, "epoch": 0, "miou": 0.3, "layout_floor": 0.22, "loss": 1.1},
    {"kind": "train", "step": 30, "epoch": 1, "loss": 1.0, "terms": {"ce": 0.8, "aux": 0.2}, "lr": [5e-5, 5e-4]},
    {"kind": "validation", "step": 40, "epoch": 1, "miou": 0.5, "layout_floor": 0.22, "loss": None},
]


class Page(HTMLParser):
    """Parses strictly: every tag that opens closes in order; collects text, attributes and tags."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def write(tmp_path, **changes):
    parts = {
        "title": "run <1> & co",
        "config": {"dataset": "camvid", "note": "</details><script>", "lr": 0.001},
        "evaluation": EVALUATION,
        "log": LOG,
        "pictures": [],
        "diagnosis": DIAGNOSIS,
        "palette": PALETTE,
    }
    write_report(tmp_path / "report.html", **{**parts, **changes})
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_page_parses_and_escapes_everything_from_outside(tmp_path):
    text = write(tmp_path, pictures=[(HOSTILE[2], tmp_path / "<none>.png")])
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "img"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    for name in HOSTILE:
        assert name in page.text
    for part in (
        "run <1> & co",
        "max<logit>",
        "borders <do> not match",
        "</details><script>",
        "<none>.png cannot be read",
    ):
        assert part in page.text


def test_page_refers_to_nothing_outside_itself(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    text = write(tmp_path, pictures=[(HOSTILE[2], tmp_path / "a.png")])
    page = Page(text)
    assert not re.search(r"(?i)https?:|//[a-z]|@import|url\((?!#)", text.replace("</", "<"))
    addresses = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert all(value.startswith(("data:image/png;base64,", "#")) for value in addresses)
    assert ("img", "alt", HOSTILE[2]) in page.attributes
    anchors = {value for _, name, value in page.attributes if name == "id"}
    assert {value[1:] for value in addresses if value.startswith("#")} <= anchors
    assert "default-src 'none'" in text


def test_page_says_what_the_score_is_worth(tmp_path):
    page = Page(write(tmp_path))
    for part in (
        "mIoU 0.612 95 % interval 0.588 to 0.634 layout floor 0.220",
        "semantic gain 0.503",
        "0.61, of which a predictor that never opens the image gets 0.22. The model covers 0.50 of the way",
        "calibration error (ECE) 0.031",
        "active classes (IoU above 0.01) 2 of 3",
        "predicted, though no target has them " + HOSTILE[2],
        "pixels 40,262,400",
        "canvas 240x320 flip no",
        "best 0.500 at step 40; floor 0.220",
        "score AUPR AUROC AUPR AUROC FPR95 max<logit> 0.31236 ± 0.00005 0.9000 ± 0.0000 0.280 0.910 0.310",
        "ean over the 112 images that hold both kinds of pixel",
    ):
        assert part in page.text
    assert "%" not in page.text.replace("95 %", "")


def test_page_draws_bars_to_scale(tmp_path):
    page = Page(write(tmp_path))
    rectangles = {(tag, name): value for tag, name, value in page.attributes if tag == "rect"}
    assert rectangles  # the bar is there
    text = floor_bar(0.6, 0.25, [0.55, 0.65])
    assert '<rect class="gain" x="0" y="26" width="60.00%"' in text
    assert '<rect class="floor" x="0" y="26" width="25.00%"' in text
    assert '<line class="whisker" x1="55.00%" x2="65.00%"' in text
    assert 'class="floor" x="0" y="26" width="10.00%"' in floor_bar(0.1, 0.25)  # never beyond the score
    assert 'aria-label="AUPR 0.600, chance 0.250"' in floor_bar(0.6, 0.25, None, ("AUPR", "chance"))
    styles = [value for tag, name, value in page.attributes if name == "style"]
    assert "width:91.00%" in styles
    assert [style for style in styles if style.startswith("background")] == [
        f"background:rgb({r},{g},{b})" for r, g, b in PALETTE
    ]


def test_page_names_confusions_worst_images_and_stages(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    row = {"target": HOSTILE[0], "prediction": HOSTILE[1], "share_of_all": 0.034, "share_of_target": 0.31, "pixels": 9}
    worst = [{"file": HOSTILE[2], "miou": 0.1234}, {"file": "b.png", "miou": 0.5}]
    text = write(
        tmp_path,
        evaluation={**EVALUATION, "confusions": [row], "worst_images": worst},
        confusion=tmp_path / "a.png",
        features={"stages": STAGES, "pictures": [("means & more", tmp_path / "a.png")]},
    )
    page = Page(text)
    for part in (
        f"Confusions The largest, by pixels: 3.4 % of all pixels: {HOSTILE[0]} taken for {HOSTILE[1]} (31 % of",
        "Confusion matrix, each row divided by its sum",
        f"Worst images file mIoU {HOSTILE[2]} 0.123 b.png 0.500",
        "backbone 1 24 × 40 × 56 0.1235 1.5 0 pyramid <1> 96 × 5 × 7 – – 0.51 means & more",
    ):
        assert part in page.text
    assert page.tags.count("img") == 2
    plain = Page(write(tmp_path))
    assert not [word for word in ("Confusions", "Worst images", "Features") if word in plain.text]


def test_page_shows_pixel_shares_only_where_known(tmp_path):
    assert "pixel share" not in Page(write(tmp_path)).text
    shares = dict(zip(HOSTILE, [0.7, 0.0, 0.3], strict=True))
    assert (
        f"{HOSTILE[0]} 0.910 0.7 {HOSTILE[1]} – 0 {HOSTILE[2]} 0.310 0.3"
        in Page(write(tmp_path, evaluation={**EVALUATION, "pixel_share": shares})).text
    )


def test_findings_carry_word_cause_and_remedy(tmp_path):
    text = Page(write(tmp_path)).text
    for part in (
        "✕ fail Diagnosis: most likely cause: shuffled masks . borders <do> not match. What to do: match by name.",
        "Root cause ✕ fail shuffled masks pairing borders <do> not match measured 0.584, reference 0.756 What to do:",
        "numbers files <a>.png",
        "Warnings ! warn rare classes measured sky 0.1, reference 1, 2",
        "✓ pass 1 probe found nothing: gradient_flow gradient_flow all",
        "· skip not run: noise_test noise_test trains",
    ):
        assert part in text


def test_curves_hold_every_term_and_the_floor(tmp_path):
    text = write(tmp_path)
    score, floor, loss, *_ = points_of(text)
    assert len(score[1]) == 2
    assert len({y for _, y in floor[1]}) == 1
    assert len(loss[1]) == 2  # the step whose loss is not a number is left out
    for name in ("training", "term ce", "term aux", "layout floor", "group 1", "group 2"):
        assert f"</svg> {name}</span>" in text
    one = [{**line, "terms": {"ce": line.get("loss")}, "lr": [1e-3, 1e-3]} for line in LOG]
    text = write(tmp_path, log=one)
    assert "term ce" not in text  # the only term is the loss itself
    assert "group 2" not in text


def test_page_stands_without_results(tmp_path):
    text = write(tmp_path, evaluation=None, log=[], diagnosis=None, config={}, palette=[])
    page = Page(text)
    assert "Not evaluated yet" in page.text
    assert "Not diagnosed" in page.text
    assert "svg" not in page.tags
    bare = {"miou": None, "layout_floor": None, "semantic_gain": None, "miou_interval": None, "iou": {}}
    assert "so there is no score" in Page(write(tmp_path, evaluation=bare, diagnosis=None)).text


@pytest.mark.parametrize(
    ("miou", "floor", "interval", "expected"),
    [
        (None, 0.2, None, "no score"),
        (0.6, None, None, "is not known"),
        (0.18, 0.22, None, "no evidence that the model looks at the image"),
        (0.22, 0.22, None, "no evidence"),
        (0.25, 0.22, [0.21, 0.29], "may be chance"),
        (0.61, 0.22, [0.59, 0.63], "covers 0.50 of the way"),
    ],
)
def test_reading_is_honest_about_every_case(miou, floor, interval, expected):
    assert expected in reading(miou, floor, interval)


def test_embedded_pictures_are_whole_and_big_ones_shrink(tmp_path):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    big = Image.fromarray(rng.integers(0, 256, (90, 140, 3), dtype=np.uint8)).resize((2800, 1800))
    small.save(tmp_path / "small.png")
    big.save(tmp_path / "big.png")
    page = Page(write(tmp_path, pictures=[("s", tmp_path / "small.png"), ("b", tmp_path / "big.png")]))
    first, second = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    decoded = Image.open(io.BytesIO(base64.b64decode(first.removeprefix("data:image/png;base64,"))))
    assert (np.asarray(decoded) == np.asarray(small)).all()
    assert second.startswith("data:image/jpeg;base64,")
    shrunk = Image.open(io.BytesIO(base64.b64decode(second.partition(",")[2])))
    assert shrunk.size == (1600, 1029)
    assert len(second) < (tmp_path / "big.png").stat().st_size / 2
