"""The section on anomaly scores is held against the JSON it was made from, its pictures against the ids and scores."""

import math
import re

import numpy as np
import pytest
from PIL import Image

from datasets import spec
from report.anomaly_section import anomaly_reading, anomaly_section, certified
from report.charts import BOTTOM, HEIGHT, RIGHT, STYLES, TOP, WIDTH
from report.colours import ALARM_COLOUR, ANOMALY_COLOUR, NORMAL, NORMAL_COLOUR
from report.pictures import _colour_bar, _finite_range, _legend, anomaly_panel, anomaly_tiles, heat_map
from report.tables import anomaly_table
from tests.report.test_page import CLASSES, EVALUATION, HOSTILE, PALETTE, Page, colours_of, contains, points_of, write

CHANCE = 0.02


def figures(aupr, **changes):
    """One score's figures, every key filled, each number its own."""
    steps = [i / 50 for i in range(51)]
    return {
        "aupr": aupr,
        "aupr_error": 2e-5,
        "aupr_interval": [aupr * 0.9, aupr * 1.1],
        "auroc": 0.5 + aupr / 2,
        "auroc_error": 3e-7,
        "auroc_interval": [0.41, 0.92],
        "fpr95": 0.9 - aupr,
        "fpr95_interval": [0.31, 0.62],
        "best_f1": aupr + 0.0301,
        "best_f1_threshold": 1.5,
        "found_at": {"0.01": aupr + 0.0102, "0.001": aupr / 7},
        "alarm": {"threshold": 3.25, "rate": 0.01, "found": 0.28, "false_alarms": 0.034},
        "open_miou": 0.4321,
        "mistaken": [
            {"class": f"{name} {i}", "share": 0.2 - i / 50, "pixels": 12345} for i, name in enumerate(HOSTILE * 2)
        ],
        "hidden": [{"class": HOSTILE[0], "share": 0.4, "pixels": 678}],
        "per_image": {"aupr": aupr * 0.95, "auroc": 0.8123, "fpr95": 0.4567, "images": 1060},
        "components": {"f1": 0.2101, "siou": 0.33, "ppv": 0.41, "threshold": 2.9, "components": 212, "predicted": 1431},
        "components_at_alarm": {"f1": 0.19, "siou": None, "threshold": 3.25, "predicted": 7},
        "curves": {
            "fpr": steps,
            "tpr": [math.sqrt(step) for step in steps],
            "precision": [None, *(1 - step for step in steps[1:])],
            "threshold": steps[::-1],
        },
        "density": {
            "edges": [i / 10 - 3 for i in range(61)],
            "normal": [1 / 60] * 60,
            "anomaly": [0.5 if i in (40, 41) else 0.0 for i in range(60)],
        },
        **changes,
    }  # fmt: skip


ANOMALY = {"maxlogit": figures(0.123), HOSTILE[0]: figures(0.3456), "msp": figures(0.0214, components=None)}
FULL = {**EVALUATION, "anomaly": ANOMALY, "anomaly_share": CHANCE}
UNLABELLED = {
    **FULL, "miou": None, "miou_interval": None, "layout_floor": None, "semantic_gain": None, "pixel_accuracy": None,
    "classes_averaged": 0, "active_classes": 0, "spurious_classes": [0, 1], "iou": dict.fromkeys(EVALUATION["iou"]),
}  # fmt: skip


class Table(Page):
    """The rows of the anomaly table: [[text of a cell]]."""

    def __init__(self, text):
        self.rows, self.inside = [], False
        super().__init__(re.search(r'<table class="scores">.*?</table>', text, re.S)[0])

    def handle_starttag(self, tag, attrs):
        super().handle_starttag(tag, attrs)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        super().handle_data(data)
        self.rows[-1][-1] += data.replace("\u00a0", " ")


def test_table_holds_the_numbers_of_the_json_best_first_beside_chance(tmp_path):
    over, head, *rows = Table(write(tmp_path, evaluation=FULL)).rows
    assert over == ["", "all pixels pooled", "found at", "mean over images", "parts", "open set"]
    pooled = ["AUPR", "AUROC", "FPR95", "best F1"]
    assert head == ["score", *pooled, "1 %", "0.1 %", "AUPR", "AUROC", "FPR95", "F1", "mIoU"]
    assert [row[0] for row in rows] == [HOSTILE[0], "maxlogit", "msp", "chance"]
    for name, *cells in rows[:3]:
        scores = ANOMALY[name]
        aupr, bound, low, high = map(
            float, re.fullmatch(r"([\d.]+) ± ([\d.]+)([\d.]{5}) to ([\d.]+)", cells[0]).groups()
        )
        assert scores["aupr_error"] <= bound < scores["aupr_error"] + 2e-5
        assert abs(aupr - scores["aupr"]) + scores["aupr_error"] <= bound + 1e-12
        assert [low, high] == pytest.approx(scores["aupr_interval"], abs=5e-4)
        assert cells[1] == f"{scores['auroc']:.5f} ± 0.00001" + "0.410 to 0.920"
        assert cells[2] == f"{scores['fpr95']:.3f}0.310 to 0.620"
        shown = [scores["best_f1"], *scores["found_at"].values(), *list(scores["per_image"].values())[:3]]
        assert list(map(float, cells[3:9])) == pytest.approx(shown, abs=5.01e-4)
        assert cells[9:] == ["0.210" if scores["components"] else "–", "0.432"]
    f1_of_all = 2 * CHANCE / (1 + CHANCE)
    assert rows[3][1:] == ["0.020", "0.500", "0.950", f"{f1_of_all:.3f}", "0.010", "0.0010", *"–––––"]


@pytest.mark.parametrize("error", [0.0, 1e-9, 3e-7, 2e-6, 4.1e-5, 0.00099, 0.02])
@pytest.mark.parametrize("value", [0.0, 0.123456789, 0.312364, 0.99999999, 1.0])
def test_certified_bound_covers_error_and_rounding(value, error):
    shown, bound = certified({"aupr": value, "aupr_error": error}, "aupr")
    assert abs(float(shown) - value) + error <= float(bound) * (1 + 1e-6) + 1e-11
    assert float(bound) <= error + 2 * 10.0 ** -(len(shown) - 2)
    assert certified({"aupr": value}, "aupr")[1] == ""


def test_section_says_what_the_best_score_means_and_where_it_fails(tmp_path):
    page = Page(write(tmp_path, evaluation=FULL))
    for part in (
        f"{HOSTILE[0]} finds 36 % of the anomalous pixels when 1 % of the normal ones raise a false alarm; chance "
        "would find 1 %.",
        f"{HOSTILE[0]} raises its alarm from 3.25 on, chosen so that 1 % of the known validation pixels raise it. On "
        "this split 3.4 % of the normal pixels and 28 % of the anomalous ones do. With every such pixel taken for an "
        "anomaly, the mIoU of the known classes is 0.432.",
        f"mistaken for an anomaly: {HOSTILE[0]} 0: 20 % of its pixels (12,345) {HOSTILE[1]} 1: 18 % of",
        f"without an alarm are taken for: {HOSTILE[0]}: 40 % of the anomalous pixels (678)",
        "By connected parts, from a score of 2.9 on (best pixel F1 on this split): F1 0.210, sIoU 0.330, precision "
        "(PPV) 0.410, 212 anomalies in the truth, 1,431 regions above the threshold. By connected parts, from a score "
        "of 3.25 on (the alarm): F1 0.190, 7 regions above the threshold.",
        "mean over the 1,060 images",
    ):
        assert part in page.text
    assert f"{HOSTILE[1]} 4" in page.text
    assert f"{HOSTILE[2]} 5" not in page.text  # the sixth class
    assert not {"script", "img"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def charts_of(text):
    return dict(re.findall(r"<figcaption>(.*?)</figcaption>(.*?)</figure>", text, re.S))


def test_curves_of_at_most_six_scores_with_alarm_and_chance():
    anomaly = {f"score {i}": figures(i / 10) for i in range(1, 9)}
    anomaly["score 8"]["curves"] = None
    charts = charts_of(text := anomaly_section(anomaly, CHANCE))
    for title in ("Precision over recall", "Recall over false alarms (ROC)"):
        assert len(points_of(charts[title])) == STYLES == 6
        keys = re.findall(r"</svg> (.*?)</span>", charts[title])
        assert keys == [*(f"score {i}" for i in range(7, 1, -1)), "chance"]
        assert charts[title].count("<circle") == 6
    assert "Left out, with a lower AUPR: score 1." in text
    left, right = points_of(charts["Recall over false alarms (ROC)"])[0][1][::50]
    bottom, top = HEIGHT - BOTTOM, TOP
    assert [left[1], right[1]] == [bottom, top]
    inner = points_of(charts["Recall over false alarms (ROC)"])[0][1][18]  # 0.36 false alarms, recall 0.6
    assert inner == pytest.approx((left[0] + 0.36 * (right[0] - left[0]), bottom - 0.6 * (bottom - top)), abs=0.06)

    def spot(x, y):  # the axes of both charts run from 0 to 1
        return left[0] + x * (right[0] - left[0]), bottom - y * (bottom - top)

    def dots(title):
        return [tuple(map(float, pair)) for pair in re.findall(r'<circle [^>]*cx="(.*?)" cy="(.*?)"', charts[title])]

    assert dots("Recall over false alarms (ROC)")[0] == pytest.approx(spot(0.034, 0.28), abs=0.06)
    normal, anomalous = 980_000, 20_000
    precision = 0.28 * anomalous / (0.28 * anomalous + 0.034 * normal)
    assert dots("Precision over recall")[0] == pytest.approx(spot(0.28, precision), abs=0.06)
    (chance,) = re.findall(
        r'class="curve base" points="[\d.]+,([\d.]+) [\d.]+,([\d.]+)"', charts["Precision over recall"]
    )
    assert list(map(float, chance)) == pytest.approx([spot(0, CHANCE)[1]] * 2, abs=0.06)


def test_curves_leave_out_points_that_are_undefined():
    curves = {
        "fpr": [0, None, 0.5, 1],
        "tpr": [0, 0.2, None, 1],
        "precision": [None, 0.5, 0.4, 0.1],
        "threshold": [1] * 4,
    }
    charts = charts_of(anomaly_section({"a": figures(0.1, curves=curves)}, CHANCE))
    counts = {title: len(points_of(chart)[0][1]) for title, chart in charts.items() if "normal" not in title}
    assert counts == {"Precision over recall": 2, "Recall over false alarms (ROC)": 2}


def test_density_of_the_best_score_and_of_maxlogit_with_the_threshold():
    charts = charts_of(anomaly_section({"a": figures(0.1), "b": figures(0.2), "maxlogit": figures(0.05)}))
    assert [title for title in charts if "normal" in title] == [
        "b: normal and anomalous pixels",
        "maxlogit: normal and anomalous pixels",
    ]
    chart = charts["b: normal and anomalous pixels"]
    (_, normal), (_, anomalous) = points_of(chart)
    step = normal[1][0] - normal[0][0]
    peaks = [x for x, y in anomalous if y == min(y for _, y in anomalous)]
    assert peaks == [anomalous[40][0], anomalous[41][0]]
    (line,) = re.findall(r'class="curve base" points="([\d.]+),[\d.]+ ([\d.]+),', chart)
    # the threshold, 3.25, lies beyond the last bin, whose centre is 2.95
    assert float(line[0]) == WIDTH - RIGHT  # so the chart reaches that far
    assert float(line[0]) == float(line[1]) == pytest.approx(normal[-1][0] + 3 * step, abs=0.3)
    one = anomaly_section({"maxlogit": figures(0.05), "a": figures(0.01)})
    assert len([title for title in charts_of(one) if "normal" in title]) == 1


def test_page_without_known_classes_leads_with_the_anomaly_figures(tmp_path):
    page = Page(write(tmp_path, evaluation=UNLABELLED, confusion=tmp_path / "none.png", log=[]))
    for part in (
        f"best AUPR 0.346 {HOSTILE[0]}, 95 % interval 0.311 to 0.380 AUPR of chance 0.02 the share of anomalous pixels "
        "anomalies found 0.356 share of their pixels, where 1 % of the normal ones raise a false alarm",
        f"0.35 by {HOSTILE[0]}, where chance gets 0.02. No pixel of this split has the label of a known class",
        "AUPR 0.346 chance 0.020",
    ):
        assert part in page.text
    for word in (
        "mIoU –",
        "layout floor",
        "semantic gain",
        "Confusions",
        "no target has them",
        "active classes",
        "pixel accuracy",
        "Classes",
    ):
        assert word not in page.text
    none = {**UNLABELLED, "anomaly": {}}
    assert "mIoU –" in Page(write(tmp_path, evaluation=none)).text
    assert "so there is no score" in Page(write(tmp_path, evaluation=none)).text


@pytest.mark.parametrize(
    ("aupr", "chance", "interval", "expected"),
    [
        (0.3, None, None, "is not known. No pixel"),
        (0.02, 0.02, None, "where chance gets 0.02: this score gives no evidence"),
        (0.0034, 0.0023, [0.001, 0.02], "0.0034 by a, where chance gets 0.0023, which lies inside the interval. No"),
        (0.3, 0.02, [0.2, 0.4], "0.30 by a, where chance gets 0.02. No"),
    ],
)
def test_reading_is_honest_about_every_case(aupr, chance, interval, expected):
    anomaly = {"a": {"aupr": aupr, "aupr_interval": interval}}
    assert expected in anomaly_reading({"anomaly": anomaly, "anomaly_share": chance})


NESTED = ["per_image", "components", "alarm", "found_at", "density"]


@pytest.mark.parametrize("null", [False, True])
def test_any_figure_may_be_missing(tmp_path, null):
    """Old files, and splits where a figure is undefined: one key at a time, then all but the AUPR, then all."""
    full = figures(0.3)
    places = [(key,) for key in full] + [(key, part) for key in NESTED for part in full[key]]
    for place in places:
        scores = {name: dict(value) if isinstance(value, dict) else value for name, value in full.items()}
        inner = scores if len(place) == 1 else scores[place[0]]
        if null:
            inner[place[-1]] = None
        else:
            del inner[place[-1]]
        page = Page(anomaly_section({"a": scores, "b": full}, CHANCE))
        assert "None" not in page.text, place
        assert "nan" not in page.text, place
        anomaly_table({"a": scores}, CHANCE)
    for bare in ({"aupr": 0.3}, {"aupr": None}, {}):
        for evaluation in (FULL, UNLABELLED):
            page = Page(write(tmp_path, evaluation={**evaluation, "anomaly": {"a": bare}, "anomaly_share": None}))
            assert ("a has the highest AUPR, 0.30." in page.text) == (bare.get("aupr") is not None)
            assert "None" not in page.text
    assert "Anomaly scores" not in Page(write(tmp_path, evaluation={**FULL, "anomaly": None})).text


def test_terminal_table_lines_up_best_first():
    anomaly = {**ANOMALY, "x" * 40: figures(0.9), "none": {}}
    lines = anomaly_table(anomaly, 0.0021).splitlines()
    assert max(map(len, lines)) <= 110
    assert [line.split("  ")[0] for line in lines] == [
        "score",
        "x" * 11 + ".." + "x" * 11,
        '<script>ale..")</script>',
        "maxlogit",
        "msp",
        "none",
        "chance",
    ]
    best = "0.90000 ± 0.00002 [0.810, 0.990]  0.9500  0.0000     0.8550        0.9102    0.2101"
    assert lines[1][26:] == best
    assert re.fullmatch(r"none +-( +-){5}", lines[5])
    assert re.fullmatch(r"chance +0\.0021 +0\.5000  0\.9500 +- +0\.0100 +-", lines[6])
    assert len({len(line) for line in lines}) == 1  # every last column ends at the same place
    plain = anomaly_table({"a": figures(0.2, components={})})
    assert "comp. F1" not in plain
    assert len(plain.splitlines()) == 2


# ---------------------------------------------------------------------------------------------------------------------
# Pictures


@pytest.fixture
def scene():
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


def test_truth_tells_anomaly_void_normal_and_classes_apart(scene):
    target = scene[1]
    tiles = anomaly_tiles(*scene, 2.0, PALETTE, longest=60)  # one to one
    assert list(tiles) == ["input", "truth", "prediction", "score"]
    truth = np.asarray(tiles["truth"])
    expected = {**dict(enumerate(PALETTE)), 3: ANOMALY_COLOUR, 253: NORMAL_COLOUR, 255: (0, 0, 0)}
    for index, colour in expected.items():
        assert (target == index).any()
        assert ((truth == colour).all(-1) == (target == index)).all()
    assert (np.asarray(tiles["input"]) == scene[0]).all()
    assert (np.asarray(tiles["prediction"]) == np.array(PALETTE)[scene[2]]).all()


@pytest.mark.parametrize("longest", [60, 180])
def test_outlines_lie_exactly_where_the_score_reaches_the_threshold(scene, longest):
    score = np.asarray(Image.fromarray(scene[3]).resize((longest, longest * 2 // 3), Image.Resampling.NEAREST))
    drawn = np.asarray(anomaly_tiles(*scene, 2.0, PALETTE, longest)["score"])
    plain = np.asarray(anomaly_tiles(*scene, None, PALETTE, longest)["score"])
    low, high = np.nanmin(scene[3]), scene[3][np.isfinite(scene[3])].max()
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


def test_anomaly_panel_holds_its_tiles_and_explains_every_colour(scene):
    tiles = anomaly_tiles(*scene, 2.0, PALETTE)
    picture = anomaly_panel(*scene, 2.0, CLASSES, PALETTE, "worst: a.png")
    assert all(contains(picture, tile) for tile in tiles.values())
    without = anomaly_panel(*scene, None, CLASSES, PALETTE, "worst: a.png")
    assert ALARM_COLOUR not in colours_of(without)

    def legend(name, colour):
        chip = _legend([(name, colour)], 400)
        return chip.crop(
            (0, 5, 300 if "outline" in name else 200, chip.height - 5)
        )  # begins with the chip's own corner

    alarm = legend("outline: alarm, score from 2 on", ALARM_COLOUR)
    assert contains(picture, alarm)
    assert not contains(without, alarm)
    assert contains(picture, legend("normal, class not known", NORMAL_COLOUR))
    bar = _colour_bar(*_finite_range(scene[3]), 190)
    assert contains(picture, bar.crop((70, 8, 190, 20)))  # begins in the ramp, ends with the larger number


@pytest.mark.parametrize("shape", [(61, 37), (200, 3), (3, 200), (700, 900)])
def test_anomaly_panel_takes_any_shape_and_an_image_of_void(shape):
    void, image = np.full(shape, 255, np.uint8), np.zeros((*shape, 3), np.uint8)
    for score in (np.full(shape, np.nan, np.float32), np.zeros(shape, np.float32)):
        anomaly_panel(image, void, void // 200, score, 0.5, ["x" * 300, "道路\n2", "c"], PALETTE, "word " * 90)


def test_what_is_normal_has_one_number():
    assert NORMAL == spec.NORMAL
