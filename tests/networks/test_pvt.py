"""PVT v2: published parameter counts, timm's as the reference for every value, any size, gradients."""

import functools

import pytest
import torch
from torch import nn

from networks.key_styles import to_torchvision
from networks.pvt import VARIANTS, Block, PvtV2

COUNTS = {"pvt_v2_b0": 3_666_760, "pvt_v2_b1": 14_009_000, "pvt_v2_b2": 25_362_856}


@functools.cache
def encoder():
    torch.manual_seed(0)
    return PvtV2("pvt_v2_b0")


def scramble(network):
    """Random values everywhere, of a size that keeps attention far from uniform."""
    torch.manual_seed(1)
    for name, value in network.state_dict().items():
        if value.ndim > 1:
            value.normal_(std=1.5 / value[0].numel() ** 0.5)
        elif name.endswith("weight"):
            value.uniform_(0.5, 1.5)
        else:
            value.normal_(std=0.1)
    return network.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_as_many_as_published(variant):
    with torch.device("meta"):
        network = PvtV2(variant)
        head = nn.Linear(network.widths[-1], 1000)
    assert sum(value.numel() for part in (network, head) for value in part.parameters()) == COUNTS[variant]


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_have_the_shapes_of_timms(variant):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        ours, theirs = PvtV2(variant).state_dict(), timm.create_model(variant).state_dict()
    converted, _ = to_torchvision(theirs)
    shapes = {key: value.shape for key, value in converted.items() if key not in PvtV2.left_out}
    assert shapes == {key: value.shape for key, value in ours.items()}
    assert converted.keys() - ours.keys() == PvtV2.left_out


@pytest.mark.parametrize("size", [(64, 96), (181, 243)])
def test_all_maps_equal_timms(size):
    timm = pytest.importorskip("timm")
    theirs = scramble(timm.create_model("pvt_v2_b0", pretrained=False))
    state, style = to_torchvision(theirs.state_dict())
    assert style == "timm pvt_v2"
    ours = PvtV2("pvt_v2_b0").eval()
    ours.load_state_dict({key: value for key, value in state.items() if key not in ours.left_out})
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = theirs.forward_intermediates(images, intermediates_only=True)
        for actual, reference in zip(ours(images), expected, strict=True):
            torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-4)


def test_keys_are_the_authors():
    keys = encoder().state_dict().keys()
    attention = ["attn.q", "attn.kv", "attn.proj", "attn.sr", "attn.norm"]
    parts = ["norm1", *attention, "norm2", "mlp.fc1", "mlp.dwconv.dwconv", "mlp.fc2"]
    expected = {f"block1.0.{part}.{value}" for part in parts for value in ("weight", "bias")}
    assert {key for key in keys if key.startswith("block1.0.")} == expected
    assert not any(key.startswith("block4.") and (".sr." in key or ".attn.norm." in key) for key in keys)
    assert {key.partition(".")[0] for key in keys} == {
        f"{part}{stage}" for part in ("patch_embed", "block", "norm") for stage in (1, 2, 3, 4)
    }
    assert to_torchvision(encoder().state_dict())[1] == "official pvt_v2"


@pytest.mark.parametrize("size", [(181, 243), (64, 64), (17, 23), (1, 1)])
def test_maps_at_any_size(size):
    with torch.no_grad():
        maps = encoder().eval()(torch.randn(1, 3, *size))
    for level, features in enumerate(maps):
        stride = 4 * 2**level
        expected = (1, encoder().widths[level], -(-size[0] // stride), -(-size[1] // stride))
        assert features.shape == expected
        assert features.isfinite().all()


def test_gradients_reach_all_parameters():
    torch.manual_seed(0)
    network = PvtV2("pvt_v2_b0").train()
    maps = network(torch.randn(4, 3, 181, 243))  # of four images at least one passes through every block
    sum((features * torch.randn_like(features)).sum() for features in maps).backward()
    assert [name for name, value in network.named_parameters() if not value.grad.abs().sum() > 0] == []


def test_images_do_not_read_each_other():
    images = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        both, alone = encoder().eval()(images), encoder()(images[1:])
    for pair, single in zip(both, alone, strict=True):
        torch.testing.assert_close(pair[1:], single, rtol=1e-4, atol=1e-5)


def test_stochastic_depth_rises_linearly_to_a_tenth():
    rates = [m.drop_path.p for m in PvtV2("pvt_v2_b0").modules() if isinstance(m, Block)]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])


def test_initial_values():
    state = encoder().state_dict()
    assert state["block4.0.mlp.fc1.weight"].std() == pytest.approx(0.02, rel=0.02)
    assert state["block1.0.attn.sr.weight"].std() == pytest.approx((2 / (8 * 8 * 32)) ** 0.5, rel=0.02)
    assert state["block1.0.mlp.dwconv.dwconv.weight"].std() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    assert not any(value.any() for key, value in state.items() if key.endswith("bias"))


def test_finite_in_bfloat16():
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert all(features.isfinite().all() for features in encoder().eval()(torch.randn(1, 3, 65, 97)))


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="pvt_v2_b9"):
        PvtV2("pvt_v2_b9")
