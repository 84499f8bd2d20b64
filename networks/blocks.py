"""What the models are put together from: normalisation, convolutions, the pyramid, atrous pooling, attention."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import SqueezeExcitation

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB images in [0, 1], what the published weights expect
STD = (0.229, 0.224, 0.225)


class Normalise(nn.Module):
    """(x - mean) / std per channel; images (N, 3, H, W) float in [0, 1]. The one place where that happens."""

    def __init__(self, mean=MEAN, std=STD):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1))

    def forward(self, images):
        return (images - self.mean) / self.std


def resize_logits(logits, size):
    """Bilinear resize of logits (N, C, h, w) to `size`, height × width, in float32: bfloat16 would make ties of scores.

    Planes, not channels_last: with few classes both the resize and the softmax after it are faster so.
    """
    return F.interpolate(logits.float().contiguous(), size, mode="bilinear", align_corners=False)


def resize(features, like):
    """Bilinear resize of features (N, C, h, w) to the height and width of the map `like`."""
    return F.interpolate(features, like.shape[-2:], mode="bilinear", align_corners=False)


def convolution(in_channels, out_channels, kernel_size, groups=1, dilation=1):
    """Convolution without bias, then batch norm; the size stays."""
    padding = kernel_size // 2 * dilation
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=padding, groups=groups, dilation=dilation, bias=False
        ),
        nn.BatchNorm2d(out_channels),
    )


def activated(*arguments, **options):
    """`convolution`, then ReLU."""
    return nn.Sequential(*convolution(*arguments, **options), nn.ReLU(inplace=True))


def separable(in_channels, out_channels, dilation=1):
    """Depthwise 3×3 and pointwise convolution, each with batch norm, and ReLU (Chen et al. 2018, section 3.1)."""
    return nn.Sequential(
        convolution(in_channels, in_channels, 3, groups=in_channels, dilation=dilation),
        activated(in_channels, out_channels, 1),
    )


# ---------------------------------------------------------------------------------------------------------------------
# The pyramid


class Pyramid(nn.Module):
    """Top-down pyramid: the coarsest map, with the whole image's mean added, is enlarged step by step; each step adds
    a 1×1 lateral of the next finer map and smooths the sum.

    Source: Lin et al., Feature Pyramid Networks, CVPR 2017, figure 3; the image-level feature after Liu et al.,
    ParseNet, 2015. Deviations: smoothing stands inside the top-down path, with batch norm and ReLU, so that coarse
    levels are refined on their way down; it is dense where the map is small and depthwise separable at the finest
    level, where a dense one would cost a tenth of the whole training step.
    """

    def __init__(self, in_channels, channels, upsample="bilinear", laterals=True, attention="none"):
        """in_channels: of the maps, finest first. upsample: nearest, bilinear or transposed (learned 2×2 kernels).
        laterals: off leaves only the coarsest map's way down. attention: none, se or cbam, after each smoothing."""
        super().__init__()
        used = in_channels if laterals else in_channels[-1:]
        self.laterals = nn.ModuleList(convolution(width, channels, 1) for width in used)
        self.context = nn.Conv2d(in_channels[-1], channels, 1)  # no batch norm: one value per image and channel
        finest = [convolution(channels, channels, 3, groups=channels), convolution(channels, channels, 1)]
        dense = [[convolution(channels, channels, 3)] for _ in in_channels[1:-1]]
        self.smooth = nn.ModuleList(nn.Sequential(*layers, nn.ReLU(inplace=True)) for layers in (finest, *dense))
        learned = [nn.ConvTranspose2d(channels, channels, 2, stride=2) for _ in self.smooth if upsample == "transposed"]
        self.enlarge = nn.ModuleList(learned)
        self.attend = nn.ModuleList(build_attention(attention, channels) for _ in self.smooth if attention != "none")
        self.mode = "nearest" if upsample == "nearest" else "bilinear"

    def forward(self, maps):
        """Maps finest first -> list of (N, channels, h, w), finest first, one a map."""
        coarsest = maps[-1]
        path = F.relu(self.laterals[-1](coarsest) + self.context(coarsest.mean((2, 3), keepdim=True)))
        levels = [path]
        for level in reversed(range(len(maps) - 1)):
            path = self._enlarge(path, level, maps[level].shape[-2:])
            if len(self.laterals) > 1:
                path = path + self.laterals[level](maps[level])
            path = self.smooth[level](path)  # (N, channels, h, w) of this level
            if self.attend:
                path = self.attend[level](path)
            levels.insert(0, path)
        return levels

    def _enlarge(self, path, level, size):
        if self.enlarge:
            path = self.enlarge[level](path)  # (N, channels, 2h, 2w), a row more or less than the finer map may have
        if path.shape[-2:] == size:
            return path
        return F.interpolate(path, size, mode=self.mode, **({"align_corners": False} if self.mode != "nearest" else {}))


def build_attention(kind, channels):
    """se: torchvision's squeeze-and-excitation (Hu et al., CVPR 2018), a quarter of the channels; cbam: see Cbam."""
    return SqueezeExcitation(channels, max(1, channels // 4)) if kind == "se" else Cbam(channels)


class Cbam(nn.Module):
    """Channel attention from mean and maximum over places, then spatial attention from both over channels.

    Source: Woo et al., CBAM, ECCV 2018, equations 2 and 3; reduction 16.
    """

    def __init__(self, channels, reduction=16):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.channel = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, channels, 1)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, features):
        """(N, C, h, w) -> the same shape."""
        mean, largest = features.mean((2, 3), keepdim=True), features.amax((2, 3), keepdim=True)
        features = features * torch.sigmoid(self.channel(mean) + self.channel(largest))  # (N, C, 1, 1) weights
        places = torch.cat([features.mean(1, keepdim=True), features.amax(1, keepdim=True)], dim=1)  # (N, 2, h, w)
        return features * torch.sigmoid(self.spatial(places))


class UpSampling(nn.Module):
    """One learned doubling: 3×3 transposed convolution with stride 2, batch norm, ReLU."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.transposed = nn.ConvTranspose2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, features, size):
        """features (N, C, h, w) -> (N, out_channels, *size); each side of size is 2h - 1 or 2h."""
        return F.relu(self.norm(self.transposed(features, output_size=size)), inplace=True)


# ---------------------------------------------------------------------------------------------------------------------
# Atrous pooling


class AtrousPooling(nn.Module):
    """Atrous spatial pyramid pooling with separable convolutions: 1×1, three rates, and the whole image's mean.

    Source: Chen et al., DeepLabV3+, ECCV 2018, section 3.1. Deviation: the image branch has no batch norm (one value
    per image and channel, so a batch of one would have no variance).
    """

    def __init__(self, in_channels, channels, rates):
        super().__init__()
        self.point = activated(in_channels, channels, 1)
        self.atrous = nn.ModuleList(separable(in_channels, channels, dilation=rate) for rate in rates)
        self.context = nn.Conv2d(in_channels, channels, 1)
        self.project = nn.Sequential(activated(channels * (len(rates) + 2), channels, 1), nn.Dropout(0.1))

    def forward(self, features):
        """(N, in_channels, h, w) -> (N, channels, h, w)."""
        context = F.relu(self.context(features.mean((2, 3), keepdim=True))).expand(-1, -1, *features.shape[-2:])
        branches = [self.point(features), *(branch(features) for branch in self.atrous), context]
        return self.project(torch.cat(branches, dim=1))
