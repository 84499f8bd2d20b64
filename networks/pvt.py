"""The encoder PVT v2: a pyramid of transformers whose attention reads a reduced map.

Four stages of attention at strides 4, 8, 16 and 32. What makes it affordable at stride 4: queries come from every
position, keys and values from a map that a strided convolution made 8, 4, 2 or 1 times smaller. What makes it work at
any size: position comes from the overlapping patches and from the depthwise convolution in each feed-forward part,
there is no table of positions.

Source: Wang et al., PVT v2: Improved Baselines with Pyramid Vision Transformer, Computational Visual Media 2022; the
variant with convolutional reduction, not the "linear" one with pooling. Parameter names, layer-norm epsilons,
initial values and stochastic depth are those of the authors' code, so that their checkpoints load.
"""

import math

import torch.nn.functional as F
from torch import nn
from torchvision.ops import StochasticDepth

# {variant: (channels of the stages, blocks in each)}; table 1 of the paper.
VARIANTS = {
    "pvt_v2_b0": ((32, 64, 160, 256), (2, 2, 2, 2)),
    "pvt_v2_b1": ((64, 128, 320, 512), (2, 2, 2, 2)),
    "pvt_v2_b2": ((64, 128, 320, 512), (3, 4, 6, 3)),
}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
EXPANSIONS = (8, 8, 4, 4)
DROP_RATE = 0.1  # of the last block's two branches; 0 at the first block, linear in between


def to_tokens(features):
    """(N, C, h, w) -> (N, h·w, C)."""
    return features.flatten(2).transpose(1, 2)


def to_map(tokens, size):
    """(N, h·w, C) -> (N, C, h, w), a view: channels last in memory."""
    return tokens.transpose(1, 2).unflatten(2, size)


class PatchEmbed(nn.Module):
    """Overlapping patches: strided convolution that sees into the neighbours, then layer norm."""

    def __init__(self, in_channels, channels, kernel_size, stride):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel_size, stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(channels)

    def forward(self, features):
        """(N, in_channels, H, W) -> tokens (N, h·w, channels) and their size (h, w): H / stride rounded up."""
        features = self.proj(features)
        return self.norm(to_tokens(features)), features.shape[-2:]


class Attention(nn.Module):
    """Attention from every position to a map reduced by a convolution of kernel and stride `reduction`."""

    def __init__(self, channels, heads, reduction):
        super().__init__()
        self.heads, self.reduction = heads, reduction
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, tokens, size):
        """tokens (N, h·w, C) -> the same shape."""
        queries = self._split(self.q(tokens))
        keys, values = (self._split(part) for part in self.kv(self._reduce(tokens, size)).chunk(2, dim=-1))
        attended = F.scaled_dot_product_attention(queries, keys, values)  # (N, heads, h·w, C / heads)
        return self.proj(attended.transpose(1, 2).flatten(2))

    def _split(self, tokens):
        return tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, heads, L, C / heads)

    def _reduce(self, tokens, size):
        """(N, h·w, C) -> (N, h/r · w/r, C) rounded down, as the authors do; a side below r is padded with zeros."""
        if self.reduction == 1:
            return tokens
        features = to_map(tokens, size)
        if min(size) < self.reduction:
            bottom, right = (max(0, self.reduction - side) for side in size)
            features = F.pad(features, (0, right, 0, bottom))
        return self.norm(to_tokens(self.sr(features)))


class DepthwiseConv(nn.Module):
    """3×3 depthwise convolution on tokens; a module of its own because the checkpoints' keys want it."""

    def __init__(self, channels):
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, tokens, size):
        return to_tokens(self.dwconv(to_map(tokens, size)))


class FeedForward(nn.Module):
    """Linear, 3×3 depthwise convolution, GELU, linear."""

    def __init__(self, channels, hidden):
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = DepthwiseConv(hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, tokens, size):
        return self.fc2(F.gelu(self.dwconv(self.fc1(tokens), size)))


class Block(nn.Module):
    """Attention and feed-forward, each after a layer norm and added to its input; drop_rate: how often it is not."""

    def __init__(self, channels, heads, reduction, expansion, drop_rate):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = Attention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = FeedForward(channels, expansion * channels)
        self.drop_path = StochasticDepth(drop_rate, mode="row")

    def forward(self, tokens, size):
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), size))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens), size))


class PvtV2(nn.Module):
    """PVT v2 without its classifier; keys as in the authors' checkpoints.

    variant: one of `VARIANTS`. widths: channels of the four maps. left_out: the classifier's keys in a checkpoint.
    In training mode each image's branches drop out at random (stochastic depth), so a block may get no gradient.
    """

    left_out = frozenset(("head.weight", "head.bias"))

    def __init__(self, variant):
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"unknown variant {variant!r}; known: {', '.join(VARIANTS)}")
        self.widths, depths = VARIANTS[variant]
        rates = iter([DROP_RATE * block / (sum(depths) - 1) for block in range(sum(depths))])
        for stage, (in_channels, channels) in enumerate(zip((3, *self.widths), self.widths, strict=False)):
            kernel_size, stride = (3, 2) if stage else (7, 4)
            part = (HEADS[stage], REDUCTIONS[stage], EXPANSIONS[stage])
            blocks = [Block(channels, *part, next(rates)) for _ in range(depths[stage])]
            self.add_module(f"patch_embed{stage + 1}", PatchEmbed(in_channels, channels, kernel_size, stride))
            self.add_module(f"block{stage + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{stage + 1}", nn.LayerNorm(channels, eps=1e-6))
        self.apply(_initialise)

    def forward(self, images):
        """images (N, 3, H, W) -> four maps (N, widths[i], H / s, W / s), s = 4, 8, 16, 32, sides rounded up."""
        maps = []
        for stage in range(1, len(self.widths) + 1):
            tokens, size = getattr(self, f"patch_embed{stage}")(images if stage == 1 else maps[-1])
            for block in getattr(self, f"block{stage}"):
                tokens = block(tokens, size)
            maps.append(to_map(getattr(self, f"norm{stage}")(tokens), size))
        return maps


def _initialise(module):
    """The authors' initial values: linear layers truncated normal, σ 0.02; convolutions normal, σ √(2 / fan-out)."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(module.bias)
