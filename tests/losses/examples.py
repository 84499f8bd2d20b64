"""Random logits and targets that the tests of the losses share, and torch's own cross-entropy."""

import torch
import torch.nn.functional as F

VOID = 255


def example(num_classes=7, void_share=0.3, seed=0):
    """Random logits (2, C, 9, 11) and targets with void, written as 255 and as the first value that is no class."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, num_classes, 9, 11, generator=generator) * 3
    targets = torch.randint(0, num_classes, (2, 9, 11), generator=generator, dtype=torch.uint8)
    void = torch.rand(2, 9, 11, generator=generator) < void_share
    targets[void] = VOID
    targets[0, 0, 0] = num_classes
    return logits, targets


def torch_cross_entropy(logits, targets, weights=None, smoothing=0.0):
    known = torch.where(targets < logits.shape[1], targets.long(), -100)
    return F.cross_entropy(logits, known, weight=weights, label_smoothing=smoothing)
