"""evaluate.py and predict.py from the outside: the JSON's keys, the same picture everywhere, bounded memory."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ENVIRONMENT, ROOT, run_script
from PIL import Image

import checkpoint
import data
import data_specs
import engine
import evaluate
import metrics
import models
import predict

KEYS = {
    "split", "images", "pixels", "miou", "miou_interval", "classes_averaged", "pixel_accuracy", "mean_accuracy",
    "fwiou", "iou", "active_classes", "spurious_classes", "layout_floor", "semantic_gain", "boundary_iou",
    "boundary_f1", "ece", "per_image", "anomaly", "protocol",
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
    assert len(result["per_image"]) == 3
    assert (out / "report.html").stat().st_size > 10_000
    assert len(list((out / "pictures").glob("panel-*.png"))) == 3


def test_figures_agree_with_an_independent_count_from_predicts_masks(evaluated, tmp_path):
    """Predict on the photos equals evaluate on them, pixel for pixel: recount mIoU from predict's PNG files."""
    run, folder, _, result = evaluated
    done = run_script("predict.py", "--ckpt", run / "best.pth", folder / "images" / "test", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    confusion = np.zeros((3, 3), np.int64)
    for path in sorted((folder / "masks" / "test").iterdir()):
        with Image.open(tmp_path / "classes" / path.name) as predicted, Image.open(path) as target:
            assert predicted.mode == "P"
            assert predicted.size == target.size
            np.add.at(confusion, (np.array(target).ravel(), np.array(predicted).ravel()), 1)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    assert result["miou"] == pytest.approx((np.diag(confusion) / union)[union > 0].mean())
    assert result["pixel_accuracy"] == pytest.approx(np.trace(confusion) / confusion.sum())
    assert len(list((tmp_path / "overlay").iterdir())) == len(list((tmp_path / "maxlogit").iterdir())) == 3


def test_anomaly_figures_are_there_where_the_split_has_anomalies(tmp_path, monkeypatch):
    """A miniature of the StreetHazards layout, a model whose anomaly scores are known."""
    spec = data_specs.STREETHAZARDS
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

    same = data.Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    predictor = engine.Predictor(Known(), 13, data.Geometry([24, 32]), torch.device("cpu"), same)
    split = data.open_split(spec, tmp_path, "test")
    layout = np.zeros(metrics.GRID, np.uint8)
    totals = engine.evaluate(predictor, split, layout_map=layout, scores=["maxlogit"])
    content = {"data": {"classes": list(spec.classes), "dataset": spec.name, "geometry": vars(predictor.geometry)}}
    result = evaluate.summarise(totals, split, content)
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
    predictor, _ = engine.load_predictor(run / "best.pth", torch.device("cpu"))
    image, found = predict.segment(predictor, tmp_path / "turned.jpg")
    assert (image.width, image.height) == (30, 50)
    assert found.labels.shape == (50, 30)


MEASURE = """
import resource, sys, torch
from argparse import Namespace
import data, engine, models, predict
args = Namespace(image_size=[240, 320], crop=eval(sys.argv[2]), short_side=0)
model = models.build_model("mobilenetv2", 150)
predictor = engine.Predictor(model, 150, data.Geometry.from_args(args, 150), torch.device("cpu"))
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
    lines = models.load_weights(other, run / "best.pth")
    state = checkpoint.load_checkpoint(run / "best.pth")["state"]
    assert torch.equal(other.state_dict()["backbone.features.0.0.weight"], state["backbone.features.0.0.weight"])
    assert any("classifier.weight" in line for line in lines)
