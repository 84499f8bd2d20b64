"""Key styles: timm's networks with random weights are the reference; their states, converted, compute the same here."""

import re

import pytest
import torch
import torchvision
from torchvision.models import VisionTransformer

import models
from networks.key_styles import DERIVED, to_torchvision
from networks.pvt import PvtV2
from networks.vit import VARIANTS
from networks.weights import load_weights


def vit_tiny():
    return VisionTransformer(224, 16, *VARIANTS["vit_tiny"])


# timm's name: (the network here, style, size that timm's network wants)
PAIRS = {
    "mobilenetv2_100": (torchvision.models.mobilenet_v2, "timm mobilenetv2", (64, 96)),
    "convnext_tiny": (torchvision.models.convnext_tiny, "timm convnext", (64, 96)),
    "swin_tiny_patch4_window7_224": (torchvision.models.swin_t, "timm swin", (224, 224)),
    "swinv2_tiny_window8_256": (torchvision.models.swin_v2_t, "timm swin_v2", (256, 256)),
    "vit_tiny_patch16_224": (vit_tiny, "timm vit", (224, 224)),
}


def scramble(network):
    """Random values everywhere (timm starts with zeros and ones), of a size that keeps attention far from uniform."""
    torch.manual_seed(0)
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            continue
        if value.ndim > 1 and name.endswith("weight"):
            value.normal_(std=1.5 / value[0].numel() ** 0.5)
        elif name.endswith(("weight", "gamma", "running_var")):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("relative_position_bias_table", "pos_embed", "cls_token", "logit_scale")):
            value.normal_()
        else:
            value.normal_(std=0.1)
    return network.eval()


def close(actual, expected):
    """Equal to a ten-thousandth of the reference's own size."""
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4 * expected.std().item())


def load(network, state):
    """Strictly, but for the buffers that `key_styles` says a converted state does not have."""
    derived = {key for key in network.state_dict() if key.endswith(DERIVED)}
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert set(missing) == derived
    assert unexpected == []


def create(name, **options):
    timm = pytest.importorskip("timm")
    return timm.create_model(name, pretrained=False, **options)


def keys_of(name):
    with torch.device("meta"):
        return create(name).state_dict()


@pytest.mark.parametrize("name", PAIRS)
def test_a_converted_network_computes_as_timms(name):
    build, style, size = PAIRS[name]
    theirs, ours = scramble(create(name)), build().eval()
    state, found = to_torchvision(theirs.state_dict())
    assert found == style
    load(ours, state)
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        close(ours(images), theirs(images))
        if name in ("mobilenetv2_100", "convnext_tiny"):
            close(ours.features(images), theirs.forward_features(images))
        elif "swin" in name:
            close(ours.norm(ours.features(images)), theirs.forward_features(images))


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("convnext_small", torchvision.models.convnext_small),
        ("swin_small_patch4_window7_224", torchvision.models.swin_s),
        ("vit_base_patch16_224", torchvision.models.vit_b_16),
        ("vit_large_patch16_224", torchvision.models.vit_l_16),
        ("pvt_v2_b1", lambda: PvtV2("pvt_v2_b1")),
        ("pvt_v2_b2", lambda: PvtV2("pvt_v2_b2")),
        ("resnet50", torchvision.models.resnet50),
        ("resnet101", torchvision.models.resnet101),
    ],
)
def test_larger_networks_have_the_same_keys_and_shapes(name, build):
    converted, _ = to_torchvision(keys_of(name))
    with torch.device("meta"):
        network = build()
    left_out = getattr(network, "left_out", frozenset())
    ours = {key: value.shape for key, value in network.state_dict().items() if not key.endswith(DERIVED)}
    assert {key: value.shape for key, value in converted.items() if key not in left_out} == ours
    assert left_out <= converted.keys()


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "convnext_tiny", "swin_t", "swin_v2_t", "vit_b_16"])
def test_torchvisions_own_states_stay_as_they_are(name):
    with torch.device("meta"):
        state = torchvision.models.get_model(name, weights=None).state_dict()
    converted, style = to_torchvision(state)
    assert style == "torchvision"
    assert list(converted) == list(state)
    assert all(converted[key] is value for key, value in state.items())


def test_torchvisions_vision_transformers_as_published():
    current = vit_tiny().state_dict()
    published = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): current[key] for key in current
    }
    assert published.keys() != current.keys()
    converted, style = to_torchvision(published)
    assert style == "torchvision"
    assert converted.keys() == current.keys()


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_swin_files_of_the_authors(name):
    """Their downsampling stands at the end of a stage, the head has no `fc`, derived buffers are in the file."""
    state = create(name).state_dict()
    authors = {}
    for key, value in state.items():
        key = re.sub(r"^layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", key)
        authors[key.replace("head.fc.", "head.")] = value
    for ending in ("attn.relative_position_index", "attn.relative_coords_table", "attn_mask"):
        authors[f"layers.0.blocks.1.{ending}"] = torch.zeros(3)
    converted, style = to_torchvision(authors)
    expected, same_style = to_torchvision(state)
    assert style == same_style
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], value) for key, value in expected.items())


def test_keys_of_swin_v2_have_no_bias():
    state = scramble(create("swinv2_tiny_window8_256")).state_dict()
    bias = to_torchvision(state)[0]["features.1.0.attn.qkv.bias"]
    part = "layers.0.blocks.0.attn."
    assert torch.equal(bias, torch.cat((state[part + "q_bias"], torch.zeros(96), state[part + "v_bias"])))


@pytest.mark.parametrize(
    "name",
    ["efficientnet_b0", "mnasnet_100", "mobilenetv2_110d", "mobilenetv3_small_100", "convnextv2_atto", "resnet50d"],
)
def test_other_networks_with_like_names_are_nobodys(name):
    state = keys_of(name)
    converted, style = to_torchvision(state)
    assert style == "own"
    assert converted is state


def test_the_state_given_is_not_changed_and_nothing_is_nobodys():
    state = keys_of("convnext_tiny")
    before = list(state)
    assert to_torchvision(state)[1] == "timm convnext"
    assert list(state) == before
    assert to_torchvision({"module.a": torch.zeros(2), "b": torch.zeros(2)})[1] == "own"
    assert to_torchvision({}) == ({}, "own")


def test_a_key_unknown_to_its_style_is_not_lost():
    state = keys_of("vit_tiny_patch16_224") | {"dist_token": torch.zeros(1), "blocks.3.ls1.gamma": torch.ones(2)}
    converted, _ = to_torchvision(state)
    assert len(converted) == len(state)
    assert {"dist_token", "encoder.layers.encoder_layer_3.ls1.gamma"} <= converted.keys()


def test_a_mixture_of_styles_is_nobodys():
    """Renaming would put one tensor in the place of another."""
    state = keys_of("vit_tiny_patch16_224") | {"class_token": torch.ones(1)}
    converted, style = to_torchvision(state)
    assert style == "own"
    assert converted is state


def test_half_a_pair_of_swin_biases_is_left_for_the_loader_to_name():
    state = keys_of("swinv2_tiny_window8_256")
    del state["layers.2.blocks.1.attn.v_bias"]
    converted, _ = to_torchvision(state)
    assert "features.5.1.attn.q_bias" in converted
    assert "features.5.1.attn.qkv.bias" not in converted


@pytest.mark.parametrize(
    ("name", "peer", "tensors"),
    [
        ("fpn_pvt_v2_b0", "pvt_v2_b0", 176),
        ("fpn_swin_v2_t", "swinv2_tiny_window8_256", 205),
        ("vit_tiny", "vit_tiny_patch16_224", 150),
    ],
)
def test_a_file_of_timms_keys_starts_a_model(name, peer, tensors, tmp_path):
    timm = pytest.importorskip("timm")
    state = timm.create_model(peer, pretrained=False).state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "peer.pth")
    lines = load_weights(models.build_model(name, 5), str(tmp_path / "peer.pth"))
    assert " keys): backbone (" in lines[0]
    assert f"backbone ({tensors} tensors)" in lines[0]
    assert lines[-1].startswith("new, random: classifier (2 tensors)")
