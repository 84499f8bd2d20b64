"""Anomaly scores: logits of a segmentation model -> one float32 per pixel, larger = more anomalous."""

import torch


def max_logit(logits):
    """Negative of the largest logit.

    logits: (N, C, H, W) float32, before any softmax. Returns (N, H, W) float32.
    Raises: ValueError for logits of another type (bfloat16 rounds distinct scores into ties) or shape, and for
    probabilities: after a softmax the score is another one, 1 - max p, under this one's name.
    Source: Hendrycks et al., Scaling Out-of-Distribution Detection for Real-World Settings (2022), section 3.
    """
    _check_logits(logits)
    return -logits.amax(dim=1)  # (N, H, W)


def _check_logits(logits):
    if logits.dtype != torch.float32:
        raise ValueError(f"logits must be float32, got {logits.dtype}: scores rounded to fewer bits are ties")
    if logits.dim() != 4:
        raise ValueError(f"logits must be (N, C, H, W), got {tuple(logits.shape)}")
    if logits.numel() and float(logits.amin()) >= 0 and bool(((logits.sum(dim=1) - 1).abs() < 1e-3).all()):
        raise ValueError("the logits are probabilities (each pixel's sum to 1); pass what goes into the softmax")


SCORES = {"maxlogit": max_logit}
