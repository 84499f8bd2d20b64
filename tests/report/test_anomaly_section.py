"""The section on anomaly scores is held against the JSON it was made from."""

import re

import pytest

from report.anomaly_section import anomaly_reading, anomaly_section
from report.charts import BOTTOM, HEIGHT, RIGHT, STYLES, TOP, WIDTH
from report.tables import anomaly_table
from tests.report.examples import ANOMALY, CHANCE, FULL, HOSTILE, UNLABELLED, Page, figures, points_of, write


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
