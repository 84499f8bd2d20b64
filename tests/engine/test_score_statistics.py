"""Score statistics, alarms, and scores of whole images: against plain numpy, and nothing of an anomaly in them."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

import data
from anomaly.features import FEATURE_SCORES
from anomaly.histogram import ScoreHistogram
from anomaly.scores import DISTANCE_SCORES, LOGIT_SCORES, NAMES, energy, sml_parts
from anomaly.sml import sml
from cli import UserError
from datasets.catalogue import hold_out
from datasets.own_folder import folder_spec
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.evaluation import (
    ALARM_RATES,
    EvaluationCounts,
    alarm_thresholds,
    collect_statistics,
    count_known,
    evaluate,
    predictions,
)
from engine.predictor import FEATURE_MAPS, Prediction, Predictor, predict_image
from engine.summary import summarise_alarm
from engine.trained_run import alarms_of, load_predictor
from evaluate import parse_sizes
from networks.blocks import Normalise
from tests.folder_set import write_folder_set
from tests.scripts import TINY, run_script

CLASSES = 3


class Colours(torch.nn.Module):
    """Logits are fixed mixtures of a pixel's colours; features are the colours at half size, backbone at a quarter."""

    centres = None

    def __init__(self):
        super().__init__()
        mixture = torch.tensor([[4.0, -1, 0], [0, 5, -2], [-1, 0, 3]])
        self.register_buffer("mixture", mixture.view(3, 3, 1, 1))

    def forward(self, images):
        return {
            "out": F.conv2d(images, self.mixture),
            "features": F.avg_pool2d(images, 2),
            "backbone": F.avg_pool2d(images, 4),
        }


@pytest.fixture
def colours(folder_set):
    """(predictor, its folder data set's spec and root); the canvas is half the pictures' size."""
    same = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    predictor = Predictor(Colours(), CLASSES, data.Geometry([20, 28]), torch.device("cpu"), same)
    return predictor, folder_spec(folder_set), folder_set


def full_size_logits(predictor, split, index):
    image, target = split.read(index)
    logits = predictor.logits(predictor.geometry.resize(image)[None])
    return F.interpolate(logits, target.shape, mode="bilinear", align_corners=False)[0], target


def test_max_logit_statistics_are_those_of_all_training_pixels(colours):
    predictor, spec, root = colours
    split = data.open_split(spec, root, "train")
    tops, labels = [], []
    for index in range(len(split)):
        top, label = full_size_logits(predictor, split, index)[0].max(0)
        tops.append(top.numpy().ravel())
        labels.append(label.numpy().ravel())
    tops, labels = np.concatenate(tops).astype(np.float64), np.concatenate(labels)
    statistics = collect_statistics(predictor, split, batch_size=3).finish()["max_logit"]
    for c in range(CLASSES):
        assert float(statistics["mean"][c]) == pytest.approx(tops[labels == c].mean(), rel=1e-5)
        assert float(statistics["std"][c]) == pytest.approx(tops[labels == c].std(), rel=1e-4)
    assert int(sum(statistics["count"])) == tops.size


def test_void_pixels_never_enter_the_statistics(colours):
    """What a held-out class covers is void in training: whatever is painted there must move nothing."""
    predictor, spec, root = colours
    held = hold_out(spec, ["blue"])
    predictor.num_classes = 2
    split = data.open_split(held, root, "train")
    before = collect_statistics(predictor, split).finish()["max_logit"]
    labelled = sum(int((split.read_target(i) < 2).sum()) for i in range(len(split)))
    assert int(before["count"].sum()) == labelled < len(split) * 40 * 56
    for image, mask in split.pairs:  # a change of the mask alone: what lies under void is another colour now
        with Image.open(image) as photo, Image.open(mask) as target:
            pixels, inside = np.array(photo), np.asarray(target) == 2
        core = np.zeros_like(inside)  # 5 pixels away from all others: resizing mixes no more
        core[:, 5:-5] = inside[:, 5:-5] & inside[:, :-10] & inside[:, 10:]
        assert core.any()
        pixels[core] = (9, 250, 250)
        Image.fromarray(pixels).save(image)
    after = collect_statistics(predictor, split).finish()["max_logit"]
    assert torch.equal(after["count"], before["count"])
    torch.testing.assert_close(after["mean"], before["mean"])


def test_feature_statistics_are_class_means_at_the_cells_centres(colours):
    predictor, spec, root = colours
    split = data.open_split(spec, root, "train")
    cells, classes = [], []
    for index in range(len(split)):
        image, target = split.read(index)
        features = predictor.maps(predictor.geometry.resize(image)[None])["features"][0]  # (3, 10, 14)
        cells.append(features.permute(1, 2, 0).reshape(-1, 3).double().numpy())
        classes.append(target[2::4, 2::4].ravel())
    cells, classes = np.concatenate(cells), np.concatenate(classes)
    found = collect_statistics(predictor, split).finish()
    for c in range(CLASSES):
        assert np.allclose(found["similarity"]["means"][c], cells[classes == c].mean(0), atol=1e-5)
    assert found["mahalanobis"]["precision"].shape == (3, 3)


def test_shards_add_up_to_the_whole(colours):
    predictor, spec, root = colours
    split = data.open_split(spec, root, "train")
    whole = collect_statistics(predictor, split).finish()
    parts = [collect_statistics(predictor, split, indices=range(i, len(split), 3)) for i in range(3)]
    for part in parts[1:]:
        parts[0].merge(part)
    for name, values in parts[0].finish().items():
        for key, value in values.items():
            # a precision of 3 nearly dependent colours is an inverse: rounding grows in it
            torch.testing.assert_close(value, whole[name][key], rtol=1e-3, atol=1e-4)


def test_a_planted_anomaly_never_enters_the_statistics(colours):
    predictor, spec, root = colours
    spec = hold_out(spec, ["blue"])
    predictor.num_classes = 2
    with pytest.raises(ValueError, match="anomaly"):
        collect_statistics(predictor, data.Split("train", spec, root, data.open_split(spec, root, "val").pairs))


def test_alarm_thresholds_come_from_known_pixels_alone(colours):
    predictor, spec, root = colours
    held = hold_out(spec, ["blue"])
    val = data.open_split(held, root, "val")
    predictor.num_classes = 2
    histograms = count_known(predictor, val, ["maxlogit", "energy"])
    known = []
    for index in range(len(val)):
        image, target = val.read(index)
        logits = predictor.answer(predictor.geometry.resize(image)[None])["out"]
        logits = F.interpolate(logits, target.shape, mode="bilinear", align_corners=False)[0]
        known.append((-logits.amax(0)).numpy()[target < 2])
    known = np.concatenate(known)
    found = alarm_thresholds(histograms)
    assert found.keys() == {"maxlogit", "energy"}
    for rate in ALARM_RATES:
        threshold = found["maxlogit"][f"{rate:g}"]
        assert (known >= threshold - 1e-5).mean() <= rate + 2 / len(known)
        assert (known >= np.quantile(known, 1 - 3 * rate)).mean() > rate  # and it is no larger than it has to be
    assert histograms["maxlogit"].negatives == len(known)
    assert histograms["maxlogit"].positives == 0


def test_every_score_of_an_image_is_its_function_on_the_resized_logits(colours):
    predictor, spec, root = colours
    split = data.open_split(spec, root, "train")
    predictor.statistics = collect_statistics(predictor, split).finish()
    names = [*predictor.scores(), "sml:standardise", "sml:boundary+smooth"]
    assert names[:-2] == [n for n in NAMES if n not in (*DISTANCE_SCORES, "residual")]
    image, target = split.read(0)
    logits, _ = full_size_logits(predictor, split, 0)
    found = predict_image(predictor, image, target.shape, names).scores
    for name, score in LOGIT_SCORES.items():
        assert torch.allclose(found[name], score(logits[None])[0], atol=1e-5), name
    top, labels = logits.max(0)
    spread = predictor.statistics["max_logit"]
    for name in ("sml", "sml:standardise", "sml:boundary+smooth"):
        expected = sml(top[None], labels[None], spread["mean"], spread["std"], sml_parts(name))[0]
        assert torch.allclose(found[name], expected, atol=1e-3), name
    maps = predictor.maps(predictor.geometry.resize(image)[None])
    for name, source in FEATURE_MAPS.items():
        low = FEATURE_SCORES[name](maps[source], predictor.statistics[name])[:, None]
        expected = F.interpolate(low, target.shape, mode="bilinear", align_corners=False)[0, 0]
        assert torch.allclose(found[name], expected, atol=1e-4, rtol=1e-4), name


class WithResidual(Colours):
    """Colours, and a residual head that turns the logits round."""

    residual_head = None

    def forward(self, images):
        outputs = super().forward(images)
        return {**outputs, "open": -outputs["out"]}


@pytest.mark.parametrize("flip", [False, True])
def test_the_residual_score_is_the_energy_of_the_heads_own_logits(colours, flip):
    plain, spec, root = colours
    predictor = Predictor(
        WithResidual(), CLASSES, plain.geometry, plain.device, plain.normalise, flip=flip, scales=(1.0, 0.5)
    )
    image, target = data.open_split(spec, root, "test").read(0)
    opened = predictor.answer(predictor.geometry.resize(image)[None])["open"]
    assert torch.allclose(opened, -predictor.logits(predictor.geometry.resize(image)[None]))
    found = predict_image(predictor, image, target.shape, ["energy", "residual"]).scores
    full = F.interpolate(opened, target.shape, mode="bilinear", align_corners=False)
    assert torch.allclose(found["residual"], energy(full)[0], atol=1e-4)
    assert not torch.allclose(found["residual"], found["energy"], atol=0.1)


def test_strips_do_not_change_a_score(colours, monkeypatch):
    predictor, spec, root = colours
    split = data.open_split(spec, root, "train")
    predictor.statistics = collect_statistics(predictor, split).finish()
    image, target = split.read(1)
    whole = predict_image(predictor, image, target.shape, predictor.scores()).scores
    monkeypatch.setattr("engine.predictor.STRIP_BYTES", 1)
    for name, score in predict_image(predictor, image, target.shape, predictor.scores()).scores.items():
        assert torch.equal(score, whole[name]), name


def test_what_an_alarm_raises_is_counted_by_hand():
    totals = EvaluationCounts(2, alarms={"energy": 1.0})
    target = torch.tensor([[0, 0, 1, 1, 2, 2, 253, 255]], dtype=torch.uint8)  # 2 anomaly, 253 normal, 255 void
    labels = torch.tensor([[0, 1, 1, 1, 0, 1, 0, 0]], dtype=torch.uint8)
    alarm = torch.tensor([[True, False, False, True, True, False, True, True]])
    totals.add_alarms("energy", target, labels, alarm)
    assert totals.raised["energy"].tolist() == [3, 1]  # two of known classes, one normal; one anomaly
    assert totals.open_set["energy"].tolist() == [[0, 1, 1], [0, 1, 1], [0, 1, 1]]
    histogram = ScoreHistogram()
    judged = target != 255
    histogram.update(alarm.float()[judged], (target == 2)[judged])
    totals.histograms["energy"] = histogram
    row = summarise_alarm(totals, "energy", ["road", "car"])
    assert row["alarm"]["found"] == 1 / 2
    assert row["alarm"]["false_alarms"] == 3 / 5
    assert row["open_miou"] == pytest.approx((0 + 1 / 4) / 2)  # car: 1 right of itself 2, of road 1, of the anomaly 1
    assert row["mistaken"] == [
        {"class": "road", "share": 0.5, "pixels": 1},
        {"class": "car", "share": 0.5, "pixels": 1},
    ]
    assert row["hidden"] == [{"class": "car", "share": 0.5, "pixels": 1}]


# --- the scripts


@pytest.fixture(scope="module")
def held_out(tmp_path_factory):
    """(run, data) of a short training with a class held out, shapes pasted, a distance head and a residual head."""
    root = tmp_path_factory.mktemp("held")
    folder = write_folder_set(root / "set")
    done = run_script(
        "train.py", "--dataset", "folder", "--data-dir", folder, "--run-dir", root / "run", *TINY,
        "--model", "fpn_mobilenet_v2:channels=16,centres=learnt,residual=on", "--anomaly-classes", "blue",
        "--outliers", "noise-shapes", "--loss", "ce,centre,outlier-entropy",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return root / "run", folder


@pytest.mark.slow
def test_evaluate_gives_every_score_and_they_agree_with_scikit_learn(held_out, tmp_path):
    run, folder = held_out
    out = tmp_path / "out"
    done = run_script("evaluate.py", "--ckpt", run / "best.pth", "--out", out, "--components", "min-prediction=9")
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "evaluation.json").read_text())
    assert list(result["anomaly"]) == list(NAMES)
    assert list(result["iou"]) == ["red", "green"]
    predictor, content = load_predictor(run / "best.pth", torch.device("cpu"))
    spec = hold_out(folder_spec(folder), ["blue"])
    split = data.open_split(spec, folder, "test")
    rows = {name: ([], []) for name in NAMES}
    for _, target, found in predictions(predictor, split, scores=list(NAMES)):
        for name, (scores, truth) in rows.items():
            scores.append(found.scores[name].numpy().ravel())
            truth.append((target == 2).numpy().ravel())
    share = np.mean(np.concatenate(rows["msp"][1]))
    assert result["anomaly_share"] == pytest.approx(share)
    for name, (scores, truth) in rows.items():
        row, scores, truth = result["anomaly"][name], np.concatenate(scores), np.concatenate(truth)
        exact = average_precision_score(truth, scores)
        assert abs(row["aupr"] - exact) <= row["aupr_error"] + 1e-9, name
        threshold = content["data"]["alarms"][name]["0.01"]
        assert row["alarm"]["found"] == pytest.approx((scores[truth] >= threshold).mean()), name
        assert row["alarm"]["false_alarms"] == pytest.approx((scores[~truth] >= threshold).mean()), name
        assert row["components"]["components"] == row["components_at_alarm"]["components"] > 0
        low, high = row["aupr_interval"]
        assert 0 <= low <= high <= 1
    assert result["protocol"]["held_out"] == "blue"
    assert len(list((out / "pictures").glob("anomaly-*.png"))) == 3


@pytest.mark.slow
def test_statistics_are_added_once_to_a_finished_run(held_out, tmp_path):
    """A checkpoint without them (of an older version, or killed before) gets them on --resume; the weights stay."""
    run = tmp_path / "run"
    shutil.copytree(held_out[0], run)
    whole = load_checkpoint(run / "best.pth")
    about = {name: value for name, value in whole["data"].items() if name not in ("statistics", "alarms")}
    save_checkpoint(run / "best.pth", {**whole, "data": about})
    done = run_script("evaluate.py", "--ckpt", run / "best.pth", "--panels", "0")
    assert done.returncode == 0, done.stderr
    assert "no score statistics" in done.stderr
    assert run_script("train.py", "--run-dir", run, "--resume").returncode == 0
    again = load_checkpoint(run / "best.pth")
    assert again["data"]["alarms"] == whole["data"]["alarms"]
    means = (content["data"]["statistics"]["max_logit"]["mean"] for content in (again, whole))
    assert torch.equal(*means)
    assert all(torch.equal(again["state"][key], value) for key, value in whole["state"].items())
    before = (run / "best.pth").read_bytes()
    assert run_script("train.py", "--run-dir", run, "--resume").returncode == 0
    assert (run / "best.pth").read_bytes() == before


@pytest.mark.slow
def test_diagnose_pastes_what_training_pasted(held_out, tmp_path):
    """Without a pasted pixel no gradient would reach the residual head, and a healthy model be called broken."""
    done = run_script("diagnose.py", "--ckpt", held_out[0] / "best.pth", "--only", "gradient_flow", "--out", tmp_path)
    findings = json.loads((tmp_path / "diagnosis.json").read_text())["findings"]
    assert [(f["probe"], f["verdict"]) for f in findings] == [("model.gradient_flow", "pass")], done.stdout


@pytest.mark.slow
def test_a_residual_head_on_a_frozen_segmenter_leaves_every_known_answer_as_it_was(trained, tmp_path):
    run, folder = trained
    flags = list(TINY)
    flags[flags.index("--model") + 1] = "mobilenetv2:residual=on"
    done = run_script(
        "train.py", "--dataset", "folder", "--data-dir", folder, "--run-dir", tmp_path / "run", *flags,
        "--weights", run / "best.pth", "--freeze", "all-but-residual", "--outliers", "noise-shapes",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    best, last = (load_checkpoint(tmp_path / "run" / name)["state"] for name in ("best.pth", "last.pth"))
    head = [key for key in best if key.startswith("residual_head")]
    assert all(torch.equal(best[key], last[key]) for key in head)  # mIoU cannot move: the newest is kept
    before, _ = load_predictor(run / "best.pth", torch.device("cpu"))
    after, _ = load_predictor(tmp_path / "run" / "best.pth", torch.device("cpu"))
    split = data.open_split(folder_spec(folder), folder, "test")
    for index in range(len(split)):
        image, target = split.read(index)
        one, other = (predict_image(p, image, target.shape, p.scores()) for p in (before, after))
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.scores["energy"], other.scores["energy"])
        assert not torch.equal(other.scores["residual"], other.scores["energy"])


@pytest.mark.slow
def test_a_set_of_anomalies_alone_is_judged_with_the_models_classes(trained, tmp_path):
    run, _ = trained
    frames = tmp_path / "set" / "frames"
    rng = np.random.RandomState(0)
    for i in range(2):
        (frames / f"{i}.labels").mkdir(parents=True)
        Image.fromarray(rng.randint(0, 255, (30, 40, 3)).astype(np.uint8)).save(frames / f"{i}.jpg")
        labels = np.zeros((30, 40), np.uint8)
        labels[5:15, 10:30] = 2
        Image.fromarray(labels).save(frames / f"{i}.labels" / "labels_semantic.png")
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before = (copy / "evaluation.json").exists()
    done = run_script(
        "evaluate.py", "--ckpt", copy / "best.pth", "--dataset", "road_anomaly", "--data-dir", tmp_path / "set",
        "--scores", "energy,sml,sml:standardise",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((copy / "road_anomaly" / "evaluation.json").read_text())
    assert (copy / "evaluation.json").exists() == before  # the run's own figures are not overwritten
    assert result["miou"] is None
    assert result["pixel_accuracy"] is None
    assert list(result["anomaly"]) == ["energy", "sml", "sml:standardise"]
    assert result["anomaly_share"] == pytest.approx(200 / 1200)
    assert result["anomaly"]["energy"]["open_miou"] is None
    assert result["anomaly"]["energy"]["per_image"]["images"] == 2
    assert (copy / "road_anomaly" / "report.html").is_file()


@pytest.mark.slow
def test_predict_marks_exactly_the_pixels_at_or_above_the_threshold(held_out, tmp_path):
    run, folder = held_out
    photo = folder / "images" / "test" / "000.png"
    words = ("--ckpt", run / "best.pth", photo, "--out", tmp_path, "--score", "sml", "--alarm", 0.01)
    done = run_script("predict.py", *words)
    assert done.returncode == 0, done.stderr
    predictor, content = load_predictor(run / "best.pth", torch.device("cpu"))
    with Image.open(photo) as image:
        found = predict_image(predictor, image.convert("RGB"), (40, 56), ["sml"])
    alarm = found.scores["sml"].numpy() >= content["data"]["alarms"]["sml"]["0.01"]
    with Image.open(tmp_path / "classes" / "000.png") as mask:
        drawn = np.asarray(mask)
    assert np.array_equal(drawn == 2, alarm)
    assert np.array_equal(drawn[~alarm], found.labels.numpy()[~alarm])
    assert (tmp_path / "sml" / "000.png").is_file()


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("evaluate.py", ["--scores", "prototype"], "this checkpoint gives no score 'prototype'"),
        ("evaluate.py", ["--scores", "energi"], "did you mean 'energy'"),
        ("evaluate.py", ["--components", "min-size=3"], "unknown option 'min-size'"),
        ("evaluate.py", ["--components", "min-truth=0"], "sizes are at least 1 pixel"),
        ("evaluate.py", ["--dataset", "camvid"], "has a place among red, green, blue at --dataset; leave it out"),
        ("predict.py", ["--alarm", "0.05", "p.png"], "known rates: 0.01, 0.001"),
        ("predict.py", ["--score", "residual", "p.png"], "gives no score 'residual'"),
        ("predict.py", ["--score", "msp,energy", "p.png"], "2 scores at --score"),
    ],
)
def test_wrong_flags_are_one_line(trained, script, words, message):
    done = run_script(script, "--ckpt", trained[0] / "best.pth", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_score_that_is_not_finite_names_its_image():
    totals = EvaluationCounts(2)
    target = torch.tensor([[0, 2]], dtype=torch.uint8)
    scores = {"energy": torch.tensor([[1.0, float("nan")]])}
    found = Prediction(torch.zeros(1, 2, dtype=torch.uint8), torch.ones(1, 2), scores)
    with pytest.raises(ValueError, match="score energy of image 7.*not finite"):
        totals.add_details(7, target, found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--anomaly-classes", "blue"], "have learnt 'blue', which --anomaly-classes holds out"),
        (["--freeze", "all-but-head"], "know other classes"),
    ],
)
def test_weights_that_know_what_they_must_not_are_refused(trained, tmp_path, words, message):
    run, folder = trained
    if "--freeze" in words:  # the same number of classes, one by another name
        folder = shutil.copytree(folder, tmp_path / "set")
        text = (folder / "classes.json").read_text()
        (folder / "classes.json").write_text(text.replace("green", "teal"))
    base = ("--dataset", "folder", "--data-dir", folder, "--run-dir", tmp_path / "run", *TINY)
    done = run_script("train.py", *base, "--weights", run / "best.pth", *words)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.slow
def test_a_class_without_features_costs_its_scores_and_not_the_run(tmp_path):
    """Labels in the top row only: no cell of the coarse map has one at its centre, and all else goes on."""
    root = write_folder_set(tmp_path / "set")
    for mask in root.glob("masks/*/*.png"):
        with Image.open(mask) as target:
            values = np.array(target)
        values[1:] = 255
        Image.fromarray(values).save(mask)
    run = tmp_path / "run"
    done = run_script("train.py", "--dataset", "folder", "--data-dir", root, "--run-dir", run, *TINY)
    assert done.returncode == 0, done.stderr
    about = load_checkpoint(run / "best.pth")["data"]
    assert about["statistics"].keys() == {"max_logit", "similarity"}
    assert "sml" in about["alarms"]


def test_an_answer_that_is_not_finite_names_its_image(colours):
    predictor, spec, root = colours
    predictor.model.mixture[0] = float("nan")
    split = data.open_split(spec, root, "test")
    with pytest.raises(FloatingPointError, match="not finite at images/test/000.png"):
        evaluate(predictor, split, scores=["energy"])
    with pytest.raises(FloatingPointError, match="not finite at images/test/000.png"):
        collect_statistics(predictor, split)


def test_thresholds_of_a_checkpoint_without_any():
    assert alarms_of({"data": {}}) == {}
    with pytest.raises(UserError, match="unknown option"):
        parse_sizes("min=1")
