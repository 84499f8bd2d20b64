"""The key styles of weights files, recognised by the keys themselves and turned into that of the backbones here.

The backbones here carry torchvision's keys (`PvtV2` the authors'). The same networks are published with timm's keys:
other names, here and there another shape, the same computation. Held against timm 1.0.31, feature for feature:
mobilenetv2_100, convnext_tiny (so convnext_small), swin_tiny and swinv2_tiny (so the small ones), vit_*_patch16_224,
pvt_v2_b0 … b2; resnet50 has the same keys in both. The first Swin files, with the authors' own keys, are read too.

Keys say nothing of the colours: some files (timm's `augreg` vision transformers) were trained on images normalised
with mean and standard deviation 0.5 instead of ImageNet's.
"""

import re

import torch

# torchvision's Swin keeps these beside its parameters, other files do not: a caller finds keys with these ends missing
# from a converted state. The network computes them from its window size when it is built.
DERIVED = ("relative_position_index", "relative_coords_table")

MOBILENET_DEPTHS = (1, 2, 3, 4, 3, 3, 1)


def to_torchvision(state):
    """Bring a state dict to the key style of the backbones here: (state, style).

    state: {key: tensor} of an ImageNet classifier, whole or without its head, keys without "module.". style:
    "torchvision", "official pvt_v2", "timm mobilenetv2 | convnext | swin | swin_v2 | pvt_v2 | vit", or "own" for keys
    that fit none of them, which stay as they are. torchvision's keys stay, too, but for two of its vision
    transformers' that were renamed after publication.

    The classifier's keys are renamed as well. A key that its style does not know stays recognisable, so that a strict
    load names it. The state given is not changed; tensors are shared with it where they keep their shape.
    """
    style = recognise(state)
    if style not in RULES:
        return state, style
    content = _swin(state) if style in ("timm swin", "timm swin_v2") else state
    renamed = {_rename(key, RULES[style]): value for key, value in content.items()}
    if len(renamed) != len(content):  # a mixture of styles: two keys would become one, and a tensor be lost
        return state, "own"
    if style == "timm convnext":
        renamed = {k: v[:, None, None] if k.endswith("layer_scale") else v for k, v in renamed.items()}  # (C, 1, 1)
    return renamed, style


def recognise(state):
    """The style of a state dict, as `to_torchvision` names it. Keys alone decide."""
    for style, marks in MARKS:
        if all(mark in state for mark in marks) and (style != "timm mobilenetv2" or _is_mobilenet_v2(state)):
            return style
    return "own"


# (style, keys that all must be there): enough to tell each from all others, not only from those listed.
MARKS = (
    ("torchvision", ("features.0.0.weight",)),  # MobileNet, ConvNeXt, Swin
    ("torchvision", ("conv1.weight", "layer1.0.conv1.weight", "layer4.0.conv1.weight")),  # ResNet, timm's too
    ("torchvision", ("conv_proj.weight", "class_token", "encoder.pos_embedding")),  # vision transformer
    ("official pvt_v2", ("patch_embed1.proj.weight", "block1.0.attn.kv.weight", "block1.0.mlp.dwconv.dwconv.weight")),
    ("timm pvt_v2", ("patch_embed.proj.weight", "stages.0.blocks.0.attn.kv.weight", "stages.3.norm.weight")),
    ("timm mobilenetv2", ("conv_stem.weight", "conv_head.weight", "blocks.0.0.conv_dw.weight")),
    ("timm convnext", ("stem.0.weight", "stages.0.blocks.0.gamma", "stages.0.blocks.0.conv_dw.weight")),
    ("timm swin", ("patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table")),
    ("timm swin_v2", ("patch_embed.proj.weight", "layers.0.blocks.0.attn.logit_scale")),
    ("timm vit", ("patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.0.attn.qkv.weight")),
)


def _is_mobilenet_v2(state):
    """timm gives the same names to EfficientNet, MnasNet and others: their blocks are counted or built otherwise."""
    blocks = {match[1] for match in (re.match(r"blocks\.(\d+\.\d+)\.", key) for key in state) if match}
    expected = {f"{stage}.{block}" for stage, depth in enumerate(MOBILENET_DEPTHS) for block in range(depth)}
    return blocks == expected and not any(".se." in key for key in state)


def _rename(key, rules):
    """Apply every rule (pattern, replacement) in turn."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _mobilenet_block(match):
    stage, block = int(match[1]), int(match[2])
    return f"features.{1 + sum(MOBILENET_DEPTHS[:stage]) + block}.conv."


def _numbered(text, factor, offset):
    """A replacement: `text` with the first group's number, times factor plus offset, for each {}."""
    return lambda match: text.format(factor * int(match[1]) + offset)


# {style: rules}. In order: a later rule sees what the earlier ones made.
RULES = {
    "torchvision": (
        (r"\.mlp\.linear_1\.", ".mlp.0."),
        (r"\.mlp\.linear_2\.", ".mlp.3."),
    ),
    "timm mobilenetv2": (
        (r"^conv_stem\.", "features.0.0."),
        (r"^bn1\.", "features.0.1."),
        (r"^conv_head\.", "features.18.0."),
        (r"^bn2\.", "features.18.1."),
        (r"^classifier\.", "classifier.1."),
        (r"^blocks\.(\d+)\.(\d+)\.", _mobilenet_block),
        (r"^(features\.1\.conv)\.conv_dw\.", r"\1.0.0."),  # the first block has no expansion
        (r"^(features\.1\.conv)\.bn1\.", r"\1.0.1."),
        (r"^(features\.1\.conv)\.conv_pw\.", r"\1.1."),
        (r"^(features\.1\.conv)\.bn2\.", r"\1.2."),
        (r"\.conv\.conv_pw\.", ".conv.0.0."),
        (r"\.conv\.bn1\.", ".conv.0.1."),
        (r"\.conv\.conv_dw\.", ".conv.1.0."),
        (r"\.conv\.bn2\.", ".conv.1.1."),
        (r"\.conv\.conv_pwl\.", ".conv.2."),
        (r"\.conv\.bn3\.", ".conv.3."),
    ),
    "timm convnext": (
        (r"^stem\.", "features.0."),
        (r"^stages\.(\d+)\.downsample\.", _numbered("features.{}.", 2, 0)),
        (r"^stages\.(\d+)\.blocks\.", _numbered("features.{}.", 2, 1)),
        (r"\.gamma$", ".layer_scale"),
        (r"\.conv_dw\.", ".block.0."),
        (r"^(features\.\d+\.\d+)\.norm\.", r"\1.block.2."),
        (r"\.mlp\.fc1\.", ".block.3."),
        (r"\.mlp\.fc2\.", ".block.5."),
        (r"^head\.norm\.", "classifier.0."),
        (r"^head\.fc\.", "classifier.2."),
    ),
    "timm swin": (
        (r"^patch_embed\.proj\.", "features.0.0."),
        (r"^patch_embed\.norm\.", "features.0.2."),
        (r"^layers\.(\d+)\.downsample\.", _numbered("features.{}.", 2, 0)),
        (r"^layers\.(\d+)\.blocks\.", _numbered("features.{}.", 2, 1)),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.3."),
        (r"^head\.fc\.", "head."),
    ),
    "timm pvt_v2": (
        (r"^patch_embed\.", "patch_embed1."),
        (r"^stages\.(\d+)\.downsample\.", _numbered("patch_embed{}.", 1, 1)),
        (r"^stages\.(\d+)\.blocks\.", _numbered("block{}.", 1, 1)),
        (r"^stages\.(\d+)\.norm\.", _numbered("norm{}.", 1, 1)),
        (r"\.mlp\.dwconv\.", ".mlp.dwconv.dwconv."),
    ),
    "timm vit": (
        (r"^cls_token$", "class_token"),
        (r"^pos_embed$", "encoder.pos_embedding"),
        (r"^patch_embed\.proj\.", "conv_proj."),
        (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
        (r"\.norm([12])\.", r".ln_\1."),
        (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
        (r"\.attn\.proj\.", ".self_attention.out_proj."),
        (r"\.mlp\.fc1\.", ".mlp.0."),
        (r"\.mlp\.fc2\.", ".mlp.3."),
        (r"^norm\.", "encoder.ln."),
        (r"^head\.", "heads.head."),
    ),
}
RULES["timm swin_v2"] = RULES["timm swin"]


def _swin(state):
    """A Swin state, still with timm's keys, with the tensors that torchvision has.

    Derived buffers go; the authors' files number a downsampling by the stage before it, timm by the one after it;
    version 2 keeps the biases of queries and values apart, keys have none.
    """
    own_numbers = "layers.0.downsample.reduction.weight" in state
    swin = {}
    for key, value in state.items():
        attention, _, name = key.rpartition(".")
        paired = {f"{attention}.q_bias", f"{attention}.v_bias"} <= state.keys()
        if name in (*DERIVED, "attn_mask") or (paired and name == "v_bias"):
            continue
        if paired and name == "q_bias":
            value = torch.cat((value, torch.zeros_like(value), state[f"{attention}.v_bias"]))  # (3C,)
            key = f"{attention}.qkv.bias"
        if own_numbers:
            key = re.sub(r"^layers\.(\d+)\.downsample\.", _numbered("layers.{}.downsample.", 1, 1), key)
        swin[key] = value
    return swin
