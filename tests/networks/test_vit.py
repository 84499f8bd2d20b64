"""The vision transformer: torchvision's own features at its own size, timm's at others; the decoders."""

import functools

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import VisionTransformer, vit_b_16, vit_l_16

from networks.key_styles import to_torchvision
from networks.vit import VARIANTS, LinearDecoder, ProgressiveDecoder, VitEncoder


@functools.cache
def encoder():
    torch.manual_seed(0)
    return VitEncoder("vit_tiny").eval()


def test_equals_torchvisions_features_at_its_own_size():
    torch.manual_seed(1)
    reference = VisionTransformer(224, 16, *VARIANTS["vit_tiny"]).eval()
    state = {key: value for key, value in reference.state_dict().items() if key not in VitEncoder.left_out}
    ours = VitEncoder("vit_tiny").eval()
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        patches = reference._process_input(images)
        tokens = reference.encoder(torch.cat((reference.class_token.expand(2, -1, -1), patches), 1))
        (features,) = ours(images)
    assert torch.equal(features, tokens[:, 1:].transpose(1, 2).reshape(2, 192, 14, 14))


@pytest.mark.parametrize("size", [(64, 96), (256, 320)])
def test_equals_timm_at_other_sizes(size):
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("vit_tiny_patch16_224", pretrained=False, dynamic_img_size=True).eval()
    with torch.no_grad():
        theirs.pos_embed.normal_()
    state, _ = to_torchvision(theirs.state_dict())
    ours = VitEncoder("vit_tiny").eval()
    ours.load_state_dict({key: value for key, value in state.items() if key not in ours.left_out})
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = theirs.forward_features(images)[:, 1:].transpose(1, 2).unflatten(2, (size[0] // 16, -1))
        torch.testing.assert_close(ours(images)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("variant", "network"), [("vit_b_16", vit_b_16), ("vit_l_16", vit_l_16)])
def test_keys_and_shapes_are_torchvisions(variant, network):
    with torch.device("meta"):
        ours, theirs = VitEncoder(variant), network(weights=None).state_dict()
    own = ours.state_dict()
    assert theirs.keys() - own.keys() == ours.left_out
    assert all(value.shape == theirs[key].shape for key, value in own.items())
    assert ours.widths == (theirs["class_token"].shape[-1],)


def test_the_position_embedding_is_its_own_at_its_own_grid():
    embedding = encoder().encoder.pos_embedding
    assert encoder().position_embedding((14, 14)) is embedding
    own = embedding[:, 1:].transpose(1, 2).unflatten(2, (14, 14))
    resized = F.interpolate(own, (14, 14), mode="bicubic", antialias=True)  # the shortcut changes nothing
    torch.testing.assert_close(resized, own, rtol=0, atol=1e-6)


def test_the_position_embedding_keeps_height_and_width_apart():
    network = VitEncoder("vit_tiny")
    rows = torch.arange(14.0)[:, None].expand(14, 14)
    with torch.no_grad():
        network.encoder.pos_embedding[0, 1:] = rows.reshape(-1, 1)
        resized = network.position_embedding((28, 7))
    assert torch.equal(resized[:, :1], network.encoder.pos_embedding[:, :1])
    grid = resized[0, 1:, 0].reshape(28, 7)
    torch.testing.assert_close(grid, grid[:, :1].expand(28, 7))
    torch.testing.assert_close(grid[4:-4, 0], (torch.arange(28.0)[4:-4] + 0.5) / 2 - 0.5)


@pytest.mark.parametrize("size", [(181, 243), (16, 16), (1, 33)])
def test_map_at_any_size_is_that_of_the_padded_image(size):
    images = torch.randn(1, 3, *size)
    padded = torch.zeros(1, 3, -(-size[0] // 16) * 16, -(-size[1] // 16) * 16)
    padded[..., : size[0], : size[1]] = images
    with torch.no_grad():
        (features,), (expected,) = encoder()(images), encoder()(padded)
    assert features.shape == (1, 192, padded.shape[2] // 16, padded.shape[3] // 16)
    assert torch.equal(features, expected)
    assert features.isfinite().all()


@pytest.mark.parametrize("decoder", [LinearDecoder, ProgressiveDecoder])
def test_gradients_reach_all_parameters(decoder):
    torch.manual_seed(0)
    network, head = VitEncoder("vit_tiny").train(), decoder(192, 16).train()
    maps = head(network(torch.randn(2, 3, 181, 243))[0])
    (maps[0] * torch.randn_like(maps[0])).sum().backward()
    parameters = [*network.named_parameters(), *head.named_parameters()]
    assert [name for name, value in parameters if not value.grad.abs().sum() > 0] == []


def test_decoders_give_maps_finest_first():
    features = torch.randn(2, 192, 3, 5)
    assert [tuple(m.shape) for m in LinearDecoder(192, 8)(features)] == [(2, 8, 3, 5)]
    progressive = ProgressiveDecoder(192, 8)(features)
    assert [tuple(m.shape) for m in progressive] == [(2, 8, 12, 20), (2, 8, 6, 10)]


def test_finite_in_bfloat16():
    head = ProgressiveDecoder(192, 8).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = encoder()(torch.randn(1, 3, 65, 97))
        assert all(maps.isfinite().all() for maps in (*features, *head(features[0])))


def test_an_unknown_variant_is_named():
    with pytest.raises(ValueError, match="vit_s_8"):
        VitEncoder("vit_s_8")
