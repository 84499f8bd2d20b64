"""`Segmenter`, the order in which every model works: backbone, decoder, classifier."""

import torch
import torch.nn.functional as F
from torch import nn

from cli import UserError
from networks.blocks import resize_logits

PROPERTIES = 6  # image properties the second task regresses: brightness, contrast, three colour means, edge density


class Segmenter(nn.Module):
    """Backbone, decoder, classifier. A model sets `backbone` and `classifier` and says how it decodes.

    images are (N, 3, H, W) float32, normalised; lists of maps (N, C, h, w) run from the finest to the coarsest.
    multiple: the backbone wants sides that are a multiple of this; images are padded on the right and at the bottom
    with zeros, the mean colour, and logits cut, so that no map is stretched.
    """

    multiple = 1
    class_layers = ("classifier",)
    imagenet = coco = None

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        # Set here and not on the class: a class attribute would be found before the module that replaces it.
        self.dropout, self.centres = nn.Identity(), None
        self.left_out = backbone.left_out
        self.aux_weights = {}

    def pad(self, images):
        """The images with both sides a multiple of `multiple`."""
        rows, columns = (-side % self.multiple for side in images.shape[-2:])
        return F.pad(images, (0, columns, 0, rows)) if rows or columns else images

    def backbone_features(self, images):
        """The backbone's maps."""
        return self.backbone(self.pad(images))

    def pyramid_features(self, images):
        """The decoder's maps; the first is what the classifier reads."""
        images = self.pad(images)
        return self.decode(self.backbone(images), images.shape[-2:])

    def decode(self, maps, size):
        """Backbone maps of images of this size -> decoder maps."""
        raise NotImplementedError

    def classify(self, features):
        """The decoder's finest map -> logits (N, C, h, w), or with a distance head the embedding it takes them from."""
        return self.classifier(self.dropout(features))

    def auxiliary(self, maps):
        """Further logits {name: (N, C, h, w)} that training compares with the target, from the backbone maps."""
        return {}

    def forward(self, images):
        """{"out": logits (N, C, H, W), "features": (N, D, h, w), "backbone": its coarsest map}.

        In training the auxiliary outputs as well.

        "open" (N, C, H, W) is there with a residual head: what anomalies are judged by in place of "out".
        """
        height, width = images.shape[-2:]
        images = self.pad(images)
        size = images.shape[-2:]
        maps = self.backbone(images)
        features = self.decode(maps, size)[0]
        logits = {"out": self.classify(features), **(self.auxiliary(maps) if self.training else {})}
        if self.centres is not None:
            logits["out"] = self.centres(logits["out"])
        if hasattr(self, "residual_head"):
            logits["open"] = logits["out"].detach().float() + self.residual_head(features.detach()).float()
        outputs = {name: resize_logits(value, size)[..., :height, :width] for name, value in logits.items()}
        for name, found in (("features", features), ("backbone", maps[-1])):
            rows, columns = (
                -(-side * cells // whole)
                for side, cells, whole in zip((height, width), found.shape[-2:], size, strict=True)
            )
            outputs[name] = found[..., :rows, :columns]  # of the padding, nothing
        if self.training and "properties" in self.aux_weights:
            outputs["properties"] = self.property_head(maps[-1].mean((2, 3)))  # (N, 6)
        return outputs

    def add_residual_head(self):
        """A second opinion on the logits, for anomalies alone: what its loss teaches never reaches the segmenter.

        It starts at zero, so that before training the two agree.
        Source: Liu et al., Residual Pattern Learning for Pixel-wise Out-of-Distribution Detection, ICCV 2023.
        Deviation: the residual is added to the logits, not to the features.
        """
        features, classes = self.classifier_shape()
        last = nn.Conv2d(64, classes, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.residual_head = nn.Sequential(nn.Conv2d(features, 64, 3, padding=1), nn.ReLU(inplace=True), last)

    def classifier_shape(self):
        """(channels of the map that the classifier reads, number of classes)."""
        last = self.get_submodule(self.class_layers[0])
        return last.in_channels, last.out_channels

    def add_centres(self, kind):
        """A distance head: the classifier's outputs become an embedding, the logits its distances to class centres."""
        num_classes = self.classifier_shape()[1]
        if num_classes < 2:
            raise UserError("a distance head of a single class", "--model", "leave centres out")
        self.centres = Centres(num_classes, learnt=kind == "learnt")

    def add_property_head(self, weight):
        """A second task: regress properties of the image itself from the mean of the coarsest map.

        What the backbone must then keep is a reason to look at the image, whatever the labels' layout gives away.
        """
        self.property_head = nn.Sequential(
            nn.Linear(self.backbone.widths[-1], 64), nn.ReLU(inplace=True), nn.Linear(64, PROPERTIES)
        )
        self.aux_weights["properties"] = weight


class Centres(nn.Module):
    """Logits as minus the squared distance to each class's centre.

    Embedding (N, C, h, w), any float dtype -> (N, C, h, w) float32, at most 0. The embedding has one dimension a class,
    and centres start at RADIUS on each axis; learnt: they train, else they stay.
    Source: Cen et al., Deep Metric Learning for Open World Semantic Segmentation, ICCV 2021, section 4.1.
    """

    RADIUS = 3.0

    def __init__(self, num_classes, learnt):
        super().__init__()
        places = self.RADIUS * torch.eye(num_classes)  # (C centres, C dimensions)
        if learnt:
            self.places = nn.Parameter(places)
        else:
            self.register_buffer("places", places)

    def forward(self, embedding):
        with torch.autocast(embedding.device.type, enabled=False):  # ||f||² - 2 f·m + ||m||² cancels in bfloat16
            embedding = embedding.float()
            products = F.conv2d(embedding, self.places[:, :, None, None])  # (N, C, h, w)
            lengths = embedding.square().sum(1, keepdim=True)  # (N, 1, h, w)
            squares = self.places.square().sum(1)[:, None, None]
            return -(lengths - 2 * products + squares).clamp(min=0)
