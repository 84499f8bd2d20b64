"""Losses that judge each pixel by itself: cross-entropy, focal loss, and cross-entropy on hard pixels.

Each function returns a total over its batch; what the total is divided by comes from the targets alone
(`sum_of_weights`, `labelled_images`), so that it can be added up over a step before anything is computed. Logits are
(N, C, H, W) of any float dtype and computed in float32; targets are (N, H, W) uint8, and values >= C are void: they
add nothing and get no gradient. Class weights are (C,) float32, at least 0, or None for ones.
"""

import torch
import torch.nn.functional as F

SMALLEST_SHARE = 16  # ohem keeps at least 1 / SMALLEST_SHARE of an image's labelled pixels


def pixel_weights(targets, num_classes, class_weights=None):
    """Each pixel's class, 0 where void, and its weight, 0 where void: (N, H, W) int64 and (N, H, W) float32."""
    valid = targets < num_classes
    index = torch.where(valid, targets, 0).long()
    return index, valid.float() if class_weights is None else class_weights[index] * valid


def sum_of_weights(targets, num_classes, class_weights=None):
    """What cross-entropy and focal totals are divided by: Σ w_t over labelled pixels, scalar float32."""
    return pixel_weights(targets, num_classes, class_weights)[1].sum()


def labelled_images(targets, num_classes):
    """What totals of losses per image are divided by: the number of images with a labelled pixel, scalar float32."""
    return (targets < num_classes).flatten(1).any(1).sum().float()


def cross_entropy(logits, targets, class_weights=None, smoothing=0.0):
    """Weighted cross-entropy with void and label smoothing: Σ weighted losses in nats, scalar float32.

    smoothing: in [0, 1). Divided by `sum_of_weights` it is torch's F.cross_entropy(weight, ignore_index,
    label_smoothing): the loss at a pixel of class t is (1 - s) · w_t · -log p_t + s / C · Σ_c w_c · -log p_c, and its
    weight is w_t.
    Deviation: a pixel whose class has weight 0 is dropped like a void one, where torch keeps its smoothing part and
    then divides by nothing. Source: Szegedy et al., Rethinking the Inception Architecture, CVPR 2016, section 7.
    """
    num_classes = logits.shape[1]
    index, weights = pixel_weights(targets, num_classes, class_weights)
    log_probabilities = F.log_softmax(logits.float(), dim=1)  # (N, C, H, W)
    total = -(weights * _at(log_probabilities, index)).sum()
    if smoothing:
        if class_weights is not None:
            log_probabilities = log_probabilities * class_weights.view(1, -1, 1, 1)
        spread = -(log_probabilities.sum(1) * (weights > 0)).sum()
        total = (1 - smoothing) * total + smoothing / num_classes * spread
    return total


def focal(logits, targets, gamma, class_weights=None):
    """Cross-entropy that fades where the model is right: Σ w_t · (1 - p_t)^γ · -log p_t in nats, scalar float32.

    gamma: at least 0; 0 is the cross-entropy itself. Divided by the same `sum_of_weights`: the factor makes the loss
    smaller, not the divisor, so that a batch of easy pixels counts for little.
    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation 5. Deviation: p_t is a softmax
    over the classes instead of a sigmoid, and α_t is the class weight.
    """
    index, weights = pixel_weights(targets, logits.shape[1], class_weights)
    log_p = _at(F.log_softmax(logits.float(), dim=1), index)  # (N, H, W)
    # Without the bound the power's slope at p = 1 is infinite for γ < 1, and infinite · 0 is NaN.
    factor = (-torch.expm1(log_p)).clamp(min=1e-8) ** gamma
    return -(weights * factor * log_p).sum()


def ohem(logits, targets, threshold, class_weights=None):
    """Online hard example mining: Σ over images of the mean cross-entropy of the hard pixels, scalar float32, nats.

    A labelled pixel is hard when the probability of its class is below `threshold`, in [0, 1]. Where fewer than 1/16
    of an image's labelled pixels are hard, its least probable 1/16 is taken. The mean is weighted by class. Divided by
    `labelled_images`.
    Source: Shrivastava et al., Training Region-based Object Detectors with Online Hard Example Mining, CVPR 2016; for
    pixels Wu et al., Bridging Category-level and Instance-level Semantic Image Segmentation, 2016.
    Deviation: hard pixels are chosen and averaged per image, not over the batch, so that the loss does not depend on
    how a step is split; the smallest number is a share of the labelled pixels, not a constant.
    """
    index, weights = pixel_weights(targets, logits.shape[1], class_weights)
    weights = weights.flatten(1)  # (N, HW)
    labelled = weights > 0
    log_p = _at(F.log_softmax(logits.float(), dim=1), index).flatten(1)
    probabilities = log_p.detach().exp().masked_fill(~labelled, torch.inf)  # void comes last
    order = probabilities.argsort(dim=1)
    smallest = (labelled.sum(1) + SMALLEST_SHARE - 1) // SMALLEST_SHARE
    kept = torch.maximum((probabilities < threshold).sum(1), smallest)  # (N,)
    kept = torch.arange(order.shape[1], device=order.device) < kept[:, None]
    weights = weights.gather(1, order) * kept
    sums, divisors = -(weights * log_p.gather(1, order)).sum(1), weights.sum(1)
    return (sums / torch.where(divisors > 0, divisors, 1)).sum()


def _at(values, index):
    """values (N, C, H, W) at each pixel's class index (N, H, W): (N, H, W)."""
    return values.gather(1, index.unsqueeze(1)).squeeze(1)
