"""The remedies against shortcuts, against torch's own divergence, double loops and hand-worked images."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from losses import (
    consistency,
    contrastive,
    contrastive_anchors,
    image_properties,
    property_regression,
    spatial,
    spatial_places,
)
from tests.losses.examples import VOID, example

# --- consistency


def test_consistency_is_torchs_divergence_over_labelled_pixels():
    (clean, targets), (noisy, _) = example(), example(seed=1)
    each = F.kl_div(noisy.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)
    torch.testing.assert_close(consistency(clean, noisy, targets), each[targets < 7].sum())
    assert consistency(clean, clean, targets).item() == pytest.approx(0, abs=1e-4)


def test_consistency_moves_the_noisy_side_only():
    (clean, targets), (noisy, _) = example(), example(seed=1)
    clean.requires_grad_(), noisy.requires_grad_()
    consistency(clean, noisy, targets).backward()
    assert clean.grad is None
    assert torch.equal((noisy.grad != 0).any(1), targets < 7)


# --- contrast


def khosla(vectors, labels, temperature):
    """Equation 2 by two loops in float64: (Σ over anchors with a partner, their number)."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    total, count = 0.0, 0
    for i in range(len(labels)):
        others = [math.exp(vectors[i] @ vectors[a] / temperature) for a in range(len(labels)) if a != i]
        partners = [p for p in range(len(labels)) if p != i and labels[p] == labels[i]]
        if partners:
            terms = [math.log(math.exp(vectors[i] @ vectors[p] / temperature) / sum(others)) for p in partners]
            total, count = total - sum(terms) / len(partners), count + 1
    return total, count


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_contrast_is_the_double_loop_where_every_place_is_drawn(temperature):
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 4, (2, 18, 23), generator=generator, dtype=torch.uint8)
    targets[:, 6:11, 8:] = VOID
    targets[0, 2, 2] = 4  # the first value that is no class
    targets[1, 2, 2] = 3
    features = torch.randn(2, 5, 5, 7, generator=generator)
    vectors, labels = [], []
    for n in range(2):
        for y in range(2, 18, 4):
            for x in range(2, 23, 4):
                if targets[n, y, x] < 4:
                    vectors.append(features[n, :, int(y / 18 * 5), int(x / 23 * 7)].double().numpy())
                    labels.append(int(targets[n, y, x]))
    total, count = khosla(np.stack(vectors), labels, temperature)
    assert contrastive(features, targets, 4, temperature).item() == pytest.approx(total, rel=1e-5)
    assert contrastive_anchors(targets, 4) == count


def drawn(targets, num_classes):
    """(classes (A,), places (A,)) of the anchors that a call draws, read off the features that get a gradient."""
    features = torch.rand(len(targets), 3, *targets.shape[1:]).requires_grad_()
    contrastive(features, targets, num_classes, 0.1).backward()
    places = (features.grad != 0).any(1)
    return targets[places], places


def test_anchors_are_balanced_bounded_and_never_void():
    targets = torch.zeros(2, 128, 128, dtype=torch.uint8)  # 2048 places, most of class 0
    targets[0, :32] = 1
    targets[0, 66, 2:30] = 2  # 7 places
    targets[1, 64:] = VOID
    classes, places = drawn(targets, 5)
    assert torch.bincount(classes.long(), minlength=256)[[0, 1, 2, VOID]].tolist() == [64, 64, 7, 0]
    assert contrastive_anchors(targets, 5) == 64 + 64 + 7
    _, again = drawn(targets, 5)
    assert not torch.equal(places, again)


def test_anchors_of_many_classes_share_the_memory():
    targets = torch.arange(128).repeat_interleave(4).to(torch.uint8).expand(1, 512, 512)  # 128 places of each of 128
    classes, _ = drawn(targets, 150)
    assert torch.bincount(classes.long(), minlength=128).tolist() == [16] * 128
    assert contrastive_anchors(targets, 150) == 2048


def test_a_single_class_and_a_single_pixel_are_finite():
    features = torch.randn(1, 4, 3, 3, requires_grad=True)
    one = torch.zeros(1, 12, 12, dtype=torch.uint8)
    contrastive(features, one, 3, 0.1).backward()
    assert features.grad.isfinite().all()
    assert contrastive_anchors(one, 3) == 9
    alone = torch.full((1, 12, 12), VOID, dtype=torch.uint8)
    alone[0, 2, 2] = 1
    assert contrastive(features, alone, 3, 0.1) == 0
    assert contrastive_anchors(alone, 3) == 0
    assert contrastive(features, alone[:, :2], 3, 0.1) == 0  # too small for a single place


def test_contrast_falls_when_classes_part_and_bears_features_of_zero():
    targets = torch.zeros(1, 32, 32, dtype=torch.uint8)
    targets[:, :, 16:] = 1
    together = torch.ones(1, 2, 8, 8)
    apart = torch.zeros(1, 2, 8, 8)
    apart[:, 0, :, :4] = 1
    apart[:, 1, :, 4:] = 1
    mean = [contrastive(f, targets, 2, 0.1).item() / 64 for f in (together, apart)]
    assert mean[0] == pytest.approx(math.log(63))
    assert mean[1] == pytest.approx(math.log(31 + 32 * math.exp(-10)))
    nothing = torch.zeros(1, 2, 8, 8, requires_grad=True)
    contrastive(nothing + apart * 0, targets, 2, 0.1).backward()
    assert nothing.grad.abs().max() < 1e6


def test_contrast_in_bfloat16_autocast_is_that_of_float32():
    _, targets = example(scale=3)
    features = torch.randn(2, 16, 9, 11)
    with torch.autocast("cpu", torch.bfloat16):
        inside = contrastive(features, targets, 7, 0.1)
    torch.testing.assert_close(inside, contrastive(features, targets, 7, 0.1))
    assert inside.dtype == torch.float32


# --- edges


def spatial_by_hand(logits, images, targets, k=10):
    total, places = 0.0, 0
    probabilities, images = logits.double().softmax(1).numpy(), images.double().numpy()
    for n in range(len(images)):
        for y in range(images.shape[2] - 1):
            for x in range(images.shape[3] - 1):
                if max(int(targets[n, y, x]), int(targets[n, y + 1, x]), int(targets[n, y, x + 1])) >= logits.shape[1]:
                    continue
                places += 1
                for v, u in ((y + 1, x), (y, x + 1)):
                    edge = np.abs(images[n, :, v, u] - images[n, :, y, x]).mean()
                    total += np.abs(probabilities[n, :, v, u] - probabilities[n, :, y, x]).sum() * math.exp(-k * edge)
    return total, places


def test_spatial_is_the_loop_over_pixels():
    logits, targets = example(void_share=0.1)
    images = torch.rand(2, 3, 9, 11)
    total, places = spatial_by_hand(logits, images, targets)
    assert spatial(logits, images, targets).item() == pytest.approx(total, rel=1e-5)
    assert spatial_places(targets, 7) == places


def test_an_edge_is_cheap_where_the_image_has_one():
    logits = torch.zeros(1, 2, 6, 8)
    logits[:, 0, :, 4:] = 50
    logits[:, 1, :, :4] = 50
    targets = torch.zeros(1, 6, 8, dtype=torch.uint8)
    images = torch.zeros(1, 3, 6, 8)
    assert spatial(logits, images, targets).item() == pytest.approx(2 * 5)  # 5 rows of one full change of two classes
    images[..., 4:] = 1
    assert spatial(logits, images, targets).item() == pytest.approx(10 * math.exp(-10), rel=1e-4)
    images = images.roll(2, 3)
    assert spatial(logits, images, targets).item() == pytest.approx(10)


def test_spatial_leaves_the_image_alone_and_bears_a_single_row():
    logits, targets = example()
    images = torch.rand(2, 3, 9, 11, requires_grad=True)
    logits.requires_grad_()
    spatial(logits, images, targets).backward()
    assert images.grad is None
    assert spatial(logits[:, :, :1], images[:, :, :1], targets[:, :1]) == 0
    assert spatial_places(targets[:, :1], 7) == 0


# --- image properties


def test_properties_of_images_known_by_hand():
    images = torch.zeros(3, 3, 4, 6)
    images[0] = 0.25
    images[1, 0] = 1.0
    images[2, :, :, 3:] = 1.0
    expected = [
        [0.25, 0, 0.25, 0.25, 0.25, 0],
        [1 / 3, 0, 1, 0, 0, 0],
        [0.5, 0.5, 0.5, 0.5, 0.5, 1 / 5],  # 3 of the 3 × 5 places lie at the edge
    ]
    torch.testing.assert_close(image_properties(images), torch.tensor(expected), atol=1e-6, rtol=0)


def test_properties_stay_between_0_and_1_and_their_error_is_squared_and_summed():
    images = torch.rand(5, 3, 7, 9)
    properties = image_properties(images)
    assert ((properties >= 0) & (properties <= 1)).all()
    assert image_properties(images[:, :, :1, :1]).isfinite().all()
    assert property_regression(properties, images) == 0
    assert property_regression(properties + 0.5, images).item() == pytest.approx(5 * 6 * 0.25)
