"""The models: sizes, gradients, parameter counts; weights of every kind, loaded strictly or refused; freezing."""

import copy
import functools
import io
import os
import random
import re
from http.client import IncompleteRead
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops import StochasticDepth

import cli
import models
from cli import UserError
from engine.devices import autocast_dtype
from networks.segmenter import Centres
from networks.weights import load_weights

LIGHT = ["fpn_mobilenet_v2", "mobilenetv2"]
ALL = list(models.MODELS)
# One of each family and each kind of backbone, the smallest.
QUICK = [
    *LIGHT, "deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large", "deeplabv3plus_mobilenet_v2", "unet_mobilenet_v2",
    "fpn_convnext_tiny", "fpn_swin_t", "fpn_swin_v2_t", "fpn_pvt_v2_b0", "vit_tiny",
]  # fmt: skip


@functools.lru_cache(maxsize=4)  # the largest has 304 M parameters
def built(name, num_classes, options):
    torch.manual_seed(0)
    return models.build_model(name, num_classes, dict(options))


def build(name, num_classes=5, **options):
    """A fresh copy of the net that seed 0 makes."""
    return copy.deepcopy(built(name, num_classes, tuple(options.items())))


def save(content, folder, name="weights.pth"):
    torch.save(content, folder / name)
    return str(folder / name)


def same(left, right, prefix=""):
    """Every tensor of `left` equals that of `right` under prefix + key."""
    return all(torch.equal(value, right[prefix + key]) for key, value in left.items())


@pytest.fixture(scope="module")
def mobilenet():
    torch.manual_seed(1)
    return torchvision.models.mobilenet_v2(weights=None).state_dict()


# --- shapes, gradients, counts


def without_chance(model):
    """The model with its random depth and dropout off, so that a gradient must reach everything."""
    for module in model.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d, StochasticDepth)):
            module.p = 0.0
    return model


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if "101" in name or "_l_" in name else []) for name in ALL]
)
def test_one_step_at_an_odd_size_reaches_every_parameter(name):
    size, count = (181, 243), {**models.MODELS[name], "properties": 0.1}
    model = without_chance(models.build_model(name, 5, count)).to(memory_format=torch.channels_last)
    models.train_mode(model)
    images = torch.randn(2, 3, *size).contiguous(memory_format=torch.channels_last)
    native = autocast_dtype("auto", torch.device("cpu")) is not None  # an emulated backward pass takes minutes
    with torch.autocast("cpu", torch.bfloat16, enabled=native or name == "mobilenetv2"):
        outputs = model(images)
    assert outputs.keys() == {"out", "features", "backbone", *model.aux_weights}
    maps = [value for key, value in outputs.items() if key in ("out", "aux")]
    assert all(logits.shape == (2, 5, *size) and logits.dtype == torch.float32 for logits in maps)
    assert all(value.isfinite().all() for value in outputs.values())
    assert outputs["properties"].shape == (2, 6)
    assert outputs["features"].shape[1] == model.get_submodule(model.class_layers[0]).in_channels
    sum(
        value.float().square().mean() for key, value in outputs.items() if key not in ("features", "backbone")
    ).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", QUICK)
def test_inside_maps_run_from_fine_to_coarse(name):
    model = build(name).eval()
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        stages, levels = model.backbone_features(images), model.pyramid_features(images)
        features = model(images)["features"]
    assert torch.equal(levels[0], features)
    assert [stage.shape[1] for stage in stages] == list(model.backbone.widths)
    for maps in (stages, levels):
        sizes = [one.shape[-2] for one in maps]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("name", ["vit_tiny", "fpn_convnext_tiny", "fpn_swin_t"])
def test_padding_to_whole_cells_moves_nothing(name):
    """An image that is padded anyway gives the same logits: what is cut off lies on the right and at the bottom."""
    model = build(name).eval()
    images = torch.randn(1, 3, 64, 96)
    images[..., 60:, :] = 0
    images[..., 90:] = 0
    with torch.no_grad():
        whole, cut = model(images)["out"], model(images[..., :60, :90])["out"]
    torch.testing.assert_close(cut, whole[..., :60, :90])


def test_features_end_where_the_image_ends():
    """A place of the image is found at its share of the map, whatever was padded: 90 of 96 rows, 150 of 160 columns."""
    features = build("vit_tiny").eval()(torch.randn(1, 3, 90, 150))["features"]
    assert features.shape[-2:] == (23, 38)  # of 24 and 40, at stride 4


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize("size", [(1, 1), (32, 32), (33, 63), (100, 31)])
def test_output_has_the_input_size_whatever_it_is(name, size):
    with torch.no_grad():
        assert build(name).eval()(torch.randn(1, 3, *size))["out"].shape == (1, 5, *size)


@pytest.mark.parametrize("name", QUICK)
def test_bfloat16_autocast_gives_finite_float32_near_the_exact_logits(name):
    model = build(name).to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 65, 81).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        model(images)  # batch norm statistics that fit, so that the signal survives all layers
        model.eval()
        exact = model(images)["out"]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(images)["out"]
    assert rounded.dtype == torch.float32
    assert (rounded - exact).square().mean() < 0.05 * exact.var()


@pytest.mark.parametrize("name", QUICK)
def test_in_evaluation_an_image_does_not_depend_on_its_batch(name):
    model = build(name).eval()
    images = torch.randn(2, 3, 65, 81)
    with torch.no_grad():
        outputs = model(images)
        assert outputs.keys() == {"out", "features", "backbone"}
        torch.testing.assert_close(model(images[1:])["out"], outputs["out"][1:], rtol=1e-4, atol=1e-5)


def test_encoder_maps_are_the_last_of_each_size():
    encoder = build("mobilenetv2").backbone.eval()
    last = {}
    with torch.no_grad():
        features = torch.randn(1, 3, 61, 83)
        maps = encoder(features)
        for block in encoder.features:
            features = block(features)
            last[features.shape[-2:]] = features
    assert all(torch.equal(own, reference) for own, reference in zip(maps, last.values(), strict=True))


def parameters_of(module):
    return sum(parameter.numel() for parameter in module.parameters())


def count(name, num_classes=5, options=None):
    """Parameters of a net that holds no memory."""
    with torch.device("meta"):
        return parameters_of(models.build_model(name, num_classes, options))


@pytest.mark.parametrize("name", ALL)
def test_backbones_have_the_published_parameter_counts(name):
    with torch.device("meta"):
        model = models.build_model(name, 5)
        if model.imagenet is None:
            assert name == "vit_tiny" or "pvt" in name  # held against timm's counts in their own tests
            return
        published = model.imagenet.meta["num_params"]
        network = torchvision.models.get_model(model.imagenet.__class__.__name__.removesuffix("_Weights").lower())
    sizes = {key: value.numel() for key, value in network.named_parameters()}
    assert model.left_out >= {key for key in sizes if key.startswith(("fc.", "classifier.", "head.", "heads."))}
    assert parameters_of(model.backbone) == published - sum(sizes.get(key, 0) for key in model.left_out)


@pytest.mark.parametrize("backbone", ["resnet50", "resnet101", "mobilenet_v3_large"])
def test_deeplab_equals_torchvisions(backbone):
    """The same weights give the same logits, of the auxiliary head too: it must read the same layer."""
    torch.manual_seed(0)
    theirs = getattr(torchvision.models.segmentation, f"deeplabv3_{backbone}")(
        weights=None, weights_backbone=None, num_classes=5, aux_loss=True
    )
    ours = models.build_model(f"deeplabv3_{backbone}", 5)
    state = {re.sub(r"^backbone\.(\d+)\.", r"backbone.features.\1.", k): v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(state)
    images = torch.randn(2, 3, 65, 81)
    with torch.no_grad():
        expected = without_chance(theirs.train())(images)
        found = without_chance(ours.train())(images)
    for key in ("out", "aux"):
        torch.testing.assert_close(found[key], expected[key], rtol=1e-3, atol=1e-4)


def test_unet_has_the_parameters_of_a_peer():
    peer = pytest.importorskip("segmentation_models_pytorch")
    with torch.device("meta"):
        expected = parameters_of(peer.Unet("resnet50", encoder_weights=None, classes=5))
    assert count("unet_resnet50") == expected


def test_mobilenetv2_keeps_its_budget():
    model = build("mobilenetv2", 34)
    assert parameters_of(model) < 5e6
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    assert file.tell() < 50e6


@pytest.mark.parametrize(
    ("name", "options"),
    [("fpn_mobilenet_v2", {"channels": 24}), ("deeplabv3_resnet50", {"aux": 0}), ("mobilenetv2", {})],
)
def test_name_and_options_rebuild_the_net(name, options):
    model = models.build_model(name, 5, options)
    again = models.build_model(model.name, 5, model.options)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes
    assert model.options == {**models.MODELS[name], "properties": 0.0, **options}


def test_the_seed_fixes_the_start():
    torch.manual_seed(0)
    assert same(models.build_model("mobilenetv2", 5).state_dict(), build("mobilenetv2").state_dict())


def test_auxiliary_head_only_where_it_has_a_weight():
    assert build("deeplabv3_resnet50").aux_weights == {"aux": 0.4}
    without = build("deeplabv3_resnet50", aux=0.0)
    assert without.aux_weights == {}
    assert set(without.train()(torch.randn(2, 3, 33, 33))) == {"out", "features", "backbone"}


@pytest.mark.parametrize("name", ALL)
def test_layers_that_depend_on_the_classes_are_named(name):
    with torch.device("meta"):
        few, many = (models.build_model(name, count) for count in (5, 9))
    shapes = few.state_dict(), many.state_dict()
    differ = {key for key in shapes[0] if shapes[0][key].shape != shapes[1][key].shape}
    assert differ == {f"{layer}.{part}" for layer in few.class_layers for part in ("weight", "bias")}


def test_flags_and_choices():
    parser = cli.Parser("test")
    models.add_model_flags(parser)
    args = parser.parse_args(["--model", "fpn_mobilenet_v2:channels=64"])
    assert models.parse_model(args.model) == ("fpn_mobilenet_v2", {**models.MODELS["fpn_mobilenet_v2"], "channels": 64})
    assert (args.weights, args.freeze) == ("none", "none")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mobilenet_v2", {}, "did you mean 'mobilenetv2'"),
        ("fpn_mobilenet_v2", {"chanels": 8}, "did you mean 'channels'"),
        ("fpn_mobilenet_v2", {"channels": 0}, "channels=0"),
        ("fpn_mobilenet_v2", {"dropout": 1.0}, "dropout=1.0"),
        ("deeplabv3_resnet50", {"aux": -0.4}, "aux=-0.4"),
        ("deeplabv3plus_resnet50", {"stride": 4}, "one of 8, 16"),
        ("fpn_swin_t", {"attention": "cbm"}, "one of none, se, cbam"),
    ],
)
def test_wrong_name_or_option_is_refused(name, options, words):
    with pytest.raises(UserError, match=words):
        models.build_model(name, 5, options)


# --- weights


@pytest.mark.parametrize("name", LIGHT)
@pytest.mark.parametrize("kind", ["full", "features only", "module.", "state_dict", "model", "without counters"])
def test_imagenet_mobilenet_files_load_into_the_backbone(name, kind, mobilenet, tmp_path):
    features = {key: value for key, value in mobilenet.items() if key.startswith("features.")}
    content = {
        "full": mobilenet,
        "features only": features,
        "module.": {f"module.{key}": value for key, value in mobilenet.items()},
        "state_dict": {"epoch": 3, "state_dict": mobilenet},
        "model": {"model": {f"module.{key}": value for key, value in mobilenet.items()}, "epoch": 3},
        "without counters": {key: value for key, value in mobilenet.items() if "num_batches" not in key},
    }[kind]
    path = save(content, tmp_path)
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = load_weights(model, path)
    after = model.state_dict()
    parts = [key for key in model.backbone.state_dict() if kind != "without counters" or "num_batches" not in key]
    assert all(torch.equal(after[f"backbone.{key}"], mobilenet[key]) for key in parts)
    assert all(torch.equal(after[key], before[key]) for key in after if not key.startswith("backbone."))
    assert report[0] == f"loaded from {path}: backbone ({len(parts)} tensors)"
    new = "pyramid (42 tensors)" if name == "fpn_mobilenet_v2" else "reduce (5 tensors), up (25 tensors)"
    assert report[-1] == f"new, random: classifier (2 tensors), {new}"
    left = [line for line in report if line.startswith("left in file")]
    assert ("classifier.1.weight" in "".join(left)) == (kind != "features only")
    assert ("features.18.0.weight" in "".join(left)) == (name == "fpn_mobilenet_v2")


def test_imagenet_resnet_file_loads_and_its_classifier_is_named(tmp_path):
    torch.manual_seed(1)
    resnet = torchvision.models.resnet50(weights=None).state_dict()
    model = build("deeplabv3_resnet50")
    path = save(resnet, tmp_path)
    report = load_weights(model, path)
    assert same(model.backbone.state_dict(), resnet)
    assert report[:2] == [
        f"loaded from {path}: backbone ({len(resnet) - 2} tensors)",
        "left in file: fc.bias, fc.weight",
    ]


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "deeplabv3_mobilenet_v3_large"])
@pytest.mark.parametrize("classes_in_file", [5, 21])
def test_torchvision_segmentation_checkpoint(name, classes_in_file, tmp_path):
    torch.manual_seed(1)
    coco = getattr(torchvision.models.segmentation, name)(
        weights=None, weights_backbone=None, num_classes=classes_in_file, aux_loss=True
    ).state_dict()
    model = build(name)
    report = load_weights(model, save(coco, tmp_path))
    layers = {f"{head}.4.{part}" for head in ("classifier", "aux_classifier") for part in ("weight", "bias")}
    inside = "features." if "mobilenet" in name else ""  # torchvision keeps MobileNetV3's blocks right under backbone
    expected = {key.replace("backbone.", f"backbone.{inside}"): value for key, value in coco.items()}
    kept = expected if classes_in_file == 5 else {key: expected[key] for key in expected.keys() - layers}
    assert same(kept, model.state_dict())
    new = "new, random: aux_classifier (2 tensors), classifier (2 tensors)"
    assert report[1:] == ([] if classes_in_file == 5 else [f"left in file: {', '.join(sorted(layers))}", new])


def test_an_auxiliary_head_may_be_on_one_side_only(tmp_path):
    with_head, without = build("deeplabv3_resnet50"), build("deeplabv3_resnet50", aux=0.0)
    report = load_weights(without, save(with_head.state_dict(), tmp_path))
    assert same(without.state_dict(), with_head.state_dict())
    assert report[1].startswith("left in file: aux_classifier.0.weight, ")
    report = load_weights(with_head, save(without.state_dict(), tmp_path))
    assert report[1].startswith("new, random: aux_classifier (")


@pytest.mark.parametrize("name", LIGHT)
def test_own_checkpoints(name, tmp_path):
    trained = build(name)
    nn.init.normal_(trained.classifier.weight)
    path = save({"format": "any", "model": {"name": name, "options": {}}, "state": trained.state_dict()}, tmp_path)
    model = models.build_model(name, 5)
    report = load_weights(model, path)
    assert same(trained.state_dict(), model.state_dict())
    assert report[0].startswith(f"loaded from {path}: backbone (")
    assert len(report) == 1
    other = models.build_model(name, 6)
    report = load_weights(other, path)
    assert same({k: v for k, v in trained.state_dict().items() if not k.startswith("classifier")}, other.state_dict())
    assert report[1:] == ["left in file: classifier.bias, classifier.weight", "new, random: classifier (2 tensors)"]


def test_none_loads_nothing():
    model = build("mobilenetv2")
    assert load_weights(model, "none") == ["new, random: the whole model (350 tensors)"]
    assert same(build("mobilenetv2").state_dict(), model.state_dict())


def refusal(model, path):
    """The error line; the model must be as it was."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_weights(model, path)
    assert same(before, model.state_dict())
    assert "\n" not in str(caught.value)
    assert path in str(caught.value)
    return str(caught.value)


def test_another_network_is_refused_with_its_keys(tmp_path):
    path = save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path)
    line = refusal(build("fpn_mobilenet_v2"), path)
    assert "do not fit fpn_mobilenet_v2: 255 missing (features.0.0.weight, " in line
    assert "50 unexpected (" in line


def test_one_key_too_few_or_too_many_or_of_another_shape_is_refused(mobilenet, tmp_path):
    model = build("mobilenetv2")
    key = "features.3.conv.0.0.weight"
    fewer = {name: value for name, value in mobilenet.items() if name != key}
    assert f"1 missing ({key})" in refusal(model, save(fewer, tmp_path))
    assert "1 unexpected (extra)" in refusal(model, save({**mobilenet, "extra": torch.ones(1)}, tmp_path))
    other = {**mobilenet, key: torch.ones(2, 3, 1, 1)}
    assert f"1 of another shape ({key})" in refusal(model, save(other, tmp_path))
    hidden = {**mobilenet, "classifier.2.weight": torch.ones(1)}  # not the ImageNet classifier's
    assert "1 unexpected (classifier.2.weight)" in refusal(model, save(hidden, tmp_path))


def test_own_checkpoint_of_another_net_is_refused(tmp_path):
    path = save({"format": "any", "state": build("mobilenetv2").state_dict()}, tmp_path)
    line = refusal(build("fpn_mobilenet_v2"), path)
    assert "missing (classifier" not in line
    assert "missing (pyramid." in line
    narrow = save({"format": "any", "state": build("fpn_mobilenet_v2", channels=24).state_dict()}, tmp_path)
    assert "of another shape (classifier.weight, " in refusal(build("fpn_mobilenet_v2"), narrow)
    headless = build("mobilenetv2").state_dict()
    del headless["classifier.bias"]
    assert "1 missing (classifier.bias)" in refusal(build("mobilenetv2"), save(headless, tmp_path))


@pytest.mark.parametrize("content", [{}, [torch.ones(1)], {"epoch": 3}, {"state_dict": {}}, {0: torch.ones(1)}, 7])
def test_a_file_without_named_tensors_is_refused(content, tmp_path):
    assert "no weights in this file" in refusal(build("mobilenetv2"), save(content, tmp_path))


def test_files_that_are_no_weights_or_damaged_are_refused(mobilenet, tmp_path):
    model = build("mobilenetv2")
    whole = Path(save(mobilenet, tmp_path)).read_bytes()
    path = tmp_path / "bad.pth"
    for content in (b"", b"<html>not found</html>", whole[:1000], whole[: len(whole) // 2], whole[:-10]):
        path.write_bytes(content)
        assert "cannot be read as weights" in refusal(model, str(path))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4  # a single bit inside a tensor
    path.write_bytes(flipped)
    assert "damaged weights file" in refusal(model, str(path))
    assert "no such weights file" in refusal(model, str(tmp_path / "absent.pth"))
    assert "no such weights file" in refusal(model, str(tmp_path))


def test_a_file_that_would_run_code_is_refused(tmp_path):
    path = save({"state_dict": build("mobilenetv2").state_dict(), "arguments": random.Random(0)}, tmp_path)
    assert "cannot be read as weights" in refusal(build("mobilenetv2"), path)


@pytest.mark.parametrize("error", [URLError("Name or service not known"), IncompleteRead(b"")])
def test_imagenet_without_a_network_names_the_remedy(error, monkeypatch, tmp_path):
    def unreachable(request):
        raise error

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    for name in LIGHT:
        model = build(name)
        with pytest.raises(UserError, match="download https://.*--weights FILE") as caught:
            load_weights(model, "imagenet")
        assert str(error) in str(caught.value)
        assert model.imagenet.url in str(caught.value)


def test_a_bad_file_in_the_download_cache_is_refused(monkeypatch, tmp_path):
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    model = build("mobilenetv2")
    (folder / model.imagenet.url.rpartition("/")[2]).write_bytes(b"<html>not found</html>")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match="cannot get torchvision's weights"):
        load_weights(model, "imagenet")


def test_imagenet_from_the_download_cache(monkeypatch, mobilenet, tmp_path):
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    model = build("mobilenetv2")
    save(mobilenet, folder, model.imagenet.url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    report = load_weights(model, "imagenet")
    assert report[0] == "loaded from MobileNet_V2_Weights.IMAGENET1K_V1: backbone (312 tensors)"
    assert same(model.backbone.state_dict(), mobilenet)


@pytest.mark.real_data
def test_supplied_mobilenet_weights_load_and_others_do_not():
    folder = Path(os.environ.get("HONESTSEG_DATA", "absent")).parent / "weights"
    path = folder / "mobilenet_v2_imagenet_features.pth"
    if "HONESTSEG_DATA" not in os.environ or not path.is_file():
        pytest.skip("no weights folder beside HONESTSEG_DATA")
    assert load_weights(build("mobilenetv2"), str(path))[0].endswith("backbone (312 tensors)")
    assert load_weights(build("fpn_mobilenet_v2"), str(path))[0].endswith("backbone (306 tensors)")
    assert "do not fit" in refusal(build("mobilenetv2"), str(folder / "squeezenet1_1_imagenet.pth"))


# --- freezing


def statistics(module):
    return {key: value.clone() for key, value in module.state_dict().items() if "running" in key or "batches" in key}


@pytest.mark.parametrize("name", QUICK)
def test_frozen_backbone_keeps_parameters_and_statistics(name):
    model = build(name).eval()
    models.freeze_parameters(model, "backbone")
    models.train_mode(model)
    frozen, before = statistics(model.backbone), statistics(model)
    sum(logits.mean() for logits in model(torch.randn(2, 3, 33, 33)).values()).backward()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert same(frozen, statistics(model.backbone))
    moved = {key for key, value in statistics(model).items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if not key.startswith("backbone.")}
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    assert model.training


@pytest.mark.parametrize("name", LIGHT)
def test_all_but_head_trains_the_classifier_alone(name):
    model = build(name)
    models.freeze_parameters(model, "all-but-head")
    models.train_mode(model)
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"classifier.weight", "classifier.bias"}
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_models_without_published_weights_say_so(tmp_path):
    for name, source in (("vit_tiny", "imagenet"), ("fpn_pvt_v2_b0", "imagenet"), ("fpn_mobilenet_v2", "coco")):
        with pytest.raises(UserError, match=f"torchvision has no {source} weights for {name}"):
            load_weights(build(name), source)


def test_the_first_n_parameters_are_the_first_layers():
    model = build("mobilenetv2")
    models.freeze_parameters(model, "50")
    models.train_mode(model)
    trained = [parameter.requires_grad for parameter in model.parameters()]
    assert trained == [False] * 50 + [True] * (len(trained) - 50)
    norms = [module for module in model.backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    # Each convolution has one tensor and its batch norm two: tensors 0..49 hold 16 whole norms and the weight of one.
    assert [norm.training for norm in norms] == [False] * 16 + [True] * (len(norms) - 16)


def test_none_freezes_nothing():
    model = build("mobilenetv2")
    for rule in ("none", "0"):
        models.freeze_parameters(model, rule)
        assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("rule", ["head", "-1", "1.5", "", "100000"])
def test_a_bad_rule_is_refused(rule):
    with pytest.raises(UserError, match="--freeze"):
        models.freeze_parameters(build("mobilenetv2"), rule)


def test_batch_norm_without_parameters_still_trains():
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False))
    models.train_mode(net)
    assert net[1].training


def test_the_help_lists_every_model_and_option_with_its_default():
    for name, options in models.MODELS.items():
        family, _, backbone = name.partition("_")
        assert family in models.LISTING
        assert backbone in models.LISTING
        for option, value in options.items():
            shown = f"{value:g}" if isinstance(value, float) else value
            shown = {True: "on", False: "off"}[value] if isinstance(value, bool) else shown
            assert f"{option}={shown}" in models.LISTING or f"{backbone}: {shown}" in models.LISTING, (name, option)


# --- heads for the unknown


def test_dropout_acts_in_training_and_rests_in_evaluation():
    model = models.build_model("fpn_mobilenet_v2", 5, {"dropout": 0.5})
    images = torch.randn(2, 3, 64, 64)
    models.freeze_parameters(model, "backbone")
    models.train_mode(model)
    model.pyramid.eval()
    assert not torch.equal(model(images)["out"], model(images)["out"])
    model.eval()
    assert torch.equal(model(images)["out"], model(images)["out"])


def test_a_distance_head_gives_minus_squared_distances_to_its_centres():
    head = Centres(4, learnt=False)
    embedding = torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    logits = head(embedding)
    vectors = embedding.permute(0, 2, 3, 1).reshape(-1, 4)
    expected = -torch.cdist(vectors.double(), 3.0 * torch.eye(4).double()).square()
    torch.testing.assert_close(logits.permute(0, 2, 3, 1).reshape(-1, 4).double(), expected, atol=1e-4, rtol=1e-5)
    assert float(head(3.0 * torch.eye(4)[None, :, :, None]).amax()) == 0  # at its centre, and never above
    with torch.autocast("cpu", torch.bfloat16):
        assert head(embedding.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("kind", ["fixed", "learnt"])
@pytest.mark.parametrize("name", ["fpn_mobilenet_v2", "deeplabv3_mobilenet_v3_large"])
def test_centres_train_only_when_learnt_and_every_family_takes_them(name, kind):
    model = models.build_model(name, 5, {"centres": kind}).train()
    outputs = model(torch.randn(2, 3, 64, 64))
    assert outputs["out"].shape == (2, 5, 64, 64)
    assert float(outputs["out"].detach().amax()) <= 0
    (-outputs["out"].mean()).backward()
    assert ("centres.places" in dict(model.named_parameters())) == (kind == "learnt")
    assert "centres.places" in model.state_dict()
    if kind == "learnt":
        assert model.centres.places.grad.abs().sum() > 0


def test_a_residual_head_starts_as_the_classifier_and_never_changes_its_answer():
    torch.manual_seed(0)
    plain = models.build_model("fpn_mobilenet_v2", 5).eval()
    model = models.build_model("fpn_mobilenet_v2", 5, {"residual": True}).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 96)
    before = model(images)
    assert torch.equal(before["out"], plain(images)["out"])
    assert torch.equal(before["open"], before["out"])
    models.freeze_parameters(model, "all-but-residual")
    models.train_mode(model)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):  # in training mode: frozen batch norm keeps its statistics, dropout is on
        model(images)["open"].square().mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    model.eval()
    after = model(images)
    assert torch.equal(after["out"], before["out"])  # the known classes' logits, not only their argmax
    assert not torch.equal(after["open"], before["open"])


def test_an_unfrozen_segmenter_learns_nothing_from_the_residual_head():
    model = models.build_model("fpn_mobilenet_v2", 5, {"residual": True}).train()
    torch.nn.init.normal_(model.residual_head[-1].weight)  # zeros would let no gradient through anyway
    model(torch.randn(2, 3, 64, 64))["open"].square().mean().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert moved == {name for name, _ in model.named_parameters() if name.startswith("residual_head.")}


def test_freezing_all_but_a_residual_head_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="no residual head.*residual=on"):
        models.freeze_parameters(models.build_model("fpn_mobilenet_v2", 3), "all-but-residual")


def test_a_trained_segmenters_file_starts_a_model_with_a_residual_head(tmp_path):
    plain = models.build_model("fpn_mobilenet_v2", 5)
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    model = models.build_model("fpn_mobilenet_v2", 5, {"residual": True})
    lines = load_weights(model, str(tmp_path / "plain.pth"))
    assert "new, random: residual_head (4 tensors)" in lines
    assert torch.equal(model.eval()(torch.ones(1, 3, 32, 32))["out"], plain.eval()(torch.ones(1, 3, 32, 32))["out"])


def test_every_model_shows_its_backbones_coarsest_map():
    model = models.build_model("fpn_mobilenet_v2", 5).eval()
    images = torch.randn(1, 3, 64, 96)
    outputs = model(images)
    assert torch.equal(outputs["backbone"], model.backbone_features(images)[-1])
    assert outputs["backbone"].shape == (1, 320, 2, 3)
