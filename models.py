"""The segmentation models, and how pretrained weights get into them.

Every model maps images (N, 3, H, W) float32, normalised, to {"out": logits (N, C, H, W)}; in training mode it may add
"aux" of the same shape. Logits are float32 at the images' own size, whatever that is and whatever autocast is on. Each
model carries

    backbone      the module that ImageNet weights load into; everything else is the head, and comes after it
    classifier    the module that makes the logits; `class_layers` names the layers with one output per class
    aux_weights   {output: weight in the loss} of the outputs besides "out"
    imagenet      torchvision's entry for the backbone's ImageNet weights
    left_out      the keys of an ImageNet file that have no place in the backbone
    name, options `build_model` makes the same net from them
"""

import http.client
import pickle
import sys
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import MobileNet_V2_Weights, ResNet50_Weights, mobilenet_v2
from torchvision.models.segmentation import deeplabv3_resnet50

import flags
from flags import UserError

MODELS = {
    "deeplabv3_resnet50": {"aux": 0.4},
    "fpn_mobilenet_v2": {"channels": 96, "dropout": 0.1},
    "mobilenetv2": {},
}


def add_model_flags(parser):
    """The flags of the network: which, what it starts from, what stays as it is."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        default="fpn_mobilenet_v2",
        help="NAME or NAME:option=value,...: deeplabv3_resnet50:aux=weight of the auxiliary loss (0: none), "
        "fpn_mobilenet_v2:channels=width of the pyramid,dropout=share of its channels, mobilenetv2",
    )
    group.add_argument("--weights", default="none", help="none, imagenet (downloaded), or a file to start from")
    group.add_argument("--freeze", default="none", help="none, backbone, or N: the first N parameter tensors")


def parse_model(text):
    """Read 'fpn_mobilenet_v2:channels=128' into (name, options). Raises UserError for an unknown name or option."""
    return flags.parse_choice(text, MODELS)


def build_model(name, num_classes, options=None):
    """The network, randomly initialised from torch's global generator.

    options: {option: value}; those not given keep their default.
    Raises UserError for an unknown name or option, or a value out of its range.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}", "--model", flags.nearest(name, MODELS))
    for option in options or {}:
        if option not in MODELS[name]:
            raise UserError(f"unknown option {option!r}", f"--model {name}", flags.nearest(option, MODELS[name]))
    options = {**MODELS[name], **(options or {})}
    _check_options(options)
    networks = {
        "deeplabv3_resnet50": DeepLabV3ResNet50,
        "fpn_mobilenet_v2": FpnMobileNetV2,
        "mobilenetv2": MobileNetV2,
    }
    model = networks[name](num_classes, **options)
    model.name, model.options = name, options
    return model


def _check_options(options):
    ranges = {
        "aux": (lambda value: 0 <= value < float("inf"), "at least 0"),
        "channels": (lambda value: value >= 1, "at least 1"),
        "dropout": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    }
    for option, value in options.items():
        holds, text = ranges[option]
        if not holds(value):
            raise UserError(f"option {option}={value} is out of range", "--model", f"it must be {text}")


def start_model(args, num_classes):
    """The model that --model, --weights and --freeze describe: (model, lines that say what was loaded)."""
    name, options = parse_model(args.model)
    model = build_model(name, num_classes, options)
    lines = load_weights(model, args.weights)
    freeze(model, args.freeze)
    return model, lines


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def resize_logits(logits, size):
    """Bilinear resize of logits (N, C, h, w) to `size`, height × width, in float32: bfloat16 would make ties of scores.

    Planes, not channels_last: with few classes both the resize and the softmax after it are faster so.
    """
    return F.interpolate(logits.float().contiguous(), size, mode="bilinear", align_corners=False)


def convolution(in_channels, out_channels, kernel_size, groups=1):
    """Convolution without bias, then batch norm; the size stays."""
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    )


class MobileNetV2Encoder(nn.Module):
    """torchvision's MobileNetV2, its first `blocks` blocks; keys as torchvision's: features.N.*

    Source: Sandler et al., MobileNetV2, CVPR 2018, table 2.
    """

    STAGE_ENDS = (1, 3, 6, 13)  # the last blocks at strides 2, 4, 8, 16; stride 32 ends with the last block kept

    def __init__(self, blocks):
        super().__init__()
        network = mobilenet_v2(weights=None)
        self.features = network.features[:blocks]
        self.left_out = network.state_dict().keys() - self.state_dict().keys()

    def forward(self, images):
        """images (N, 3, H, W) -> five maps; each side is half the one before, rounded up."""
        maps = []
        for index, block in enumerate(self.features):
            images = block(images)
            if index in self.STAGE_ENDS or index == len(self.features) - 1:
                maps.append(images)  # (N, 16 | 24 | 32 | 96 | last, H / 2 | 4 | 8 | 16 | 32, …)
        return maps


class Pyramid(nn.Module):
    """Top-down pyramid: the coarsest map, with the whole image's mean added, is enlarged step by step; each step adds
    a 1×1 lateral of the next finer map and smooths the sum.

    Source: Lin et al., Feature Pyramid Networks, CVPR 2017, figure 3; the image-level feature after Liu et al.,
    ParseNet, 2015. Deviations: smoothing stands inside the top-down path, with batch norm and ReLU, so that coarse
    levels are refined on their way down; it is dense where the map is small and depthwise separable at the finest
    level, where a dense one would cost a tenth of the whole training step.
    """

    def __init__(self, in_channels, channels):
        """in_channels: of the maps, finest first."""
        super().__init__()
        self.laterals = nn.ModuleList(convolution(width, channels, 1) for width in in_channels)
        self.context = nn.Conv2d(in_channels[-1], channels, 1)  # no batch norm: one value per image and channel
        finest = [convolution(channels, channels, 3, groups=channels), convolution(channels, channels, 1)]
        dense = [[convolution(channels, channels, 3)] for _ in in_channels[1:-1]]
        self.smooth = nn.ModuleList(nn.Sequential(*layers, nn.ReLU(inplace=True)) for layers in (finest, *dense))

    def forward(self, maps):
        """Maps finest first -> (N, channels, h, w) at the finest map's size."""
        coarsest = maps[-1]
        path = F.relu(self.laterals[-1](coarsest) + self.context(coarsest.mean((2, 3), keepdim=True)))
        for level in reversed(range(len(maps) - 1)):
            lateral = self.laterals[level](maps[level])
            path = F.interpolate(path, lateral.shape[-2:], mode="bilinear", align_corners=False)
            path = self.smooth[level](lateral + path)  # (N, channels, h, w) of this level
        return path


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
# Networks


class DeepLabV3ResNet50(nn.Module):
    """torchvision's DeepLabV3 on a dilated ResNet-50 (output stride 8), with its auxiliary head; keys as torchvision's.

    aux: weight of the auxiliary head's loss; 0 builds none. The head works in training mode only.
    Source: Chen et al., Rethinking Atrous Convolution, 2017; the auxiliary head after Zhao et al., PSPNet, CVPR 2017.
    """

    imagenet = ResNet50_Weights.IMAGENET1K_V1
    left_out = frozenset(("fc.weight", "fc.bias"))

    def __init__(self, num_classes, aux):
        super().__init__()
        network = deeplabv3_resnet50(
            weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=True if aux else None
        )
        self.backbone = network.backbone
        self.classifier = network.classifier
        self.aux_classifier = network.aux_classifier
        self.class_layers = ("classifier.4", "aux_classifier.4") if aux else ("classifier.4",)
        self.aux_weights = {"aux": aux} if aux else {}

    def forward(self, images):
        features = self.backbone(images)  # {"out": (N, 2048, H / 8, W / 8), "aux": (N, 1024, H / 8, W / 8)}
        logits = {"out": self.classifier(features["out"])}
        if self.aux_classifier is not None and self.training:
            logits["aux"] = self.aux_classifier(features["aux"])
        return {name: resize_logits(value, images.shape[-2:]) for name, value in logits.items()}


class FpnMobileNetV2(nn.Module):
    """MobileNetV2 with a light top-down pyramid, classified at stride 4.

    The encoder stops at the 320 channels of its last bottleneck: a head on those is as accurate as one on the 1280
    after them, and cheaper (Sandler et al. 2018, section 6.3). dropout: share of the channels dropped, whole maps.
    """

    imagenet = MobileNet_V2_Weights.IMAGENET1K_V1
    class_layers = ("classifier",)
    aux_weights = {}

    def __init__(self, num_classes, channels, dropout):
        super().__init__()
        self.backbone = MobileNetV2Encoder(blocks=18)
        self.left_out = self.backbone.left_out
        self.pyramid = Pyramid((24, 32, 96, 320), channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, images):
        maps = self.backbone(images)
        finest = self.pyramid(maps[1:])  # (N, channels, H / 4, W / 4)
        logits = self.classifier(self.dropout(finest))  # (N, C, H / 4, W / 4)
        return {"out": resize_logits(logits, images.shape[-2:])}


class MobileNetV2(nn.Module):
    """MobileNetV2 and five learned doublings, each to exactly the size that the encoder had there.

    3.54 M parameters: a 1×1 convolution from 1280 to 256 channels comes before the first transposed one.
    """

    imagenet = MobileNet_V2_Weights.IMAGENET1K_V1
    class_layers = ("classifier",)
    aux_weights = {}

    def __init__(self, num_classes):
        super().__init__()
        self.backbone = MobileNetV2Encoder(blocks=19)
        self.left_out = self.backbone.left_out
        self.reduce = nn.Sequential(convolution(1280, 256, 1), nn.ReLU(inplace=True))
        widths = (256, 256, 128, 64, 32, 16)
        self.up = nn.ModuleList(UpSampling(*pair) for pair in zip(widths[:-1], widths[1:], strict=True))
        self.classifier = nn.Conv2d(16, num_classes, 1)

    def forward(self, images):
        maps = self.backbone(images)
        features = self.reduce(maps[-1])  # (N, 256, H / 32, W / 32)
        sizes = [finer.shape[-2:] for finer in (images, *maps[:-1])]  # strides 1, 2, 4, 8, 16
        for up, size in zip(self.up, reversed(sizes), strict=True):
            features = up(features, size)  # at last (N, 16, H, W)
        return {"out": self.classifier(features).float().contiguous()}


# ---------------------------------------------------------------------------------------------------------------------
# Weights


def load_weights(model, source):
    """Start the model from pretrained weights and return lines that say what was loaded and what was not.

    source: "none"; "imagenet", torchvision's weights for the backbone, downloaded; or a file with a state dict of the
    backbone (ImageNet) or of a whole model (torchvision's segmentation checkpoints, our own), bare or under
    "state_dict", "model" or "state", with or without "module." before every key. The keys themselves tell which.

    Loading is strict. What may stay unloaded: the ImageNet classifier; layers that have another number of classes;
    an auxiliary head that only one side has.
    Raises UserError for anything else that is missing, unexpected or of another shape, and for an unreadable file.
    """
    if source == "none":
        return [f"new, random: the whole model ({len(model.state_dict())} tensors)"]
    if source == "imagenet":
        return _load(model, download_imagenet(model.imagenet), str(model.imagenet))
    return _load(model, read_tensors(source), source)


def download_imagenet(weights):
    """The state dict of one of torchvision's weights, from torch hub's cache or the network.

    Raises UserError, with the remedy, where it cannot be had.
    """
    try:
        return weights.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, pickle.UnpicklingError) as error:
        remedy = f"download {weights.url} on a connected machine and give the file with --weights FILE"
        raise UserError(f"cannot get the ImageNet weights ({_first_line(error)})", weights.url, remedy) from None


def read_tensors(path):
    """The {key: tensor} in a weights file of any of the kinds that `load_weights` names, on the CPU.

    Raises UserError for a file that is missing, no weights file, cut short or damaged.
    """
    if not Path(path).is_file():
        raise UserError("no such weights file", path, "give --weights none, imagenet, or a file that exists")
    damaged = None
    try:
        if zipfile.is_zipfile(path):  # torch does not compare checksums: a flipped bit would load as another weight
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a file that is cut short, or no weights at all, raises nearly anything
        remedy = "give a file of tensors alone (a saved state dict), whole"
        raise UserError(f"this file cannot be read as weights ({_first_line(error)})", path, remedy) from None
    if damaged:
        raise UserError(f"damaged weights file (checksum of {damaged} differs)", path, "copy or download it again")
    return _unwrap(content, path)


def _unwrap(content, path):
    """The state dict inside a checkpoint, without the "module." that data parallel training puts before each key."""
    if isinstance(content, dict):
        wrapped = (content[key] for key in ("state", "state_dict", "model") if isinstance(content.get(key), dict))
        content = next(wrapped, content)
    named = isinstance(content, dict) and all(isinstance(k, str) and torch.is_tensor(v) for k, v in content.items())
    if not named or not content:
        remedy = 'give a state dict, bare or under "state_dict" or "model"'
        raise UserError("no weights in this file (they are tensors by name)", path, remedy)
    if all(key.startswith("module.") for key in content):
        return {key.removeprefix("module."): value for key, value in content.items()}
    return content


def _load(model, state, origin):
    """Load a state dict into the whole model or, if it is not one of a whole model, into the backbone."""
    whole = any(key.startswith("backbone.") for key in state)
    target = model if whole else model.backbone
    own = target.state_dict()
    left, new = _class_difference(model, state, own) if whole else (model.left_out & state.keys(), set())
    loaded = {key: state[key] for key in own if key in state and key not in new}
    _check_fit(model, own, state, loaded, left, new, origin)
    target.load_state_dict({**own, **loaded})
    lines = [f"{'model' if whole else 'backbone'}: {len(loaded)} tensors from {origin}"]
    if left:
        lines.append("left in file: " + ", ".join(sorted(left)))
    if new:
        lines.append("new, random: " + ", ".join(sorted(new)))
    if not whole:
        lines.append(f"new, random: head ({len(model.state_dict()) - len(own)} tensors)")
    return lines


def _class_difference(model, state, own):
    """The keys that a whole model's file and the model need not share: (left in the file, new in the model).

    They are the layers with another number of classes, and an auxiliary head that only one of the two has.
    """
    layers = [f"{layer}.{part}" for layer in model.class_layers for part in ("weight", "bias")]
    differ = {key for key in layers if key in state and state[key].shape[:1] != own[key].shape[:1]}
    in_file, in_model = ({key for key in keys if key.startswith("aux_classifier.")} for keys in (state, own))
    return differ | (set() if in_model else in_file), differ | (set() if in_file else in_model)


def _check_fit(model, own, state, loaded, left, new, origin):
    """Raise UserError unless the file holds exactly the tensors expected of it, in the model's shapes."""
    missing = own.keys() - loaded.keys() - new
    # A counter that no computation here reads; files written before it existed (torch 0.4) do not have it.
    missing = {key for key in missing if not key.endswith("num_batches_tracked")}
    unexpected = state.keys() - loaded.keys() - left
    shapes = {key for key in loaded if loaded[key].shape != own[key].shape}
    faults = [
        f"{len(keys)} {what} ({_first_few(keys)})"
        for what, keys in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if keys
    ]
    if faults:
        backbone = model.imagenet.url.rpartition("/")[2]
        remedy = f"give a checkpoint of this model or ImageNet weights of its backbone (such as {backbone})"
        raise UserError(f"these weights do not fit {model.name}: {'; '.join(faults)}", origin, remedy)


def _first_few(keys):
    """The first three keys by name, and how many more."""
    keys = sorted(keys)
    return ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


# ---------------------------------------------------------------------------------------------------------------------
# Freezing


def freeze(model, rule):
    """Take parameters out of training.

    rule: "none", "backbone", or N for the first N parameter tensors in the model's own order, the backbone's first.
    Raises UserError for another rule or more parameters than there are.
    """
    parameters = list(model.parameters())
    if rule == "none":
        count = 0
    elif rule == "backbone":
        count = len(list(model.backbone.parameters()))
    elif str(rule).isdecimal():
        count = int(rule)
    else:
        raise UserError(f"unknown rule {rule!r}", "--freeze", "write none, backbone, or a number of parameter tensors")
    if count > len(parameters):
        remedy = f"{model.name} has {len(parameters)} parameter tensors"
        raise UserError(f"cannot freeze {count} parameter tensors", "--freeze", remedy)
    for parameter in parameters[:count]:
        parameter.requires_grad_(False)


def train_mode(model):
    """Training mode, except batch norm whose parameters are all frozen: its statistics stay as they are, too."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            module.train(any(parameter.requires_grad for parameter in module.parameters()))
