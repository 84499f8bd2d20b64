"""What a set as a whole tells: repeated images, the classes' shares, the layout floor."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

import metrics
from datasets.spec import VOID
from probes.dataset import class_distribution, duplicates, layout_floor, most_like
from probes.subject import Subject
from tests.probes.examples import SCENE_CLASSES as CLASSES
from tests.probes.examples import as_jpeg, blended, change, check

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
    finding = check(duplicates, splits, "fail", "repeated_across_splits")
    expected = [[splits["train"].file(2 * i - 1), splits["test"].file(i)] for i in (2, 7)]
    assert [copy["files"] for copy in finding.evidence["copies"]] == expected
    assert {copy["kind"] for copy in finding.evidence["copies"]} == {kind}
    assert finding.value == pytest.approx(0.2)
    assert len(finding.exhibits[0].tiles) == 2


def test_a_single_copy_and_repeats_inside_a_split_are_warnings(splits):
    first = np.array(Image.open(splits["train"].pairs[0][0]))
    Image.fromarray(first).save(splits["val"].pairs[4][0])
    check(duplicates, splits, "warn", "repeated_across_splits")
    Image.fromarray(np.rot90(first, 2)).save(splits["val"].pairs[4][0])
    for i in (5, 6):
        Image.fromarray(first).save(splits["train"].pairs[i][0])
    finding = check(duplicates, splits, "warn", None)
    assert finding.evidence["repeats_inside"] == {"train": 2, "val": 0, "test": 0}


def test_neighbouring_frames_across_splits_are_a_warning(splits):
    for i in range(6):
        picture = np.array(Image.open(splits["train"].pairs[i][0]))
        Image.fromarray(np.roll(picture, 1, axis=1)).save(splits["val"].pairs[i][0])
    finding = check(duplicates, splits, "warn", "repeated_across_splits")
    assert len(finding.evidence["views"]) == 6


def test_what_all_images_share_is_no_likeness(splits):
    """A strong frame around every picture, as of a car's bonnet: only what differs tells copies."""
    frame = np.random.RandomState(9).randint(0, 256, (96, 128, 3)).astype(np.uint8)

    def framed(picture):
        whole = frame.copy()
        whole[30:66, 40:88] = picture[30:66, 40:88]
        return whole

    check(duplicates, {n: change(s, images=framed) for n, s in splits.items()}, "pass", None)


def test_thousands_of_images_are_compared_in_blocks():
    rng = np.random.RandomState(0)
    queries, others = (rng.rand(n, 32).astype(np.float32) for n in (1100, 900))
    like, row = most_like(queries, others)
    assert np.array_equal(row, (queries @ others.T).argmax(1))
    assert like == pytest.approx((queries * others[row]).sum(1), abs=1e-4)


# ---- classes and layout


def test_absent_and_rare_classes_are_warnings_with_weights(splits, capsys):
    def rare(mask, _):
        mask = np.where(mask == 2, 0, mask).astype(np.uint8)
        mask[50, 50] = 2
        return mask

    train = change(splits["train"], masks=rare)
    finding = check(class_distribution, {**splits, "train": train}, "warn", "class_imbalance")
    weights = finding.evidence["recommended_weights"]
    assert weights["c"] == max(weights.values())
    assert sum(weights.values()) == pytest.approx(CLASSES)
    train = change(train, masks=lambda m, _: np.where(m == 2, 0, m).astype(np.uint8))
    finding = check(class_distribution, {**splits, "train": train}, "warn", "absent_classes")
    assert "no pixel of c" in finding.why
    assert "of c;" in capsys.readouterr().err


def test_void_share_and_what_the_layout_explains(splits):
    subject = Subject(splits)
    audits = subject.audits
    [finding] = class_distribution(subject)
    targets = [splits["val"].read_target(i) for i in range(10)]
    assert finding.evidence["void_share"]["val"] == pytest.approx(np.mean([t == VOID for t in targets]))
    assert f"{finding.evidence['void_share']['val']:.1%} of val" in finding.why
    [finding] = layout_floor(subject, "val")
    layout = metrics.fit_layout(audits["train"].grids, CLASSES).map
    known = audits["val"].grids < CLASSES
    accuracy = (audits["val"].grids == np.asarray(layout)[None])[known].mean()
    assert finding.evidence["pixel_accuracy"] == pytest.approx(accuracy)
    assert f"{accuracy:.0%}" in finding.why
