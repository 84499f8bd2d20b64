"""The survey and the probes that need no model: every planted fault is named, healthy sets pass."""

import io
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

import data
import metrics
from datasets.audit import audit_split
from datasets.catalogue import build_spec
from datasets.driving import CITYSCAPES, CITYSCAPES_LABEL_IDS
from datasets.masks import read_labels
from datasets.spec import UNKNOWN, VOID, Spec
from probes import survey as survey_module
from probes.files import (
    _mapped_twice,
    _most_like,
    audit_files,
    class_distribution,
    duplicates,
    layout_floor,
    mask_borders,
    mask_values,
    odd_images,
)
from probes.survey import fingerprints, image_facts, mask_facts, survey_split

CLASSES = 8
COLOURS = np.random.RandomState(3).randint(30, 226, (CLASSES, 3))
IDENTITY = {**{i: i for i in range(CLASSES)}, CLASSES: VOID}
SPEC = Spec("folder", tuple("abcdefgh"), (), IDENTITY, {}, {})


def draw_scene(rng, size=(96, 128)):
    """A mask of large rectangles and a picture of it: each class its colour, with a grain that is smooth."""
    target = np.zeros(size, np.uint8)
    for _ in range(14):
        top, left = rng.randint(0, size[0] - 20), rng.randint(0, size[1] - 20)
        target[top : top + rng.randint(12, 50), left : left + rng.randint(12, 60)] = rng.randint(0, CLASSES)
    grain = rng.randint(0, 60, (size[0] // 4, size[1] // 4, 3)).astype(np.uint8)
    grain = np.asarray(Image.fromarray(grain).resize(size[::-1], Image.Resampling.BICUBIC))
    return (COLOURS[target] + grain - 30).clip(0, 255).astype(np.uint8), target


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A folder of 20 train, 10 val and 10 test scenes; the last class number is void."""
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.RandomState(0)
    for name, count in (("train", 20), ("val", 10), ("test", 10)):
        (root / name / "masks").mkdir(parents=True)
        for i in range(count):
            image, target = draw_scene(rng)
            target[:6, :6] = CLASSES
            Image.fromarray(image).save(root / name / f"{i:02}.png")
            Image.fromarray(target).save(root / name / "masks" / f"{i:02}.png")
    return root


@pytest.fixture
def splits(scenes, tmp_path):
    """{name: Split} of a copy of the scenes, for a test to spoil."""
    root = shutil.copytree(scenes, tmp_path / "set")
    found = {}
    for name in ("train", "val", "test"):
        pairs = [(path, path.parent / "masks" / path.name) for path in sorted((root / name).glob("*.png"))]
        found[name] = data.Split(name, SPEC, root, pairs)
    return found


def surveys_of(splits):
    return {name: survey_split(split) for name, split in splits.items()}


def audits_of(splits):
    return {name: audit_split(split, metrics.GRID) for name, split in splits.items()}


def with_spec(splits, **changes):
    return {name: replace(split, spec=replace(split.spec, **changes)) for name, split in splits.items()}


def change(split, masks=None, images=None, every=1, ending=".png"):
    """Rewrite every n-th pair of a split: masks(mask, image) and images(image) take and give arrays."""
    pairs = list(split.pairs)
    for i in range(0, len(pairs), every):
        image_path, mask_path = pairs[i]
        picture = np.array(Image.open(image_path).convert("RGB"))
        if masks:
            mask = masks(np.array(Image.open(mask_path)), picture)
            mask_path.unlink()
            pairs[i] = image_path, mask_path.with_suffix(ending)
            Image.fromarray(mask).save(pairs[i][1])
        if images:
            Image.fromarray(images(picture)).save(image_path)
    return replace(split, pairs=pairs)


def as_jpeg(array, quality=75):
    memory = io.BytesIO()
    Image.fromarray(array).save(memory, "JPEG", quality=quality)
    return np.array(Image.open(memory))


def blended(array, factor=0.5):
    image = Image.fromarray(array)
    small = image.resize((int(image.width * factor), int(image.height * factor)), Image.Resampling.BILINEAR)
    return np.array(small.resize(image.size, Image.Resampling.BILINEAR))


def grey(picture):
    return np.array(Image.fromarray(picture).convert("L"))


def check(finding, verdict, cause):
    assert (finding.verdict, finding.cause) == (verdict, cause), finding.why
    assert json.dumps(finding.json(), allow_nan=False)
    assert verdict == "pass" or finding.remedy
    return finding


# ---- the survey


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
    assert (len(survey), survey.icons.shape, survey.thin.shape) == (0, (0, 48, 48), (0, CLASSES))
    healthy = {"train": survey_split(splits["train"]), "val": survey}
    for probe in (mask_borders, odd_images, duplicates):
        assert probe(healthy).verdict == "pass"


# ---- healthy


def test_a_healthy_set_passes_everything(splits):
    audits, surveys = audits_of(splits), surveys_of(splits)
    check(audit_files(audits), "pass", None)
    check(mask_values(audits, surveys), "pass", None)
    check(mask_borders(surveys), "pass", None)
    check(odd_images(surveys), "pass", None)
    check(duplicates(surveys), "pass", None)


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
    assert audit_files(audits_of(clean)).verdict == "pass"
    faulty = with_spec({"train": change(splits["train"], masks=_undo(make, spec), every=every, ending=ending)}, **spec)
    faulty["val"] = clean["val"]
    finding = check(audit_files(audits_of(faulty)), "fail", cause)
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
    finding = audit_files(audits_of({"train": train, "val": splits["val"]}))
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
    finding = check(mask_borders(surveys_of({**splits, "train": train})), "fail", "blended_masks")
    assert finding.evidence["files"] == [train.file(i) for i in range(0, 20, every)]
    if every == 1:  # of two masks alone it cannot be told
        assert ("were compressed as JPEG" in finding.why) == (how == "jpeg")
    assert finding.exhibits[0].tiles[1].mask is not None


def test_one_mixed_mask_is_a_warning_and_an_outline_class_is_none(splits):
    one = change(splits["train"], masks=lambda m, _: blended(m), every=20)
    check(mask_borders(surveys_of({**splits, "train": one})), "warn", "blended_masks")

    def outlined(mask, _):
        """0 outside, 2 inside, and 1 drawn one pixel thin between them."""
        inside = np.pad(mask > 3, 1)
        core = inside[1:-1, 1:-1] & inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
        return (inside[1:-1, 1:-1].astype(np.uint8) + core).astype(np.uint8)

    cells = {name: change(split, masks=outlined) for name, split in splits.items()}
    surveys = surveys_of(cells)
    assert max((s.thin.sum(1) / s.borders).max() for s in surveys.values()) > 0.2  # it would be flagged
    check(mask_borders(surveys), "pass", None)


@pytest.mark.parametrize("every", [1, 10])
def test_clamped_pictures_are_named_by_the_masks_and_not_by_their_borders(splits, every):
    rng = np.random.RandomState(4)

    def dark(picture):  # a photograph with noise in its dark parts
        shade = np.where(np.arange(picture.shape[1]) < 40, 0.05, 1)[None, :, None]
        return (picture * shade + rng.rand(*picture.shape) * 6).clip(0, 255).astype(np.uint8)

    def clamp(_, picture):
        return grey(dark(picture)).clip(0, CLASSES - 1)

    faulty = {**splits, "train": change(splits["train"], masks=clamp, every=every)}
    audits, surveys = audits_of(faulty), surveys_of(faulty)
    assert audit_files(audits).verdict == "pass"
    check(mask_values(audits, surveys), "fail", "clamped_masks")
    check(mask_borders(surveys), "pass", None)


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("soft", [True, False])
def test_clamped_grey_levels_of_classes(splits, every, soft):
    """One grey level a class, with or without soft borders: all but the lowest class end as the highest."""

    def clamp(mask, _):
        levels = (mask * 28).astype(np.uint8)
        return (blended(levels) if soft else levels).clip(0, CLASSES - 1)

    lowest = {n: change(s, masks=lambda m, _: np.where(m == CLASSES, 1, m).astype(np.uint8)) for n, s in splits.items()}
    faulty = {**lowest, "train": change(lowest["train"], masks=clamp, every=every)}
    audits, surveys = audits_of(faulty), surveys_of(faulty)
    if soft or every == 1:
        check(mask_values(audits, surveys), "fail", "clamped_masks")
    else:  # two classes and nothing else in two of twenty masks: an honest mask may look so
        check(mask_values(audits, surveys), "pass", None)
    check(mask_borders(surveys), "pass", None)


def test_clamped_bright_pictures(splits):
    bright = {name: change(s, masks=lambda m, p: grey(p).clip(0, CLASSES - 1)) for name, s in splits.items()}
    finding = check(mask_values(audits_of(bright), surveys_of(bright)), "fail", "clamped_masks")
    assert "100.0% of train, and no class between" in finding.why
    few = {name: replace(split, pairs=split.pairs[:8]) for name, split in bright.items()}
    check(mask_values(audits_of(few), surveys_of(few)), "warn", "clamped_masks")


def test_some_masks_of_the_highest_class_alone_are_suspicious(splits):
    """Grey areas, all above the last class, clamped in a tenth of the files: no speckle and no border is left."""
    faulty = {**splits, "train": change(splits["train"], masks=lambda m, _: np.full_like(m, CLASSES - 1), every=10)}
    finding = check(mask_values(audits_of(faulty), surveys_of(faulty)), "warn", "clamped_masks")
    assert finding.evidence["files"]
    lowest = {**splits, "train": change(splits["train"], masks=lambda m, _: np.zeros_like(m), every=10)}
    check(mask_values(audits_of(lowest), surveys_of(lowest)), "pass", None)


def test_small_objects_on_a_background_with_the_highest_number_are_no_clamped_picture(splits):
    def lesions(mask, _):
        target = np.full_like(mask, CLASSES - 1)
        for i in range(CLASSES - 1):
            target[20 + 9 * i : 25 + 9 * i, 30:33] = i
        return target

    healthy = {name: change(s, masks=lesions) for name, s in splits.items()}
    finding = mask_values(audits_of(healthy), surveys_of(healthy))
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
    audits = audits_of(once)
    assert _mapped_twice(audits) is None
    twice = {name: change(split, masks=lambda m, _: table[m]) for name, split in once.items()}
    audits = audits_of(twice)
    assert audit_files(audits).verdict == "pass"
    finding = check(mask_values(audits, surveys_of(twice)), "fail", "mapped_twice")
    assert len(finding.evidence["absent"]) == 13
    # a set whose classes happen to be absent, otherwise than a second mapping leaves them, is none of it
    other = {name: change(split, masks=lambda m, _: m % 5) for name, split in once.items()}
    assert _mapped_twice(audits_of(other)) is None


def test_one_class_missing_is_no_proof_of_a_second_mapping(splits):
    shifted = {**{i + 1: i for i in range(CLASSES)}, 0: VOID}
    clean = with_spec({n: change(s, masks=lambda m, _: m % CLASSES + 1) for n, s in splits.items()}, values=shifted)
    assert mask_values(audits_of(clean), surveys_of(clean)).verdict == "pass"
    # where another split shows what the shares should be, it is
    train = change(clean["train"], masks=lambda m, _: m - 1)
    rest = replace(clean["val"], pairs=clean["val"].pairs + clean["test"].pairs)
    mixed = {"train": train, "val": rest}
    check(mask_values(audits_of(mixed), surveys_of(mixed)), "fail", "mapped_twice")
    mapped = {"train": train, "val": change(rest, masks=lambda m, _: m - 1)}
    finding = check(mask_values(audits_of(mapped), surveys_of(mapped)), "warn", "mapped_twice")
    assert "chance" in finding.why


def test_train_ids_where_the_set_has_others_are_named(splits):
    shifted = {**{i + 1: i for i in range(CLASSES)}, 0: VOID}
    void = with_spec({n: change(s, masks=lambda m, _: np.where(m == 8, 255, m).astype(np.uint8))
                      for n, s in splits.items()}, values=shifted)  # fmt: skip
    check(audit_files(audits_of(void)), "fail", "mapped_twice")


@pytest.mark.parametrize(("name", "verdict"), [("camvid", "fail"), ("folder", "warn")])
def test_labels_from_one_that_are_all_declared(splits, name, verdict):
    faulty = with_spec(splits, name=name, classes=("sky", *SPEC.classes[1:]))  # in CamVid, nearly every image has some
    faulty["train"] = change(faulty["train"], masks=lambda m, _: np.where(m == CLASSES, m, m + 1).astype(np.uint8))
    audits = audits_of(faulty)
    assert audit_files(audits).verdict == "pass"
    finding = check(mask_values(audits, surveys_of(faulty)), verdict, "one_based_labels")
    assert finding.evidence["splits"] == ["train"]


def test_labels_from_one_that_turn_a_class_into_the_anomaly(splits):
    spec = {"values": {i: i for i in range(CLASSES + 1)}, "anomaly": True}
    clean = {n: change(s, masks=lambda m, _: m % CLASSES) for n, s in splits.items()}
    assert audit_files(audits_of(with_spec(clean, **spec))).verdict == "pass"
    faulty = {**clean, "train": change(clean["train"], masks=lambda m, _: m + 1)}
    check(audit_files(audits_of(with_spec(faulty, **spec))), "fail", "one_based_labels")


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
    finding = check(odd_images(surveys_of(faulty)), "fail", cause)
    assert len(finding.evidence[cause]) == (10 if every == 1 else 2)


def test_one_odd_image_is_a_warning(splits):
    change(splits["test"], images=lambda p: np.full_like(p, 90), every=10)
    check(odd_images(surveys_of(splits)), "warn", "constant_images")


def test_an_image_of_one_colour_with_one_class_is_no_fault(splits):
    blank = change(splits["train"], masks=lambda m, _: np.zeros_like(m), images=lambda p: np.zeros_like(p), every=5)
    surveys = surveys_of({**splits, "train": blank, "val": change(splits["val"], images=lambda p: p * 0, every=20)})
    assert odd_images(surveys).verdict == "warn"  # the one of val, whose mask has classes
    check(duplicates(surveys), "pass", None)  # blank images repeat nothing


# ---- repeats


def lighten(picture):
    return np.asarray(ImageEnhance.Brightness(Image.fromarray(picture)).enhance(1.15))


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda p: p, "exact"),
        (lambda p: as_jpeg(p, 60), "near"),
        (lambda p: blended(p, 0.7), "near"),
        (lighten, "near"),
        (lambda p: as_jpeg(np.array(ImageOps.mirror(Image.fromarray(p)))), "mirrored"),
    ],
    ids=["exact", "jpeg", "resized", "brightened", "mirrored"],
)
def test_copies_across_splits_are_found_with_their_origin(splits, make, kind):
    for i in (2, 7):
        picture = np.array(Image.open(splits["train"].pairs[2 * i - 1][0]))
        Image.fromarray(make(picture)).save(splits["test"].pairs[i][0])
    finding = check(duplicates(surveys_of(splits)), "fail", "repeated_across_splits")
    expected = [[splits["train"].file(2 * i - 1), splits["test"].file(i)] for i in (2, 7)]
    assert [copy["files"] for copy in finding.evidence["copies"]] == expected
    assert {copy["kind"] for copy in finding.evidence["copies"]} == {kind}
    assert finding.value == pytest.approx(0.2)
    assert len(finding.exhibits[0].tiles) == 2


def test_a_single_copy_and_repeats_inside_a_split_are_warnings(splits):
    first = np.array(Image.open(splits["train"].pairs[0][0]))
    Image.fromarray(first).save(splits["val"].pairs[4][0])
    check(duplicates(surveys_of(splits)), "warn", "repeated_across_splits")
    Image.fromarray(np.rot90(first, 2)).save(splits["val"].pairs[4][0])
    for i in (5, 6):
        Image.fromarray(first).save(splits["train"].pairs[i][0])
    finding = check(duplicates(surveys_of(splits)), "warn", None)
    assert finding.evidence["repeats_inside"] == {"train": 2, "val": 0, "test": 0}


def test_neighbouring_frames_across_splits_are_a_warning(splits):
    for i in range(6):
        picture = np.array(Image.open(splits["train"].pairs[i][0]))
        Image.fromarray(np.roll(picture, 1, axis=1)).save(splits["val"].pairs[i][0])
    finding = check(duplicates(surveys_of(splits)), "warn", "repeated_across_splits")
    assert len(finding.evidence["views"]) == 6


def test_what_all_images_share_is_no_likeness(splits):
    """A strong frame around every picture, as of a car's bonnet: only what differs tells copies."""
    frame = np.random.RandomState(9).randint(0, 256, (96, 128, 3)).astype(np.uint8)

    def framed(picture):
        whole = frame.copy()
        whole[30:66, 40:88] = picture[30:66, 40:88]
        return whole

    check(duplicates(surveys_of({n: change(s, images=framed) for n, s in splits.items()})), "pass", None)


def test_thousands_of_images_are_compared_in_blocks():
    rng = np.random.RandomState(0)
    queries, others = (rng.rand(n, 32).astype(np.float32) for n in (1100, 900))
    like, row = _most_like(queries, others)
    assert np.array_equal(row, (queries @ others.T).argmax(1))
    assert like == pytest.approx((queries * others[row]).sum(1), abs=1e-4)


# ---- classes and layout


def test_broken_files_are_named(splits):
    image, mask = splits["val"].pairs[1]
    mask.write_text("no image")
    finding = check(audit_files(audits_of(splits)), "fail", "unreadable_files")
    assert finding.evidence["files"] == [str(image)]


def test_absent_and_rare_classes_are_warnings_with_weights(splits, capsys):
    def rare(mask, _):
        mask = np.where(mask == 2, 0, mask).astype(np.uint8)
        mask[50, 50] = 2
        return mask

    train = change(splits["train"], masks=rare)
    finding = check(class_distribution(audits_of({**splits, "train": train})), "warn", "class_imbalance")
    weights = finding.evidence["recommended_weights"]
    assert weights["c"] == max(weights.values())
    assert sum(weights.values()) == pytest.approx(CLASSES)
    train = change(train, masks=lambda m, _: np.where(m == 2, 0, m).astype(np.uint8))
    finding = check(class_distribution(audits_of({**splits, "train": train})), "warn", "absent_classes")
    assert "no pixel of c" in finding.why
    assert "of c;" in capsys.readouterr().err


def test_void_share_and_what_the_layout_explains(splits):
    audits = audits_of(splits)
    finding = class_distribution(audits)
    targets = [splits["val"].read_target(i) for i in range(10)]
    assert finding.evidence["void_share"]["val"] == pytest.approx(np.mean([t == VOID for t in targets]))
    assert f"{finding.evidence['void_share']['val']:.1%} of val" in finding.why
    finding = layout_floor(audits, "val")
    layout = metrics.fit_layout(audits["train"].grids, CLASSES).map
    known = audits["val"].grids < CLASSES
    accuracy = (audits["val"].grids == np.asarray(layout)[None])[known].mean()
    assert finding.evidence["pixel_accuracy"] == pytest.approx(accuracy)
    assert f"{accuracy:.0%}" in finding.why


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["camvid", "msrc"])
def test_real_sets_are_healthy_but_for_two_repeats(real_data, name):
    root = real_data / name
    spec = build_spec(name, root)
    splits = {part: data.open_split(spec, root, part) for part in ("train", "test")}
    audits, surveys = audits_of(splits), surveys_of(splits)
    check(audit_files(audits), "pass", None)
    check(mask_values(audits, surveys), "pass", None)
    check(mask_borders(surveys), "pass", None)
    check(odd_images(surveys), "pass", None)
    finding = duplicates(surveys)
    if name == "camvid":
        check(finding, "pass", None)
    else:  # MSRC has each of two photographs under two names; in the split used here they fall into train and test
        check(finding, "warn", "repeated_across_splits")
        names = [sorted(file.rpartition("/")[2] for file in copy["files"]) for copy in finding.evidence["copies"]]
        assert sorted(names) == [["1_26_s.jpg", "9_10_s.jpg"], ["1_27_s.jpg", "9_15_s.jpg"]]
