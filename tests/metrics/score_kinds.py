"""Anomaly scores of many kinds, for the tests of what is counted of them."""

import torch


def draw(kind, size, generator):
    """Scores of a kind, float32, and positives that score somewhat higher."""
    positives = torch.rand(size, generator=generator) < 0.2
    normal = torch.randn(size, generator=generator) + positives
    scores = {
        "logits": -8 + 3 * normal,
        "mixed signs": normal,
        "offset": 1000 + 3 * normal,
        "narrow": 1 + torch.rand(size, generator=generator) * 2.0**-8,
        "narrow negative": -1 - torch.rand(size, generator=generator) * 2.0**-8,
        "heavy ties": (2 * normal).round() / 2,
        "bfloat16": normal.bfloat16().float(),
        "probabilities": torch.sigmoid(2 * normal - 3),
        "saturated": torch.sigmoid(20 * normal),
        "huge": normal * 1e37,
        "tiny": normal * 1e-42,
        "lognormal": torch.exp(5 * normal),
        "all equal": torch.full((size,), -3.7),
    }[kind]
    positives[0], positives[1] = True, False
    return scores, positives


KINDS = [
    "logits",
    "mixed signs",
    "offset",
    "narrow",
    "narrow negative",
    "heavy ties",
    "bfloat16",
    "probabilities",
    "saturated",
    "huge",
    "tiny",
    "lognormal",
    "all equal",
]
