"""The calibration error against torchmetrics and hand-worked cases."""

import pytest
import torch
from torchmetrics.classification import MulticlassCalibrationError

from metrics import Calibration


def test_calibration_is_torchmetrics():
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2000, 6, generator=generator)
    targets = torch.where(torch.rand(2000, generator=generator) < 0.4, logits.argmax(1), torch.arange(2000) % 6)
    confidence, prediction = logits.softmax(1).max(1)
    calibration = Calibration()
    calibration.update(confidence, prediction == targets)
    reference = MulticlassCalibrationError(6, n_bins=15, norm="l1")(logits.softmax(1), targets)
    assert calibration.ece() == pytest.approx(float(reference), abs=1e-6)


def test_calibration_of_a_hand_worked_case():
    calibration = Calibration()
    assert calibration.ece() is None
    calibration.update(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    assert calibration.ece() is None
    calibration.update(torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[True, False], [True, False]]))
    assert calibration.ece() == 0
    calibration.update(torch.tensor([1.0, 1.0, 1.0]), torch.tensor([False, False, True]))
    assert calibration.ece() == pytest.approx((4 * abs(2 / 4 - 1) + 0 + 0) / 7)


def test_bins_close_on_the_right():
    edges = torch.arange(1, 16) / 15
    calibration = Calibration()
    calibration.update(edges.clamp(max=1), torch.ones(15, dtype=torch.bool))
    calibration.update(torch.tensor([0.0]), torch.tensor([False]))
    assert calibration.sums[0].tolist() == [2] + [1] * 14


def test_calibration_shards_add_up_to_the_whole_exactly():
    generator = torch.Generator().manual_seed(1)
    confidence, correct = torch.rand(10_000, generator=generator), torch.rand(10_000, generator=generator) < 0.7
    whole, merged = Calibration(), Calibration()
    whole.update(confidence.view(100, 100), correct.view(100, 100))
    for part in torch.randperm(10_000, generator=generator).split(1234):
        shard = Calibration()
        shard.update(confidence[part], correct[part])
        merged.merge(shard)
    assert torch.equal(whole.sums, merged.sums)
    assert whole.ece() == merged.ece()


def test_calibration_refuses_what_is_no_confidence():
    for bad in (1.001, -0.001, float("nan")):
        with pytest.raises(ValueError, match="confidences must lie in 0..1"):
            Calibration().update(torch.tensor([0.5, bad]), torch.tensor([True, True]))
    with pytest.raises(ValueError, match="shape"):
        Calibration().update(torch.zeros(3), torch.zeros(2, dtype=torch.bool))
