"""Findings: the closed list of causes, the ranking, and which fault explains which."""

import json

import numpy as np

from probes.finding import CAUSES, Finding, conclude, explained_by


def test_ranking_puts_the_upstream_fault_first_and_its_consequences_under_it():
    found = [
        Finding("a", "pass", "fine"),
        Finding("b", "fail", "collapsed", cause="collapse"),
        Finding("c", "warn", "imbalanced", cause="class_imbalance"),
        Finding("d", "fail", "labels", cause="unknown_labels"),
        Finding("e", "warn", "repeats", cause="repeated_across_splits"),
        Finding("f", "skip", "no log"),
    ]
    diagnosis = conclude(found)
    assert [f["probe"] for f in diagnosis["findings"]] == ["d", "b", "e", "c", "a", "f"]
    assert diagnosis["root_cause"] == "unknown_labels"
    assert diagnosis["verdict"] == "fail"
    assert "collapse" in diagnosis["findings"][0]["consequences"]
    explained = {f["probe"]: f["explained_by"] for f in diagnosis["findings"]}
    assert explained == {"d": None, "b": "d", "e": None, "c": "d", "a": None, "f": None}
    assert json.dumps(diagnosis, allow_nan=False)


def test_two_probes_that_name_one_cause_are_one_fault():
    found = [Finding(name, "fail", "", cause="normalised_twice") for name in ("a", "b")]
    assert [one["explained_by"] for one in conclude(found)["findings"]] == [None, "a"]


def test_a_warning_does_not_explain_a_failure_away_and_is_no_root_cause():
    diagnosis = conclude([Finding("a", "warn", "", cause="unknown_labels"), Finding("b", "fail", "", cause="collapse")])
    assert diagnosis["root_cause"] == "collapse"
    assert all(f["explained_by"] is None for f in diagnosis["findings"])
    assert conclude([Finding("a", "warn", "", cause="overfit")])["root_cause"] is None
    assert conclude([])["verdict"] == "skip"


def test_evidence_is_json_whatever_a_probe_puts_there():
    evidence = {"a": np.float32(0.5), 3: [float("nan"), (np.int64(7), float("inf"))], "b": {"c": None, "d": True}}
    found = Finding("a", "fail", "", cause="collapse", value=float("nan"), evidence=evidence)
    text = json.dumps(conclude([found]), allow_nan=False)
    one = json.loads(text)["findings"][0]
    assert one["value"] is None
    assert one["evidence"] == {"a": 0.5, "3": [None, [7, None]], "b": {"c": None, "d": True}}


def test_every_consequence_is_a_cause_and_none_explains_itself():
    assert {cause for explained in CAUSES.values() for cause in explained} <= set(CAUSES)
    assert not [cause for cause in CAUSES if cause in explained_by(cause)]


def test_consequences_stand_below_their_causes():
    order = list(CAUSES)
    wrong = [(c, e) for c, explained in CAUSES.items() for e in explained if order.index(e) < order.index(c)]
    assert not wrong
