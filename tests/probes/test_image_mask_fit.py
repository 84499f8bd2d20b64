"""Do the masks belong to their images: healthy sets pass, each planted fault is named with its files."""

import json

import numpy as np
import pytest
from PIL import Image

import data
from datasets.catalogue import build_spec
from probes.finding import CAUSES
from probes.image_mask_fit import best_partners, edge_ranks, judge_splits, label_borders, measure, offset_map

FILES = 24


def scene(rng, size=(72, 96)):
    """(grey, target) of blocks that differ in grey: label borders lie on edges, other edges are texture."""
    target = np.zeros(size, np.uint8)
    for label in range(1, 6):
        y, x = rng.randint(0, size[0] - 20), rng.randint(0, size[1] - 30)
        target[y : y + rng.randint(12, 34), x : x + rng.randint(12, 44)] = label
    levels = np.array([60, 190, 90, 220, 120, 30])
    return (levels[target] + rng.randint(-8, 9, size)).clip(0, 255).astype(np.uint8), target


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.RandomState(3)
    return [(f"{i:02}.png", *scene(rng)) for i in range(FILES)]


def with_masks(pairs, change, files=None):
    """The pairs with the masks of `files` changed by change(i); all of them without."""
    files = range(len(pairs)) if files is None else files
    return [(n, g, change(i) if i in files else t) for i, (n, g, t) in enumerate(pairs)]


def look(pairs, **options):
    """The causes found: {cause: Finding}, each Finding fit for JSON."""
    findings = judge_splits({"train": pairs}, **options)
    for finding in findings:
        json.dumps(finding.json(), allow_nan=False)
    return {finding.cause: finding for finding in findings}


def names(finding):
    return [one["file"] for one in finding.evidence["files"]]


# ---- measuring


def test_edge_ranks_are_the_average_ranks_of_the_gradient():
    grey = np.random.RandomState(0).randint(0, 6, (9, 11)).astype(np.uint8)
    strength = np.zeros(grey.shape)
    for y in range(9):
        for x in range(11):
            down = float(grey[y + 1, x]) - float(grey[y - 1, x]) if 0 < y < 8 else 0.0
            right = float(grey[y, x + 1]) - float(grey[y, x - 1]) if 0 < x < 10 else 0.0
            strength[y, x] = down**2 + right**2
    flat = strength.ravel()
    expected = [((flat < value).sum() + (flat == value).sum() / 2) / flat.size for value in flat]
    np.testing.assert_allclose(edge_ranks(grey).ravel(), expected, atol=1e-6)


def test_a_border_is_between_two_labels_and_void_is_none():
    target = np.zeros((3, 6), np.uint8)
    target[:, 3:] = 1
    target[0, 3:] = 255
    target[1, 2] = 254
    expected = np.zeros((3, 6), bool)
    expected[2, 2:4] = True  # only here do two labels meet
    np.testing.assert_array_equal(label_borders(target), expected)


@pytest.mark.parametrize("offset", [(0, 0), (3, -5), (-16, 16), (1, 0)])
def test_the_offset_map_is_the_mean_rank_of_the_moved_borders(offset):
    rng = np.random.RandomState(1)
    borders, ranks = rng.rand(50, 61) < 0.1, rng.rand(50, 61).astype(np.float32)
    found = offset_map(borders, ranks)[16 + offset[0], 16 + offset[1]]
    inside = [
        ranks[y + offset[0], x + offset[1]]
        for y, x in np.argwhere(borders)
        if 0 <= y + offset[0] < 50 and 0 <= x + offset[1] < 61
    ]
    assert found == pytest.approx(np.mean(inside), abs=1e-6)


def test_best_partners_find_an_exchange(pairs):
    swapped = with_masks(pairs, lambda i: pairs[(i + 1) % FILES][2])
    measured = measure(swapped)
    assert len(measured) == FILES
    partners = best_partners(measured)
    np.testing.assert_array_equal(partners.masks, (np.arange(FILES) - 1) % FILES)
    assert partners.mutual.all()
    assert partners.gains.min() > 0.05
    assert partners.leads.min() > 3


# ---- judging


def test_a_healthy_set_passes(pairs):
    found = look(pairs)
    assert [f.verdict for f in found.values()] == ["pass"]
    assert found[None].value > 2 * found[None].reference


FLIPS = {
    "mirrored left to right": lambda t: t[:, ::-1],
    "upside down": lambda t: t[::-1],
    "turned by 180 degrees": lambda t: t[::-1, ::-1],
}


@pytest.mark.parametrize("files", [range(FILES), (2, 9, 17)])
@pytest.mark.parametrize("how", FLIPS)
def test_flipped_masks_are_named_and_listed(pairs, how, files):
    finding = look(with_masks(pairs, lambda i: FLIPS[how](pairs[i][2]), files))["mirrored_masks"]
    assert finding.verdict == "fail"
    assert how in finding.why
    assert set(names(finding)) <= {pairs[i][0] for i in files}
    assert finding.evidence["count"] >= len(files) - len(files) // 8
    own, mended = finding.exhibits[0].tiles[:2]
    np.testing.assert_array_equal(mended.mask, FLIPS[how](own.mask))
    assert own.image.shape == (*own.mask.shape, 3)


@pytest.mark.parametrize("files", [range(FILES), (1, 5, 12, 20)])
def test_moved_masks_are_named_with_distance_and_direction(pairs, files):
    moved = with_masks(pairs, lambda i: np.roll(pairs[i][2], (-3, 4), (0, 1)), files)
    finding = look(moved, sizes={name: (720, 960) for name, *_ in pairs})["shifted_masks"]
    assert finding.verdict == "fail"
    assert "4 of 96 pixels too far right" in finding.why
    assert "3 of 72 pixels too high" in finding.why
    assert "40 pixels of the original" in finding.why
    one = finding.evidence["files"][0]
    assert (one["moved_right"], one["moved_down"]) == (4 / 96, -3 / 72)
    assert set(names(finding)) <= {pairs[i][0] for i in files}
    mended = finding.exhibits[0].tiles[1].mask
    target = pairs[int(one["file"][:2])][2]
    np.testing.assert_array_equal(mended[3:, :-4], target[3:, :-4])


def test_a_shift_of_one_pixel_only_warns(pairs):
    finding = look(with_masks(pairs, lambda i: np.roll(pairs[i][2], 1, 1)))["shifted_masks"]
    assert finding.verdict == "warn"


@pytest.mark.parametrize("files", [list(range(FILES)), [3, 8, 13, 21]])
def test_exchanged_masks_are_named_with_the_ones_that_fit(pairs, files):
    source = dict(zip(files, files[1:] + files[:1], strict=True))
    finding = look(with_masks(pairs, lambda i: pairs[source[i]][2], files))["shuffled_masks"]
    assert finding.verdict == "fail"
    assert finding.evidence["count"] >= 0.75 * len(files)
    for one in finding.evidence["files"]:
        lies_at = next(i for i in files if pairs[source[i]][0] == one["file"])
        assert one["mask_that_fits"] == pairs[lies_at][0]


def test_one_wrong_mask_is_a_warning(pairs):
    finding = look(with_masks(pairs, lambda i: pairs[7][2], [4]))
    (cause,) = finding
    assert cause in ("shuffled_masks", "masks_do_not_fit")
    assert finding[cause].verdict == "warn"
    assert names(finding[cause]) == [pairs[4][0]]


def test_masks_of_no_image_fail_as_a_set(pairs):
    rng = np.random.RandomState(9)
    others = [scene(rng)[1] for _ in pairs]
    finding = look(with_masks(pairs, lambda i: others[i]))["masks_do_not_fit"]
    assert finding.verdict == "fail"
    assert finding.value < finding.reference + 0.03


def test_noise_images_do_not_fit_either(pairs):
    rng = np.random.RandomState(0)
    noisy = [(n, rng.randint(0, 256, g.shape).astype(np.uint8), t) for n, g, t in pairs]
    assert look(noisy)["masks_do_not_fit"].verdict == "fail"


def test_symmetric_scenes_accuse_nobody(pairs):
    both = [(n, np.hstack([g, g[:, ::-1]]), np.hstack([t, t[:, ::-1]])) for n, g, t in pairs]
    mirrored = with_masks(both, lambda i: both[i][2][:, ::-1])
    assert [f.verdict for f in look(mirrored).values()] == ["pass"]


def test_a_camera_that_stands_still_is_no_fault(pairs):
    rng = np.random.RandomState(0)
    grey, target = pairs[0][1:]
    still = [(f"{i}", (grey + rng.randint(0, 9, grey.shape)).clip(0, 255).astype(np.uint8), target) for i in range(20)]
    assert [f.verdict for f in look(still).values()] == ["pass"]


def test_few_borders_or_few_files_are_undecided(pairs):
    flat = [(n, g, np.zeros_like(t)) for n, g, t in pairs]
    finding = look(flat)[None]
    assert finding.verdict == "skip"
    assert finding.evidence["splits"]["train"]["undecided"] == FILES
    few = with_masks(pairs, lambda i: pairs[i][2][::-1])[:8]
    assert [f.verdict for f in look(few).values()] == ["skip"]
    assert look([])[None].verdict == "skip"


def test_images_of_several_sizes_are_compared_within_their_own(pairs):
    rng = np.random.RandomState(5)
    mixed = pairs + [(f"tall{i}", *scene(rng, (96, 72))) for i in range(4)] + [("odd", *scene(rng, (80, 96)))]
    assert [f.verdict for f in look(mixed).values()] == ["pass"]


def test_one_cause_in_two_splits_is_one_finding(pairs):
    flipped = with_masks(pairs, lambda i: pairs[i][2][::-1])
    findings = judge_splits({"train": flipped, "val": pairs, "test": flipped})
    assert [f.cause for f in findings] == ["mirrored_masks"]
    assert findings[0].probe == "data.label_agreement.mirrored_masks"
    assert "train: " in findings[0].why
    assert "test: " in findings[0].why
    assert len(findings[0].evidence["files"]) <= 20
    assert findings[0].cause in CAUSES


# ---- real data


def thumbnails(root, name, split):
    spec = build_spec(name, root)
    opened, pairs = data.open_split(spec, root, split), []
    for index in range(len(opened)):
        image, target = opened.read(index)
        scale = 240 / max(target.shape)
        size = round(target.shape[1] * scale), round(target.shape[0] * scale)
        grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BILINEAR))
        target = np.asarray(Image.fromarray(target).resize(size, Image.Resampling.NEAREST))
        pairs.append((opened.pairs[index][0].name, grey, target))
    return pairs


# What every twelfth file gets, by the cause to be named: its own mask mirrored or moved, or the one twelve files on.
MASKS = {
    "mirrored_masks": lambda pairs, i: pairs[i][2][:, ::-1],
    "shifted_masks": lambda pairs, i: np.roll(pairs[i][2], 4, 1),
    "shuffled_masks": lambda pairs, i: pairs[i + 12 if i + 12 < len(pairs) else i % 12][2],
}


@pytest.mark.real_data
def test_camvid_has_one_wrong_mask_and_a_twelfth_of_each_fault_is_found(real_data):
    pairs = thumbnails(real_data / "camvid", "camvid", "test")
    found = look(pairs)
    assert list(found) == ["shuffled_masks"]
    assert found["shuffled_masks"].verdict == "warn"
    assert names(found["shuffled_masks"]) == ["Seq05VD_f02610.jpg"]
    faulty = {cause: set(range(first, len(pairs), 12)) for first, cause in enumerate(MASKS)}
    planted = with_masks(pairs, lambda i: MASKS[list(MASKS)[i % 12]](pairs, i), set().union(*faulty.values()))
    found = look(planted)
    assert set(found) == set(MASKS)
    for cause, files in faulty.items():
        assert found[cause].verdict == "fail"
        assert set(names(found[cause])) <= {pairs[i][0] for i in files} | {"Seq05VD_f02610.jpg"}
        assert found[cause].evidence["count"] > 0.6 * len(files)


@pytest.mark.real_data
def test_coarse_outlines_pass_and_their_mirror_fails(real_data):
    pairs = thumbnails(real_data / "msrc", "msrc", "val")
    assert [f.verdict for f in look(pairs).values()] == ["pass"]
    assert look(with_masks(pairs, lambda i: pairs[i][2][:, ::-1]))["mirrored_masks"].verdict == "fail"
