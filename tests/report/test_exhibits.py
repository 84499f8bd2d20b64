"""Exhibits are held against the arrays they were drawn from, the table and the page against the diagnosis they tell."""

import io
import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image

from probes.finding import Exhibit, Finding, Tile, conclude, rank
from report import pictures as report_evidence
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
    Frame,
    _exhibit_entries,
    _name_heights,
    _title,
    curve_picture,
    diagnosis_table,
    draw_borders,
    draw_exhibit,
    encode,
    group_faults,
    tile_row,
)
from report.files import save_exhibits, write_diagnosis_page, write_report
from report.page import embed
from report.pictures import GAP, PAPER, _font, confusion_picture
from tests.report.test_page import CLASSES, HOSTILE, PALETTE, Page, ciede2000, seen


def photo(height=60, width=80, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask(height=60, width=80):
    ids = np.zeros((height, width), np.uint8)
    ids[:, width // 2 :] = 1
    ids[: height // 4] = 255
    return ids


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
    top = gap + _title("a", 300).height + 4
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
    monkeypatch.setattr(report_evidence, "_text_block", lambda text, width, size: drawn.append(text))
    name = "train/Seq05VD_f02610_a_very_long_name_indeed.png"
    _title(f"its mask: {name}", 120)
    assert drawn[0].replace(" ", "") == f"itsmask:{name}"
    font = _font(17)
    assert max(font.getlength(word) for word in drawn[0].split()) <= 120


def test_legend_says_where_black_is_a_value_of_no_class():
    names = lambda ids: [name for name, _ in _exhibit_entries(ids, CLASSES, PALETTE)]  # noqa: E731
    assert names({0, 255}) == ["road", "not labelled"]
    assert names({1, 254}) == ["tree", "a value of no class"]
    assert names({254, 255}) == ["a value of no class, or not labelled"]
    assert names({3, 253}) == ["anomaly", "normal, class not known"]
    many = [str(i) for i in range(255)]
    assert _exhibit_entries({254}, many, PALETTE * 85)[0][0] == "254"


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
    frame = Frame(0, 100, 16, 300, (0, 1), (0, 1))
    for ends in itertools.product([16, 17, 150, 299, 300], repeat=5):
        spots = {str(i): [(0, 0), (100, end)] for i, end in enumerate(ends)}
        heights = _name_heights(frame, spots)
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
# Files


def test_every_exhibit_is_a_file_of_its_own_and_findings_keep_their_order(tmp_path):
    first, second = Exhibit("own", [Tile("a", photo())]), Exhibit("curve", curves={"x": [(0, 1), (1, 2)]})
    findings = [
        Finding("data.label_agreement", "fail", "", exhibits=[first, second]),
        Finding("model.softmax", "pass", ""),
        Finding("data.label_agreement", "warn", "", exhibits=[second]),
        Finding("cross.../evil", "warn", "", exhibits=[second]),
    ]
    drawn = save_exhibits(tmp_path, findings, CLASSES, PALETTE)
    files = [[picture["file"] for picture in pictures] for pictures in drawn]
    assert re.fullmatch(r"diagnosis/data-label_agreement-1\.(png|jpg)", files[0][0])
    names = [["diagnosis/data-label_agreement-3.png"], ["diagnosis/cross-evil-1.png"]]
    assert files[0][1:] == ["diagnosis/data-label_agreement-2.png"]
    assert files[1:] == [[], *names]
    assert [picture["caption"] for picture in drawn[0]] == ["own", "curve"]
    written = {f"diagnosis/{path.name}" for path in (tmp_path / "diagnosis").iterdir()}
    assert written == {file for row in files for file in row}
    json.dumps(drawn, allow_nan=False)


# ---------------------------------------------------------------------------------------------------------------------
# The terminal


def diagnosis(tmp_path=None):
    """A diagnosis as diagnose.py makes it: a root cause, two consequences, a further fault, a warning and the rest."""
    exhibit = Exhibit(f"the pair {HOSTILE[0]}", [Tile("a", photo(), mask())])
    findings = [
        Finding("shortcut.layout_reliance", "fail", "mIoU 0.212, floor 0.220", "below_layout_floor", 0.212, 0.22),
        Finding("data.duplicates", "warn", "12 of 101 are near", "repeated_across_splits",
                remedy=f"split by {HOSTILE[0]}"),
        Finding("data.label_agreement", "fail", f"masks of {HOSTILE[0]} fit others", "shuffled_masks", 0.58, 0.76,
                "match by name", {"files": [HOSTILE[2], "b.png"], "share": 0.5}, 2.0, [exhibit]),
        Finding("model.preprocessing", "fail", "once gives 0.60", "normalised_twice", remedy="normalise once.",
                evidence={"miou": [{"input": "once", "order": "RGB", "miou": 0.6}, {"input": HOSTILE[0], "miou": 0.1}],
                          "shares": {"train": {"sky": 0.1, "car": 0.2, "tree": 0.7}, "val": {"sky": 0.3}}}),
        Finding("model.collapse", "fail", "96.1% are road", "collapse", evidence={"classes": {"sky": 1, "car": True}}),
        Finding("data.files", "pass", "all read", evidence={"void": 0.02}),
        Finding("data.layout_floor", "pass", f"the floor {HOSTILE[0]}"),
        Finding("log.loss", "skip", "no log"),
        Finding("log.fit", "skip", "no log"),
        Finding("training.noise_test", "skip", f"trains {HOSTILE[0]}"),
    ]  # fmt: skip
    ranked = rank(findings)
    if tmp_path:
        drawn = save_exhibits(tmp_path, ranked, CLASSES, PALETTE)
        for finding, pictures in zip(ranked, drawn, strict=True):
            finding.evidence |= {"pictures": pictures} if pictures else {}
    return json.loads(json.dumps(conclude(ranked), allow_nan=False))


def test_faults_are_grouped_under_what_explains_them_and_none_is_lost():
    found = diagnosis()["findings"]
    groups = [(one["cause"], [other["cause"] for other in more]) for one, more in group_faults(found)]
    assert groups == [
        ("shuffled_masks", ["collapse", "below_layout_floor"]),
        ("normalised_twice", []),
        ("repeated_across_splits", []),
    ]
    row = {"verdict": "fail", "why": "", "cause": None}
    names = "abcd"
    for choice in itertools.product([None, "x", *names], repeat=4):  # chains, loops, unknown names
        rows = [{**row, "probe": name, "explained_by": by} for name, by in zip(names, choice, strict=True)]
        groups = group_faults(rows)
        assert sorted(one["probe"] for first, more in groups for one in [first, *more]) == list(names)
        assert groups[0][0]["probe"] == "a"
    chain = [
        {**row, "probe": "a"},
        {**row, "probe": "b", "explained_by": "a"},
        {**row, "probe": "c", "explained_by": "b"},
    ]
    assert [len(more) for _, more in group_faults(chain)] == [2]


def test_table_tells_the_root_cause_first():
    assert diagnosis_table(diagnosis(), 100).splitlines() == [
        f"ROOT CAUSE  shuffled masks (data.label_agreement): masks of {HOSTILE[0]} fit others",
        "            remedy: match by name",
        "            explains collapse (model.collapse): 96.1% are road",
        "            explains below layout floor (shortcut.layout_reliance): mIoU 0.212, floor 0.220",
        "FAULT       normalised twice (model.preprocessing): once gives 0.60",
        "            remedy: normalise once.",
        "WARNING     repeated across splits (data.duplicates): 12 of 101 are near",
        f"            remedy: split by {HOSTILE[0]}",
        "PASSED      2: data.files, data.layout_floor",
        "SKIPPED     log.loss, log.fit: no log",
        f"            training.noise_test: trains {HOSTILE[0]}",
    ]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_table_wraps_within_its_width_and_loses_no_word(width):
    long = conclude(
        [Finding("data.files", "fail", "word " * 60 + "x" * 130, "unknown_labels", remedy="do " * 50 + "end")]
    )
    lines = diagnosis_table(long, width).splitlines()
    assert max(map(len, lines)) <= width
    assert " ".join(lines).split().count("word") == 60
    assert "".join(lines).count("x") == 130
    assert all(line.startswith(" " * 12) for line in lines[1:])


def test_table_takes_the_terminals_width_within_bounds(monkeypatch):
    long = conclude([Finding("data.files", "fail", "word " * 60, "unknown_labels")])
    for columns, least, most in ((300, 90, 100), (80, 70, 80), (20, 50, 60)):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert least < max(map(len, diagnosis_table(long).splitlines())) <= most


def test_table_says_when_there_is_no_fault():
    warned = conclude([Finding("a", "warn", "few", "class_imbalance"), Finding("b", "pass", "fine")])
    assert diagnosis_table(warned, 80).splitlines() == [
        "NO FAULT    no probe found a fault",
        "WARNING     class imbalance (a): few",
        "PASSED      b: fine",
    ]
    many = conclude([Finding(f"p{i}", "pass", "fine") for i in range(11)])
    assert diagnosis_table(many, 100).splitlines()[1].startswith("PASSED      11: p0, p1")
    skipped = conclude([Finding("a", "skip", "no log")])
    assert diagnosis_table(skipped, 80).splitlines()[0] == "NOT JUDGED  every probe was skipped: nothing is known"


# ---------------------------------------------------------------------------------------------------------------------
# The page


def test_page_of_a_diagnosis_shows_causes_pictures_and_numbers(tmp_path):
    content = diagnosis(tmp_path)
    write_diagnosis_page(tmp_path / "diagnosis.html", HOSTILE[0], content, tmp_path)
    page = Page((tmp_path / "diagnosis.html").read_text(encoding="utf-8"))
    for part in (
        f"{HOSTILE[0]} 10 findings ✕ fail Diagnosis: most likely cause: shuffled masks . 4 fail, 1 warn, 2 pass, 3",
        f"Root cause ✕ fail shuffled masks data.label_agreement masks of {HOSTILE[0]} fit others measured 0.58, "
        f"reference 0.76 What to do: match by name the pair {HOSTILE[0]} numbers share 0.5 files {HOSTILE[2]}, b.png "
        "explained by this: collapse, below layout floor ✕ fail collapse model.collapse 96.1% are road",
        "Further faults ✕ fail normalised twice",
        f"miou input order miou once RGB 0.6 {HOSTILE[0]} – 0.1",
        "shares train val sky 0.1 0.3 car 0.2 – tree 0.7 –",
        "classes sky 1 car yes",
        "Warnings ! warn repeated across splits",
        "✓ pass 2 probes found nothing: data.files, data.layout_floor data.files all read numbers void 0.02",
        "· skip not run: log.loss, log.fit, training.noise_test log.loss, log.fit no log training.noise_test trains <",
    ):
        assert part in page.text
    assert page.text.count("✕ fail") == 1 + 4
    assert not {"script", "link", "iframe"} & set(page.tags)
    images = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(images) == 1
    assert images[0].startswith("data:image/")


def test_report_shows_the_pictures_that_lie_beside_it(tmp_path):
    content, out = diagnosis(tmp_path / "run"), tmp_path / "run" / "report.html"
    parts = {"title": "t", "config": {}, "evaluation": None, "log": [], "pictures": [], "palette": []}
    write_report(out, **parts, diagnosis=content)
    page = Page(out.read_text(encoding="utf-8"))
    assert page.tags.count("img") == 1
    assert ("a", "href", "#findings") in page.attributes
    assert (
        f"most likely cause: shuffled masks . masks of {HOSTILE[0]} fit others. What to do: match by name." in page.text
    )
    (tmp_path / "run" / content["findings"][0]["evidence"]["pictures"][0]["file"]).unlink()
    write_report(out, **parts, diagnosis=content)
    assert "cannot be read" in Page(out.read_text(encoding="utf-8")).text


def test_page_without_a_fault_says_so(tmp_path):
    for rows, words in (
        ([Finding("a", "pass", "fine")], "✓ pass Diagnosis: no fault found. 1 pass"),
        ([Finding("a", "skip", "no")], "· skip Diagnosis: no fault found. 1 skip"),
        ([], "· skip Diagnosis: no fault found."),
    ):
        write_diagnosis_page(tmp_path / "d.html", "t", conclude(rows), tmp_path)
        assert words in Page((tmp_path / "d.html").read_text(encoding="utf-8")).text


def test_a_jpeg_is_embedded_as_what_it_is(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.jpg")
    address, width = embed(tmp_path / "a.jpg")
    assert address.startswith("data:image/jpeg;base64,")
    assert width == 30


# ---------------------------------------------------------------------------------------------------------------------
# Real photographs


@pytest.mark.real_data
def test_exhibits_of_real_photographs_are_small_and_of_full_width(real_data):
    import data
    from datasets import catalogue as data_specs

    root = real_data / "camvid"
    spec = data_specs.build_spec("camvid", root)
    split = data.open_split(spec, root, "train")
    image, target = split.read(0)
    tiles = [Tile(split.file(0), np.array(image)), Tile("mask", None, target), Tile("borders", np.array(image), target)]
    for count in (1, 2, 3):
        picture = draw_exhibit(Exhibit("", tiles[:count]), spec.classes, spec.palette)
        assert picture.width <= PICTURE_WIDTH
        data_, _ = encode(picture)
        assert len(data_) <= PICTURE_LIMIT
        assert Image.open(io.BytesIO(data_)).size == picture.size  # small enough without being shrunk
