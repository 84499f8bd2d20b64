"""Outlier terms against numpy, and what they must not touch."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import losses
from losses import centre_distance, known_energy, outlier_energy, outlier_entropy, outlier_pixels

C = 4


@pytest.fixture
def batch():
    """Logits (2, 4, 5, 6), targets with known, pasted (4), normal (253) and void (255) pixels."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, C, 5, 6, generator=generator)
    targets = torch.randint(0, C + 1, (2, 5, 6), generator=generator).to(torch.uint8)
    targets[0, 0, :2], targets[1, 4, 4:] = 255, 253
    return logits, targets


def brute(logits, targets, value):
    """Σ of value(logits of a pixel, target) over all pixels, in plain Python."""
    logits, targets = logits.double().numpy(), targets.numpy()
    return sum(
        value(logits[n, :, y, x], int(targets[n, y, x]))
        for n in range(targets.shape[0])
        for y in range(targets.shape[1])
        for x in range(targets.shape[2])
    )


@pytest.mark.parametrize("level", [-2.0, 0.0, 3.0])
def test_energy_terms_are_their_definition(batch, level):
    logits, targets = batch

    def lse(z):
        return np.log(np.exp(z).sum())

    expected = brute(logits, targets, lambda z, t: max(0, lse(z) - level) ** 2 if t == C else 0)
    assert float(outlier_energy(logits, targets, level)) == pytest.approx(expected, rel=1e-5)
    expected = brute(logits, targets, lambda z, t: max(0, level - lse(z)) ** 2 if t < C else 0)
    assert float(known_energy(logits, targets, level)) == pytest.approx(expected, rel=1e-5)


def test_entropy_term_is_cross_entropy_with_the_uniform_distribution(batch):
    logits, targets = batch

    def uniform(z, t):
        return -np.mean(z - np.log(np.exp(z).sum())) if t == C else 0

    assert float(outlier_entropy(logits, targets)) == pytest.approx(brute(logits, targets, uniform), rel=1e-5)
    flat = torch.zeros_like(logits)
    expected = np.log(C) * float(outlier_pixels(targets, C))
    assert float(outlier_entropy(flat, targets)) == pytest.approx(expected, rel=1e-6)  # its smallest value


def test_centre_term_is_the_distance_to_the_own_centre(batch):
    logits, targets = batch
    distances = -logits.abs()
    expected = brute(distances, targets, lambda z, t: -z[t] if t < C else 0)
    assert float(centre_distance(distances, targets)) == pytest.approx(expected, rel=1e-5)


def criterion(terms, **options):
    return losses.Criterion(terms, C, torch.nn.Identity(), **options)


class Fixed(torch.nn.Module):
    def __init__(self, **outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, images):
        return self.outputs


def test_in_the_criterion_each_term_is_divided_by_its_own_pixels(batch):
    logits, targets = batch
    terms = {"ce": [1.0], "outlier-energy": [0.5, 0.0], "known-energy": [0.1, 8.0], "outlier-entropy": [2.0]}
    terms["centre"] = [1.0]
    one = criterion(terms)
    weights, totals = one.weights(targets), one(Fixed(out=logits), torch.zeros(2, 3, 5, 6), targets)
    known, pasted = int((targets < C).sum()), int((targets == C).sum())
    assert {name: float(w) for name, w in weights.items()} == {
        "ce": known, "known-energy": known, "centre": known, "outlier-energy": pasted, "outlier-entropy": pasted,
    }  # fmt: skip
    assert float(totals["outlier-energy"]) == pytest.approx(0.5 * float(outlier_energy(logits, targets, 0.0)))
    ignored = targets.long().masked_fill(targets >= C, 255)
    reference = F.cross_entropy(logits, ignored, ignore_index=255, reduction="sum")
    assert float(totals["ce"]) == pytest.approx(float(reference), rel=1e-6)  # pasted pixels are void to it


def test_a_batch_without_pasted_pixels_is_a_zero(batch):
    logits, targets = batch
    targets = targets.masked_fill(targets == C, 255)
    one = criterion({"outlier-energy": [0.5, 0.0], "outlier-entropy": [1.0]})
    totals, weights = one(Fixed(out=logits), torch.zeros(2, 3, 5, 6), targets), one.weights(targets)
    assert all(float(value) == 0 for value in (*totals.values(), *weights.values()))


def test_a_class_of_weight_zero_does_not_take_the_pasted_pixels_with_it(batch):
    logits, targets = batch
    weights = torch.tensor([1.0, 1.0, 1.0, 0.0])  # the last one: its number is the nearest to the pasted pixels'
    one = criterion({"outlier-energy": [1.0, 0.0]}, class_weights=weights)
    assert float(one.weights(targets)["outlier-energy"]) == int((targets == C).sum())


def test_with_a_residual_head_its_logits_are_judged(batch):
    logits, targets = batch
    logits.requires_grad_()
    opened = torch.randn(2, C, 5, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    one = criterion({"outlier-energy": [1.0, 0.0], "known-energy": [1.0, 8.0], "outlier-entropy": [1.0]})
    sum(one(Fixed(out=logits, open=opened), torch.zeros(2, 3, 5, 6), targets).values()).backward()
    assert logits.grad is None
    assert opened.grad.abs().sum() > 0
