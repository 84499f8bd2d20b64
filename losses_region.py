"""Losses that judge a whole region: soft Dice and Lovász-softmax, which stand in for overlap measures.

Both are taken image by image over the classes that the image's target holds, and return the sum over images, to be
divided by the number of images with a labelled pixel. Logits are (N, C, H, W) of any float dtype and computed in
float32; targets are (N, H, W) uint8, and values >= C are void. Class weights have no say: each class present counts
the same.
"""

import torch
import torch.nn.functional as F


def dice(logits, targets):
    """Soft Dice loss: Σ over images of the mean over present classes of 1 - D_c, scalar float32, each in [0, 1].

    D_c = 2 Σ p_c g_c / (Σ p_c² + Σ g_c²) over the labelled pixels, g_c being 1 where the target is c.
    Source: Milletari et al., V-Net, 3DV 2016, section 3. Deviation: several classes, absent ones left out.
    """
    images, classes = logits.shape[:2]
    valid = targets < classes
    index = torch.where(valid, targets, 0).long().flatten(1)  # (N, HW)
    probabilities = F.softmax(logits.float(), dim=1).flatten(2) * valid.flatten(1).unsqueeze(1)  # (N, C, HW), void 0
    hit = probabilities.gather(1, index.unsqueeze(1)).squeeze(1)  # (N, HW)
    zeros = hit.new_zeros(images, classes)
    overlap = zeros.scatter_add(1, index, hit)  # (N, C)
    sizes = zeros.scatter_add(1, index, valid.flatten(1).float())
    scores = 2 * overlap / (probabilities.square().sum(2) + sizes).clamp(min=1)  # at least 1 where the class is present
    present = sizes > 0
    return ((1 - scores) * present).sum(1).div(present.sum(1).clamp(min=1)).sum()


def lovasz(logits, targets):
    """Lovász-softmax: Σ over images of the mean over present classes of the Jaccard loss's extension, scalar float32.

    Source: Berman et al., The Lovász-Softmax Loss, CVPR 2018, algorithm 1, per image.
    """
    total = logits[:0].float().sum()  # 0, with a gradient
    for image, target in zip(logits, targets, strict=True):
        valid = target < len(image)
        labels = target[valid].long()  # (P,)
        present = labels.unique()
        if not len(present):
            continue
        probabilities = F.softmax(image.float(), dim=0)[present][:, valid]  # (K, P)
        truth = labels == present[:, None]
        errors = torch.where(truth, 1 - probabilities, probabilities)
        total = total + (errors * _jaccard_slope(errors.detach(), truth)).sum() / len(present)
    return total


def _jaccard_slope(errors, truth):
    """Each pixel's share in the Jaccard loss when pixels turn wrong in order of their error: (K, P) float32.

    errors: (K, P) in [0, 1]. truth: (K, P) bool, with at least one True a row. Algorithm 1 of the paper, put back from
    the order of errors to the order of pixels.
    """
    order = errors.argsort(dim=1, descending=True)
    sorted_truth = truth.gather(1, order)
    hits = sorted_truth.long().cumsum(1)
    left = hits[:, -1:] - hits  # of the class's pixels, with the first k pixels wrong
    union = hits[:, -1:] + (~sorted_truth).long().cumsum(1)
    # What the k-th wrong pixel adds, in closed form: taken as a difference it loses its digits in large images.
    slope = torch.where(sorted_truth, 1, left / (union - 1).clamp(min=1)) / union
    return torch.empty_like(errors).scatter_(1, order, slope)
