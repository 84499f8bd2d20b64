"""The losses per pixel against torch's own cross-entropy, sorting by hand, and segmentation_models_pytorch."""

import math

import pytest
import torch

from losses import cross_entropy, focal, labelled_images, ohem, sum_of_weights
from tests.losses.examples import VOID, example, torch_cross_entropy

WEIGHTS = torch.tensor([0.2, 3.0, 1.0, 0.01, 7.0, 0.5, 1.5])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("void_share", [0.0, 0.6])
def test_cross_entropy_and_its_gradient_are_torchs(smoothing, weights, void_share):
    logits, targets = example(void_share=void_share)
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = cross_entropy(ours, targets, weights, smoothing) / sum_of_weights(targets, 7, weights)
    reference = torch_cross_entropy(theirs, targets, weights, smoothing)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_of_weight_zero_is_void(smoothing):
    logits, targets = example()
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 1.0, 1.0])
    loss = cross_entropy(logits, targets, weights, smoothing) / sum_of_weights(targets, 7, weights)
    dropped = torch.where((targets == 1) | (targets == 4), VOID, targets)
    torch.testing.assert_close(loss, torch_cross_entropy(logits, dropped, weights, smoothing))
    assert ohem(logits, targets, 0.7, weights) == ohem(logits, dropped, 0.7, weights)


# --- focal


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_focal_with_gamma_0_is_cross_entropy_and_with_2_is_not(weights):
    logits, targets = example()
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    zero, reference = focal(ours, targets, 0.0, weights), cross_entropy(theirs, targets, weights)
    assert zero == reference
    zero.backward()
    reference.backward()
    assert torch.equal(ours.grad, theirs.grad)
    assert focal(logits, targets, 2.0, weights) < 0.98 * reference


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_is_the_papers_formula_at_each_pixel(gamma):
    logits, targets = example()
    by_hand = 0.0
    for n, y, x in (targets < 7).nonzero().tolist():
        t = int(targets[n, y, x])
        p = float(logits[n, :, y, x].double().softmax(0)[t])
        by_hand += float(WEIGHTS[t]) * (1 - p) ** gamma * -math.log(p)
    assert focal(logits, targets, gamma, WEIGHTS).item() == pytest.approx(by_hand, rel=1e-5)


def test_focal_is_segmentation_models_pytorchs():
    functional = pytest.importorskip("segmentation_models_pytorch.losses._functional")
    logits, targets = example(void_share=0)
    targets[0, 0, 0] = 0
    reference = functional.softmax_focal_loss_with_logits(logits, targets.long(), gamma=2.0, reduction="sum")
    torch.testing.assert_close(focal(logits, targets, 2.0), reference)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradient_is_finite_where_the_model_is_sure(gamma):
    logits = torch.tensor([[1e3, 0.0, 0.0], [0.0, 1e3, 0.0]]).view(2, 3, 1, 1).requires_grad_()
    total = focal(logits, torch.zeros(2, 1, 1, dtype=torch.uint8), gamma)
    total.backward()
    assert total.item() == pytest.approx(1000)  # nothing for the right one, and all of it for the wrong one
    assert logits.grad.isfinite().all()


# --- ohem


def ohem_by_sorting(logits, targets, threshold, weights):
    """For each image sort (probability, loss, weight) of its labelled pixels and average the first of them."""
    total = 0.0
    for image, target in zip(logits.double(), targets, strict=True):
        rows = []
        for y, x in (target < len(image)).nonzero().tolist():
            t = int(target[y, x])
            p = float(image[:, y, x].softmax(0)[t])
            rows.append((p, -math.log(p), float(weights[t])))
        rows.sort()
        kept = rows[: max(sum(p < threshold for p, _, _ in rows), math.ceil(len(rows) / 16))]
        if kept:
            total += sum(w * loss for _, loss, w in kept) / sum(w for _, _, w in kept)
    return total


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("weights", [torch.ones(7), WEIGHTS])
def test_ohem_is_the_mean_of_the_sorted_head(threshold, weights):
    logits, targets = example()
    reference = ohem_by_sorting(logits, targets, threshold, weights)
    assert ohem(logits, targets, threshold, weights).item() == pytest.approx(reference, rel=1e-5)


def test_ohem_of_every_pixel_is_the_mean_over_images_of_cross_entropy():
    logits, targets = example()
    reference = sum(torch_cross_entropy(logits[i : i + 1], targets[i : i + 1], WEIGHTS) for i in range(2))
    torch.testing.assert_close(ohem(logits, targets, 1.0, WEIGHTS), reference)


def test_ohem_teaches_only_hard_pixels_and_at_least_a_sixteenth():
    logits = torch.zeros(1, 2, 4, 9)
    logits[:, 0] = 10 + torch.rand(4, 9)  # all easy, none below the threshold
    logits[0, 0, 0, :2] = 5.0
    logits[0, 0, 3, 3] = 1.0
    logits.requires_grad_()
    targets = torch.zeros(1, 4, 9, dtype=torch.uint8)
    targets[0, 2] = VOID
    ohem(logits, targets, 0.5).backward()  # 27 labelled pixels: 2 are kept
    learnt = (logits.grad[0, 0] != 0).nonzero().tolist()
    assert len(learnt) == 2
    assert [3, 3] in learnt
    logits.grad = None
    ohem(logits, targets, 0.9).backward()
    assert (logits.grad[0, 0] != 0).sum() == 2  # one below the threshold, but a sixteenth is two


# --- divisors


def test_divisors_are_hand_counted():
    targets = torch.tensor([[[0, 0], [1, VOID]], [[VOID, VOID], [3, VOID]]], dtype=torch.uint8)
    assert sum_of_weights(targets, 3) == 3
    assert sum_of_weights(targets, 3, torch.tensor([0.5, 4.0, 9.0])) == 5
    assert labelled_images(targets, 3) == 1
    assert labelled_images(targets, 4) == 2
    for divisor in (sum_of_weights(targets, 3), labelled_images(targets, 3)):
        assert divisor.dtype == torch.float32
        assert divisor.shape == ()
