"""Anomaly scores against their definition, and what they refuse."""

import math

import numpy as np
import pytest
import torch

from anomaly.features import FEATURE_SCORES
from anomaly.scores import (
    DISTANCE_SCORES,
    LOGIT_SCORES,
    NAMES,
    distance_mix,
    distance_sum,
    distance_sums,
    energy,
    entropy,
    margin,
    max_logit,
    msp,
    parse_scores,
    sml_parts,
)
from cli import UserError

EVERY = list(LOGIT_SCORES.values())
SOFTMAX = [msp, entropy, margin]  # do not see a constant added to all logits


def draw(seed=0, shape=(2, 7, 6, 5), scale=5):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def defined(name, pixel):
    """A score of one pixel's logits (list of floats) as its definition reads, in exact sums of float64."""
    top = max(pixel)
    weights = sorted((math.exp(logit - top) for logit in pixel), reverse=True)
    total, rest = math.fsum(weights), math.fsum(weights[1:])
    return {
        "msp": rest / total,
        "maxlogit": -top,
        "energy": -(top + math.log(total)),
        "entropy": math.fsum(w / total * (math.log1p(rest) - math.log(w)) for w in weights if w),
        "margin": (rest + weights[1]) / total,
    }[name]


def distances(features, centres):
    """(N, D, H, W), (C, D) -> a distance head's logits (N, C, H, W)."""
    return -(features[:, None] - centres[None, :, :, None, None]).square().sum(dim=2)


# ---------------------------------------------------------------------------------------------------------------------
# Scores of logits


@pytest.mark.parametrize("name", LOGIT_SCORES)
@pytest.mark.parametrize("scale", [0.01, 1, 5, 30])
def test_a_score_is_its_definition(name, scale):
    logits = draw(3, scale=scale)
    scores = LOGIT_SCORES[name](logits)
    assert scores.dtype == torch.float32
    assert scores.shape == (2, 6, 5)
    pixels = logits.permute(0, 2, 3, 1).reshape(-1, 7).tolist()
    expected = torch.tensor([defined(name, pixel) for pixel in pixels], dtype=torch.float64)
    torch.testing.assert_close(scores.flatten().double(), expected, rtol=2e-5, atol=1e-40)


def test_the_naive_softmax_agrees_where_it_can():
    logits = draw(4)
    p = logits.double().softmax(dim=1)
    two = p.topk(2, dim=1).values
    expected = {
        msp: 1 - two[:, 0],
        entropy: torch.distributions.Categorical(probs=p.movedim(1, -1)).entropy(),
        margin: 1 - (two[:, 0] - two[:, 1]),
    }
    for score, values in expected.items():
        torch.testing.assert_close(score(logits).double(), values, rtol=1e-5, atol=1e-7)


def test_max_logit_is_the_negative_largest_logit_bit_for_bit():
    logits = draw()
    scores = max_logit(logits)
    for n, y, x in ((0, 0, 0), (1, 5, 4), (0, 3, 2)):
        assert float(scores[n, y, x]) == -max(logits[n, :, y, x].tolist())
    assert LOGIT_SCORES["maxlogit"] is max_logit


@pytest.mark.parametrize("score", SOFTMAX)
def test_very_sure_pixels_keep_their_order(score):
    lead = torch.linspace(5, 85, 200)
    logits = torch.zeros(1, 3, 1, 200)
    logits[0, 1, 0] = lead
    assert bool((score(logits).diff() < 0).all())
    naive = 1 - logits.softmax(dim=1).amax(dim=1)
    assert naive.unique().numel() < 60  # what is lost without care


@pytest.mark.parametrize("score", EVERY)
def test_a_surer_pixel_is_less_anomalous(score):
    unsure, sure = torch.zeros(1, 3, 1, 1), torch.tensor([9.0, 0, 0]).view(1, 3, 1, 1)
    assert float(score(unsure)) > float(score(sure))


def test_scores_of_the_softmax_at_their_ends():
    even, tied = torch.zeros(1, 4, 1, 1), torch.tensor([7.0, 7, -200, -200]).view(1, 4, 1, 1)
    assert float(msp(even)) == 0.75
    assert float(margin(even)) == 1
    assert float(entropy(even)) == pytest.approx(math.log(4))
    assert float(msp(tied)) == 0.5
    assert float(margin(tied)) == 1
    assert float(entropy(tied)) == pytest.approx(math.log(2))


@pytest.mark.parametrize("score", SOFTMAX)
def test_the_softmax_does_not_see_a_constant(score):
    logits = draw(1)
    torch.testing.assert_close(score(logits + 2), score(logits), rtol=1e-5, atol=0)


@pytest.mark.parametrize("score", [max_logit, energy])
def test_the_logits_own_size_counts_in_max_logit_and_energy(score):
    logits = draw(1)
    torch.testing.assert_close(score(logits + 2), score(logits) - 2)


@pytest.mark.parametrize("score", EVERY)
def test_the_order_of_the_classes_does_not_matter(score):
    logits = draw(5)
    torch.testing.assert_close(score(logits[:, torch.tensor([3, 6, 0, 5, 1, 4, 2])]), score(logits), rtol=1e-5, atol=0)


@pytest.mark.parametrize("score", EVERY)
def test_each_pixel_stands_for_itself(score):
    logits = draw(6)
    assert torch.equal(score(logits[1:, :, 2:4, 1:3]), score(logits)[1:, 2:4, 1:3])


# ---------------------------------------------------------------------------------------------------------------------
# What they refuse


@pytest.mark.parametrize("score", [*EVERY, distance_sum, lambda logits: distance_mix(logits, 1.0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_refused(score, dtype):
    with pytest.raises(ValueError, match="float32"):
        score(-torch.rand(1, 3, 2, 2).to(dtype))


@pytest.mark.parametrize("score", EVERY)
def test_bfloat16_would_change_the_order(score):
    logits = draw(7, (1, 7, 40, 50))
    order = score(logits).flatten().argsort()
    rounded = score(logits.bfloat16().float()).flatten()[order]
    assert float((rounded.diff() <= 0).float().mean()) > 0.25  # neighbours in the exact order: tied or turned round


@pytest.mark.parametrize("score", [max_logit, *SOFTMAX])
def test_bfloat16_would_make_ties(score):
    logits = draw(7, (1, 2, 100, 200))
    assert score(logits).unique().numel() > 19900
    assert score(logits.bfloat16().float()).unique().numel() < 5000


@pytest.mark.parametrize("score", EVERY)
def test_probabilities_are_refused_and_logits_that_only_look_alike_are_not(score):
    logits = draw(2, (2, 5, 8, 8), scale=1)
    with pytest.raises(ValueError, match="probabilities"):
        score(logits.softmax(dim=1))
    score(logits.log_softmax(dim=1))
    score(logits.abs())
    score(torch.zeros(1, 5, 2, 2))
    score(torch.zeros(0, 5, 2, 2))
    one_pixel = logits.abs()
    one_pixel[0, :, 3, 3] = torch.tensor([1.0, 0, 0, 0, 0])
    score(one_pixel)
    summing_to_one = logits - (logits.sum(dim=1, keepdim=True) - 1) / 5
    score(summing_to_one)  # their sum is 1, but some are negative


@pytest.mark.parametrize("score", EVERY)
def test_other_shapes_are_refused(score):
    with pytest.raises(ValueError, match="N, C, H, W"):
        score(torch.zeros(5, 2, 2))


# ---------------------------------------------------------------------------------------------------------------------
# Scores of a distance head


def test_distance_sum_is_minus_the_sum_of_squared_distances():
    features, centres = draw(8, (2, 3, 4, 5), 1), draw(9, (6, 3), 2)
    scores = distance_sum(distances(features, centres))
    for n, y, x in ((0, 0, 0), (1, 3, 4)):
        expected = -sum(float(((features[n, :, y, x] - centre) ** 2).sum()) for centre in centres)
        assert float(scores[n, y, x]) == pytest.approx(expected, rel=1e-5)


def test_distance_mix_is_its_definition():
    features, centres = draw(10, (1, 3, 4, 5), 1), draw(11, (6, 3), 2)
    logits = distances(features, centres)
    for smallest, largest in ((0.0, 300.0), distance_sums(centres)):
        wide = logits.double().numpy()
        eds = 1 - (-wide.sum(1) - smallest) / (largest - smallest)
        p = np.exp(wide) / np.exp(wide).sum(1, keepdims=True)
        trust = 1 / (1 + np.exp(-20 * (eds - 0.8)))
        expected = trust * eds + (1 - trust) * (1 - p.max(1))
        np.testing.assert_allclose(distance_mix(logits, largest, smallest).numpy(), expected, rtol=1e-4, atol=1e-6)


def test_a_pixel_of_the_mixture_does_not_depend_on_its_picture():
    logits = distances(draw(12, (1, 3, 4, 5), 1), draw(13, (6, 3), 2))
    assert torch.equal(distance_mix(logits[..., 2:4], 90.0), distance_mix(logits, 90.0)[..., 2:4])


def test_distance_sums_are_the_smallest_anywhere_and_the_largest_of_a_centre():
    centres = draw(14, (6, 3), 2)
    smallest, largest = distance_sums(centres)
    assert largest == pytest.approx(max(sum(float(((a - b) ** 2).sum()) for b in centres) for a in centres), rel=1e-6)
    anywhere = -distance_sum(distances(draw(15, (1, 3, 50, 50), 3), centres))
    assert smallest <= float(anywhere.min()) * (1 + 1e-6)
    assert -float(distance_sum(distances(centres.mean(0).view(1, 3, 1, 1), centres))) == pytest.approx(smallest)


def test_between_equidistant_centres_the_sum_is_half_the_largest_and_the_mixture_needs_the_smallest():
    centres = 3 * torch.eye(13)
    smallest, largest = distance_sums(centres)
    assert smallest == pytest.approx(largest / 2)
    between = distances(centres.mean(0).view(1, 13, 1, 1), centres)
    assert float(distance_mix(between, largest)) == pytest.approx(float(msp(between)), abs=2e-3)
    assert float(distance_mix(between, largest, smallest)) > 0.99
    known = distances(centres[:1].view(1, 13, 1, 1), centres)
    assert float(distance_mix(known, largest, smallest)) < 1e-6


@pytest.mark.parametrize("score", [distance_sum, lambda logits: distance_mix(logits, 90.0)])
def test_logits_that_are_no_distances_are_refused_but_rounding_is_not(score):
    with pytest.raises(ValueError, match="never above 0"):
        score(draw())
    with pytest.raises(ValueError, match="probabilities"):
        score(draw().softmax(dim=1))
    score(torch.full((1, 3, 2, 2), 1e-4))


def test_sums_that_cannot_be_are_refused():
    for sums in ((0.0,), (-1.0,), (math.nan,), (math.inf,), (2.0, 3.0), (2.0, -1.0)):
        with pytest.raises(ValueError, match="sums"):
            distance_mix(-torch.ones(1, 3, 2, 2), *sums)


# ---------------------------------------------------------------------------------------------------------------------
# Names


def test_names_are_in_the_agreed_order():
    pointwise = ("msp", "maxlogit", "energy", "entropy", "margin")
    assert tuple(LOGIT_SCORES) == pointwise
    others = ("sml", "prototype", "prototype-mix", "similarity", "mahalanobis", "residual")
    assert pointwise + others == NAMES
    assert set(others) >= {*DISTANCE_SCORES, *FEATURE_SCORES}


def test_scores_are_read_as_written():
    assert parse_scores(",".join(NAMES)) == list(NAMES)
    names = parse_scores("maxlogit, sml:standardise+boundary+smooth ,sml:boundary+smooth,sml:smooth")
    assert names == ["maxlogit", "sml", "sml:boundary+smooth", "sml:smooth"]
    parts = [sml_parts(name) for name in names[1:]]
    assert parts == [("standardise", "boundary", "smooth"), ("boundary", "smooth"), ("smooth",)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("maxlogits", "did you mean 'maxlogit'"),
        ("sml:smoth", "did you mean 'smooth'"),
        ("sml:", "unknown part ''"),
        ("sml:smooth+boundary", "write sml:boundary\\+smooth"),
        ("sml:smooth+smooth", "out of order"),
        ("msp:smooth", "has no parts"),
        ("msp,energy,msp", "given twice"),
        ("sml,sml:standardise+boundary+smooth", "given twice"),
        ("", "no score"),
    ],
)
def test_what_is_no_score_is_a_mistake_of_the_user(text, message):
    with pytest.raises(UserError, match=message):
        parse_scores(text)


def test_other_names_have_no_parts_of_sml():
    with pytest.raises(ValueError, match="not a name of sml"):
        sml_parts("msp")
