"""Every recipe is read, means something to every part it speaks to, and opens with where it comes from."""

from pathlib import Path

import pytest
import torch

import data
import losses
import models
import train
from engine.optim import Schedule, build_optimizer, optimizer_options
from engine.sampling import parse_sampling
from networks.blocks import Normalise

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.args"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path):
    parser = train.build_parser()
    args = parser.parse_args([f"@{path}", "--data-dir", "somewhere"])
    assert {"dataset", "model", "optimizer", "schedule", "epochs"} <= parser.given
    name, options = models.parse_model(args.model)
    with torch.device("meta"):
        model = models.build_model(name, 34, options)
    assert args.weights == "none" or getattr(model, args.weights)
    models.freeze_parameters(model, args.freeze)
    assert build_optimizer(model, **optimizer_options(args))
    Schedule(args.schedule, 1000, 100, args.warmup).rate(args.lr, 500)
    assert losses.Criterion(losses.parse_loss(args.loss), 34, Normalise(), label_smoothing=args.label_smoothing)
    data.parse_augment(args.augment)
    parse_sampling(args.sampling, args.crop)
    data.Geometry.from_args(args, 34)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_opens_with_its_source_and_its_cost(path):
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = " ".join(comments).lower()
    assert path.read_text(encoding="utf-8").startswith("# ")
    if "unmeasured" not in text:  # then its row stands in the README's table of what is measured
        measured = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What is measured")[2]
        assert f"| `python train.py @recipes/{path.name}" in measured
    assert max(map(len, path.read_text(encoding="utf-8").splitlines())) <= 120


def test_the_promised_ones_are_there():
    expected = "ade20k camvid driving-robust floorplan msrc msrc-exercise streethazards streethazards-paper streets"
    named = {path.stem: path for path in RECIPES}
    assert set(named) == set(expected.split())
    exercise = train.build_parser().parse_args([f"@{named['msrc-exercise']}"])
    assert (exercise.model, exercise.freeze, exercise.lr, exercise.monitor) == ("mobilenetv2", "50", 1e-3, "accuracy")
