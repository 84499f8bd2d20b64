"""Strips against one resize, and the figures of a prediction against softmax."""

import math

import pytest
import torch
import torch.nn.functional as F

from engine import predictor as predictor_module
from engine.predictor import predict, strips

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [(90, 61), (24, 32), (7, 9), (24, 61)])
def test_strips_equal_one_resize_whatever_their_height(size, monkeypatch):
    logits = torch.randn(5, 24, 32, generator=torch.Generator().manual_seed(0))
    whole = torch.cat([strip for _, strip in strips(logits, size)], 1)
    reference = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    assert torch.allclose(whole, reference, atol=1e-5)
    monkeypatch.setattr(predictor_module, "STRIP_BYTES", 4 * 5 * size[1] * 3)
    parts = list(strips(logits, size))
    assert len(parts) == math.ceil(size[0] / 3)
    assert torch.equal(torch.cat([strip for _, strip in parts], 1), whole)


def test_prediction_figures_against_softmax():
    logits = torch.randn(4, 9, 11, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, 4, (9, 11), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    target[0] = 255
    target[1] = 4  # anomaly: no known class
    found = predict({"out": logits}, (9, 11), target, ["maxlogit"])
    probabilities = logits.softmax(0)
    assert torch.equal(found.labels.long(), probabilities.argmax(0))
    assert torch.allclose(found.confidence, probabilities.max(0).values)
    assert torch.allclose(found.scores["maxlogit"], -logits.max(0).values)
    known = target < 4
    nll = F.cross_entropy(logits[None], torch.where(known, target, 9).long()[None], ignore_index=9, reduction="sum")
    assert found.nll == pytest.approx(float(nll), rel=1e-5)
    assert found.pixels == int(known.sum())
