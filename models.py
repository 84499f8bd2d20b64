"""The segmentation models, and what of them trains.

Every model maps images (N, 3, H, W) float32, normalised, to {"out": logits (N, C, H, W), "features": (N, D, h, w),
the map that its classifier reads, "backbone": the backbone's coarsest map}; in training mode it may add "aux" (logits)
and "properties" (N, 6), with residual=on always "open", the logits that anomalies are judged by. Logits are float32 at
the images' own size, whatever that is and whatever autocast is on. Each model is a `Segmenter` and carries

    backbone       the module that ImageNet weights load into; everything after it is the decoder and the classifier
    class_layers   names of the layers with one output per class, the main one first
    centres        of a distance head, else None; `residual_head` is there with residual=on
    aux_weights    {output: weight in the loss} of the outputs that only training has
    imagenet, coco torchvision's entries for weights of the backbone, of the whole model; None where there are none
    left_out       the keys of an ImageNet file that have no place in the backbone
    name, options  `build_model` makes the same net from them

`backbone_features(images)` and `pyramid_features(images)` show what is inside, finest map first. What they are
built from stands in `networks/`.
"""

import math
import textwrap

import torch
import torch.nn.functional as F
from torch import nn
from torchvision import models as tv
from torchvision.models.segmentation.deeplabv3 import DeepLabHead
from torchvision.models.segmentation.fcn import FCNHead

import cli
from cli import UserError
from networks.backbones import ResNetEncoder, SwinEncoder, convnext, mobilenet_v2, mobilenet_v3_large
from networks.blocks import AtrousPooling, Pyramid, UpSampling, activated, convolution, resize, separable
from networks.pvt import PvtV2
from networks.segmenter import Segmenter
from networks.vit import VARIANTS, LinearDecoder, ProgressiveDecoder, VitEncoder
from networks.weights import load_weights, read_class_names

# What can stand under the pyramid: how to make it, and torchvision's ImageNet weights.
PYRAMID_BACKBONES = {
    "mobilenet_v2": (mobilenet_v2, tv.MobileNet_V2_Weights.IMAGENET1K_V1),
    "resnet50": (lambda: ResNetEncoder(50), tv.ResNet50_Weights.IMAGENET1K_V1),
    "convnext_tiny": (lambda: convnext("tiny"), tv.ConvNeXt_Tiny_Weights.IMAGENET1K_V1),
    "convnext_small": (lambda: convnext("small"), tv.ConvNeXt_Small_Weights.IMAGENET1K_V1),
    "swin_t": (lambda: SwinEncoder("swin_t"), tv.Swin_T_Weights.IMAGENET1K_V1),
    "swin_s": (lambda: SwinEncoder("swin_s"), tv.Swin_S_Weights.IMAGENET1K_V1),
    "swin_v2_t": (lambda: SwinEncoder("swin_v2_t"), tv.Swin_V2_T_Weights.IMAGENET1K_V1),
    "pvt_v2_b0": (lambda: PvtV2("pvt_v2_b0"), None),
    "pvt_v2_b1": (lambda: PvtV2("pvt_v2_b1"), None),
    "pvt_v2_b2": (lambda: PvtV2("pvt_v2_b2"), None),
}

PYRAMID = {"channels": 128, "dropout": 0.0, "upsample": "bilinear", "laterals": True, "attention": "none"}
MODELS = {
    **{f"deeplabv3_{name}": {"aux": 0.4} for name in ("resnet50", "resnet101", "mobilenet_v3_large")},
    **{f"deeplabv3plus_{name}": {"stride": 16} for name in ("resnet50", "resnet101", "mobilenet_v2")},
    **{f"unet_{name}": {} for name in ("resnet50", "mobilenet_v2")},
    "mobilenetv2": {"skips": False},
    **{f"fpn_{name}": PYRAMID for name in PYRAMID_BACKBONES},
    "fpn_mobilenet_v2": {**PYRAMID, "channels": 96},
    **{name: {"decoder": "progressive", "channels": 128} for name in VARIANTS},
}
EVERY_MODEL = {"centres": "none", "residual": False}
MODELS = {name: {**options, **EVERY_MODEL} for name, options in MODELS.items()}
# What an option may be: one of a few values, or a number from the first to below the second.
CHOICES = {
    "stride": (8, 16),
    "upsample": ("nearest", "bilinear", "transposed"),
    "attention": ("none", "se", "cbam"),
    "decoder": ("linear", "progressive"),
    "laterals": (True, False),
    "skips": (True, False),
    "centres": ("none", "fixed", "learnt"),
    "residual": (True, False),
}
RANGES = {"aux": (0, math.inf), "properties": (0, math.inf), "channels": (1, math.inf), "dropout": (0, 1)}
ABOUT = {  # what a name means, for --help
    "mobilenetv2": "five learned doublings",
    "aux": "weight of the auxiliary loss, 0: none",
    "skips": "add the encoder's maps",
    "channels": "of the decoder",
    "dropout": "share of the decoder's maps that is dropped",
    "centres": "logits are distances to class centres",
    "residual": "a head of its own for anomalies, see --outliers",
}
AUX_TASKS = {"none": {}, "properties": {"weight": 0.1}}


def list_models():
    """Text for --help: every family of models, its backbones, its options with their defaults and other values."""
    families = {}
    for name, options in MODELS.items():
        family, _, backbone = name.partition("_")
        families.setdefault(family, {})[backbone] = {o: v for o, v in options.items() if o not in EVERY_MODEL}
    rows = [(family + "_*" * ("" not in members), members) for family, members in families.items()]
    lines = ["models of --model, with their options:"]
    for title, members in (*rows, ("every model", {"": EVERY_MODEL})):
        first, rest = f"    {title:18}", " " * 22
        text = ABOUT.get(title, ", ".join(members))
        lines += textwrap.wrap(text, 118, initial_indent=first, subsequent_indent=rest) or [first.rstrip()]
        lines += [f"{rest}  {_describe_option(option, members)}" for option in next(iter(members.values()))]
    return "\n".join(lines) + "\n"


def _describe_option(option, members):
    """'channels=128 (of the decoder; mobilenet_v2: 96)'. members: {backbone: options}; the last one's are told."""
    values = {backbone: _shown(options[option]) for backbone, options in members.items()}
    *_, default = values.values()
    others = ", ".join(shown for shown in map(_shown, CHOICES.get(option, ())) if shown != default)
    about = ": ".join(filter(None, (others and f"or {others}", ABOUT.get(option))))
    exceptions = [f"{backbone}: {shown}" for backbone, shown in values.items() if shown != default]
    return f"{option}={default} ({'; '.join((about, *exceptions))})"


def _shown(value):
    """An option's value as it is typed."""
    return ("off", "on")[value] if isinstance(value, bool) else value if isinstance(value, str) else f"{value:g}"


LISTING = list_models()


def add_model_flags(parser):
    """The flags of the network: which, what it starts from, what stays as it is."""
    group = parser.add_argument_group("model", LISTING)
    group.add_argument("--model", default="fpn_mobilenet_v2", help="NAME or NAME:option=value,... of the models above")
    group.add_argument("--weights", default="none", help="none, imagenet or coco (downloaded), or a file to start from")
    group.add_argument(
        "--freeze",
        default="none",
        help="none, backbone, all-but-head (only the classifier trains), all-but-residual (only that head), or N: the "
        "first N parameter tensors",
    )
    group.add_argument(
        "--aux-task",
        default="none",
        help="none, or properties:weight=W: a second head regresses brightness, contrast, colours and edge density",
    )


def parse_model(text):
    """Read 'fpn_mobilenet_v2:channels=128' into (name, options). Raises UserError for an unknown name or option."""
    return cli.parse_choice(text, MODELS)


def build_model(name, num_classes, options=None):
    """The network, randomly initialised from torch's global generator.

    options: {option: value}; those not given keep their default. Every model knows "centres", "residual" and
    "properties" as well, the last being the weight of its second task, 0 for none.
    Raises UserError for an unknown name or option, or a value out of its range.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}", "--model", cli.nearest(name, MODELS))
    known = {**MODELS[name], "properties": 0.0}
    for option in options or {}:
        if option not in known:
            raise UserError(f"unknown option {option!r}", f"--model {name}", cli.nearest(option, known))
    options = {**known, **(options or {})}
    _check_options(options)
    common = {**EVERY_MODEL, "properties": 0.0}
    model = _make(name, num_classes, {option: value for option, value in options.items() if option not in common})
    if options["centres"] != "none":
        model.add_centres(options["centres"])
    if options["residual"]:
        model.add_residual_head()
    if options["properties"]:
        model.add_property_head(options["properties"])
    model.name, model.options = name, options
    return model


def _make(name, num_classes, options):
    """The network of a checked name and checked options."""
    family, _, backbone = name.partition("_")
    arguments = (backbone, num_classes) if backbone else (num_classes,)
    return FAMILIES[family](*arguments, **options)


def _check_options(options):
    for option, value in options.items():
        if option in CHOICES:
            holds, text = value in CHOICES[option], "one of " + ", ".join(map(str, CHOICES[option]))
        else:
            low, high = RANGES[option]
            holds, text = low <= value < high, f"at least {low}" + (f" and below {high}" if high < math.inf else "")
        if not holds:
            raise UserError(f"option {option}={value} is out of range", "--model", f"it must be {text}")


def model_options(args):
    """What the flags of the network say, as `start_model` takes it."""
    return {"model": args.model, "weights": args.weights, "freeze": args.freeze, "aux_task": args.aux_task}


def start_model(model, num_classes, *, weights="none", freeze="none", aux_task="none"):
    """A network as training starts it: (model, lines that say what was loaded and what stays frozen).

    model: "NAME:option=value,..." (`parse_model`); weights, freeze, aux_task: as --weights, --freeze and --aux-task
    take them. What no weights are loaded into is drawn from torch's global generator. Raises UserError.
    """
    name, options = parse_model(model)
    task, about = cli.parse_choice(aux_task, AUX_TASKS)
    if task != "none" and not 0 < about["weight"] < float("inf"):
        raise UserError(f"weight {about['weight']}", f"--aux-task {task}", "give a weight above 0")
    network = build_model(name, num_classes, {**options, "properties": about.get("weight", 0.0)})
    lines = load_weights(network, weights)
    freeze_parameters(network, freeze)
    return network, lines + describe_frozen(network, weights)


def check_trained_classes(weights, classes, held_out=(), freeze="none"):
    """Raise UserError where --weights is a checkpoint of ours whose classes do not go with those to learn now.

    held_out: names that are anomalies now. Weights that have learnt them would know what is to be found as unknown.
    """
    trained = read_class_names(weights)
    if trained is None or trained == list(classes):
        return
    if learnt := [name for name in held_out if name in trained]:
        what = f"these weights have learnt {learnt[0]!r}, which --anomaly-classes holds out"
        raise UserError(what, weights, "start from weights that have not seen it")
    if len(trained) == len(classes) or freeze in ("all-but-head", "all-but-residual"):
        different = ", ".join(sorted({*trained} ^ {*classes})[:6]) or "their order"
        what = f"these weights know other classes ({different})"
        raise UserError(what, weights, "use the set they were trained on, or weights of the backbone alone")


# ---------------------------------------------------------------------------------------------------------------------
# Networks


class DeepLabV3(Segmenter):
    """torchvision's DeepLabV3 on a dilated backbone, with its auxiliary head; keys as torchvision's.

    resnet50, resnet101: output stride 8; mobilenet_v3_large: 16, its auxiliary head reads stride 8.
    aux: weight of the auxiliary head's loss; 0 builds none. The head works in training mode only.
    Source: Chen et al., Rethinking Atrous Convolution, 2017; the auxiliary head after Zhao et al., PSPNet, CVPR 2017.
    """

    BACKBONES = {  # how to make it, which map the auxiliary head reads, ImageNet and COCO weights
        "resnet50": (
            lambda: ResNetEncoder(50, output_stride=8),
            3,
            tv.ResNet50_Weights.IMAGENET1K_V1,
            tv.segmentation.DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1,
        ),
        "resnet101": (
            lambda: ResNetEncoder(101, output_stride=8),
            3,
            tv.ResNet101_Weights.IMAGENET1K_V1,
            tv.segmentation.DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1,
        ),
        "mobilenet_v3_large": (
            mobilenet_v3_large,
            2,
            tv.MobileNet_V3_Large_Weights.IMAGENET1K_V1,
            tv.segmentation.DeepLabV3_MobileNet_V3_Large_Weights.COCO_WITH_VOC_LABELS_V1,
        ),
    }

    def __init__(self, backbone, num_classes, aux):
        make, aux_map, imagenet, coco = self.BACKBONES[backbone]
        super().__init__(make())
        self.aux_map, self.imagenet, self.coco = aux_map, imagenet, coco
        widths = self.backbone.widths
        self.classifier = DeepLabHead(widths[-1], num_classes)
        self.class_layers = ("classifier.4",)
        if aux:
            self.aux_classifier = FCNHead(widths[self.aux_map], num_classes)
            self.class_layers += ("aux_classifier.4",)
            self.aux_weights["aux"] = aux

    def decode(self, maps, size):
        features = maps[-1]
        for layer in list(self.classifier)[:-1]:
            features = layer(features)
        return [features]  # (N, 256, h, w), at stride 8 or 16

    def classify(self, features):
        return self.classifier[-1](features)

    def auxiliary(self, maps):
        return {"aux": self.aux_classifier(maps[self.aux_map])} if "aux" in self.aux_weights else {}


class DeepLabV3Plus(Segmenter):
    """Atrous separable pooling at stride 8 or 16, then the details of stride 4.

    Source: Chen et al., Encoder-Decoder with Atrous Separable Convolution, ECCV 2018, section 3 (rates 6, 12, 18 at
    stride 16, twice that at 8; 48 channels of detail; two 3×3 convolutions, separable here, on both together).
    """

    BACKBONES = {  # how to make it, its ImageNet weights
        "resnet50": (lambda stride: ResNetEncoder(50, stride), tv.ResNet50_Weights.IMAGENET1K_V1),
        "resnet101": (lambda stride: ResNetEncoder(101, stride), tv.ResNet101_Weights.IMAGENET1K_V1),
        "mobilenet_v2": (
            lambda stride: mobilenet_v2(output_stride=stride),
            tv.MobileNet_V2_Weights.IMAGENET1K_V1,
        ),
    }

    def __init__(self, backbone, num_classes, stride):
        make, imagenet = self.BACKBONES[backbone]
        super().__init__(make(stride))
        self.imagenet = imagenet
        widths = self.backbone.widths
        self.pooling = AtrousPooling(widths[-1], 256, [rate * 16 // stride for rate in (6, 12, 18)])
        self.detail = activated(widths[1], 48, 1)
        self.fuse = nn.Sequential(separable(256 + 48, 256), separable(256, 256))
        self.classifier = nn.Conv2d(256, num_classes, 1)

    def decode(self, maps, size):
        pooled = self.pooling(maps[-1])  # (N, 256, H / stride, W / stride)
        detail = self.detail(maps[1])  # (N, 48, H / 4, W / 4)
        return [self.fuse(torch.cat([resize(pooled, detail), detail], dim=1)), pooled]


class UNet(Segmenter):
    """U-Net over a pretrained encoder: each doubling and the encoder's map of that size enter two 3×3 convolutions.

    Source: Ronneberger et al., U-Net, MICCAI 2015. Deviations: the encoder; batch norm; nearest doubling instead of
    a transposed convolution; sizes are kept by padding.
    """

    BACKBONES = {
        "resnet50": (lambda: ResNetEncoder(50), tv.ResNet50_Weights.IMAGENET1K_V1),
        "mobilenet_v2": (lambda: mobilenet_v2(blocks=19), tv.MobileNet_V2_Weights.IMAGENET1K_V1),
    }
    WIDTHS = (256, 128, 64, 32, 16)  # at strides 16, 8, 4, 2, 1

    def __init__(self, backbone, num_classes):
        make, imagenet = self.BACKBONES[backbone]
        super().__init__(make())
        self.imagenet = imagenet
        below = (self.backbone.widths[-1], *self.WIDTHS[:-1])
        skips = (*self.backbone.widths[-2::-1], 0)
        self.blocks = nn.ModuleList(
            nn.Sequential(activated(low + skip, width, 3), activated(width, width, 3))
            for low, skip, width in zip(below, skips, self.WIDTHS, strict=True)
        )
        self.classifier = nn.Conv2d(self.WIDTHS[-1], num_classes, 3, padding=1)

    def decode(self, maps, size):
        path, levels = maps[-1], []
        for block, skip in zip(self.blocks, [*maps[-2::-1], None], strict=True):
            path = F.interpolate(path, size if skip is None else skip.shape[-2:], mode="nearest")
            path = block(path if skip is None else torch.cat([path, skip], dim=1))  # (N, width, h, w) of this level
            levels.insert(0, path)
        return levels


class Fpn(Segmenter):
    """A light top-down pyramid over any backbone, classified at stride 4.

    MobileNetV2 stops at the 320 channels of its last bottleneck: a head on those is as accurate as one on the 1280
    after them, and cheaper (Sandler et al. 2018, section 6.3).
    dropout: share of the channels dropped, whole maps; the other options are the pyramid's.
    """

    def __init__(self, backbone, num_classes, channels, dropout, **options):
        make, imagenet = PYRAMID_BACKBONES[backbone]
        super().__init__(make())
        self.imagenet = imagenet
        if backbone.startswith(("convnext", "swin")):
            self.multiple = 32  # their strides round down, or pad tokens
        self.pyramid = Pyramid(self.backbone.widths[-4:], channels, **options)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def decode(self, maps, size):
        return self.pyramid(maps[-4:])  # strides 4, 8, 16, 32


class MobileNetV2(Segmenter):
    """MobileNetV2 and five learned doublings, each to exactly the size that the encoder had there.

    3.54 M parameters: a 1×1 convolution from 1280 to 256 channels comes before the first transposed one. skips: each
    doubling but the last adds a 1×1 convolution of the encoder's map of that size.
    """

    imagenet = tv.MobileNet_V2_Weights.IMAGENET1K_V1

    def __init__(self, num_classes, skips):
        super().__init__(mobilenet_v2(blocks=19))
        self.reduce = activated(1280, 256, 1)
        widths = (256, 256, 128, 64, 32, 16)
        self.up = nn.ModuleList(UpSampling(*pair) for pair in zip(widths[:-1], widths[1:], strict=True))
        pairs = zip(self.backbone.widths[-2::-1], widths[1:-1], strict=True)
        self.skips = nn.ModuleList(convolution(*pair, 1) for pair in pairs if skips)
        self.classifier = nn.Conv2d(16, num_classes, 1)

    def decode(self, maps, size):
        features = self.reduce(maps[-1])  # (N, 256, H / 32, W / 32)
        levels = [features]
        sizes = [finer.shape[-2:] for finer in maps[-2::-1]] + [size]  # strides 16, 8, 4, 2, 1
        for number, (up, finer) in enumerate(zip(self.up, sizes, strict=True)):
            features = up(features, finer)  # at last (N, 16, H, W)
            if number < len(self.skips):
                features = features + self.skips[number](maps[-2 - number])
            levels.insert(0, features)
        return levels


class Vit(Segmenter):
    """Vision Transformer at stride 16, and a decoder: linear, or progressive, which doubles twice on its way to
    stride 4.

    Source: Dosovitskiy et al., ICLR 2021; the decoders after Zheng et al., SETR, CVPR 2021, and Strudel et al.,
    Segmenter, ICCV 2021 (linear).
    """

    IMAGENET = {
        "tiny": None,
        "b_16": tv.ViT_B_16_Weights.IMAGENET1K_V1,
        "l_16": tv.ViT_L_16_Weights.IMAGENET1K_V1,
    }
    multiple = 16

    def __init__(self, backbone, num_classes, decoder, channels):
        super().__init__(VitEncoder(f"vit_{backbone}"))
        self.imagenet = self.IMAGENET[backbone]
        build = LinearDecoder if decoder == "linear" else ProgressiveDecoder
        self.decoder = build(self.backbone.widths[-1], channels)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def decode(self, maps, size):
        return self.decoder(maps[-1])


FAMILIES = {
    "deeplabv3": DeepLabV3,
    "deeplabv3plus": DeepLabV3Plus,
    "unet": UNet,
    "mobilenetv2": MobileNetV2,
    "fpn": Fpn,
    "vit": Vit,
}


# ---------------------------------------------------------------------------------------------------------------------
# Freezing


def freeze_parameters(model, rule):
    """Take parameters out of training.

    rule: "none"; "backbone"; "all-but-head", which leaves only the layers that make the outputs; "all-but-residual",
    which leaves the residual head; or N for the first N parameter tensors in the model's own order, the backbone's
    first.
    Raises UserError for another rule, more parameters than there are, or a head that is not there.
    """
    parameters = list(model.parameters())
    if rule == "none":
        frozen = []
    elif rule == "backbone":
        frozen = list(model.backbone.parameters())
    elif rule == "all-but-head":
        more = ("centres", "residual_head", "property_head")
        layers = [*model.class_layers, *(name for name in more if getattr(model, name, None) is not None)]
        heads = {id(p) for layer in layers for p in model.get_submodule(layer).parameters()}
        frozen = [parameter for parameter in parameters if id(parameter) not in heads]
    elif rule == "all-but-residual":
        if not model.options["residual"]:
            remedy = f"add it with --model {model.name}:residual=on"
            raise UserError("no residual head", "--freeze all-but-residual", remedy)
        frozen = [p for name, p in model.named_parameters() if not name.startswith("residual_head.")]
    elif str(rule).isdecimal():
        frozen = parameters[: int(rule)]
    else:
        remedy = "write none, backbone, all-but-head, all-but-residual, or a number of parameter tensors"
        raise UserError(f"unknown rule {rule!r}", "--freeze", remedy)
    if str(rule).isdecimal() and int(rule) > len(parameters):
        remedy = f"{model.name} has {len(parameters)} parameter tensors"
        raise UserError(f"cannot freeze {rule} parameter tensors", "--freeze", remedy)
    for parameter in frozen:
        parameter.requires_grad_(False)


def describe_frozen(model, weights):
    """Lines that say what does not train, [] where everything does."""
    frozen = sum(not parameter.requires_grad for parameter in model.parameters())
    norms = sum(is_frozen_norm(module) for module in model.modules())
    kept = f"; {norms} batch norms keep their statistics, as --weights {weights} has them" if norms else ""
    return [f"frozen: {frozen} parameter tensors{kept}"] if frozen else []


def is_frozen_norm(module):
    """Whether a module is a batch norm that has parameters, and none that trains."""
    parameters = list(module.parameters(recurse=False))
    is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return is_norm and bool(parameters) and not any(parameter.requires_grad for parameter in parameters)


def train_mode(model):
    """Training mode, except batch norm whose parameters are all frozen: its statistics stay as they are, too."""
    model.train()
    for module in model.modules():
        if is_frozen_norm(module):
            module.eval()
