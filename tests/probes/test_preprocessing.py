"""What enters the network: the preparation that wins is named, and an unusual one that was trained with is healthy."""

import json
import math

import pytest
from torch import nn

from networks.blocks import Normalise
from probes.preprocessing import CARELESS, TWICE, input_contrast, preprocessing, recognise
from probes.preprocessing import ONCE as STATISTICS_ONCE
from tests.probes.examples import (
    BROKEN,
    CPU,
    Before,
    ByColour,
    Scale,
    Then,
    ask_probe,
    draw_sample,
    predictor_of,
)


@pytest.fixture(scope="module")
def sample():
    return draw_sample()


@pytest.mark.parametrize("probe", [preprocessing, input_contrast])
def test_healthy_model_passes_and_its_finding_is_plain_json(probe, sample):
    finding = ask_probe(probe, predictor_of(), sample)
    assert (finding.probe, finding.verdict, finding.cause) == (f"model.{probe.__name__}", "pass", None), finding.why
    json.dumps(finding.json(), allow_nan=False)


@pytest.mark.parametrize("change", BROKEN)
def test_a_model_broken_otherwise_is_not_accused(change, sample):
    assert ask_probe(preprocessing, predictor_of(Then(ByColour(), change)), sample).verdict == "pass"


class Reversed(nn.Module):
    def forward(self, images):
        return images.flip(1)


ONCE = Normalise()


@pytest.mark.parametrize(
    ("normalise", "known"),
    [
        (ONCE, ("RGB", STATISTICS_ONCE)),
        (nn.Sequential(ONCE, Normalise()), ("RGB", TWICE)),
        (nn.Sequential(ONCE, Reversed()), ("BGR", STATISTICS_ONCE)),
        (nn.Sequential(Reversed(), ONCE), (CARELESS, STATISTICS_ONCE)),
        (Scale(255), ("RGB", "[0, 255]")),
        (nn.Sequential(Reversed(), Scale(2, -1)), ("BGR", "[-1, 1]")),
        (nn.Identity(), ("RGB", "[0, 1]")),
        (Normalise((0.4, 0.4, 0.4), (0.3, 0.3, 0.3)), None),
        (nn.InstanceNorm2d(3), None),
    ],
)
def test_a_preparation_is_recognised(normalise, known):
    assert recognise(normalise, CPU) == known


@pytest.mark.parametrize(
    ("normalise", "net", "cause"),
    [
        (nn.Sequential(ONCE, Normalise()), ByColour(), "normalised_twice"),
        (Normalise(), Before(Normalise(), ByColour()), "normalised_twice"),
        (nn.Sequential(Reversed(), ONCE), ByColour(), "wrong_channel_order"),
        (Normalise(), Before(Reversed(), ByColour()), "wrong_channel_order"),
        (Scale(255), ByColour(), "wrong_value_range"),
        (Normalise((0.45,) * 3, (0.225,) * 3), Before(Reversed(), ByColour()), "wrong_channel_order"),
    ],
)
def test_the_preparation_that_wins_is_named(normalise, net, cause, sample):
    finding = ask_probe(preprocessing, predictor_of(net, normalise), sample)
    assert (finding.verdict, finding.cause) == ("fail", cause), finding.why
    assert finding.reference > finding.value + 0.1
    json.dumps(finding.json(), allow_nan=False)


def test_an_unusual_preparation_that_was_trained_with_is_healthy(sample):
    odd, undo = Scale(0.7, 0.1), Scale(1 / 0.7, -0.1 / 0.7)
    predictor = predictor_of(Before(undo, ByColour()), nn.Sequential(odd, Normalise((0.1,) * 3, (1.0,) * 3)))
    predictor.model = Before(nn.Sequential(Scale(1, 0.1), undo, Normalise()), ByColour())
    finding = ask_probe(preprocessing, predictor, sample)
    assert (finding.verdict, finding.evidence["now"]) == ("pass", "as declared")
    assert ask_probe(input_contrast, predictor, sample).verdict == "pass"


@pytest.mark.parametrize(
    ("normalise", "verdict", "cause"),
    [
        (Scale(255), "pass", None),
        (Normalise((123.7 / 255, 116.8 / 255, 103.9 / 255), (1 / 255,) * 3), "pass", None),
        (nn.Sequential(ONCE, Normalise()), "warn", "normalised_twice"),
        (nn.Sequential(Scale(255), ONCE), "warn", "wrong_value_range"),
        (Scale(1 / 255), "fail", "wrong_value_range"),
        (Scale(math.inf), "fail", "wrong_value_range"),
    ],
)
def test_contrast_of_what_enters(normalise, verdict, cause, sample):
    finding = ask_probe(input_contrast, predictor_of(ByColour(), normalise), sample)
    assert (finding.verdict, finding.cause) == (verdict, cause), finding.why
    json.dumps(finding.json(), allow_nan=False)
