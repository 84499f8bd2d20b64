"""Several sets from the outside: trained on together, evaluated each and together, and other sets by their names."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sklearn_metrics

import data
import evaluate as evaluate_script
import metrics
from datasets.catalogue import SPECS
from datasets.label_spaces import LabelSpace, answer_table, build_space, declared_classes, join, translate
from datasets.own_folder import folder_spec
from engine import evaluation
from engine.checkpoint import load_checkpoint
from engine.evaluation import EvaluationCounts
from engine.predictor import Prediction, Predictor, predict_image
from engine.trained_run import layout_map_of, load_predictor
from tests.conftest import TINY, run_script, write_folder_set
from tests.test_train import kill_at_step, read_log, same_weights, start


def rename(root, names):
    """Give a folder set's classes other names."""
    content = json.loads((root / "classes.json").read_text())
    for entry, name in zip(content["classes"], names, strict=True):
        entry["name"] = name
    (root / "classes.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def joint(tmp_path_factory):
    """(run, first set, second set): trained together, 1 to 2; yellow is known to the second only."""
    root = tmp_path_factory.mktemp("joint")
    first = write_folder_set(root / "first")
    counts = (("train", 6), ("val", 2), ("test", 4))
    second = write_folder_set(root / "second", counts, size=(60, 70), classes=4, seed=1)
    words = ("--dataset", "folder:1,folder:2", "--data-dir", f"{first},{second}", "--run-dir", root / "run")
    done = run_script("train.py", *words, *TINY)
    assert done.returncode == 0, done.stderr
    assert f"folder {second.as_posix()}: void here, for want of a place in --label-space: yellow" in done.stdout
    assert "of which folder" in done.stdout
    return root / "run", first, second


def evaluate(run, out, *words):
    done = run_script("evaluate.py", "--ckpt", run / "best.pth", "--out", out, "--panels", 2, "--workers", 0, *words)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "evaluation.json").read_text()), done


def test_the_log_and_the_checkpoint_know_the_sets(joint):
    run, first, second = joint
    best = load_checkpoint(run / "best.pth")
    assert best["data"]["dataset"] == "folder+folder"
    assert best["data"]["label_space"] == "own"
    assert best["data"]["classes"] == ["red", "green", "blue"]
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    sets = [line["sets"] for line in lines if line["kind"] == "validation"]
    assert [*sets[0]] == [f"folder {first.as_posix()}", f"folder {second.as_posix()}"]
    assert run.joinpath("samples.png").is_file()


def test_each_set_and_all_together_are_independent_counts(joint, tmp_path):
    run, first, second = joint
    result, done = evaluate(run, tmp_path)
    predictor, content = load_predictor(run / "best.pth", torch.device("cpu"))
    whole, floors = np.zeros((3, 3), np.int64), np.zeros((3, 3), np.int64)
    for root in (first, second):
        one = result["sets"][f"folder {root.as_posix()}"]
        confusion, floor = np.zeros((3, 3), np.int64), np.zeros((3, 3), np.int64)
        for path in sorted((root / "images" / "test").iterdir()):
            target = np.asarray(Image.open(root / "masks" / "test" / path.name))
            labels = predict_image(predictor, Image.open(path), target.shape).labels.numpy()
            guess = metrics.resize_nearest(layout_map_of(content), target.shape)
            known = target < 3
            confusion += sklearn_metrics.confusion_matrix(target[known], labels[known], labels=[0, 1, 2])
            floor += sklearn_metrics.confusion_matrix(target[known], guess[known], labels=[0, 1, 2])
        assert one["confusion"] == confusion.tolist()
        assert one["layout_floor"] == pytest.approx(miou(floor))
        assert one["miou"] == pytest.approx(miou(confusion))
        assert one["images"] == len(list((root / "images" / "test").iterdir()))
        assert one["layout_floor"] != one["own_layout_floor"] is not None
        gain = (one["miou"] - max(one["layout_floor"], one["own_layout_floor"])) / (
            1 - max(one["layout_floor"], one["own_layout_floor"])
        )
        assert one["semantic_gain"] == pytest.approx(gain)
        whole, floors = whole + confusion, floors + floor
    assert result["confusion"] == whole.tolist()
    assert result["miou"] == pytest.approx(miou(whole))
    assert result["layout_floor"] == pytest.approx(miou(floors))
    assert len(result["per_image"]) == 7
    assert "all together" in done.stdout
    assert "all together" in (tmp_path / "report.html").read_text()
    assert result["protocol"]["void_by_name"] == ["yellow"]


def miou(confusion):
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    return (np.diag(confusion) / np.maximum(union, 1))[union > 0].mean()


def test_the_floor_of_a_sets_own_layout_is_made_of_its_training_masks(joint, tmp_path):
    run, _, second = joint
    result, _ = evaluate(run, tmp_path, "--dataset", "folder", "--data-dir", second)
    assert "sets" not in result
    spec = translate(folder_spec(second), LabelSpace(("red", "green", "blue")))
    splits = {name: data.open_split(spec, second, name) for name in ("train", "test")}
    grids = np.stack([metrics.resize_nearest(splits["train"].read_target(i)) for i in range(6)])
    layout = metrics.fit_layout(grids, 3).map
    confusion = np.zeros((3, 3), np.int64)
    for i in range(4):
        target = splits["test"].read_target(i)
        known, guess = target < 3, metrics.resize_nearest(layout, target.shape)
        confusion += sklearn_metrics.confusion_matrix(target[known], guess[known], labels=[0, 1, 2])
    assert result["own_layout_floor"] == pytest.approx(miou(confusion))


def test_another_set_counts_only_the_classes_it_labels(joint, tmp_path):
    """The same images and masks, once with a class less: the two others keep their IoU, the third has none."""
    run, first, _ = joint
    other = write_folder_set(tmp_path / "other")
    rename(other, ["Red", "green", "moss"])
    result, _ = evaluate(run, tmp_path / "out", "--dataset", "folder", "--data-dir", other)
    assert result["iou"]["blue"] is None
    assert result["protocol"]["void_by_name"] == ["moss"]
    assert result["protocol"]["unlabelled_classes"] == ["blue"]
    assert result["classes_averaged"] == 2
    predictor, _ = load_predictor(run / "best.pth", torch.device("cpu"))
    hit = union = 0
    for path in sorted((other / "images" / "test").iterdir()):
        target = np.asarray(Image.open(other / "masks" / "test" / path.name))
        labels = predict_image(predictor, Image.open(path), target.shape).labels.numpy()[target < 2]
        target = target[target < 2]
        hit += ((labels == 0) & (target == 0)).sum()
        union += ((labels == 0) | (target == 0)).sum()
    assert result["iou"]["red"] == pytest.approx(hit / union)


def test_an_image_is_rated_alike_alone_and_among_all(joint, tmp_path):
    """Also where a set does not label all classes: the third here, of which the other set has many."""
    run, first, _ = joint
    other = rename(write_folder_set(tmp_path / "other"), ["red", "green", "moss"])
    result, _ = evaluate(run, tmp_path / "out", "--dataset", "folder,folder", "--data-dir", f"{first},{other}")
    alone = {file: row for one in result["sets"].values() for file, row in one["per_image"].items()}
    assert alone == result["per_image"]
    assert result["sets"][f"folder {other.as_posix()}"]["iou"]["blue"] is None
    assert result["iou"]["blue"] == result["sets"][f"folder {first.as_posix()}"]["iou"]["blue"]


def test_another_folder_is_another_set(trained, tmp_path):
    """Told by its folder: with a floor of its own, its classes by name, and the run's figures left alone."""
    run, own = shutil.copytree(trained[0], tmp_path / "run"), trained[1]
    other = rename(write_folder_set(tmp_path / "other", size=(30, 60), seed=5), ["green", "red", "sky"])
    command = ("evaluate.py", "--ckpt", run / "best.pth", "--panels", 0, "--workers", 0)
    assert run_script(*command).returncode == 0
    before = (run / "evaluation.json").read_bytes()
    done = run_script(*command, "--dataset", "folder", "--data-dir", other)
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "folder" / "evaluation.json").read_text())
    assert result["own_layout_floor"] is not None
    assert result["protocol"]["void_by_name"] == ["sky"]
    assert f"--cross-dataset folder:{other.as_posix()}" in done.stdout
    assert (run / "evaluation.json").read_bytes() == before
    done = run_script(*command, "--dataset", "folder", "--data-dir", own)  # the set itself
    assert json.loads((run / "evaluation.json").read_text())["own_layout_floor"] is None
    assert "--cross-dataset" not in done.stdout


def test_one_of_two_sets_of_a_name_has_to_be_told_which(joint, tmp_path):
    run, first, _ = joint
    words = ("--ckpt", run / "best.pth", "--dataset", "folder", "--out", tmp_path)
    done = run_script("evaluate.py", *words)
    assert done.returncode == 2
    assert "the model was trained on 2 sets named folder at --dataset; say which with --data-dir" in done.stderr
    result, _ = evaluate(run, tmp_path, "--dataset", "folder", "--data-dir", first)
    assert result["images"] == 3


def test_the_floor_gets_what_the_answers_get(tmp_path):
    """A layout of "road line" alone, on a set whose only road is "road", has its road right."""
    root = rename(write_folder_set(tmp_path / "set", classes=2), ["road", "car"])
    spec = translate(folder_spec(root), LabelSpace(("road", "road line", "car")))
    split = data.open_split(spec, root, "test")
    totals = EvaluationCounts(3, classes=declared_classes(spec))
    table = torch.from_numpy(answer_table(spec))
    for i in range(3):
        target = torch.from_numpy(split.read_target(i).copy())
        found = Prediction(table[torch.ones_like(target).long()], torch.ones(target.shape), {})
        totals.add(i, target, found)
    predictor = Predictor(Lines(), 3, data.Geometry([40, 56]), torch.device("cpu"))
    judged = evaluation.evaluate(predictor, split, layout_map=np.ones(metrics.GRID, np.uint8))
    assert judged.layout_floor() == totals.scores()["miou"] > 0


def test_safe_miou_is_of_sets_that_label_all_of_idds_classes():
    idd, camvid = (SPECS[name][0] for name in ("idd", "camvid"))
    space = build_space("own", [idd])
    totals = EvaluationCounts(26)
    totals.confusion += torch.eye(26, dtype=torch.int64)
    both = join([idd, translate(camvid, space)], [Path("a"), Path("b")], [None, None])
    assert evaluate_script.safe_figures(totals, idd, idd.classes)["safe_miou"] == 1.0
    assert evaluate_script.safe_figures(totals, translate(camvid, space), idd.classes) == {}
    assert evaluate_script.safe_figures(totals, both, idd.classes) == {}


def test_a_wrong_name_costs_the_doctor_nothing(joint, tmp_path):
    run, first, _ = joint
    words = ("--ckpt", run / "best.pth", "--only", "log", "--out", tmp_path)
    done = run_script("diagnose.py", *words, "--cross-dataset", f"{first},{tmp_path}/none")
    assert done.returncode == 2
    assert "diagnose " not in done.stderr  # no probe was begun
    done = run_script("diagnose.py", *words, "--cross-dataset", f"folder:{first}")
    assert done.returncode in (0, 1), done.stderr
    probes = [row["probe"] for row in json.loads((tmp_path / "diagnosis.json").read_text())["findings"]]
    assert f"cross.folder:{first}" in probes


class Lines(torch.nn.Module):
    """Calls everything class 1."""

    def forward(self, images):
        logits = torch.zeros(len(images), 3, *images.shape[2:])
        logits[:, 1] = 1.0
        return {"out": logits}


def test_answers_of_the_same_common_name_count_as_the_class_that_is_labelled(tmp_path):
    """A model that calls everything "road line", on a set whose only road is "road"."""

    root = rename(write_folder_set(tmp_path / "set", classes=2), ["road", "car"])
    spec = translate(folder_spec(root), LabelSpace(("road", "road line", "car")))
    split = data.open_split(spec, root, "test")
    predictor = Predictor(Lines(), 3, data.Geometry([40, 56]), torch.device("cpu"))
    scores = evaluation.evaluate(predictor, split).scores()
    share = np.mean([(split.read_target(i) == 0).mean() for i in range(3)])
    assert scores["iou"] == [pytest.approx(share), None, 0.0]


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "b", "c"], "no class of folder .a, b, c, .*has a place among red, green, blue"),
     (["red", "b", "c"], "folder shares only red with the model")],
)  # fmt: skip
def test_a_set_without_common_classes_is_one_line(joint, tmp_path, names, message):
    run, _, _ = joint
    other = rename(write_folder_set(tmp_path / "other"), names)
    words = ("--ckpt", run / "best.pth", "--dataset", "folder", "--data-dir", other, "--out", tmp_path / "out")
    done = run_script("evaluate.py", *words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert re.search(message, done.stderr), done.stderr


def test_a_set_without_a_training_split_has_no_floor_of_its_own(joint, tmp_path):
    run, _, _ = joint
    other = write_folder_set(tmp_path / "other", counts=(("test", 3),))
    result, done = evaluate(run, tmp_path / "out", "--dataset", "folder", "--data-dir", other)
    assert result["own_layout_floor"] is None
    assert "warning: no floor from folder's own layout" in done.stderr


@pytest.mark.slow
def test_the_doctor_examines_what_was_trained_together(joint, tmp_path):
    run, _, _ = joint
    done = run_script("diagnose.py", "--ckpt", run / "best.pth", "--out", tmp_path)
    assert done.returncode in (0, 1), done.stderr
    findings = {row["probe"]: row for row in json.loads((tmp_path / "diagnosis.json").read_text())["findings"]}
    assert findings["data.files"]["verdict"] == "pass"
    assert findings["data.mask_values"]["verdict"] == "skip"
    assert "examine one: --data --dataset NAME" in findings["data.mask_values"]["why"]


@pytest.mark.slow
def test_two_sets_killed_and_resumed_end_the_same(joint, tmp_path):
    """Stopped after its first epoch by the signal a scheduler sends, then gone on with."""
    _, first, second = joint
    words = ("--dataset", "folder:1,folder:2", "--data-dir", f"{first},{second}", *TINY, "--save-every", "1")
    done = run_script("train.py", *words, "--run-dir", tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    kill_at_step(tmp_path / "cut", start(tmp_path / "cut", *words), 3)
    done = run_script("train.py", "--run-dir", tmp_path / "cut", "--resume")
    assert done.returncode == 0, done.stderr
    assert same_weights(tmp_path / "whole", tmp_path / "cut")
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "cut")
