"""Counts over a split: sharded as whole, at the targets' own sizes, of changed images."""

import numpy as np
import torch

import data
import metrics
from datasets.catalogue import build_spec
from engine.evaluation import evaluate
from engine.predictor import Predictor
from networks.blocks import Normalise

CPU = torch.device("cpu")


class ColourModel(torch.nn.Module):
    """Logits are the three colour channels: a model whose every answer is known."""

    def forward(self, images):
        return {"out": images}


def predictor(size=(40, 56)):
    same = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Predictor(ColourModel(), 3, data.Geometry(list(size)), CPU, same)


def test_sharded_evaluation_equals_the_whole(folder_set):
    split = data.open_split(build_spec("folder", folder_set), folder_set, "train")
    layout = np.zeros(metrics.GRID, np.uint8)
    common = {"layout_map": layout, "scores": ["maxlogit"]}
    whole = evaluate(predictor(), split, batch_size=3, **common)
    parts = [evaluate(predictor(), split, batch_size=2, indices=range(r, 8, 3), **common) for r in range(3)]
    for part in parts[1:]:
        parts[0].merge(part)
    assert torch.equal(parts[0].confusion, whole.confusion)
    assert torch.equal(parts[0].floor, whole.floor)
    assert parts[0].loss() == whole.loss()
    assert parts[0].calibration.ece() == whole.calibration.ece()
    assert torch.equal(parts[0].boundary, whole.boundary)
    assert all(torch.equal(parts[0].images[i], whole.images[i]) for i in range(8))
    assert whole.scores()["miou"] > 0.95  # red, green and blue bands are the classes


def test_evaluation_reads_targets_at_their_own_size(folder_set):
    split = data.open_split(build_spec("folder", folder_set), folder_set, "train")
    small = evaluate(predictor((20, 28)), split)
    assert small.confusion.sum() == 8 * 40 * 56
    assert small.pixels == 8 * 40 * 56


def test_what_replaces_the_images_is_what_is_judged(folder_set):
    split = data.open_split(build_spec("folder", folder_set), folder_set, "train")

    def only_green(images, targets, indices):
        assert len(images) == len(targets) == len(indices)
        green = torch.zeros_like(images)
        green[..., 1] = 255
        return green

    totals = evaluate(predictor(), split, change=only_green)
    assert totals.confusion.sum(0)[[0, 2]].tolist() == [0, 0]
