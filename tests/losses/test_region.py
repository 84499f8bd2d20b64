"""Dice and Lovász-softmax against loops over numpy arrays, the definition of the extension, and other libraries."""

import itertools

import numpy as np
import pytest
import torch

from losses import dice, lovasz
from tests.losses.examples import VOID, example


def regions(logits, targets):
    """(probabilities (C, P), labels (P,)) of each image's labelled pixels, float64."""
    for image, target in zip(logits, targets, strict=True):
        valid = (target < len(image)).numpy()
        yield image.double().softmax(0).numpy()[:, valid], target.numpy()[valid]


def dice_by_hand(logits, targets):
    total = 0.0
    for probabilities, labels in regions(logits, targets):
        scores = []
        for c in sorted(set(labels.tolist())):
            p, g = probabilities[c], (labels == c).astype(float)
            scores.append(2 * (p * g).sum() / ((p**2).sum() + (g**2).sum()))
        total += 1 - np.mean(scores) if scores else 0
    return total


def lovasz_by_hand(logits, targets):
    """The extension as it is defined: Σ_k m_k · (Δ({1..k}) - Δ({1..k-1})), errors m in falling order."""
    total = 0.0
    for probabilities, labels in regions(logits, targets):
        values = []
        for c in sorted(set(labels.tolist())):
            truth = labels == c
            errors = np.abs(truth - probabilities[c])
            wrong, before, value = np.zeros(len(labels), bool), 0.0, 0.0
            for k in np.argsort(-errors):
                wrong[k] = True
                after = wrong.sum() / (truth | wrong).sum()  # Δ_J of the set of wrong pixels, equation 5
                value += errors[k] * (after - before)
                before = after
            values.append(value)
        total += np.mean(values) if values else 0
    return total


@pytest.mark.parametrize(("loss", "reference"), [(dice, dice_by_hand), (lovasz, lovasz_by_hand)])
@pytest.mark.parametrize("case", ["all classes", "classes absent", "an image of void"])
def test_value_is_the_definition(loss, reference, case):
    logits, targets = example()
    if case == "classes absent":
        targets[0][targets[0] == 2] = VOID
        targets[1][targets[1] < 5] = 3
    if case == "an image of void":
        targets[0] = VOID
    assert loss(logits, targets).item() == pytest.approx(reference(logits, targets), rel=1e-5)


def test_lovasz_is_segmentation_models_pytorchs():
    smp = pytest.importorskip("segmentation_models_pytorch.losses")
    logits, targets = example()
    targets[targets == 7] = VOID
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    loss = lovasz(ours, targets) / 2
    reference = smp.LovaszLoss("multiclass", per_image=True, ignore_index=VOID)(theirs, targets.long())
    loss.backward()
    reference.backward()
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_dice_is_segmentation_models_pytorchs_where_they_agree():
    smp = pytest.importorskip("segmentation_models_pytorch.losses")
    _, targets = example(void_share=0)  # for answers of probability 1, p² = p
    targets[targets == 7] = 0
    answers = torch.randint(0, 7, targets.shape, generator=torch.Generator().manual_seed(1))
    logits = torch.nn.functional.one_hot(answers, 7).permute(0, 3, 1, 2) * 200.0
    reference = sum(
        smp.DiceLoss("multiclass")(logits[i : i + 1], targets[i : i + 1].long()) for i in range(2)
    )  # it pools a batch
    torch.testing.assert_close(dice(logits, targets), reference)


def test_lovasz_of_certain_answers_is_one_minus_iou():
    targets = torch.tensor([[[0, 0, 0, 1, 1, VOID]]], dtype=torch.uint8)
    answers = torch.tensor([[0, 0, 1, 1, 1, 0]])
    logits = torch.nn.functional.one_hot(answers, 3).permute(0, 2, 1).unsqueeze(2) * 200.0
    assert lovasz(logits, targets).item() == pytest.approx(1 - (2 / 3 + 2 / 3) / 2)


def test_lovasz_holds_its_digits_in_a_large_image():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 600, 900, generator=generator)
    targets = torch.randint(0, 2, (1, 600, 900), generator=generator, dtype=torch.uint8)
    ours, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    lovasz(ours, targets).backward()
    for c, probabilities in enumerate(exact.softmax(1)[0].flatten(1)):
        truth = targets.flatten() == c
        errors, order = (truth.double() - probabilities).abs().sort(descending=True)
        wrong = torch.arange(1, len(truth) + 1)
        jaccard = wrong / (truth.sum() + (~truth[order]).cumsum(0)).double()  # of the k worst pixels wrong
        slope = jaccard.diff(prepend=torch.zeros(1, dtype=torch.float64))
        ((errors * slope).sum() / 2).backward(retain_graph=True)
    # Pixels that tie in float32 may change places; a difference of neighbours would be off by 1e-2 nearly everywhere.
    off = (ours.grad - exact.grad).abs() / exact.grad.abs()
    assert off.quantile(0.9) < 1e-4


@pytest.mark.parametrize("loss", [dice, lovasz])
def test_the_better_prediction_costs_less_and_the_right_one_nothing(loss):
    _, targets = example()
    index = torch.where(targets < 7, targets, 0).long()
    truth = torch.nn.functional.one_hot(index, 7).permute(0, 3, 1, 2).float()
    values = [loss(truth * scale, targets).item() for scale in (0, 1, 3, 10, 100)]
    assert all(worse > better for worse, better in itertools.pairwise(values))
    assert values[-1] == pytest.approx(0, abs=1e-6)
