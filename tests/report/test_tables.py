"""Figures as text and the terminal's tables: columns line up, and the certified bound covers all rounding."""

import re

import pytest

from report.tables import anomaly_table, certified, class_table, confusion_words, feature_table
from tests.report.examples import ANOMALY, STAGES, figures


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


@pytest.mark.parametrize("error", [0.0, 1e-9, 3e-7, 2e-6, 4.1e-5, 0.00099, 0.02])
@pytest.mark.parametrize("value", [0.0, 0.123456789, 0.312364, 0.99999999, 1.0])
def test_certified_bound_covers_error_and_rounding(value, error):
    shown, bound = certified({"aupr": value, "aupr_error": error}, "aupr")
    assert abs(float(shown) - value) + error <= float(bound) * (1 + 1e-6) + 1e-11
    assert float(bound) <= error + 2 * 10.0 ** -(len(shown) - 2)
    assert certified({"aupr": value}, "aupr")[1] == ""


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
