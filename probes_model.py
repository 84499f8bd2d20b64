"""What a trained model's answers tell: does it use its classes, and give different images different masks?"""

import torch

import metrics
from probes_finding import LIMITS, Finding


class MaskStatistics:
    """Gathers, image by image, what `collapse` judges: use `add` as engine.evaluate's `observe`."""

    def __init__(self):
        self.masks, self.targets = [], []

    def add(self, _done, _totals, _index, target, prediction):
        """Keep both masks on the layout grid."""
        self.masks.append(torch.from_numpy(metrics.shrink_nearest(prediction.labels.numpy())))
        self.targets.append(torch.from_numpy(metrics.shrink_nearest(target.numpy())))


def collapse(totals, statistics, classes):
    """Does the model use its classes, and give different images different masks?

    totals, statistics: of one evaluation; classes: names.
    """
    scores = totals.scores()
    predicted, wanted = totals.confusion.sum(0).double(), totals.confusion.sum(1).double()
    if not wanted.any():
        return Finding("model.collapse", "skip", "no labelled pixel in the split")
    share, top = (predicted / predicted.sum()).max(0)
    true_share = float(wanted[top] / wanted.sum())
    agreement, true_agreement = _agreement(statistics.masks), _agreement(statistics.targets)
    evidence = {
        "active_classes": scores["active_classes"],
        "classes": len(classes),
        "most_predicted": classes[int(top)],
        "share": float(share),
        "share_in_targets": true_share,
        "mask_agreement": agreement,
        "target_agreement": true_agreement,
        "never_predicted": [name for name, n in zip(classes, predicted.tolist(), strict=True) if not n],
    }
    about = {"value": float(share), "reference": true_share, "evidence": evidence}
    if share > LIMITS["one_class"].value and share > true_share + 0.05:
        why = f"{float(share):.1%} of the pixels are called {classes[int(top)]}, which holds {true_share:.1%} of them"
        remedy = "if gradient flow and labels are sound: lower --lr, train longer, then --class-weights sqrt"
        return Finding("model.collapse", "fail", why, cause="collapse", remedy=remedy, **about)
    if agreement is not None and agreement > LIMITS["same_mask"].value and agreement > true_agreement + 0.05:
        why = f"different images get the same mask ({agreement:.1%} of the pixels agree; targets: {true_agreement:.1%})"
        remedy = "the image does not reach the output: check normalisation, frozen layers and batch-norm statistics"
        return Finding("model.collapse", "fail", why, cause="ignores_the_image", remedy=remedy, **about)
    active = scores["active_classes"]
    return Finding(
        "model.collapse", "pass", f"{active} of {len(classes)} classes are active, masks differ between images", **about
    )


def _agreement(masks):
    """Mean share of equal pixels between each mask and the next image's, None for a single image."""
    if len(masks) < 2:
        return None
    pairs = zip(masks, masks[1:] + masks[:1], strict=True)
    return float(torch.stack([(a == b).float().mean() for a, b in pairs]).mean())
