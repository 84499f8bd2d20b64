"""Charts: points lie where they belong, ticks are round."""

import re

import numpy as np
import pytest

from report.charts import BOTTOM, HEIGHT, POINTS, RIGHT, TOP, WIDTH, line_chart, round_ticks, thin, tick_text
from tests.report.examples import points_of


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
