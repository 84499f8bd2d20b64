"""Random logits and targets with void, and torch's own cross-entropy of them."""

import torch
import torch.nn.functional as F

VOID = 255


def example(void_share=0.3, seed=0, scale=1):
    """Random logits (2, 7, 9, 11) and targets with void, written as 255 and as 7, each pixel scale × scale times."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 7, 9, 11, generator=generator) * 3
    targets = torch.randint(0, 7, (2, 9, 11), generator=generator, dtype=torch.uint8)
    void = torch.rand(2, 9, 11, generator=generator) < void_share
    targets[void] = VOID
    targets[0, 0, 0] = 7
    return tuple(values.repeat_interleave(scale, -2).repeat_interleave(scale, -1) for values in (logits, targets))


def torch_cross_entropy(logits, targets, weights=None, smoothing=0.0):
    known = torch.where(targets < logits.shape[1], targets.long(), -100)
    return F.cross_entropy(logits, known, weight=weights, label_smoothing=smoothing)
