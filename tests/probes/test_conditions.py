"""Trainings under conditions: healthy ones pass, each planted fault is named."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import data
import metrics
from engine.sampling import SampleRequest
from probes import conditions
from probes.conditions import (
    CONDITIONS,
    PermutedBack,
    RepairedSplit,
    draw_derangement,
    judge_conditions,
    measure_norms,
    noise_row,
    run_condition,
)
from probes.finding import Finding, conclude
from probes.noise_test import prepare, references
from probes.replacement_inputs import permuted_ids
from probes.subject import Subject
from tests.probes.examples import CPU, audits_of, banded_set, open_splits, small_settings

# A healthy case: near to what the default model gave on CamVid (400 steps of 8 images at 120x160, 200 at 60x80).
KNOWN = {
    "prior": 1.94, "layout": 1.08, "train_prior": 1.76, "train_layout": 0.93, "spread": 0.06, "chance": 0.03,
    "prior_miou": 0.03, "layout_map": 0.17, "floor": 0.19,
}  # fmt: skip


# ---- what is permuted, and what is frozen


@pytest.mark.parametrize("count", [2, 3, 8, 101])
def test_a_derangement_moves_everything_once(count):
    partners = draw_derangement(count, seed=3)
    assert sorted(partners) == list(range(count))
    assert all(partner != index for index, partner in enumerate(partners))
    assert partners == draw_derangement(count, seed=3)


def test_one_alone_has_no_derangement():
    with pytest.raises(ValueError, match="1 cannot change places"):
        draw_derangement(1, seed=0)


def test_a_repaired_split_keeps_the_image_and_gives_the_partners_target(folder_set):
    Image.new("L", (20, 10), 1).save(folder_set / "masks" / "train" / "002.png")  # a pair of another size
    Image.new("RGB", (20, 10), "red").save(folder_set / "images" / "train" / "002.png")
    split = open_splits(folder_set)["train"]
    repaired = RepairedSplit(**vars(split), partners=[1, 2, 0, 4, 5, 6, 7, 3])
    for index, partner in enumerate(repaired.partners):
        image, target = repaired.read(index)
        assert image.tobytes() == split.read(index)[0].tobytes()
        assert np.array_equal(target, split.read_target(partner))
    examples = data.TrainingPairs(repaired, data.Geometry([16, 24]))
    assert [part.shape[:2] for part in examples[SampleRequest(1, 0, 0)]] == [(16, 24), (16, 24)]


def test_permuted_back_undoes_permuted_ids():
    permutation, targets = [2, 0, 1], torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    _, renamed = permuted_ids(permutation)(torch.zeros(2, 4, 5, 3, dtype=torch.uint8), targets, None)

    class Knows(torch.nn.Module):
        """Answers the permuted names, without a mistake."""

        def forward(self, _images):
            return {"out": torch.nn.functional.one_hot(renamed.long(), 3).permute(0, 3, 1, 2).float()}

    back = PermutedBack(Knows(), permutation)
    assert torch.equal(back(None)["out"].argmax(1).to(torch.uint8), targets)


def test_measured_norms_keep_random_features_alive_and_change_nothing_else(folder_set):
    splits = open_splits(folder_set)
    ready = prepare(small_settings(freeze="backbone"), audits_of(splits)["train"], CPU)
    images = torch.rand(4, 3, 64, 96)
    model = ready.training.model.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert model.backbone(images)[-1].std() < 1e-6  # why the statistics have to be measured
    measure_norms(ready, splits["train"], small_settings())
    assert model.eval().backbone(images)[-1].std() > 0.1
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.rpartition(".")[2] for key in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(key.startswith("backbone.") for key in changed)
    assert {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.1}


# ---- the verdict, by hand


def row(condition, loss, miou, train_loss=0.7, others=(), validated_on="real images"):
    about = {"loss": loss, "miou": miou, "pixel_accuracy": 0.7, "active_classes": 8}
    curve = [{"iteration": step, "train_loss": train_loss, **about} for step in (100, 200, 400)]
    others = [
        {"validated_on": name, "loss": x, "miou": y, "pixel_accuracy": 0.5, "active_classes": 5}
        for name, x, y in others
    ]
    head = {"condition": condition, "skipped": None, "validated_on": validated_on}
    return {**head, **about, "curve": curve, "others": others, "seconds": 150.0}


HEALTHY = {
    "real": row("real", 0.40, 0.45, train_loss=0.33),
    "noise": row("noise", 1.09, 0.16, train_loss=0.98, validated_on="noise"),
    "label_permutation": row("label_permutation", 1.17, 0.16),
    "mismatched": row("mismatched", 1.06, 0.16),
    "class_permutation": row("class_permutation", 0.41, 0.45, others=[("real images", 6.2, 0.01)]),
    "frozen_backbone": row("frozen_backbone", 0.31, 0.51),
    "random_frozen_backbone": row("random_frozen_backbone", 0.93, 0.28),
    "spatial_only": row("spatial_only", 0.73, 0.27, others=[("real images", 1.14, 0.17)], validated_on="flat segments"),
    "content_only": row("content_only", 0.99, 0.24),
}


def judge(**changes):
    rows = {**HEALTHY, **changes}
    findings = judge_conditions(list(rows.values()), KNOWN)
    return {finding.probe: finding for finding in findings}


def test_healthy_rows_pass_every_judge_and_fill_one_table():
    findings = judge()
    assert list(findings) == ["shortcut.conditions", *(f"shortcut.{name}" for name in CONDITIONS)]
    assert {finding.verdict for finding in findings.values()} == {"pass"}, [f.why for f in findings.values()]
    summary = findings["shortcut.conditions"]
    table = summary.evidence["table"]
    assert len({tuple(line) for line in table}) == 1
    assert [line["condition"] for line in table[:4]] == ["chance", "class prior", "layout map", "layout floor"]
    assert len(table) == 4 + 9 + 2  # two conditions are validated on two kinds of images
    assert json.dumps(conclude(list(findings.values())), allow_nan=False)
    curves = summary.exhibits[0].curves
    assert curves["real"] == [(100, 0.45), (200, 0.45), (400, 0.45)]
    assert curves["layout floor"] == [(100, 0.19), (400, 0.19)]


@pytest.mark.parametrize(
    ("changed", "probe", "verdict", "cause"),
    [
        (row("real", 1.9, 0.03, train_loss=1.8), "real", "fail", "nothing_learnt"),
        (row("real", 2.5, 0.10, train_loss=0.3), "real", "warn", "overfit"),
        (row("real", 1.09, 0.17), "conditions", "warn", "layout_shortcut"),
        (row("noise", 0.70, 0.30), "noise", "fail", "label_leak"),
        (row("label_permutation", 0.80, 0.30), "label_permutation", "fail", "label_leak"),
        (row("mismatched", 0.80, 0.30), "mismatched", "fail", "label_leak"),
        (row("mismatched", 0.80, 0.18), "mismatched", "pass", None),  # one sign alone is no proof
        (row("class_permutation", 0.66, 0.36, others=[("real images", 0.66, 0.36)]), "class_permutation", "fail",
         "label_leak"),
        (row("class_permutation", 1.20, 0.25, others=[("real images", 7.0, 0.01)]), "class_permutation", "warn",
         "class_ids_permuted"),
        (row("random_frozen_backbone", 0.42, 0.44), "random_frozen_backbone", "warn", "frozen_backbone"),
        (row("frozen_backbone", 0.95, 0.26), "frozen_backbone", "warn", "untrained_layers"),
        (row("spatial_only", 0.45, 0.40, others=[("real images", 0.39, 0.46)]), "spatial_only", "warn",
         "layout_shortcut"),
        (row("content_only", 1.95, 0.04), "content_only", "warn", "layout_shortcut"),
    ],
    ids=lambda value: value["condition"] if isinstance(value, dict) else None,
)  # fmt: skip
def test_each_fault_is_named(changed, probe, verdict, cause):
    finding = judge(**{changed["condition"]: changed})[f"shortcut.{probe}"]
    assert (finding.verdict, finding.cause) == (verdict, cause), finding.why


@pytest.mark.parametrize("name", list(HEALTHY))
def test_a_row_alone_is_judged_without_a_comparison(name):
    summary, finding = judge_conditions([HEALTHY[name]], KNOWN)
    assert finding.verdict == "pass", finding.why
    assert summary.verdict == ("pass" if name == "real" else "skip")


# ---- trainings


def test_what_cannot_run_says_why_and_trains_nothing(folder_set):
    splits = open_splits(folder_set)
    rows = [
        run_condition(Subject(splits, settings=small_settings()), "frozen_backbone"),
        run_condition(Subject(splits, settings=small_settings(batch_size=1)), "mismatched"),
    ]
    findings = judge_conditions(rows, KNOWN)
    assert [finding.verdict for finding in findings] == ["skip", "skip", "skip"]
    assert "--weights" in findings[1].why
    assert "batch of one" in findings[2].why
    assert all(finding.json() for finding in findings)


def test_a_noise_test_that_saw_no_noise_is_no_condition():
    refused = Finding("noise_test", "fail", "this is no noise test", cause="noise_is_not_noise")
    row = noise_row(refused)
    assert row.keys() == HEALTHY["noise"].keys()
    assert [f.verdict for f in judge_conditions([row], KNOWN)] == ["skip", "skip"]
    curve = HEALTHY["noise"]["curve"]
    done = Finding("noise_test", "pass", "the labels' layout", evidence={"curve": curve}, seconds=150.0)
    assert noise_row(done) == HEALTHY["noise"]


def run_all(root, names, **changes):
    """{probe: finding} of real trainings on a tiny set."""
    subject = Subject(open_splits(root), settings=small_settings(**changes))
    train = subject.audits["train"]
    known = references(train, subject.splits["val"], metrics.fit_layout(train.grids, 3))
    rows = [run_condition(subject, name) for name in names]
    return {finding.probe: finding for finding in judge_conditions(rows, known)}


@pytest.mark.slow
def test_no_condition_fails_on_a_healthy_set(tmp_path):
    names = [name for name in CONDITIONS if name != "frozen_backbone"]
    findings = run_all(banded_set(tmp_path / "set"), names)
    assert {finding.verdict for finding in findings.values()} <= {"pass", "warn"}
    passing = {"conditions", "real", "noise", "label_permutation", "mismatched", "class_permutation"}
    assert all(findings[f"shortcut.{name}"].verdict == "pass" for name in passing)
    assert findings["shortcut.real"].value < findings["shortcut.mismatched"].value
    permuted = findings["shortcut.class_permutation"].evidence["others"][0]
    assert permuted["miou"] < 0.1  # the true names are lost


@pytest.mark.slow
def test_images_that_show_nothing_of_their_masks_are_named(tmp_path):
    findings = run_all(banded_set(tmp_path / "set", fitting=False), ["real"])
    assert findings["shortcut.conditions"].cause == "layout_shortcut", findings["shortcut.conditions"].why
    assert findings["shortcut.real"].verdict == "pass"


@pytest.mark.slow
def test_a_learning_rate_of_zero_is_named(tmp_path):
    finding = run_all(banded_set(tmp_path / "set"), ["real"], lr=0.0, iters=4)["shortcut.real"]
    assert (finding.verdict, finding.cause) == ("fail", "nothing_learnt")


@pytest.mark.slow
def test_pairs_that_only_seem_permuted_are_named(tmp_path, monkeypatch):
    """Pairs left together, ids that stay: the true labels got in."""
    monkeypatch.setattr(conditions, "draw_derangement", lambda count, seed: list(range(count)))
    names = ["label_permutation", "class_permutation"]
    findings = run_all(banded_set(tmp_path / "set"), names)
    assert [findings[f"shortcut.{name}"].cause for name in names] == ["label_leak"] * 2
