"""The page is held against an HTML parser and the figures it was made from."""

import re

import pytest
from PIL import Image

from report.charts import floor_bar
from report.page import reading
from tests.report.examples import EVALUATION, HOSTILE, LOG, PALETTE, STAGES, Page, points_of, write


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
