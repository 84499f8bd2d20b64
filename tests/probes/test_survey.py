"""The survey: the facts of images and masks against counting by hand, and what it makes of broken pairs."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from datasets.masks import read_labels
from datasets.spec import UNKNOWN
from probes import survey as survey_module
from probes.dataset import duplicates
from probes.files import mask_borders, odd_images
from probes.subject import Subject
from probes.survey import fingerprints, image_facts, mask_facts, survey_split
from tests.probes.examples import SCENE_CLASSES, change, draw_scene, grey


def test_mask_facts_against_counting_by_hand():
    target = np.random.RandomState(1).randint(0, 4, (19, 23)).astype(np.uint8)
    target[target == 3] = 2
    target[4:9, 5:12] = 1
    facts = mask_facts(target, target, 4)
    height, width = target.shape
    phases, lone, thin = [0] * 8, 0, np.zeros_like(target, bool)
    padded = np.pad(target.astype(int), 1, constant_values=-1)
    for y in range(height):
        for x in range(width):
            if x and target[y, x] != target[y, x - 1]:
                phases[x % 8] += 1
            if y and target[y, x] != target[y - 1, x]:
                phases[y % 8] += 1
            around = [padded[y, x + 1], padded[y + 2, x + 1], padded[y + 1, x], padded[y + 1, x + 2]]
            lone += min(around) >= 0 and target[y, x] not in around
    for lines, marks in ((target, thin), (target.T, thin.T)):
        for line, mark in zip(lines.tolist(), marks, strict=True):
            for length in (1, 2):
                for x in range(1, len(line) - length):
                    run, beside = line[x : x + length], sorted((line[x - 1], line[x + length]))
                    if len(set(run)) == 1 and beside[0] < run[0] < beside[1]:
                        mark[x : x + length] = True
    assert facts["phases"].tolist() == phases
    assert facts["borders"] == sum(phases)
    assert facts["lone"] == lone
    assert facts["thin"].tolist() == [int((thin & (target == c)).sum()) for c in range(4)]
    assert facts["counts"].tolist() == [int((target == c).sum()) for c in range(4)]
    assert facts["top"] == pytest.approx((target == 2).mean())
    assert facts["below_top"] == (target != 2).sum()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 2), (3, 1), (3, 4)])
def test_tiny_masks_and_images_have_facts(shape):
    target = np.arange(np.prod(shape)).reshape(shape).astype(np.uint8)
    assert mask_facts(target, target, 3)["counts"].sum() == min(target.size, 3)
    facts = image_facts(Image.fromarray(target).convert("RGB"))
    assert np.isfinite(facts["neighbours"])


def test_image_facts_against_numpy():
    picture = draw_scene(np.random.RandomState(5))[0]
    facts = image_facts(Image.fromarray(picture))
    pixels = grey(picture).astype(float)
    across = np.corrcoef(pixels[:, 1:].ravel(), pixels[:, :-1].ravel())[0, 1]
    down = np.corrcoef(pixels[1:].ravel(), pixels[:-1].ravel())[0, 1]
    assert facts["neighbours"] == pytest.approx(max(across, down), abs=1e-4)
    assert facts["extent"] == max(int(np.ptp(picture[..., c])) for c in range(3))
    turned = image_facts(Image.fromarray(picture.reshape(128, 96, 3)))
    assert turned["digest"] != facts["digest"]  # the same bytes in another shape are another picture


def test_fingerprints_are_blind_to_brightness_and_see_a_mirror():
    rng = np.random.RandomState(2)
    icons = rng.randint(40, 120, (4, 48, 48)).astype(np.uint8)
    prints = fingerprints(icons)
    assert np.linalg.norm(prints, axis=1) == pytest.approx(1, abs=1e-5)
    assert (prints * fingerprints(icons * 2 + 10)).sum(1) == pytest.approx(1, abs=1e-3)
    assert np.abs((prints * fingerprints(icons[:, :, ::-1])).sum(1)).max() < 0.2
    assert not fingerprints(np.full((1, 48, 48), 7, np.uint8)).any()


def test_survey_leaves_a_broken_pair_out_and_keeps_unknown_labels(splits, monkeypatch):
    split = change(splits["train"], masks=lambda m, _: np.where(m == 2, 77, m).astype(np.uint8))
    split.pairs[3][0].write_bytes(b"no image")
    done = []
    survey = survey_split(split, done.append)
    assert done == list(range(1, 21))
    assert survey.files == [split.file(i) for i in range(20) if i != 3]
    assert survey.indices.tolist() == [i for i in range(20) if i != 3]
    assert list(survey.greys) == list(survey.targets) == list(range(19))
    thumbnail, target = survey.greys[3], survey.targets[3]
    assert survey.files[3] == split.file(4)
    assert thumbnail.shape == target.shape == (180, 240)
    assert thumbnail.dtype == target.dtype == np.uint8
    own = read_labels(split.pairs[4][1], split.spec)[0]
    assert np.array_equal(target, np.asarray(Image.fromarray(own).resize((240, 180), Image.Resampling.NEAREST)))
    assert UNKNOWN in {int(v) for t in survey.targets.values() for v in np.unique(t)}
    monkeypatch.setattr(survey_module, "THUMBNAILS", 5)
    assert list(survey_split(split).greys) == [0, 4, 9, 13, 18]  # 0, 5, 10, 14, 19 of the split


def test_survey_of_nothing_readable_has_its_shapes(splits):
    split = replace(splits["val"], pairs=splits["val"].pairs[:1])
    split.pairs[0][0].write_bytes(b"")
    survey = survey_split(split)
    assert (len(survey), survey.icons.shape, survey.thin.shape) == (0, (0, 48, 48), (0, SCENE_CLASSES))
    subject = Subject({"train": splits["train"], "val": split})
    for probe in (mask_borders, odd_images, duplicates):
        assert probe(subject)[0].verdict == "pass"
