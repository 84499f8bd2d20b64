"""What pictures are put together from: legends name what is there, text fits its width."""

import pytest

from datasets.spec import NORMAL
from report.canvas import TEXT, legend_entries, load_font, plain, shorten, text_block
from report.colours import ANOMALY_COLOUR, NORMAL_COLOUR, VOID_COLOUR
from tests.report.examples import CLASSES, PALETTE


def test_legend_names_classes_first_then_anomaly_normal_and_void():
    entries = legend_entries({0, 3, NORMAL}, CLASSES, PALETTE)
    assert entries == [
        ("road", PALETTE[0]),
        ("anomaly", ANOMALY_COLOUR),
        ("normal, class not known", NORMAL_COLOUR),
    ]
    assert ("not labelled", VOID_COLOUR) in legend_entries({254, 253}, CLASSES, PALETTE)


@pytest.mark.parametrize("text", ["a.png", "two\nlines  and\tblanks", "x" * 300, "Fußgängerüberweg " * 9, "道路", ""])
def test_a_name_becomes_one_line_that_fits(text):
    line = shorten(text, load_font(TEXT), 200)
    assert "\n" not in line
    assert load_font(TEXT).getlength(line) <= 200
    assert line.endswith("...") or line == " ".join(plain(text).split())


def test_text_wraps_at_words_to_its_width():
    assert text_block("word", 200).size == (200, 26)
    assert text_block("word " * 30, 200).height > text_block("word " * 15, 200).height > 26
    assert text_block("a\nb", 200).height == 2 * 26
