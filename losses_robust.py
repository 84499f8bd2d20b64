"""Remedies against shortcuts: terms that ask more of a model than the right class at each pixel.

Consistency under noise, contrast between the features of different classes, predictions whose edges follow the
image's, and regression of what the whole image looks like. Each function returns a total over its batch, scalar
float32; the matching divisor comes from the targets alone. Logits are (N, C, H, W) of any float dtype; targets are
(N, H, W) uint8, and values >= C are void.
"""

import torch
import torch.nn.functional as F

STRIDE = 4  # pixels between the places that may become anchors
ANCHORS_PER_CLASS, ANCHORS = 64, 2048  # at most, in one batch
EDGE_DECAY = 10.0  # a step of 0.1 in the image lets a prediction's edge through at exp(-1) of its price
EDGE_THRESHOLD = 0.1  # gradient magnitude, in grey levels from 0 to 1 a pixel


def consistency(clean, noisy, targets):
    """KL(clean ‖ noisy) in nats: Σ over labelled pixels of Σ_c p_c · (log p_c - log q_c).

    clean: logits of the image, detached, so that the noisy answer is drawn to the clean one and not the other way
    round. noisy: logits of the same image with noise. Divided by the number of labelled pixels: a mean over pixels,
    as the cross-entropy is. Summed over the pixels of a batch instead (or averaged over its images alone) it is
    thousands of times larger and drowns every other term.
    """
    log_p = F.log_softmax(clean.detach().float(), dim=1)
    log_q = F.log_softmax(noisy.float(), dim=1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1)  # (N, H, W)
    return (divergence * (targets < clean.shape[1])).sum()


# ---------------------------------------------------------------------------------------------------------------------
# Supervised contrast


def _places(targets, num_classes):
    """The classes at the places that may become anchors: (N, h, w) int64 at stride 4, void as num_classes."""
    return targets[:, STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE].long().clamp(max=num_classes)


def _drawn(classes, num_classes):
    """How many anchors each class gets: (C,) int64, at most 64 and, all classes together, at most 2048."""
    counts = torch.bincount(classes.flatten(), minlength=num_classes + 1)[:num_classes]
    limit = (ANCHORS // (counts > 0).sum().clamp(min=1)).clamp(max=ANCHORS_PER_CLASS)
    return counts.minimum(limit)


def contrastive_anchors(targets, num_classes):
    """What the contrastive total is divided by: the number of drawn anchors that have a partner of their class."""
    drawn = _drawn(_places(targets, num_classes), num_classes)
    return (drawn * (drawn > 1)).sum().float()


def contrastive(features, targets, num_classes, temperature):
    """Supervised contrastive loss on pixel features, in nats: Σ over anchors of L_i.

    features: (N, D, h, w), any float dtype, read at the cell that holds the anchor's place. temperature: above 0.
    L_i = -1/|P(i)| Σ_{p in P(i)} log(exp(z_i·z_p / τ) / Σ_{a ≠ i} exp(z_i·z_a / τ)), z being features of length 1 and
    P(i) the other anchors of i's class. Anchors are drawn anew each time from torch's global generator, the same
    number for each class that has enough, over the whole batch; a single anchor of its class only repels, and
    anchors in one cell share its feature. Their number, and with it the memory, is bounded. Divided by
    `contrastive_anchors`.
    Source: Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, equation 2 (L_out). Deviation: pixels of
    labelled images in place of augmented views, and no projection head.
    """
    classes = _places(targets, num_classes)
    order = _draw(classes.flatten(), _drawn(classes, num_classes))
    labels = classes.flatten()[order]  # (A,)
    vectors = _vectors(features, targets.shape, classes.shape, order)  # (A, D)
    with torch.autocast(features.device.type, enabled=False):
        similar = vectors @ vectors.T / temperature  # (A, A)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    partners = (labels[:, None] == labels) & ~itself
    number = partners.sum(1)
    paired = number > 0
    similar, partners, number = similar[paired], partners[paired], number[paired]
    others = similar.masked_fill(itself[paired], -torch.inf).logsumexp(1)  # at least one other is left in each row
    return (others - (similar * partners).sum(1) / number).sum()


def _draw(classes, drawn):
    """Choose `drawn` places of each class at random: their positions in classes (M,), grouped by class, (A,) int64."""
    shuffled = torch.randperm(len(classes), device=classes.device)
    order = shuffled[classes[shuffled].argsort(stable=True)]
    counts = torch.bincount(classes, minlength=len(drawn) + 1)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(classes), device=classes.device) - starts[classes[order]]
    return order[rank < F.pad(drawn, (0, 1))[classes[order]]]  # of void, none


def _vectors(features, image_shape, grid_shape, order):
    """The features of length 1 at chosen places of the stride-4 grid: (A, D) float32."""
    (_, height, width), (_, rows, columns) = image_shape, grid_shape
    image = order // max(1, rows * columns)
    y = order // max(1, columns) % max(1, rows) * STRIDE + STRIDE // 2
    x = order % max(1, columns) * STRIDE + STRIDE // 2
    cells = features[image, :, y * features.shape[2] // height, x * features.shape[3] // width]
    return F.normalize(cells.float(), dim=1, eps=1e-4)  # a feature of zeros must not get a gradient of 1e12


# ---------------------------------------------------------------------------------------------------------------------
# Edges


def spatial_places(targets, num_classes):
    """What the spatial total is divided by: places whose own, right and lower pixel are labelled, scalar float32."""
    return _whole_corners(targets, num_classes).sum().float()


def _whole_corners(targets, num_classes):
    valid = targets < num_classes
    return valid[:, :-1, :-1] & valid[:, :-1, 1:] & valid[:, 1:, :-1]  # (N, H - 1, W - 1)


def spatial(logits, images, targets):
    """Edges of the prediction where the image has none: Σ over places and both directions of Σ_c |Δp_c| · exp(-k |ΔI|).

    images: (N, 3, H, W) in [0, 1], not normalised; |ΔI| is averaged over the colours, no gradient goes there. Both
    directions are cut to (H - 1, W - 1), so that each place has one difference of each; it counts where its own, its
    right and its lower pixel are labelled. Divided by `spatial_places`. It is least where the prediction is the same
    everywhere: a small weight beside a loss that knows the classes.
    Source: Godard et al., Unsupervised Monocular Depth Estimation with Left-Right Consistency, CVPR 2017, the
    disparity smoothness term, on class probabilities in place of disparities. Deviation: k = 10 where the paper has 1,
    with which even a step from black to grey 0.1 would count 0.9 as much as no step at all.
    """
    probabilities = F.softmax(logits.float(), dim=1)
    places = _whole_corners(targets, logits.shape[1])
    images = images.detach().float()
    total = 0
    for change, edge in zip(_differences(probabilities), _differences(images), strict=True):
        weight = torch.exp(-EDGE_DECAY * edge.abs().mean(1)) * places  # (N, H - 1, W - 1)
        total = total + (change.abs().sum(1) * weight).sum()
    return total


def _differences(values):
    """The steps to the right and the lower neighbour of values (N, C, H, W), both (N, C, H - 1, W - 1)."""
    corner = values[:, :, :-1, :-1]
    return values[:, :, :-1, 1:] - corner, values[:, :, 1:, :-1] - corner


# ---------------------------------------------------------------------------------------------------------------------
# Image properties


@torch.no_grad()
def image_properties(images):
    """What an image looks like as a whole: (N, 6) float32, each between 0 and 1.

    images: (N, 3, H, W) in [0, 1]. Columns: brightness (mean grey), contrast (standard deviation of grey, at most
    0.5), mean red, green and blue, and edge density: the share of places where grey changes by more than 0.1 to the
    next pixel, right and lower taken together as a gradient. Grey is the mean of the three colours.
    """
    images = images.float()
    grey = images.mean(1, keepdim=True)  # (N, 1, H, W)
    right, below = _differences(grey)
    edges = (torch.hypot(right, below) > EDGE_THRESHOLD).flatten(1)
    density = edges.sum(1) / max(1, edges.shape[1])
    measures = grey.mean((1, 2, 3)), grey.std((1, 2, 3), correction=0), images.mean((2, 3)), density
    return torch.column_stack(measures)


def property_regression(predicted, images):
    """Σ over images of the squared error summed over the 6 properties, scalar float32. Divided by the image count.

    predicted: (N, 6). images: (N, 3, H, W) in [0, 1]. It needs no labels, so an image of nothing but void counts too.
    """
    return (predicted.float() - image_properties(images)).square().sum()
