"""The plain vision transformer as an encoder for images of any size, and two decoders for its one map.

An image is cut into patches of 16×16 pixels; every patch sees every other one in every layer. All maps inside have
stride 16, so there is no pyramid: a decoder works from the last one.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer

PATCH = 16  # side of a patch in pixels, and the stride of the map
GRID = 14  # patches on each side of the image that the position embedding was made for: 224×224

# {variant: (layers, heads, width, hidden width of the feed-forward part)}; Dosovitskiy et al. 2021, table 1; vit_tiny
# after Touvron et al., DeiT, ICML 2021, table 1.
VARIANTS = {
    "vit_tiny": (12, 3, 192, 768),
    "vit_b_16": (12, 12, 768, 3072),
    "vit_l_16": (24, 16, 1024, 4096),
}


class VitEncoder(nn.Module):
    """torchvision's VisionTransformer without its classifier; keys as torchvision's.

    variant: one of `VARIANTS`. widths: channels of the one map. left_out: the classifier's keys in a checkpoint.
    Any size works: the image is padded with zeros, the mean colour after normalisation, on the right and at the bottom
    to whole patches, and the position embedding is interpolated to that grid. So cell (i, j) of the map stands for the
    pixels from (16i, 16j) on, of the *padded* image: what is made of the map is to be enlarged to the padded size,
    then cut to the image's.

    Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; interpolation: its section 3.2. Bicubic, and
    antialiased where the grid shrinks: a coarse grid takes the mean of the embeddings that it covers, not samples.
    """

    left_out = frozenset(("heads.head.weight", "heads.head.bias"))

    def __init__(self, variant):
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
        layers, heads, width, hidden = VARIANTS[variant]
        network = VisionTransformer(GRID * PATCH, PATCH, layers, heads, width, hidden)
        self.conv_proj = network.conv_proj
        self.class_token = network.class_token
        self.encoder = network.encoder
        self.widths = (width,)

    def forward(self, images):
        """images (N, 3, H, W) -> [map (N, D, H / 16, W / 16)], sides rounded up."""
        height, width = images.shape[-2:]
        patches = self.conv_proj(F.pad(images, (0, -width % PATCH, 0, -height % PATCH)))  # (N, D, h, w)
        grid = patches.shape[-2:]
        tokens = patches.flatten(2).transpose(1, 2)  # (N, h·w, D)
        tokens = torch.cat((self.class_token.expand(len(images), -1, -1), tokens), dim=1)  # (N, 1 + h·w, D)
        tokens = self.encoder.dropout(tokens + self.position_embedding(grid))
        tokens = self.encoder.ln(self.encoder.layers(tokens))
        return [tokens[:, 1:].transpose(1, 2).unflatten(2, grid)]  # (N, D, h, w)

    def position_embedding(self, grid):
        """The embedding of the class token and of a grid h × w of patches: (1, 1 + h·w, D)."""
        embedding = self.encoder.pos_embedding
        if tuple(grid) == (GRID, GRID):
            return embedding
        own = embedding[:, 1:].transpose(1, 2).unflatten(2, (GRID, GRID))  # (1, D, 14, 14)
        resized = F.interpolate(own, tuple(grid), mode="bicubic", align_corners=False, antialias=True)  # (1, D, h, w)
        return torch.cat((embedding[:, :1], resized.flatten(2).transpose(1, 2)), dim=1)


class LinearDecoder(nn.Module):
    """1×1 convolution. With the classifier after it the whole decoder is linear, of rank `channels` at most.

    Source: Strudel et al., Segmenter, ICCV 2021, section 3.2 ("linear"), there without the layer in between.
    """

    def __init__(self, width, channels):
        super().__init__()
        self.project = nn.Conv2d(width, channels, 1)

    def forward(self, features):
        """features (N, width, h, w) -> [map (N, channels, h, w)]."""
        return [self.project(features)]


class ProgressiveDecoder(nn.Module):
    """Convolution and doubling in turn: 3×3 convolution, batch norm, ReLU, bilinear ×2, twice, from stride 16 to 4.

    Source: Zheng et al., Rethinking Semantic Segmentation (SETR), CVPR 2021, section 3.2, "progressive upsampling".
    Deviation: theirs goes on to stride 1; ours ends at stride 4 as the other decoders here, a sixteenth of the memory.
    """

    def __init__(self, width, channels):
        super().__init__()
        self.steps = nn.ModuleList(self._step(in_channels, channels) for in_channels in (width, channels))

    @staticmethod
    def _step(in_channels, channels):
        return nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        )

    def forward(self, features):
        """features (N, width, h, w) -> [(N, channels, 4h, 4w), (N, channels, 2h, 2w)], finest first."""
        maps = [features]
        for step in self.steps:
            maps.insert(0, step(maps[0]))
        return maps[:-1]
