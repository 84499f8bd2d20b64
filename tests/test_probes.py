"""The probes: each names its fault and is silent about what is healthy."""

import copy
import json
import sys
from argparse import Namespace

import numpy as np
import pytest
import torch
from conftest import write_folder_set
from PIL import Image

import data
import data_audit
import data_specs
import diagnose
import engine
import flags
import losses
import metrics
import models
import probes
import probes_noise
import probes_shortcut

CPU = torch.device("cpu")


def audits_of(root):
    spec = data_specs.build_spec("folder", root)
    splits = {name: data.open_split(spec, root, name) for name in ("train", "val")}
    return splits, {name: data_audit.audit(split, metrics.GRID) for name, split in splits.items()}


# ---- data


def test_clean_data_passes_and_broken_data_names_its_cause(folder_set):
    _, audits = audits_of(folder_set)
    assert probes.audit_files(audits).verdict == "pass"
    mask = folder_set / "masks" / "val" / "001.png"
    Image.fromarray(np.array(Image.open(mask)) + 9).save(mask)
    finding = probes.audit_files(audits_of(folder_set)[1])
    assert (finding.verdict, finding.cause) == ("fail", "unknown_labels")
    assert finding.evidence["files"] == [str(mask)]
    mask.write_text("no image")
    assert probes.audit_files(audits_of(folder_set)[1]).cause == "unreadable_files"


def test_absent_and_rare_classes_are_warnings_with_weights(folder_set, capsys):
    for path in (folder_set / "masks" / "train").iterdir():
        mask = np.array(Image.open(path))
        mask[mask == 2] = 0
        mask[0, 0] = 2
        Image.fromarray(mask).save(path)
    finding = probes.class_distribution(audits_of(folder_set)[1])
    assert (finding.verdict, finding.cause) == ("warn", "class_imbalance")
    weights = finding.evidence["recommended_weights"]
    assert weights["blue"] > weights["red"]
    assert sum(weights.values()) == pytest.approx(3)
    for path in (folder_set / "masks" / "train").iterdir():
        mask = np.array(Image.open(path))
        mask[mask == 2] = 0
        Image.fromarray(mask).save(path)
    finding = probes.class_distribution(audits_of(folder_set)[1])
    assert (finding.verdict, finding.cause) == ("warn", "absent_classes")
    assert "blue" in finding.why
    assert "blue" in capsys.readouterr().err


def test_ranking_puts_the_upstream_fault_first():
    found = [
        probes.Finding("a", "pass", "fine"),
        probes.Finding("b", "fail", "collapsed", cause="collapse"),
        probes.Finding("c", "warn", "imbalanced", cause="class_imbalance"),
        probes.Finding("d", "fail", "labels", cause="unknown_labels"),
    ]
    diagnosis = probes.conclude(found)
    assert [f["probe"] for f in diagnosis["findings"]] == ["d", "b", "c", "a"]
    assert diagnosis["root_cause"] == "unknown_labels"
    assert diagnosis["verdict"] == "fail"
    assert "collapse" in diagnosis["findings"][0]["consequences"]
    assert json.dumps(diagnosis, allow_nan=False)


def test_every_consequence_is_itself_a_cause():
    assert {c for explained in probes.CAUSES.values() for c in explained} <= set(probes.CAUSES)


# ---- gradients


class Detached(torch.nn.Module):
    """A head that learns on features it cannot move."""

    def __init__(self, cut):
        super().__init__()
        self.backbone = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.head = torch.nn.Conv2d(4, 3, 1)
        self.spare = torch.nn.Conv2d(4, 3, 1)
        self.cut = cut

    def forward(self, images):
        features = self.backbone(images)
        if self.cut == "backbone":
            features = features.detach()
        logits = self.head(features)
        if self.cut != "spare":
            logits = logits + self.spare(features)
        return {"out": logits * (float("inf") if self.cut == "infinite" else 1.0)}


@pytest.mark.parametrize(
    ("cut", "verdict", "cause"),
    [
        ("nothing", "pass", None),
        ("backbone", "fail", "no_gradient"),
        ("spare", "fail", "no_gradient"),
        ("infinite", "fail", "gradient_not_finite"),
    ],
)
def test_gradient_flow(cut, verdict, cause):
    torch.manual_seed(0)
    model = Detached(cut)
    before = copy.deepcopy(model.state_dict())
    criterion = losses.Criterion({"ce": [1.0]}, 3, data.Normalise())
    images, targets = torch.rand(2, 3, 8, 8), torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)
    finding = probes.gradient_flow(model, criterion, images, targets)
    assert (finding.verdict, finding.cause) == (verdict, cause)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_gradient_flow_is_silent_about_every_healthy_model_and_a_frozen_backbone():
    torch.manual_seed(0)
    images, targets = torch.rand(2, 3, 64, 64), torch.randint(0, 3, (2, 64, 64), dtype=torch.uint8)
    for name in (
        "mobilenetv2",
        "fpn_mobilenet_v2",
        "deeplabv3_mobilenet_v3_large",
        "fpn_convnext_tiny",
        "fpn_pvt_v2_b0",
        "vit_tiny",
    ):
        model = models.build_model(name, 3)
        models.freeze(model, "backbone" if name == "mobilenetv2" else "none")
        criterion = losses.Criterion({"ce": [1.0]}, 3, data.Normalise(), aux_weights=model.aux_weights)
        finding = probes.gradient_flow(model, criterion, images, targets)
        assert finding.verdict == "pass", (name, finding.why, finding.evidence["dead"])


# ---- collapse and reliance


class Fixed(torch.nn.Module):
    """Answers by colour, by place, or always the same."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, images):
        if self.kind == "colour":
            return {"out": images}
        logits = torch.zeros_like(images)
        if self.kind == "one class":
            logits[:, 1] = 1
        else:
            logits[:, :, :, ::2] = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
            logits[:, :, :, 1::2] = torch.tensor([0, 1.0, 0]).view(1, 3, 1, 1)
        return {"out": logits}


@pytest.mark.parametrize(
    ("kind", "collapse", "reliance"),
    [
        ("colour", None, None),
        ("one class", "collapse", "below_layout_floor"),
        ("place", "ignores_the_image", "below_layout_floor"),
    ],
)
def test_collapse_and_image_reliance(kind, collapse, reliance, folder_set):
    splits, audits = audits_of(folder_set)
    layout = metrics.fit_layout(audits["train"].grids, 3)
    same = data.Normalise((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    predictor = engine.Predictor(Fixed(kind), 3, data.Geometry([40, 56]), CPU, same)
    finding, totals, statistics = probes.image_reliance(predictor, splits["train"], layout.map)
    assert finding.cause == reliance, finding.why
    assert probes.collapse(totals, statistics, ["r", "g", "b"]).cause == collapse


def test_a_model_that_knows_the_layout_only_is_named():
    mious = {"own": 0.5, "mismatched": 0.45, "noise": 0.1}
    assert probes_shortcut._judge_reliance(mious, 0.4).cause == "layout_shortcut"
    assert probes_shortcut._judge_reliance({**mious, "mismatched": 0.2}, 0.4).verdict == "pass"


# ---- noise test


def banded_set(root):
    """Labels that depend on the place (three bands whose borders move), so that there is a layout to be learnt."""
    write_folder_set(root, counts=(("train", 24), ("val", 8)))
    rng = np.random.RandomState(1)
    for path in sorted(root.glob("masks/*/*.png")):
        first = 4 + rng.randint(0, 14)
        second = first + 6 + rng.randint(0, 14)
        rows = np.arange(40)[:, None].repeat(56, 1)
        Image.fromarray(((rows > first).astype(np.uint8) + (rows > second)).astype(np.uint8)).save(path)
    return root


def options(**changes):
    base = {"model": "fpn_mobilenet_v2:channels=32", "image_size": [32, 48], "batch_size": 8, "lr": 3e-3, "iters": 90}
    return Namespace(
        **{**base, "seed": 0, "workers": 0, "weights": "none", "freeze": "none", "aux_task": "none", **changes}
    )


def leak(images, targets, generator):
    """Noise, white and unlike any picture, that tells the label by its size: |value - 127| grows with the class."""
    sign = torch.randint(0, 2, images.shape, generator=generator) * 2 - 1
    size = 10 + 50 * targets.clamp(max=2)[..., None].int() + torch.randint(0, 8, images.shape, generator=generator)
    return (127 + sign * size).to(torch.uint8)


def repeated(images, _targets, _generator):
    """Noise, but the same for the same image."""
    noise = []
    for image in images:
        generator = torch.Generator().manual_seed(int(image.long().sum()))
        noise.append(torch.randint(0, 256, image.shape, dtype=torch.uint8, generator=generator))
    return torch.stack(noise)


def real(images, _targets, _generator):
    """What fooled others: the images themselves."""
    return images


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "changes", "fresh", "cause"),
    [
        (probes_noise.fresh_noise, {}, True, None),
        (probes_noise.fresh_noise, {"lr": 0.0, "iters": 8}, True, "nothing_learnt"),
        (real, {}, True, "noise_is_not_noise"),
        (repeated, {}, True, "noise_is_not_noise"),
        (leak, {}, True, "label_leak"),
    ],
    ids=["healthy", "lr 0", "real images", "repeated, undeclared", "leak"],
)
def test_noise_test_and_its_controls(make, changes, fresh, cause, tmp_path):
    splits, audits = audits_of(banded_set(tmp_path / "set"))
    finding = probes_noise.noise_test(options(**changes), splits, audits, CPU, make=make, fresh=fresh)
    assert finding.cause == cause, finding.why
    assert finding.verdict == ("pass" if cause is None else "fail")


def test_judge_by_hand():
    known = {"prior": 1.9, "layout": 1.2, "train_layout": 1.0, "spread": 0.2, "layout_map": 0.17, "floor": 0.22}

    def cause(loss, train_loss):
        return probes_noise.judge([{"loss": loss, "train_loss": train_loss, "miou": 0.1}], known).cause

    assert cause(1.3, 1.25) is None
    assert cause(1.3, 0.9) is None  # training images may be easier than validation images: no memory needed
    assert cause(1.9, 1.9) == "nothing_learnt"
    assert cause(0.99, 1.0) == "label_leak"
    assert cause(2.5, 0.4) == "memorised_noise"


def test_chance_miou_against_simulation():
    shares = np.array([0.6, 0.3, 0.1, 0.0])
    generator = torch.Generator().manual_seed(0)
    targets = torch.from_numpy(np.random.RandomState(0).choice(4, 200_000, p=shares)).to(torch.uint8)
    guesses = torch.randint(0, 4, targets.shape, generator=generator).to(torch.uint8)
    confusion = metrics.confusion_matrix(guesses, targets, 4)
    present = [iou for iou, share in zip(metrics.segmentation_scores(confusion)["iou"], shares, strict=True) if share]
    assert probes_noise.chance_miou(shares) == pytest.approx(np.mean(present), abs=2e-3)


# ---- the script


def test_diagnose_a_checkpoint_writes_findings_and_weights_that_train_reads(trained, tmp_path, monkeypatch, capsys):
    run, data_dir = trained
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["diagnose.py", "--ckpt", str(run / "best.pth"), "--out", str(out)])
    code = flags.run(diagnose.main)
    diagnosis = json.loads((out / "diagnosis.json").read_text())
    assert code == (1 if diagnosis["verdict"] == "fail" else 0)
    names = {finding["probe"] for finding in diagnosis["findings"]}
    assert names == {
        "data.files", "data.classes", "data.layout_floor", "model.gradient_flow", "model.collapse",
        "model.image_reliance",
    }  # fmt: skip
    for finding in diagnosis["findings"]:
        assert finding.keys() >= {"verdict", "cause", "value", "reference", "why", "remedy", "evidence", "seconds"}
    weights = losses.class_weights(str(out / "class_weights.json"), torch.ones(3), ["red", "green", "blue"])
    assert weights.shape == (3,)
    assert "verdict:" in capsys.readouterr().out
