"""The backbones of torchvision, cut into stages.

Each maps images (N, 3, H, W) to a list of maps from the finest to the coarsest and carries `widths`, their channels,
and `left_out`, the keys of an ImageNet file that have no place in it. Its own keys are those of torchvision's network,
so that torchvision's weights fit.
"""

from torch import nn
from torchvision import models as tv


class StagedEncoder(nn.Module):
    """A network whose `features` run one after the other; the maps are what leaves the blocks in `ends`."""

    def __init__(self, network, blocks, ends, widths):
        super().__init__()
        self.features = network.features[:blocks]
        self.ends, self.widths = ends, widths
        self.left_out = network.state_dict().keys() - self.state_dict().keys()

    def forward(self, images):
        """images (N, 3, H, W) -> one map an end."""
        maps = []
        for index, block in enumerate(self.features):
            images = block(images)
            if index in self.ends:
                maps.append(images)
        return maps


def mobilenet_v2(blocks=18, output_stride=32):
    """MobileNetV2 at strides 2, 4, 8, 16, 32; each side is half the one before, rounded up.

    blocks: 18 ends at the last bottleneck's 320 channels, 19 at the 1280 of the convolution after it. output_stride: 8
    or 16 replaces the last strides by dilation. Source: Sandler et al., MobileNetV2, CVPR 2018, table 2.
    """
    encoder = StagedEncoder(
        tv.mobilenet_v2(weights=None),
        blocks,
        (1, 3, 6, 13, blocks - 1),
        (16, 24, 32, 96, 320 if blocks == 18 else 1280),
    )
    dilate(encoder.features, output_stride)
    return encoder


def mobilenet_v3_large():
    """MobileNetV3-Large, dilated, at strides 2, 4, 8, 16, 16: torchvision's backbone of its DeepLabV3.

    Stride 8 is the first block there, which torchvision's auxiliary head reads, not the last.
    Source: Howard et al., Searching for MobileNetV3, ICCV 2019, table 1.
    """
    network = tv.mobilenet_v3_large(weights=None, dilated=True)
    return StagedEncoder(network, 17, (1, 3, 4, 12, 16), (16, 24, 40, 112, 960))


def convnext(size):
    """ConvNeXt at strides 4, 8, 16, 32; sides are rounded down. Source: Liu et al., A ConvNet for the 2020s, 2022."""
    network = {"tiny": tv.convnext_tiny, "small": tv.convnext_small}[size](weights=None)
    return StagedEncoder(network, 8, (1, 3, 5, 7), (96, 192, 384, 768))


class SwinEncoder(StagedEncoder):
    """Swin Transformer at strides 4, 8, 16, 32; windows are padded inside, so any size of at least 4 works.

    Source: Liu et al., Swin Transformer, ICCV 2021; version 2: CVPR 2022.
    """

    def __init__(self, variant):
        network = {"swin_t": tv.swin_t, "swin_s": tv.swin_s, "swin_v2_t": tv.swin_v2_t}[variant](weights=None)
        super().__init__(network, 8, (1, 3, 5, 7), (96, 192, 384, 768))

    def forward(self, images):
        return [features.permute(0, 3, 1, 2) for features in super().forward(images)]  # (N, h, w, C) -> (N, C, h, w)


class ResNetEncoder(nn.Module):
    """ResNet-50 or -101 at strides 2, 4, 8, 16, 32; output_stride 8 or 16 replaces the last strides by dilation.

    Source: He et al., CVPR 2016, as torchvision has it (the stride in the 3×3 convolution).
    """

    widths = (64, 256, 512, 1024, 2048)
    left_out = frozenset(("fc.weight", "fc.bias"))

    def __init__(self, depth, output_stride=32):
        super().__init__()
        network = {50: tv.resnet50, 101: tv.resnet101}[depth](
            weights=None, replace_stride_with_dilation=[False, output_stride <= 8, output_stride <= 16]
        )
        for name, module in network.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, module)

    def forward(self, images):
        """images (N, 3, H, W) -> five maps."""
        maps = [self.relu(self.bn1(self.conv1(images)))]  # (N, 64, H / 2, W / 2)
        features = self.maxpool(maps[0])
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            features = layer(features)
            maps.append(features)
        return maps


def dilate(blocks, output_stride):
    """Replace the strides of 3×3 convolutions beyond `output_stride` by dilation, in place.

    As in torchvision's ResNet, the convolution that loses its stride still has the dilation of those before it.
    """
    stride = dilation = 1
    for convolution in (m for m in blocks.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)):
        wanted = convolution.stride[0]
        if stride * wanted > output_stride:
            convolution.stride = (1, 1)
        else:
            stride, wanted = stride * wanted, 1
        convolution.dilation = convolution.padding = (dilation, dilation)
        dilation *= wanted
