"""Terms that teach a model what it does not know, on pixels pasted into the training images (`data_outliers`).

Logits are (N, C, H, W) of any float dtype; targets are (N, H, W) uint8: below C the known classes, C what was pasted,
everything else void. Each function returns a total over its batch, scalar float32, to be divided by `outlier_pixels`
or by the number of known pixels.
"""

import torch
import torch.nn.functional as F


def outlier_pixels(targets, num_classes):
    """What an outlier term's total is divided by: the pasted pixels, scalar float32."""
    return (targets == num_classes).sum().float()


def outlier_energy(logits, targets, level):
    """Σ over pasted pixels of max(0, log Σ_c e^z_c - level)²: little evidence for any class.

    Source: Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020, equation 8, E = -log Σ e^z; level is
    their -m_out.
    """
    return _hinge(logits.float().logsumexp(1) - level, targets == logits.shape[1])


def known_energy(logits, targets, level):
    """Σ over known pixels of max(0, level - log Σ_c e^z_c)²: much evidence for some class.

    Source: as `outlier_energy`; level is their -m_in. Both levels are needed: cross-entropy alone leaves the common
    shift of all logits, and with it the energy, free.
    """
    return _hinge(level - logits.float().logsumexp(1), targets < logits.shape[1])


def _hinge(excess, counted):
    return torch.where(counted, F.relu(excess).square(), 0.0).sum()


def outlier_entropy(logits, targets):
    """Σ over pasted pixels of -1/C Σ_c log p_c: every class as likely as any other; log C at its best.

    Source: Chan et al., Entropy Maximization and Meta Classification for Out-of-Distribution Detection in Semantic
    Segmentation, ICCV 2021, equation 4.
    """
    uniform = -F.log_softmax(logits.float(), dim=1).mean(1)  # (N, H, W)
    return torch.where(targets == logits.shape[1], uniform, 0.0).sum()


def centre_distance(logits, targets):
    """Σ over known pixels of ||f - m_y||², of a distance head, whose logits are minus these squared distances.

    Source: Cen et al., Deep Metric Learning for Open World Semantic Segmentation, ICCV 2021, the variance loss.
    """
    known = targets < logits.shape[1]
    own = logits.float().gather(1, targets.long().where(known, 0)[:, None])[:, 0]
    return -torch.where(known, own, 0.0).sum()
