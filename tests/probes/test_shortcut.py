"""Does the model look at the image? Each planted shortcut is named, and who looks is left in peace."""

import copy
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import data
import losses
import metrics
import models
from datasets.catalogue import build_spec
from engine.predictor import Predictor
from networks.blocks import Normalise
from networks.foreign import Foreign
from probes import replacement_inputs
from probes.answers import Sample, take_sample
from probes.shortcut import (
    check_gradients,
    far_apart,
    feature_correlation,
    judge_reliance,
    layout_reliance,
    reliance_score,
    stage_maps,
)
from probes.subject import Subject
from tests.folder_set import write_folder_set
from tests.probes.examples import BANDS, CPU, ask_probe, banded_set, open_splits, small_settings

COLOURS = torch.from_numpy(BANDS) / 255

# ---- gradients


class Detached(nn.Module):
    """A head that learns on features it cannot move. Ours: it has what only our models have."""

    def __init__(self, cut):
        super().__init__()
        self.backbone = nn.Conv2d(3, 4, 3, padding=1)
        self.head = nn.Conv2d(4, 3, 1)
        self.spare = nn.Conv2d(4, 3, 1)
        self.cut = cut

    def backbone_features(self, images):
        return [self.backbone(images)]

    def forward(self, images):
        features = self.backbone(images)
        if self.cut == "backbone":
            features = features.detach()
        logits = self.head(features)
        if self.cut != "spare":
            logits = logits + self.spare(features) * (0.0 if self.cut == "weight 0" else 1.0)
        return {"out": logits * (float("inf") if self.cut == "infinite" else 1.0)}


def flow(model, classes=3, size=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, size, size, generator=generator)
    targets = torch.randint(0, classes, (2, size, size), dtype=torch.uint8, generator=generator)
    aux = getattr(model, "aux_weights", {})
    criterion = losses.Criterion({"ce": [1.0]}, classes, Normalise(), aux_weights=aux)
    finding = check_gradients(model, criterion, images, targets)
    json.dumps(finding.json(), allow_nan=False)
    return finding


@pytest.mark.parametrize(
    ("cut", "verdict", "cause"),
    [
        ("nothing", "pass", None),
        ("backbone", "fail", "no_gradient"),
        ("spare", "fail", "no_gradient"),
        ("weight 0", "warn", "no_gradient"),
        ("infinite", "fail", "gradient_not_finite"),
    ],
)
def test_gradient_flow(cut, verdict, cause):
    torch.manual_seed(0)
    model = Detached(cut)
    before = copy.deepcopy(model.state_dict())
    finding = flow(model)
    assert (finding.verdict, finding.cause) == (verdict, cause)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "name",
    [
        "mobilenetv2",
        "fpn_mobilenet_v2",
        "fpn_pvt_v2_b0",
        "vit_tiny",
        pytest.param("deeplabv3_mobilenet_v3_large", marks=pytest.mark.slow),
        pytest.param("fpn_convnext_tiny", marks=pytest.mark.slow),
    ],
)
def test_gradient_flow_is_silent_about_every_healthy_model_and_a_frozen_backbone(name):
    torch.manual_seed(0)
    model = models.build_model(name, 3)
    models.freeze_parameters(model, "backbone" if name == "mobilenetv2" else "none")
    finding = flow(model, size=64)
    assert finding.verdict == "pass", (finding.why, finding.evidence["dead"])
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert finding.evidence["frozen_share"] == pytest.approx(frozen / sum(p.numel() for p in model.parameters()))


class Theirs(nn.Module):
    """A network with an auxiliary head whose output nobody hands on, and a classifier that starts at zero."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.aux = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)
        nn.init.zeros_(self.head.weight)

    def forward(self, images):
        features = self.body(images)
        return {"out": self.head(features), "aux": self.aux(features)}


def test_gradient_flow_of_somebody_elses_model():
    torch.manual_seed(0)
    finding = flow(Foreign(Theirs()))
    assert finding.verdict == "pass"  # neither a start at zero nor an auxiliary head is a fault
    assert finding.evidence["dead"] == ["net.aux.weight", "net.aux.bias"]
    assert set(finding.evidence["norms"]) == {"body.weight", "body.bias", "head.weight", "head.bias", "aux.weight",
                                              "aux.bias"}  # fmt: skip
    finding = flow(Foreign(nn.Conv2d(3, 3, 1)).requires_grad_(False))
    assert (finding.verdict, finding.cause) == ("warn", "frozen_parameters")
    assert finding.evidence["frozen_share"] == 1
    argmax = Foreign(Theirs())
    argmax.net.body.register_forward_hook(lambda _module, _inputs, output: output.detach())
    assert flow(argmax).cause == "no_gradient"


# ---- layout reliance


class Answer(nn.Module):
    """Answers by colour; from the place, by a fixed map; one class; by columns; or by colour and place alike."""

    def __init__(self, kind, layout_map=None):
        super().__init__()
        self.kind = kind
        self.register_buffer("colours", COLOURS)
        if layout_map is not None:
            self.register_buffer("map", F.one_hot(torch.from_numpy(layout_map).long(), 3).permute(2, 0, 1).float())

    def forward(self, images):
        colour = -(images[:, None] - self.colours[:, :, None, None]).square().sum(2)  # (N, 3, h, w)
        size = images.shape[2:]
        if self.kind == "colour":
            return {"out": colour}
        if self.kind == "one class":
            return {"out": torch.zeros_like(colour) + torch.tensor([0.0, 1, 0]).view(1, 3, 1, 1)}
        if self.kind == "columns":
            columns = torch.arange(size[1]) % 2
            return {"out": F.one_hot(columns, 3).T[None, :, None].float().expand_as(colour)}
        place = F.interpolate(self.map[None], size).expand_as(colour)
        return {"out": place if self.kind == "map" else place + colour}


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """(validation split, layout map) of a set whose scenes are alike."""
    root = banded_set(tmp_path_factory.mktemp("bands") / "set", counts=(("train", 12), ("val", 10)))
    train, val = open_splits(root).values()
    grids = [metrics.resize_nearest(train.read_target(i)) for i in range(len(train))]
    return val, metrics.fit_layout(grids, 3).map


def predictor_of(model, size=(40, 56)):
    same = Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    return Predictor(model, 3, data.Geometry(list(size)), CPU, same)


def reliance(kind, split, layout_map, tell=None, count=64, **settings):
    subject = Subject({"val": split}, predictor_of(Answer(kind, layout_map)), settings=small_settings(**settings))
    subject.layout_map, subject.tell = layout_map, tell or subject.tell
    [finding] = layout_reliance(subject, count=count)
    json.dumps(finding.json(), allow_nan=False)
    return finding


def test_who_answers_from_the_content_is_left_in_peace_though_scenes_are_alike(bands):
    finding = reliance("colour", *bands)
    assert finding.verdict == "pass"
    miou = finding.evidence["miou"]
    assert miou["own"] > 0.99
    assert miou["other_images"] > 0.5  # the next scene is half the answer, and no sign of a shortcut
    assert finding.evidence["reliance"] < 0.05
    assert miou["shuffled_patches"] == pytest.approx(miou["own"], abs=0.01)


def test_who_answers_from_the_place_is_named(bands):
    finding = reliance("map", *bands)
    assert (finding.verdict, finding.cause) == ("fail", "layout_shortcut")
    assert finding.evidence["reliance"] > 0.9
    miou = finding.evidence["miou"]
    assert miou["own"] == miou["other_images"] == miou["noise"] == finding.evidence["layout_floor"]


def test_both_together_lie_between(bands):
    scores = [reliance(kind, *bands).evidence["reliance"] for kind in ("colour", "both", "map")]
    assert scores[0] < scores[1] < scores[2]


@pytest.mark.parametrize("kind", ["one class", "columns"])
def test_who_answers_neither_way_is_below_the_floor(kind, bands):
    finding = reliance(kind, *bands)
    assert (finding.verdict, finding.cause) == ("fail", "below_layout_floor")
    assert finding.evidence["reliance"] is None


def test_a_young_model_that_looks_is_only_warned_about():
    miou = {"own": 0.188, "other_images": 0.162, "noise": 0.068, "shuffled_patches": 0.106}
    young = {"miou": miou, "layout_floor": 0.194, "reliance": 0.35, "kept": 0.24}  # CamVid, 60 steps from scratch
    finding = judge_reliance(young, None)
    assert (finding.verdict, finding.cause) == ("warn", "below_layout_floor")
    half = {**young, "layout_floor": 0.1, "kept": 0.6}
    finding = judge_reliance(half, None)
    assert (finding.verdict, finding.cause) == ("warn", "layout_shortcut")


def test_the_score_of_two_ideal_models_whatever_the_scenes():
    """Content alone: 0 on any data. Place alone: 1, whatever the map."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 3, (6, 50, 50), generator=generator).to(torch.uint8)
    targets[:, :25] = 0  # half of every scene is the same

    def count(guesses):
        return metrics.confusion_matrix(guesses.contiguous(), targets, 3)

    scenes, guess = count(targets.roll(1, 0)), torch.randint(0, 3, (6, 50, 50), generator=generator).to(torch.uint8)
    content = {"own": count(targets), "shuffled_patches": count(targets), "other_images": scenes, "noise": count(guess)}
    score = reliance_score(content, scenes)
    assert score["reliance"] == pytest.approx(0, abs=0.01)
    fixed = targets[:1].expand_as(targets)
    place = {**dict.fromkeys(("own", "other_images", "noise"), count(fixed)), "shuffled_patches": count(guess)}
    score = reliance_score(place, scenes)
    assert score["reliance"] == pytest.approx(1, abs=0.01)
    assert score["kept"] == pytest.approx(1, abs=0.1)


def test_what_the_probe_shows_and_how_far_it_is(bands):
    seen = []
    finding = reliance("colour", *bands, lambda *done: seen.append(done), count=5, batch_size=2)
    assert finding.evidence["images"] == 5
    assert seen == [(n, 18) for n in range(1, 19)]  # 9 conditions, batches of 3 and 2
    (exhibit,) = finding.exhibits
    assert all((tile.image is None) != (tile.mask is None) for tile in exhibit.tiles)
    assert exhibit.tiles[0].mask.shape == (40, 56)


def test_a_single_image_and_all_void_are_skipped(tmp_path):
    write_folder_set(tmp_path, counts=(("train", 2), ("val", 1)))
    for path in (tmp_path / "masks" / "train").iterdir():
        Image.new("L", (56, 40), 255).save(path)
    spec = build_spec("folder", tmp_path)
    for name in ("val", "train"):
        split = data.open_split(spec, tmp_path, name)
        assert reliance("one class", split, np.zeros((4, 4), np.uint8)).verdict == "skip"


# ---- features


class Staged(nn.Module):
    """Two outer parts, the second of which may hide what the first one saw."""

    def __init__(self, kind):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.top = Hiding(kind)
        self.register_buffer("code", torch.rand(1, 8, 40, 56, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return self.top((self.body(images), self.code))[0]


class Hiding(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, inputs):
        features, code = inputs
        share = {"healthy": 1.0, "constant": 0.0, "place": 0.3}[self.kind]
        hidden = code.mean((2, 3), keepdim=True) if self.kind == "constant" else code
        return (hidden.expand_as(features) * (1 - share) + features * share,)


def feature_finding(model, bands, **options):
    sample = take_sample(bands[0], data.Geometry([40, 56]))
    finding = ask_probe(feature_correlation, predictor_of(model), sample, **options)
    json.dumps(finding.json(), allow_nan=False)
    return finding


@pytest.mark.parametrize(
    ("kind", "verdict", "cause"),
    [
        ("healthy", "pass", None),
        ("constant", "fail", "ignores_the_image"),
        ("place", "warn", "layout_shortcut"),
    ],
)
def test_features(kind, verdict, cause, bands):
    torch.manual_seed(0)
    finding = feature_finding(Foreign(Staged(kind)), bands)
    assert (finding.verdict, finding.cause) == (verdict, cause), finding.why
    assert list(finding.evidence["stages"]) == ["body", "top"]
    assert finding.evidence["judged"] == "top"


def test_cosines_against_the_plain_way(bands):
    torch.manual_seed(0)
    model = models.build_model("fpn_mobilenet_v2", 3, {"channels": 8})
    predictor = predictor_of(model)
    sample = take_sample(bands[0], predictor.geometry)
    finding = feature_finding(model, bands, count=6, batch_size=6, seed=4)
    images, targets = far_apart(sample.thin(6), 6)[0]
    noise = replacement_inputs.noise(images, targets, torch.Generator().manual_seed(4))[0]
    real, fake = (stage_maps(predictor, part) for part in (images, noise))
    assert list(real)[-1] == "pyramid 1"
    for stage, found in finding.evidence["stages"].items():
        means = real[stage].double().mean((0, 2, 3), keepdim=True)
        for shift, prefix in ((torch.zeros_like(means), "raw_"), (means, "")):
            a, b = (maps[stage].double().sub(shift).flatten(1) for maps in (real, fake))
            if a.norm() < 1e-6 * real[stage].norm():  # one constant: as alike as can be
                assert found[prefix + "other"] == 1
                continue
            for other, kind in ((a.roll(1, 0), "other"), (b, "noise")):
                cosine = (a * other).sum(1) / a.norm(dim=1) / other.norm(dim=1)
                assert found[prefix + kind] == pytest.approx(float(cosine.mean()), abs=1e-6), (stage, prefix + kind)


def test_stages_of_a_network_that_hands_on_lists_and_one_that_has_none(bands):
    class Inner(nn.Module):
        def forward(self, images):
            return [images, {"deep": images.mean(1, keepdim=True), "flat": images.mean()}]

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.head = Inner(), nn.Conv2d(1, 3, 1)

        def forward(self, images):
            return self.head(self.encoder(images)[1]["deep"])

    net = Foreign(nn.Sequential(Net()))
    maps = stage_maps(predictor_of(net), torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    assert {stage: tuple(found.shape) for stage, found in maps.items()} == {
        "encoder": (2, 1, 8, 8),
        "head": (2, 3, 8, 8),
    }
    assert not any(module._forward_hooks for module in net.modules())
    assert feature_finding(Foreign(nn.Conv2d(3, 3, 1)), bands).verdict == "skip"


def test_a_batch_holds_images_of_one_size_that_lie_far_apart():
    images = [torch.full((4, 4 if n != 5 else 6, 3), n, dtype=torch.uint8) for n in range(12)]
    sample = Sample(images, [image[..., 0] for image in images], list("abcdefghijkl"), [None] * 12, ())
    batches = far_apart(sample, 4)
    numbers = [images[:, 0, 0, 0].tolist() for images, _ in batches]
    assert numbers == [[0, 3, 7, 10], [1, 4, 8, 11], [2, 6, 9]]
    assert all(torch.equal(images[..., 0], targets) for images, targets in batches)
    assert [len(images) for images, _ in far_apart(sample.thin(5), 1)] == [3, 2]
    assert far_apart(sample.thin(1), 4) == []
