"""Exhibits are held against the arrays they were drawn from."""

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from probes.finding import Exhibit, Tile
from report import exhibits
from report.canvas import GAP, PAPER, load_font
from report.colours import colour_mask
from report.exhibits import (
    BORDER_COLOUR,
    BORDER_EDGE,
    CURVE_COLOURS,
    LINE,
    MARKS,
    PICTURE_LIMIT,
    PICTURE_WIDTH,
    TILE_HEIGHT,
    Axes,
    curve_picture,
    draw_borders,
    draw_exhibit,
    encode,
    exhibit_entries,
    name_heights,
    tile_row,
    title_block,
)
from report.pictures import confusion_picture
from tests.report.colour_vision import ciede2000, seen
from tests.report.examples import CLASSES, PALETTE, mask, photo

# ---------------------------------------------------------------------------------------------------------------------
# Tiles


def holds(picture, part, left, top):
    """Whether the part stands in the picture at this place, pixel for pixel."""
    shown = picture.crop((left, top, left + part.width, top + part.height))
    return (np.asarray(shown) == np.asarray(part)).all()


def shows(picture, colour):
    return (np.asarray(picture) == colour).all(-1).any()


def test_tiles_show_the_image_and_exactly_the_masks_colours():
    exhibit = Exhibit("", [Tile("a", photo()), Tile("b", None, mask())])
    picture = tile_row(exhibit.tiles, CLASSES, PALETTE)
    size, gap = (TILE_HEIGHT * 80 // 60, TILE_HEIGHT), GAP
    top = gap + title_block("a", 300).height + 4
    assert holds(picture, Image.fromarray(photo()).resize(size, Image.Resampling.LANCZOS), gap, top)
    colours = colour_mask(mask(), PALETTE).resize(size, Image.Resampling.NEAREST)
    assert holds(picture, colours, 2 * gap + size[0], top)
    legend = picture.crop((0, top + size[1] + 1, *picture.size))
    assert shows(legend, PALETTE[0])
    assert not shows(legend, PALETTE[2])  # the legend names what the mask holds, no more
    assert holds(draw_exhibit(exhibit, CLASSES, PALETTE), picture, 0, 0)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_borders_stand_out_on_any_photograph_and_lie_where_ids_change(level):
    plain, ids = Image.new("RGB", (80, 60), (level,) * 3), mask()
    drawn = np.asarray(draw_borders(plain, ids))
    line = (drawn == BORDER_COLOUR).all(-1)
    rows, columns = np.nonzero(line)
    assert set(zip(rows, columns, strict=True)) == {(15, x) for x in range(80)} | {(y, 40) for y in range(15, 60)}
    edge = (drawn[20:59, 39] == BORDER_EDGE).all(-1) & (drawn[20:59, 41] == (0, 0, 0)).all(-1)
    assert edge.all()
    far = np.ones_like(line)
    far[13:18], far[:, 38:43] = False, False
    assert (drawn[far] == level).all()
    ground, lines = seen([(level,) * 3]), seen([BORDER_COLOUR, BORDER_EDGE])
    assert all(ciede2000(lines[sight], ground[sight]).max() > 35 for sight in ground)


def test_borders_are_drawn_where_an_exhibit_gives_image_and_mask_of_any_size():
    exhibit = Exhibit("", [Tile("a", photo(60, 80), mask(30, 40))])
    picture = draw_exhibit(exhibit, CLASSES, PALETTE)
    assert shows(picture, BORDER_COLOUR)
    assert not shows(picture, PALETTE[0])  # no class is shown as a colour, so none is named
    blank = draw_exhibit(Exhibit("", [Tile("a", photo(), np.zeros((60, 80), np.uint8))]), CLASSES, PALETTE)
    assert not shows(blank, BORDER_COLOUR)


@pytest.mark.parametrize(
    "shapes", [[(60, 80)] * 2, [(60, 80)] * 14, [(60, 80), (80, 20), (30, 300)], [(3, 500)], [(500, 3)]]
)
def test_tiles_of_any_shape_stand_in_one_row_of_one_height(shapes):
    tiles = [Tile("x" * 60, np.full((*shape, 3), 90, np.uint8)) for shape in shapes]
    picture = draw_exhibit(Exhibit("", tiles), CLASSES, PALETTE)
    assert picture.width <= PICTURE_WIDTH + len(shapes)  # each width is rounded
    grey = (np.asarray(picture) == 90).all(-1)
    runs = np.diff(grey[-GAP - 1].astype(int), prepend=0, append=0)
    assert (runs == 1).sum() == len(shapes)  # all stand on the last line above the margin
    heights = grey.sum(0)[grey.any(0)]
    assert np.ptp(heights) <= 5  # a letter may have the grey too
    widths = np.flatnonzero(runs == -1) - np.flatnonzero(runs == 1)
    assert widths == pytest.approx([max(1, heights.min() * shape[1] / shape[0]) for shape in shapes], abs=1)


def test_a_long_file_name_is_broken_not_cut(monkeypatch):
    drawn = []
    monkeypatch.setattr(exhibits, "text_block", lambda text, width, size: drawn.append(text))
    name = "train/Seq05VD_f02610_a_very_long_name_indeed.png"
    title_block(f"its mask: {name}", 120)
    assert drawn[0].replace(" ", "") == f"itsmask:{name}"
    font = load_font(17)
    assert max(font.getlength(word) for word in drawn[0].split()) <= 120


def test_legend_says_where_black_is_a_value_of_no_class():
    names = lambda ids: [name for name, _ in exhibit_entries(ids, CLASSES, PALETTE)]  # noqa: E731
    assert names({0, 255}) == ["road", "not labelled"]
    assert names({1, 254}) == ["tree", "a value of no class"]
    assert names({254, 255}) == ["a value of no class, or not labelled"]
    assert names({3, 253}) == ["anomaly", "normal, class not known"]
    many = [str(i) for i in range(255)]
    assert exhibit_entries({254}, many, PALETTE * 85)[0][0] == "254"


def test_an_exhibit_may_hold_several_kinds_but_not_nothing():
    both = Exhibit("", [Tile("a", photo())], np.eye(3), {"b": [(0, 1), (1, 2)]})
    picture, top = draw_exhibit(both, CLASSES, PALETTE), 0
    for part in (
        tile_row(both.tiles, CLASSES, PALETTE),
        confusion_picture(np.eye(3), CLASSES),
        curve_picture(both.curves),
    ):
        assert holds(picture, part, 0, top)
        top += part.height + GAP
    with pytest.raises(ValueError, match="'empty' holds nothing"):
        draw_exhibit(Exhibit("empty"), CLASSES, PALETTE)
    with pytest.raises(ValueError, match="'t' holds neither"):
        draw_exhibit(Exhibit("", [Tile("t")]), CLASSES, PALETTE)


def test_files_stay_small_whatever_is_drawn():
    flat = draw_exhibit(Exhibit("", [Tile("m", None, mask())]), CLASSES, PALETTE)
    data, ending = encode(flat)
    assert ending == "png"
    assert (np.asarray(Image.open(io.BytesIO(data))) == np.asarray(flat)).all()
    noise = Image.fromarray(photo(470, 1200))
    data, ending = encode(noise)
    assert ending == "jpg"
    assert len(data) <= PICTURE_LIMIT
    decoded = Image.open(io.BytesIO(data))
    assert (decoded.format, decoded.width > 600) == ("JPEG", True)
    assert decoded.width / decoded.height == pytest.approx(1200 / 470, rel=0.01)


# ---------------------------------------------------------------------------------------------------------------------
# Curves


def test_curve_goes_through_its_points_and_ends_beside_its_name():
    line = [(0, 0.0), (50, 0.5), (100, 1.0)]
    picture = curve_picture({"rising": line, "still": [(0, 0.5), (100, 0.5)]})
    pixels = np.asarray(picture).astype(int)
    blue = np.abs(pixels - CURVE_COLOURS[0]).sum(-1) < 30
    rows, columns = np.nonzero(blue)
    plot = columns < columns.max() - 14  # left of the mark beside the name
    slope, offset = np.polyfit(columns[plot], rows[plot], 1)
    assert slope < 0
    assert np.abs(rows[plot] - slope * columns[plot] - offset).max() < 9  # a straight line and its marks
    orange = np.abs(pixels - CURVE_COLOURS[1]).sum(-1) < 30
    level = np.nonzero(orange)[0]
    assert np.ptp(level) <= 12
    assert level.mean() == pytest.approx((rows[plot].min() + rows[plot].max()) / 2, abs=3)


def test_axis_starts_at_zero_so_that_a_flat_loss_looks_flat():
    pixels = np.asarray(curve_picture({"loss": [(0, 2.4), (50, 2.5), (100, 2.45)]})).astype(int)
    rows = np.nonzero(np.abs(pixels - CURVE_COLOURS[0]).sum(-1) < 30)[0]
    assert rows.max() < 50


def test_curves_without_a_finite_value_are_said_not_drawn():
    nothing = curve_picture({"loss": [(0, None), (1, float("nan")), (2, np.float32("inf"))]})
    assert nothing.height < 80
    holes = [(0, np.float32(1)), (1, None), (2, float("inf")), (3, np.float32(1))]
    drawn = curve_picture({"loss": holes, "gone": [(0, None)]})
    assert (np.asarray(drawn) == np.asarray(curve_picture({"loss": [(0, 1), (3, 1)]}))).all()
    curve_picture({"one": [(100, 1e6)]})
    curve_picture({"below": [(0, -1), (9, -2)]})


def test_names_of_curves_never_overlap_and_stay_on_the_picture():
    axes = Axes(0, 100, 16, 300, (0, 1), (0, 1))
    for ends in itertools.product([16, 17, 150, 299, 300], repeat=5):
        spots = {str(i): [(0, 0), (100, end)] for i, end in enumerate(ends)}
        heights = name_heights(axes, spots)
        apart = np.diff(sorted(heights.values()))
        assert (apart >= LINE).all()
        assert 10 < min(heights.values()) <= max(heights.values()) <= 300
        order = sorted(range(5), key=lambda i: ends[i])
        assert [heights[str(i)] for i in order] == sorted(heights.values())
    many = curve_picture({f"curve {i}": [(0, 1), (1, 1)] for i in range(30)})
    assert many.height > 30 * LINE


def test_curves_differ_in_colour_or_mark_for_every_kind_of_sight():
    colours, marks = CURVE_COLOURS, MARKS
    looks = [(i % len(colours), i % len(marks)) for i in range(len(colours) * len(marks))]
    assert len(set(looks)) == len(looks)
    pairs = np.array(list(itertools.combinations(range(len(colours)), 2)))
    for lab in seen(colours).values():
        assert ciede2000(lab[pairs[:, 0]], lab[pairs[:, 1]]).min() > 7
    paper = seen([PAPER])
    assert all(ciede2000(lab, paper[sight]).min() > 20 for sight, lab in seen(colours).items())


# ---------------------------------------------------------------------------------------------------------------------
# Real photographs


@pytest.mark.real_data
def test_exhibits_of_real_photographs_are_small_and_of_full_width(real_data):
    import data
    from datasets.catalogue import build_spec

    root = real_data / "camvid"
    spec = build_spec("camvid", root)
    split = data.open_split(spec, root, "train")
    image, target = split.read(0)
    tiles = [Tile(split.file(0), np.array(image)), Tile("mask", None, target), Tile("borders", np.array(image), target)]
    for count in (1, 2, 3):
        picture = draw_exhibit(Exhibit("", tiles[:count]), spec.classes, spec.palette)
        assert picture.width <= PICTURE_WIDTH
        data_, _ = encode(picture)
        assert len(data_) <= PICTURE_LIMIT
        assert Image.open(io.BytesIO(data_)).size == picture.size  # small enough without being shrunk
