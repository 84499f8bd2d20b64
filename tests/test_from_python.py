"""What a notebook needs, a line each and without a command line: data, a model, a step, a checkpoint, a prediction."""

import torch
from PIL import Image

import data
import losses
import models
from engine.devices import open_dataset
from engine.evaluation import evaluate
from engine.optim import build_optimizer
from engine.predictor import Predictor, predict_image
from engine.sampling import draw_requests
from engine.trained_run import load_predictor
from engine.training import Training, train_step
from networks.blocks import Normalise
from probes.files import mask_borders
from probes.subject import Subject
from probes.trained_weights import untrained

GEOMETRY = data.Geometry([32, 48])


def test_open_a_set_train_a_step_evaluate_and_predict(folder_set):
    spec, root = open_dataset("folder", folder_set)
    train = data.open_split(spec, root, "train")
    torch.manual_seed(0)
    model, _ = models.start_model("mobilenetv2", spec.num_classes)
    training = Training(model, build_optimizer(model, lr=1e-3))
    criterion = losses.Criterion(losses.parse_loss("ce=1,dice=0.5"), spec.num_classes, Normalise())
    requests = draw_requests(len(train), 4, torch.Generator().manual_seed(0))
    images, targets = next(data.training_batches(train, GEOMETRY, requests))
    steps = [train_step(training, criterion, images, targets)["loss"] for _ in range(4)]
    assert steps[-1] < steps[0]

    predictor = Predictor(model, spec.num_classes, GEOMETRY, torch.device("cpu"))
    counts = evaluate(predictor, data.open_split(spec, root, "val"))
    assert 0 <= counts.scores()["miou"] <= 1
    image = Image.new("RGB", (70, 50), (200, 40, 40))
    assert predict_image(predictor, image, (50, 70)).labels.shape == (50, 70)


def test_ask_a_trained_checkpoint(trained):
    run, _ = trained
    predictor, content = load_predictor(run / "best.pth")
    found = predict_image(predictor, Image.new("RGB", (56, 40)), (40, 56), ["maxlogit"])
    assert found.labels.max() < len(content["data"]["classes"])
    assert found.scores["maxlogit"].isfinite().all()


def test_run_one_probe(folder_set, trained):
    [finding] = mask_borders(Subject.open("folder", folder_set))
    assert finding.verdict == "pass"
    [finding] = untrained(Subject.load(trained[0] / "best.pth"))
    assert finding.probe == "model.untrained"
