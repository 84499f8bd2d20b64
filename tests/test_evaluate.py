"""evaluate.py and predict.py from the outside: the JSON's keys, the same picture everywhere, bounded memory."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics as sklearn_metrics
from torch.nn import functional as F
from torchvision.transforms.functional import resize

import cli
import data
import evaluate
import metrics
import models
import predict
from datasets.driving import STREETHAZARDS
from engine import evaluation
from engine.checkpoint import load_checkpoint
from engine.predictor import Predictor, feature_statistics, set_views, view_options, window_starts
from engine.summary import summarise
from engine.trained_run import load_predictor
from networks.blocks import Normalise
from networks.weights import load_weights
from tests.scripts import ENVIRONMENT, ROOT, run_script

KEYS = {
    "split", "images", "pixels", "miou", "miou_interval", "classes_averaged", "pixel_accuracy", "mean_accuracy",
    "fwiou", "iou", "active_classes", "spurious_classes", "layout_floor", "semantic_gain", "boundary_iou",
    "boundary_f1", "ece", "per_image", "anomaly", "protocol", "confusion", "confusions", "worst_images",
}  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """(run, data, output folder, JSON) of evaluate.py on the trained model."""
    run, folder = trained
    out = tmp_path_factory.mktemp("evaluated")
    done = run_script("evaluate.py", "--ckpt", run / "best.pth", "--out", out, "--json", out / "numbers.json")
    assert done.returncode == 0, done.stderr
    assert "layout floor" in done.stdout
    return run, folder, out, json.loads((out / "numbers.json").read_text())


def test_json_has_every_key_and_agrees_with_itself(evaluated):
    _, _, out, result = evaluated
    assert result.keys() >= KEYS
    assert result["images"] == 3
    assert result["pixels"] == 3 * 40 * 56
    low, high = result["miou_interval"]
    assert 0 <= low <= result["miou"] <= high <= 1
    gain = (result["miou"] - result["layout_floor"]) / (1 - result["layout_floor"])
    assert result["semantic_gain"] == pytest.approx(gain)
    present = [v for v in result["iou"].values() if v is not None]
    assert result["miou"] == pytest.approx(np.mean(present))
    assert result["classes_averaged"] == len(present)
    assert sum(result["pixel_share"].values()) == pytest.approx(1)
    rated = {file: row["miou"] for file, row in result["per_image"].items()}
    assert [(row["file"], row["miou"]) for row in result["worst_images"]] == sorted(rated.items(), key=lambda i: i[1])
    assert len(rated) == 3
    protocol = result["protocol"]
    assert (protocol["flip"], protocol["scales"], protocol["window"]) == (False, [1.0], None)
    assert (out / "report.html").stat().st_size > 10_000
    assert len(list((out / "pictures").glob("panel-*.png"))) == 3


def test_figures_agree_with_an_independent_count_from_predicts_masks(evaluated, tmp_path):
    """Predict on the photos equals evaluate on them, pixel for pixel: recount mIoU from predict's PNG files."""
    run, folder, _, result = evaluated
    done = run_script("predict.py", "--ckpt", run / "best.pth", folder / "images" / "test", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    confusion, boundary, boundary_f1 = np.zeros((3, 3), np.int64), 0, 0
    for path in sorted((folder / "masks" / "test").iterdir()):
        with Image.open(tmp_path / "classes" / path.name) as predicted, Image.open(path) as target:
            assert predicted.mode == "P"
            assert predicted.size == target.size
            target, predicted = np.array(target), np.array(predicted)
        np.add.at(confusion, (target.ravel(), predicted.ravel()), 1)
        own = sklearn_metrics.jaccard_score(target.ravel(), predicted.ravel(), average="macro")
        assert result["per_image"][f"images/test/{path.name}"]["miou"] == pytest.approx(own)
        boundary = boundary + metrics.boundary_counts(predicted, target, 3)
        boundary_f1 = boundary_f1 + metrics.boundary_f1_counts(predicted, target, 3)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    iou = np.diag(confusion) / np.maximum(union, 1)
    assert result["confusion"] == confusion.tolist()
    assert result["miou"] == pytest.approx(iou[union > 0].mean())
    assert result["fwiou"] == pytest.approx((iou * confusion.sum(1)).sum() / confusion.sum())
    assert result["boundary_iou"] == metrics.boundary_iou(boundary)
    assert result["boundary_f1"] == metrics.boundary_f1(boundary_f1)
    assert result["pixel_accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert len(list((tmp_path / "overlay").iterdir())) == len(list((tmp_path / "maxlogit").iterdir())) == 3


def test_anomaly_figures_are_there_where_the_split_has_anomalies(tmp_path, monkeypatch):
    """A miniature of the StreetHazards layout, a model whose anomaly scores are known."""
    spec = STREETHAZARDS
    for part in spec.splits["test"]:
        (tmp_path / part / "t5").mkdir(parents=True)
    rng = np.random.RandomState(0)
    for i in range(3):
        labels = rng.randint(1, 15, (24, 32)).astype(np.uint8)
        image = np.zeros((24, 32, 4), np.uint8)
        image[..., 0] = np.where(labels == 14, 40, 200) + rng.randint(0, 30, labels.shape)
        Image.fromarray(image).save(tmp_path / spec.splits["test"][0] / "t5" / f"{i}.png")  # RGBA, as the official ones
        Image.fromarray(labels).save(tmp_path / spec.splits["test"][1] / "t5" / f"{i}.png")

    class Known(torch.nn.Module):
        def forward(self, images):
            return {"out": torch.cat([images[:, :1] * (c + 1) / 13 for c in range(13)], 1)}  # largest logit: red

    same = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    predictor = Predictor(Known(), 13, data.Geometry([24, 32]), torch.device("cpu"), same)
    split = data.open_split(spec, tmp_path, "test")
    layout = np.zeros(metrics.GRID, np.uint8)
    totals = evaluation.evaluate(predictor, split, layout_map=layout, scores=["maxlogit"])
    about = {"classes": list(spec.classes), "dataset": spec.name, "geometry": vars(predictor.geometry)}
    content = {"data": about, "config": {}}
    result = summarise(totals, split, spec, content, predictor)
    row = result["anomaly"]["maxlogit"]
    assert row["aupr"] == pytest.approx(1.0)  # dark pixels are the anomalies, and get the largest score
    assert row["auroc"] == pytest.approx(1.0)
    assert row["fpr95"] == 0.0
    assert row["per_image"] == {"aupr": pytest.approx(1.0), "auroc": pytest.approx(1.0), "fpr95": 0.0, "images": 3}
    assert sum(totals.confusion.sum(1)) < split.read(0)[1].size * 3  # anomaly pixels are no known-class pixels
    json.dumps(result, allow_nan=False)


def test_a_photo_is_turned_as_a_person_sees_it(trained, tmp_path):
    run, _ = trained
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(np.random.RandomState(0).randint(0, 256, (30, 50, 3)).astype(np.uint8))
    photo.save(tmp_path / "turned.jpg", exif=exif)
    predictor, _ = load_predictor(run / "best.pth", torch.device("cpu"))
    image, found = predict.segment(predictor, tmp_path / "turned.jpg")
    assert (image.width, image.height) == (30, 50)
    assert found.labels.shape == (50, 30)


# ---------------------------------------------------------------------------------------------------------------------
# Flips, scales, windows

SAME = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


class Watched(torch.nn.Module):
    """A network of one convolution, by default wide, lopsided and deep in nothing; remembers what it was shown."""

    def __init__(self, kernel_size=5):
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 4, kernel_size, padding=kernel_size // 2)
        self.shown = []

    def forward(self, images):
        self.shown.append(tuple(images.shape))
        return {"out": self.convolution(images)}


def watched(kernel_size=5, **options):
    """A predictor with the network above, for images of any size."""
    geometry = data.Geometry([30, 41], crop=[16, 20])
    return Predictor(Watched(kernel_size), 4, geometry, torch.device("cpu"), SAME, **options)


@pytest.fixture
def pictures():
    """(2, 30, 41, 3) uint8."""
    return torch.randint(0, 256, (2, 30, 41, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("window", [None, [16, 20]])
def test_with_flips_the_mirror_image_gets_exactly_the_mirrored_logits(pictures, window):
    predictor = watched(flip=True, window=window)
    logits = predictor.logits(pictures)
    assert torch.equal(predictor.logits(pictures.flip(2)).flip(3), logits)
    assert not torch.equal(watched().logits(pictures.flip(2)).flip(3), watched().logits(pictures))
    plain = watched(window=window)
    own, mirrored = plain.logits(pictures), plain.logits(pictures.flip(2)).flip(3)
    assert torch.allclose(logits, (own + mirrored) / 2, atol=1e-6)  # logits, not probabilities
    both = watched(flip=True, scales=(0.7, 1.0, 1.3))
    assert torch.allclose(both.logits(pictures.flip(2)).flip(3), both.logits(pictures), atol=1e-5)


def test_scale_one_and_no_flip_change_no_bit(pictures):
    plain = watched().logits(pictures)
    assert torch.equal(watched(scales=(1.0,)).logits(pictures), plain)
    direct = watched().model(pictures.permute(0, 3, 1, 2).float() / 255)["out"]
    assert torch.equal(plain, direct)
    assert torch.allclose(watched(scales=(1.0, 1.0, 1.0)).logits(pictures), plain, atol=1e-6)


def test_scales_are_those_of_torchvisions_resize(pictures):
    predictor = watched(scales=(0.5, 1.0, 2.0), flip=True)
    found = predictor.logits(pictures)
    assert [shape[2:] for shape in predictor.model.shown] == [(15, 20)] * 2 + [(30, 41)] * 2 + [(60, 82)] * 2
    expected = 0
    for size in ((15, 20), (30, 41), (60, 82)):
        for mirrored in (False, True):
            images = resize(pictures.permute(0, 3, 1, 2).float() / 255, size, antialias=True)
            logits = watched().model(images.flip(3) if mirrored else images)["out"]
            logits = F.interpolate(logits, (30, 41), mode="bilinear")
            expected = expected + (logits.flip(3) if mirrored else logits) / 6
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.shape == (2, 4, 30, 41)
    assert found.dtype == torch.float32


@pytest.mark.parametrize("window", [[16, 20], [30, 41], [7, 90], [500, 500], [1, 1]])
def test_windows_over_a_network_that_sees_single_pixels_change_nothing(pictures, window):
    predictor = watched(kernel_size=1, window=window)
    logits = predictor.logits(pictures)
    assert torch.allclose(logits, watched(kernel_size=1).logits(pictures), atol=1e-6)
    expected = (2, 3, min(window[0], 30), min(window[1], 41))
    assert set(predictor.model.shown) == {expected}  # one place at a time, never more than the window


def test_a_window_gives_each_pixel_the_mean_over_the_windows_that_see_it(pictures):
    found = watched(window=[16, 20]).logits(pictures)
    total, times = torch.zeros(2, 4, 30, 41), torch.zeros(30, 41)
    images = pictures.permute(0, 3, 1, 2).float() / 255
    for top in (0, 10, 14):
        for left in (0, 13, 21):
            part = np.s_[..., top : top + 16, left : left + 20]
            total[part] += watched().model(images[part])["out"].detach()
            times[part] += 1
    assert torch.allclose(found, total / times, atol=1e-6)
    assert not torch.allclose(found, watched().logits(pictures), atol=1e-3)  # a window's border is not the image's


def test_windows_cover_a_side_and_overlap_by_a_third():
    for length in range(1, 120):
        for window in range(2, length + 1):
            starts = window_starts(length, window)
            assert starts[0] == 0
            assert starts[-1] == length - window
            steps = np.diff(starts)
            assert (steps > 0).all()
            assert (window - steps >= window / 3).all()


def parsed(*words):
    return evaluate.build_parser().parse_args(["--ckpt", "best.pth", *words])


@pytest.mark.parametrize("text", ["0", "a", "", "1,", "-1", "4.1", "0.05", "nan", "inf", "1;2", "0.75,0"])
def test_wrong_scales_are_one_line(text):
    with pytest.raises(cli.UserError, match="--scales: .* is not a list of factors from 0.1 to 4") as error:
        parsed(f"--scales={text}")
    assert "\n" not in str(error.value)


def test_flags_reach_the_predictor():
    predictor = watched()
    set_views(predictor, **view_options(parsed()))
    assert (predictor.flip, predictor.scales, predictor.window) == (False, (1.0,), None)
    words = ["--tta", "flip", "--scales", "0.75,1,1.25", "--sliding-window"]
    set_views(predictor, **view_options(parsed(*words)))
    assert (predictor.flip, predictor.scales, predictor.window) == (True, (0.75, 1.0, 1.25), [16, 20])
    same = predict.build_parser().parse_args(["--ckpt", "best.pth", "a.jpg", *words])
    assert (same.tta, same.scales, same.sliding_window) == ("flip", (0.75, 1.0, 1.25), True)


def run(script, words, monkeypatch):
    """A script's main in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, words)])
    return cli.run(script.main)


def test_a_sliding_window_needs_a_model_trained_on_crops(trained, monkeypatch, capsys):
    for script, words in ((evaluate, []), (predict, ["photo.jpg"])):
        assert run(script, [*words, "--ckpt", trained[0] / "best.pth", "--sliding-window"], monkeypatch) == 2
        err = capsys.readouterr().err.strip()
        assert err.startswith("error: the model was trained on whole images")
        assert "train with --crop" in err
        assert "\n" not in err


def test_predict_with_flips_and_scales_is_evaluate_with_them(trained, tmp_path, monkeypatch, capsys):
    run_dir, folder = trained
    common = ["--ckpt", run_dir / "best.pth", "--device", "cpu", "--tta", "flip", "--scales", "0.75,1.5"]
    words = ["--out", tmp_path / "evaluated", "--workers", 0, "--panels", 0, "--batch-size", 1]
    assert run(evaluate, [*common, *words], monkeypatch) == 0
    assert run(predict, [*common, "--out", tmp_path, folder / "images" / "test"], monkeypatch) == 0
    result = json.loads((tmp_path / "evaluated" / "evaluation.json").read_text())
    assert (result["protocol"]["flip"], result["protocol"]["scales"]) == (True, [0.75, 1.5])
    confusion = 0
    for path in sorted((folder / "masks" / "test").iterdir()):
        target, predicted = (np.array(Image.open(p)) for p in (path, tmp_path / "classes" / path.name))
        confusion = confusion + sklearn_metrics.confusion_matrix(target.ravel(), predicted.ravel(), labels=range(3))
    assert result["confusion"] == confusion.tolist()
    out = capsys.readouterr().out
    assert "worst images by mIoU: images/test/" in out
    first = result["confusions"][0]
    assert f"{first['target']} taken for {first['prediction']} (" in out


# ---------------------------------------------------------------------------------------------------------------------
# What the stages see


class Staged(torch.nn.Module):
    """Two backbone maps and a pyramid level with known values."""

    def forward(self, images):
        return {"out": images}

    def backbone_features(self, images):
        return [images * 2 - 1, F.avg_pool2d(images, 2).repeat(1, 4, 1, 1)]

    def pyramid_features(self, images):
        return [(images - 0.5).relu()[:, :2]]


def test_feature_figures_are_numpys_over_images_of_any_size():
    predictor = Predictor(Staged(), 3, data.Geometry([8, 8]), torch.device("cpu"), SAME)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in ((12, 16, 3), (20, 10, 3))]
    rows = feature_statistics(predictor, map(torch.from_numpy, images))
    assert [(row["stage"], row["shape"]) for row in rows] == [
        ("backbone 1", [3, 12, 16]),
        ("backbone 2", [12, 6, 8]),
        ("pyramid 1", [2, 12, 16]),
    ]
    whole = [image.astype(np.float64) / 255 for image in images]
    expected = {
        "backbone 1": [one * 2 - 1 for one in whole],
        "pyramid 1": [np.maximum(one - 0.5, 0)[..., :2] for one in whole],
    }
    for row in rows[::2]:
        values = np.concatenate([one.ravel() for one in expected[row["stage"]]])
        figures = (values.mean(), values.std(), (values == 0).mean())
        assert (row["mean"], row["std"], row["zeros"]) == pytest.approx(figures, rel=1e-5)
    assert 0.3 < rows[2]["zeros"] < 0.7


def test_features_that_are_not_finite_have_no_mean():
    predictor = Predictor(Staged(), 3, data.Geometry([8, 8]), torch.device("cpu"), SAME)
    predictor.model.backbone_features = lambda images: [images / 0]
    predictor.model.pyramid_features = lambda images: []
    (row,) = feature_statistics(predictor, [torch.full((4, 4, 3), 9, dtype=torch.uint8)])
    assert (row["mean"], row["std"], row["zeros"]) == (None, None, 0)


def test_features_are_pictures_a_table_and_a_section(trained, tmp_path, monkeypatch, capsys):
    words = ["--ckpt", trained[0] / "best.pth", "--features", "--limit", 2, "--out", tmp_path, "--workers", 0]
    assert run(evaluate, [*words, "--device", "cpu"], monkeypatch) == 0
    about = json.loads((tmp_path / "features.json").read_text())
    assert (
        about["drawn"]
        == about["images"][0]
        == json.loads((tmp_path / "evaluation.json").read_text())["worst_images"][0]["file"]
    )
    assert len(about["images"]) == 2
    stages = [row["stage"] for row in about["stages"]]
    assert stages[0] == "backbone 1"
    assert {path.stem for path in (tmp_path / "features").iterdir()} == {
        "means",
        *(s.replace(" ", "-") for s in stages),
    }
    out, text = capsys.readouterr().out, (tmp_path / "report.html").read_text()
    for stage in stages:
        assert stage in out
        assert f"<td>{stage}</td>" in text
    assert "<h2>Features</h2>" in text


# ---------------------------------------------------------------------------------------------------------------------
# Memory and weights


MEASURE = """
import resource, sys, torch
from argparse import Namespace
import data, models, predict
from engine.predictor import Predictor
args = Namespace(image_size=[240, 320], crop=eval(sys.argv[2]), short_side=0)
model = models.build_model("mobilenetv2", 150)
predictor = Predictor(model, 150, data.Geometry.from_args(args, 150), torch.device("cpu"))
predictor.logits(torch.zeros(1, 64, 64, 3, dtype=torch.uint8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
image, found = predict.segment(predictor, sys.argv[1])
assert found.labels.shape == (3000, 4000), found.labels.shape
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.slow
@pytest.mark.parametrize("crop", [None, [240, 240]])
def test_a_12_megapixel_photo_with_150_classes_fits_in_2_gb_beyond_the_model(tmp_path, crop):
    Image.new("RGB", (4000, 3000), (90, 120, 60)).save(tmp_path / "big.jpg")
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "big.jpg"), repr(crop)]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    gigabytes = float(done.stdout.split()[-1])
    assert math.isfinite(gigabytes)
    assert gigabytes < 2.0


def test_weights_of_a_checkpoint_start_another_run(trained):
    """--weights takes our own checkpoint; with other classes it names the layers it leaves."""
    run, _ = trained
    torch.manual_seed(1)
    other = models.build_model("mobilenetv2", 7)
    lines = load_weights(other, run / "best.pth")
    state = load_checkpoint(run / "best.pth")["state"]
    assert torch.equal(other.state_dict()["backbone.features.0.0.weight"], state["backbone.features.0.0.weight"])
    assert any("classifier.weight" in line for line in lines)
