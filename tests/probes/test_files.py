"""What single files tell: every planted fault is named, healthy sets pass."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import data
from datasets.catalogue import build_spec
from datasets.driving import CITYSCAPES, CITYSCAPES_LABEL_IDS
from datasets.spec import VOID
from probes.dataset import duplicates
from probes.files import audit_files, mapped_twice, mask_borders, mask_values, odd_images
from probes.subject import Subject
from tests.probes.examples import (
    IDENTITY,
    SCENES,
    as_jpeg,
    audits_of,
    blended,
    change,
    check,
    grey,
    with_spec,
)
from tests.probes.examples import SCENE_CLASSES as CLASSES


def test_a_healthy_set_passes_everything(splits):
    subject = Subject(splits)
    check(audit_files, subject, "pass", None)
    check(mask_values, subject, "pass", None)
    check(mask_borders, subject, "pass", None)
    check(odd_images, subject, "pass", None)
    check(duplicates, subject, "pass", None)


# ---- undeclared values


def spread(mask, _=None):
    return (mask * 30).astype(np.uint8)


SPREAD = {"values": {30 * v: i for v, i in IDENTITY.items()}}
PAINT = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128),
                  (128, 128, 128), (64, 0, 0)], np.uint8)  # fmt: skip
PAINTED = {"values": {}, "colours": {tuple(map(int, PAINT[v])): i for v, i in IDENTITY.items()}}


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize(
    ("make", "spec", "ending", "cause"),
    [
        (lambda m, p: grey(p), {}, ".png", "greyscale_masks"),
        (lambda m, p: m, {}, ".jpg", "jpeg_masks"),
        (lambda m, p: m + 1, {}, ".png", "one_based_labels"),
        (lambda m, p: np.where(m == CLASSES, 99, m).astype(np.uint8), {}, ".png", "unknown_labels"),
        (lambda m, p: blended(spread(m)), SPREAD, ".png", "blended_masks"),
        (lambda m, p: blended(PAINT[m]), PAINTED, ".png", "blended_masks"),
        (lambda m, p: as_jpeg(PAINT[m]), PAINTED, ".png", "jpeg_masks"),
        (lambda m, p: p, PAINTED, ".png", "unknown_labels"),
    ],
    ids=["grey", "jpg", "1-based", "unknown", "blended", "colours blended", "colours jpeg", "photographs"],
)
def test_undeclared_values_name_what_made_them(splits, make, spec, ending, cause, every):
    healthy = (lambda m, _: PAINT[m]) if "colours" in spec else spread if spec else (lambda m, _: m)
    clean = with_spec({name: change(split, masks=healthy) for name, split in splits.items()}, **spec)
    check(audit_files, clean, "pass", None)
    faulty = with_spec({"train": change(splits["train"], masks=_undo(make, spec), every=every, ending=ending)}, **spec)
    faulty["val"] = clean["val"]
    finding = check(audit_files, faulty, "fail", cause)
    assert len(finding.evidence["files"]) == 20 // every
    assert f"{20 // every} of 20 masks hold {finding.evidence['distinct_values']}" in finding.why
    assert finding.exhibits[0].tiles[2].mask.shape == (96, 128)


def _undo(make, spec):
    """The masks on disk are already spread or painted when the fault is planted: go back to class numbers first."""

    def remake(mask, picture):
        if "colours" in spec:
            mask = (mask[:, :, None] == PAINT).all(axis=3).argmax(axis=2).astype(np.uint8)
        elif spec:
            mask = mask // 30
        return make(mask, picture)

    return remake


def test_the_share_of_declared_pixels_is_told(splits):
    train = change(splits["train"], masks=lambda m, p: grey(p), every=10)
    [finding] = audit_files(Subject({"train": train, "val": splits["val"]}))
    values = np.concatenate([np.asarray(Image.open(train.pairs[i][1])).ravel() for i in (0, 10)])
    assert finding.evidence["declared_share"] == pytest.approx((values <= CLASSES).mean())
    assert finding.evidence["declared_share"] < 0.1


# ---- declared, and wrong


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize(
    ("make", "how"),
    [
        (lambda m, _: blended(m), "half"),
        (lambda m, _: blended(m, 0.75), "three quarters"),
        (lambda m, _: as_jpeg(m).clip(0, CLASSES), "jpeg"),
    ],
    ids=["half", "three quarters", "jpeg"],
)
def test_mixed_borders_are_found_and_told_apart(splits, make, how, every):
    train = change(splits["train"], masks=make, every=every)
    finding = check(mask_borders, {**splits, "train": train}, "fail", "blended_masks")
    assert finding.evidence["files"] == [train.file(i) for i in range(0, 20, every)]
    if every == 1:  # of two masks alone it cannot be told
        assert ("were compressed as JPEG" in finding.why) == (how == "jpeg")
    assert finding.exhibits[0].tiles[1].mask is not None


def test_one_mixed_mask_is_a_warning_and_an_outline_class_is_none(splits):
    one = change(splits["train"], masks=lambda m, _: blended(m), every=20)
    check(mask_borders, {**splits, "train": one}, "warn", "blended_masks")

    def outlined(mask, _):
        """0 outside, 2 inside, and 1 drawn one pixel thin between them."""
        inside = np.pad(mask > 3, 1)
        core = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        return (inside[1:-1, 1:-1].astype(np.uint8) + core).astype(np.uint8)

    cells = {name: change(split, masks=outlined) for name, split in splits.items()}
    subject = Subject(cells)
    assert max((s.thin.sum(1) / s.borders).max() for s in subject.surveys.values()) > 0.2  # it would be flagged
    check(mask_borders, subject, "pass", None)


@pytest.mark.parametrize("every", [1, 10])
def test_clamped_pictures_are_named_by_the_masks_and_not_by_their_borders(splits, every):
    rng = np.random.RandomState(4)

    def dark(picture):  # a photograph with noise in its dark parts
        shade = np.where(np.arange(picture.shape[1]) < 40, 0.05, 1)[None, :, None]
        return (picture * shade + rng.rand(*picture.shape) * 6).clip(0, 255).astype(np.uint8)

    def clamp(_, picture):
        return grey(dark(picture)).clip(0, CLASSES - 1)

    faulty = {**splits, "train": change(splits["train"], masks=clamp, every=every)}
    subject = Subject(faulty)
    check(audit_files, subject, "pass", None)
    check(mask_values, subject, "fail", "clamped_masks")
    check(mask_borders, subject, "pass", None)


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("soft", [True, False])
def test_clamped_grey_levels_of_classes(splits, every, soft):
    """One grey level a class, with or without soft borders: all but the lowest class end as the highest."""

    def clamp(mask, _):
        levels = (mask * 28).astype(np.uint8)
        return (blended(levels) if soft else levels).clip(0, CLASSES - 1)

    lowest = {n: change(s, masks=lambda m, _: np.where(m == CLASSES, 1, m).astype(np.uint8)) for n, s in splits.items()}
    faulty = {**lowest, "train": change(lowest["train"], masks=clamp, every=every)}
    subject = Subject(faulty)
    if soft or every == 1:
        check(mask_values, subject, "fail", "clamped_masks")
    else:  # two classes and nothing else in two of twenty masks: an honest mask may look so
        check(mask_values, subject, "pass", None)
    check(mask_borders, subject, "pass", None)


def test_clamped_bright_pictures(splits):
    bright = {name: change(s, masks=lambda m, p: grey(p).clip(0, CLASSES - 1)) for name, s in splits.items()}
    finding = check(mask_values, bright, "fail", "clamped_masks")
    assert "100.0% of train, and no class between" in finding.why
    few = {name: replace(split, pairs=split.pairs[:8]) for name, split in bright.items()}
    check(mask_values, few, "warn", "clamped_masks")


def test_some_masks_of_the_highest_class_alone_are_suspicious(splits):
    """Grey areas, all above the last class, clamped in a tenth of the files: no speckle and no border is left."""
    faulty = {**splits, "train": change(splits["train"], masks=lambda m, _: np.full_like(m, CLASSES - 1), every=10)}
    finding = check(mask_values, faulty, "warn", "clamped_masks")
    assert finding.evidence["files"]
    lowest = {**splits, "train": change(splits["train"], masks=lambda m, _: np.zeros_like(m), every=10)}
    check(mask_values, lowest, "pass", None)


def test_small_objects_on_a_background_with_the_highest_number_are_no_clamped_picture(splits):
    def lesions(mask, _):
        target = np.full_like(mask, CLASSES - 1)
        for i in range(CLASSES - 1):
            target[20 + 9 * i : 25 + 9 * i, 30:33] = i
        return target

    healthy = {name: change(s, masks=lesions) for name, s in splits.items()}
    [finding] = mask_values(Subject(healthy))
    assert finding.verdict == "warn"  # 99 % of one class may well be an accident
    assert finding.cause == "clamped_masks"


def test_labels_mapped_twice(splits):
    table = np.full(256, VOID, np.uint8)
    for value, train_id in CITYSCAPES_LABEL_IDS.values.items():
        table[value] = train_id
    spec = CITYSCAPES
    rng = np.random.RandomState(0)
    once = {
        name: change(replace(split, spec=spec), masks=lambda m, _: rng.permutation(19).astype(np.uint8)[m % 19])
        for name, split in splits.items()
    }
    assert mapped_twice(audits_of(once)) is None
    twice = {name: change(split, masks=lambda m, _: table[m]) for name, split in once.items()}
    subject = Subject(twice)
    check(audit_files, subject, "pass", None)
    finding = check(mask_values, twice, "fail", "mapped_twice")
    assert len(finding.evidence["absent"]) == 13
    # a set whose classes happen to be absent, otherwise than a second mapping leaves them, is none of it
    other = {name: change(split, masks=lambda m, _: m % 5) for name, split in once.items()}
    assert mapped_twice(audits_of(other)) is None


def test_one_class_missing_is_no_proof_of_a_second_mapping(splits):
    shifted = {**{i + 1: i for i in range(CLASSES)}, 0: VOID}
    clean = with_spec({n: change(s, masks=lambda m, _: m % CLASSES + 1) for n, s in splits.items()}, values=shifted)
    assert mask_values(Subject(clean))[0].verdict == "pass"
    # where another split shows what the shares should be, it is
    train = change(clean["train"], masks=lambda m, _: m - 1)
    rest = replace(clean["val"], pairs=clean["val"].pairs + clean["test"].pairs)
    mixed = {"train": train, "val": rest}
    check(mask_values, mixed, "fail", "mapped_twice")
    mapped = {"train": train, "val": change(rest, masks=lambda m, _: m - 1)}
    finding = check(mask_values, mapped, "warn", "mapped_twice")
    assert "chance" in finding.why


def test_train_ids_where_the_set_has_others_are_named(splits):
    shifted = {**{i + 1: i for i in range(CLASSES)}, 0: VOID}
    void = with_spec({n: change(s, masks=lambda m, _: np.where(m == 8, 255, m).astype(np.uint8))
                      for n, s in splits.items()}, values=shifted)  # fmt: skip
    check(audit_files, void, "fail", "mapped_twice")


@pytest.mark.parametrize(("name", "verdict"), [("camvid", "fail"), ("folder", "warn")])
def test_labels_from_one_that_are_all_declared(splits, name, verdict):
    faulty = with_spec(
        splits, name=name, classes=("sky", *SCENES.classes[1:])
    )  # in CamVid, nearly every image has some
    faulty["train"] = change(faulty["train"], masks=lambda m, _: np.where(m == CLASSES, m, m + 1).astype(np.uint8))
    subject = Subject(faulty)
    check(audit_files, subject, "pass", None)
    finding = check(mask_values, faulty, verdict, "one_based_labels")
    assert finding.evidence["splits"] == ["train"]


def test_labels_from_one_that_turn_a_class_into_the_anomaly(splits):
    spec = {"values": {i: i for i in range(CLASSES + 1)}, "anomaly": True}
    clean = {n: change(s, masks=lambda m, _: m % CLASSES) for n, s in splits.items()}
    check(audit_files, with_spec(clean, **spec), "pass", None)
    faulty = {**clean, "train": change(clean["train"], masks=lambda m, _: m + 1)}
    check(audit_files, with_spec(faulty, **spec), "fail", "one_based_labels")


# ---- images


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize(
    ("make", "cause"),
    [
        (lambda p: np.random.RandomState(p[0, 0, 0]).randint(0, 256, p.shape).astype(np.uint8), "noise_images"),
        (lambda p: as_jpeg(np.random.RandomState(0).randint(0, 256, p.shape).astype(np.uint8)), "noise_images"),
        (lambda p: np.full_like(p, 90), "constant_images"),
    ],
    ids=["noise", "noise as jpeg", "constant"],
)
def test_odd_images_are_named(splits, make, cause, every):
    faulty = {**splits, "val": change(splits["val"], images=make, every=max(1, every // 2))}
    finding = check(odd_images, faulty, "fail", cause)
    assert len(finding.evidence[cause]) == (10 if every == 1 else 2)


def test_one_odd_image_is_a_warning(splits):
    change(splits["test"], images=lambda p: np.full_like(p, 90), every=10)
    check(odd_images, splits, "warn", "constant_images")


def test_an_image_of_one_colour_with_one_class_is_no_fault(splits):
    blank = change(splits["train"], masks=lambda m, _: np.zeros_like(m), images=lambda p: np.zeros_like(p), every=5)
    val = change(splits["val"], images=lambda p: p * 0, every=20)
    subject = Subject({**splits, "train": blank, "val": val})
    assert odd_images(subject)[0].verdict == "warn"  # the one of val, whose mask has classes
    check(duplicates, subject, "pass", None)  # blank images repeat nothing


# ---- broken


def test_broken_files_are_named(splits):
    image, mask = splits["val"].pairs[1]
    mask.write_text("no image")
    finding = check(audit_files, splits, "fail", "unreadable_files")
    assert finding.evidence["files"] == [str(image)]


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["camvid", "msrc"])
def test_real_sets_are_healthy_but_for_two_repeats(real_data, name):
    root = real_data / name
    spec = build_spec(name, root)
    splits = {part: data.open_split(spec, root, part) for part in ("train", "test")}
    subject = Subject(splits)
    check(audit_files, subject, "pass", None)
    check(mask_values, subject, "pass", None)
    check(mask_borders, subject, "pass", None)
    check(odd_images, subject, "pass", None)
    if name == "camvid":
        check(duplicates, subject, "pass", None)
    else:  # MSRC has each of two photographs under two names; in the split used here they fall into train and test
        finding = check(duplicates, subject, "warn", "repeated_across_splits")
        names = [sorted(file.rpartition("/")[2] for file in copy["files"]) for copy in finding.evidence["copies"]]
        assert sorted(names) == [["1_26_s.jpg", "9_10_s.jpg"], ["1_27_s.jpg", "9_15_s.jpg"]]
