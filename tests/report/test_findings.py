"""What diagnosing found: the table and the page are held against the diagnosis they tell."""

import itertools

import pytest

from probes.finding import Finding, conclude
from report.files import write_diagnosis_page, write_report
from report.findings import diagnosis_table, group_faults
from tests.report.examples import HOSTILE, Page, diagnosis, write


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


# ---------------------------------------------------------------------------------------------------------------------
# The terminal


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
