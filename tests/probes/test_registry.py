"""Which probes run, in which order, and that each of them can be asked from Python."""

import pytest

import diagnose
from cli import UserError
from probes.conditions import CONDITIONS
from probes.finding import Finding
from probes.registry import PROBES, choose_probes, judge_trainings, list_probes, open_images, run_probe, run_probes
from probes.subject import Subject
from tests.probes.examples import banded_set, draw_sample, open_splits, predictor_of, small_settings, subject_of


def choose(*words):
    return diagnose.asked_for(diagnose.build_parser().parse_args(list(words)))


def test_each_way_of_asking_chooses_its_probes():
    group = {name: probe.group for name, probe in PROBES.items()}
    assert {group[name] for name in choose("--data")} == {"data"}
    assert choose("--noise-test") == ["noise_test"]
    assert choose("--noise-test", "--ckpt", "x.pth") == ["layout_reliance"]
    assert choose("--only", "duplicates, files") == ["files", "duplicates"]
    assert set(choose()) == {name for name, probe in PROBES.items() if not probe.needs}
    trained = choose("--ckpt", "x.pth")
    assert set(trained) == {name for name, probe in PROBES.items() if probe.needs != "fresh"}
    assert set(trained) - set(choose("--model-from", "a.py:b")) == {"log"}
    assert "noise_test" in choose("--all")
    assert not choose("--ckpt", "x.pth", "--cross-dataset", "camvid")
    assert choose_probes() == choose()


@pytest.mark.parametrize(
    ("only", "about", "part"),
    [
        ("softmx", {}, "softmax"),
        ("softmax", {}, "judges a trained model"),
        ("log", {"foreign": True}, "reads a run of ours"),
        (",", {}, "names no probe"),
    ],
)
def test_what_cannot_be_asked_says_so(only, about, part):
    with pytest.raises(UserError, match=part):
        choose_probes(only, **about)


def test_every_condition_can_be_asked_for():
    training = {name for name, probe in PROBES.items() if probe.needs == "fresh"}
    assert training == {"noise_test", *CONDITIONS} - {"noise"}
    assert all(name in list_probes() for name in PROBES)


def test_images_are_opened_unless_masks_alone_are_asked_about():
    assert not open_images(["classes", "layout_floor"])
    assert open_images(["classes", "files"])
    assert open_images([])


def test_faulty_data_are_a_finding_whichever_probe_came_upon_them(folder_set):
    next((folder_set / "images" / "val").iterdir()).write_bytes(b"no image")
    findings = run_probes(Subject(open_splits(folder_set)), ["classes", "layout_floor"])
    assert [(f.probe, f.verdict) for f in findings] == [
        ("data.classes", "skip"), ("data.layout_floor", "skip"), ("data.files", "fail")
    ]  # fmt: skip


def test_a_network_that_is_broken_is_a_failure_and_not_a_skip():
    subject = subject_of(predictor_of(), draw_sample())
    subject.model.layer.weight.data.fill_(float("nan"))
    [finding] = run_probe(subject, "collapse")
    assert (finding.verdict, finding.cause) == ("fail", "answers_not_finite")
    assert finding.seconds > 0


@pytest.mark.slow
def test_trainings_are_judged_beside_the_noise_tests_finding(tmp_path):
    settings = small_settings(iters=4)
    subject = Subject(open_splits(banded_set(tmp_path / "set")), settings=settings)
    findings = run_probe(subject, "noise_test")
    assert judge_trainings(subject, findings) == []  # alone it has its own finding
    assert run_probe(subject, "mismatched") == []
    found = judge_trainings(subject, findings)
    assert [f.probe for f in found] == ["shortcut.conditions", "shortcut.mismatched"]
    rows = [row["condition"] for row in found[0].evidence["table"]]
    assert rows[4:] == ["noise", "mismatched"]
    assert all(isinstance(f, Finding) for f in found)
