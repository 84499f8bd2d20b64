"""Anomaly scores against their definition, and what they refuse."""

import pytest
import torch

from anomaly import SCORES, max_logit


def test_max_logit_is_the_negative_largest_logit_bit_for_bit():
    logits = 5 * torch.randn(2, 7, 6, 5, generator=torch.Generator().manual_seed(0))
    scores = max_logit(logits)
    assert scores.dtype == torch.float32
    assert scores.shape == (2, 6, 5)
    for n, y, x in ((0, 0, 0), (1, 5, 4), (0, 3, 2)):
        assert float(scores[n, y, x]) == -max(logits[n, :, y, x].tolist())
    assert SCORES["maxlogit"] is max_logit


def test_a_surer_pixel_is_less_anomalous():
    unsure, sure = torch.zeros(1, 3, 1, 1), torch.tensor([9.0, 0, 0]).view(1, 3, 1, 1)
    assert float(max_logit(unsure)) > float(max_logit(sure))


def test_only_the_largest_logit_counts_not_the_softmax():
    logits = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(max_logit(logits + 2), max_logit(logits) - 2)  # a softmax would not see the shift


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_refused(dtype):
    with pytest.raises(ValueError, match="float32"):
        max_logit(torch.randn(1, 3, 2, 2).to(dtype))


def test_probabilities_are_refused_and_logits_that_only_look_alike_are_not():
    logits = torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(2))
    with pytest.raises(ValueError, match="probabilities"):
        max_logit(logits.softmax(dim=1))
    max_logit(logits.log_softmax(dim=1))
    max_logit(logits.abs())
    max_logit(torch.zeros(1, 5, 2, 2))
    max_logit(torch.zeros(0, 5, 2, 2))
    one_pixel = logits.abs()
    one_pixel[0, :, 3, 3] = torch.tensor([1.0, 0, 0, 0, 0])
    max_logit(one_pixel)
    summing_to_one = logits - (logits.sum(dim=1, keepdim=True) - 1) / 5
    max_logit(summing_to_one)  # their sum is 1, but some are negative


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="N, C, H, W"):
        max_logit(torch.zeros(5, 2, 2))
