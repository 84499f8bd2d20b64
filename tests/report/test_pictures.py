"""Pictures are held against the ids and scores they were drawn from."""

import numpy as np
import pytest
from PIL import Image

from datasets.spec import NORMAL
from report.canvas import GAP, PAPER, colour_bar, finite_range, legend, load_font
from report.colours import (
    ALARM_COLOUR,
    ANOMALY_COLOUR,
    ERROR_COLOUR,
    HEAT_RAMP,
    NORMAL_COLOUR,
    UNKNOWN_COLOUR,
    colour_mask,
)
from report.pictures import (
    ABSENT_COLOUR,
    anomaly_panel,
    anomaly_tiles,
    confusion_picture,
    contact_sheet,
    feature_picture,
    heat_map,
    overlay,
    panel,
    panel_tiles,
    share_text,
)
from tests.report.examples import CLASSES, PALETTE, colours_of, contains


@pytest.fixture
def scene():
    """image, target (with void and anomaly), prediction, confidence: 40 × 60, every id in blocks."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (40, 60, 1), dtype=np.uint8)
    target = np.repeat(np.repeat(rng.choice([0, 1, 2, 3, 255], (8, 12)), 5, 0), 5, 1).astype(np.uint8)
    prediction = np.repeat(np.repeat(rng.integers(0, 3, (8, 12)), 5, 0), 5, 1).astype(np.uint8)
    return grey.repeat(3, 2), target, prediction, rng.random((40, 60), dtype=np.float32)


def test_normal_pixels_without_a_class_are_grey_in_every_picture(scene):
    image, target, prediction, confidence = scene
    target[target == 1] = NORMAL
    assert (np.asarray(colour_mask(target, PALETTE))[target == NORMAL] == NORMAL_COLOUR).all()
    assert (np.asarray(overlay(image, np.full((40, 60), 253, np.uint8), PALETTE)) == image).all()
    assert NORMAL_COLOUR in colours_of(panel(image, target, prediction, confidence, CLASSES, PALETTE, ""))
    assert NORMAL_COLOUR in colours_of(contact_sheet([(image, target, "")], CLASSES, PALETTE))


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


# ---------------------------------------------------------------------------------------------------------------------
# The confusion matrix


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
    assert share_text(share) == text
    width = load_font(round(0.42 * 30)).getlength(text)
    assert width < 30 - 4  # fits the smallest cell that is written in


# ---------------------------------------------------------------------------------------------------------------------
# What the stages see


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
# Anomalies


@pytest.fixture
def anomaly_scene():
    """image, target with every kind of id, prediction, score: 40 × 60."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    target = np.repeat(np.repeat(rng.choice([0, 1, 2, 3, 253, 255], (8, 12)), 5, 0), 5, 1).astype(np.uint8)
    prediction = np.repeat(np.repeat(rng.integers(0, 3, (8, 12)), 5, 0), 5, 1).astype(np.uint8)
    y, x = np.mgrid[:40, :60]
    score = (5 - np.hypot(y - 18, x - 30) / 3).astype(np.float32)
    score[2:9, 2:9] = 2.0  # exactly the threshold
    score[30, 3], score[31, 50] = np.nan, np.inf
    return image, target, prediction, score


def test_truth_tells_anomaly_void_normal_and_classes_apart(anomaly_scene):
    target = anomaly_scene[1]
    tiles = anomaly_tiles(*anomaly_scene, 2.0, PALETTE, longest=60)  # one to one
    assert list(tiles) == ["input", "truth", "prediction", "score"]
    truth = np.asarray(tiles["truth"])
    expected = {**dict(enumerate(PALETTE)), 3: ANOMALY_COLOUR, 253: NORMAL_COLOUR, 255: (0, 0, 0)}
    for index, colour in expected.items():
        assert (target == index).any()
        assert ((truth == colour).all(-1) == (target == index)).all()
    assert (np.asarray(tiles["input"]) == anomaly_scene[0]).all()
    assert (np.asarray(tiles["prediction"]) == np.array(PALETTE)[anomaly_scene[2]]).all()


@pytest.mark.parametrize("longest", [60, 180])
def test_outlines_lie_exactly_where_the_score_reaches_the_threshold(anomaly_scene, longest):
    score = np.asarray(Image.fromarray(anomaly_scene[3]).resize((longest, longest * 2 // 3), Image.Resampling.NEAREST))
    drawn = np.asarray(anomaly_tiles(*anomaly_scene, 2.0, PALETTE, longest)["score"])
    plain = np.asarray(anomaly_tiles(*anomaly_scene, None, PALETTE, longest)["score"])
    low, high = np.nanmin(anomaly_scene[3]), anomaly_scene[3][np.isfinite(anomaly_scene[3])].max()
    assert (plain == np.asarray(heat_map(score, low, high))[: len(plain), :longest]).all()
    outline = (drawn == ALARM_COLOUR).all(-1)
    assert (drawn[~outline] == plain[~outline]).all()
    alarm = score >= 2.0
    assert not outline[~alarm].any()
    for y, x in np.argwhere(alarm):  # outlined: within two steps, none diagonal, of a pixel without an alarm
        near = [(y + dy, x + dx) for dy in range(-2, 3) for dx in range(-2, 3) if abs(dy) + abs(dx) <= 2]
        inside = [spot for spot in near if 0 <= spot[0] < len(score) and 0 <= spot[1] < longest]
        assert outline[y, x] == (not all(alarm[spot] for spot in inside))
    assert outline[2 * longest // 60, 2 * longest // 60]  # a score equal to the threshold raises the alarm


def test_anomaly_panel_holds_its_tiles_and_explains_every_colour(anomaly_scene):
    tiles = anomaly_tiles(*anomaly_scene, 2.0, PALETTE)
    picture = anomaly_panel(*anomaly_scene, 2.0, CLASSES, PALETTE, "worst: a.png")
    assert all(contains(picture, tile) for tile in tiles.values())
    without = anomaly_panel(*anomaly_scene, None, CLASSES, PALETTE, "worst: a.png")
    assert ALARM_COLOUR not in colours_of(without)

    def entry(name, colour):
        chip = legend([(name, colour)], 400)
        return chip.crop(
            (0, 5, 300 if "outline" in name else 200, chip.height - 5)
        )  # begins with the chip's own corner

    alarm = entry("outline: alarm, score from 2 on", ALARM_COLOUR)
    assert contains(picture, alarm)
    assert not contains(without, alarm)
    assert contains(picture, entry("normal, class not known", NORMAL_COLOUR))
    bar = colour_bar(*finite_range(anomaly_scene[3]), 190)
    assert contains(picture, bar.crop((70, 8, 190, 20)))  # begins in the ramp, ends with the larger number


@pytest.mark.parametrize("shape", [(61, 37), (200, 3), (3, 200), (700, 900)])
def test_anomaly_panel_takes_any_shape_and_an_image_of_void(shape):
    void, image = np.full(shape, 255, np.uint8), np.zeros((*shape, 3), np.uint8)
    for score in (np.full(shape, np.nan, np.float32), np.zeros(shape, np.float32)):
        anomaly_panel(image, void, void // 200, score, 0.5, ["x" * 300, "道路\n2", "c"], PALETTE, "word " * 90)
