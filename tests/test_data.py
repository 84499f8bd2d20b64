"""Reading, label spaces, geometry, requests, augmentation and the audit."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import data
from cli import UserError
from datasets.audit import ORIENTATION, audit_split
from datasets.catalogue import build_spec
from datasets.driving import CAMVID, STREETHAZARDS, STREETS
from datasets.masks import match_size, read_image, read_labels, read_target
from datasets.pairs import find_pairs
from datasets.spec import UNKNOWN, VOID
from engine.sampling import SampleRequest, draw_requests, share_batches
from networks.blocks import MEAN, Normalise
from probes.files import judge_files
from tests.conftest import write_folder_set

GRID = (12, 16)


def open_folder(root, split="train", limit=0):
    return data.open_split(build_spec("folder", root), root, split, limit)


def rewrite(path, change):
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


# ---- label spaces


def test_images_too_large_for_their_logits_are_counted():
    geometry = data.Geometry([1, 1], crop=[512, 512], most_pixels=1_000_000)
    assert geometry.count_reduced({(3000, 4000): 3, (500, 500): 2}) == 3
    assert data.Geometry([1, 1], [512, 512], 512, 1_000_000).count_reduced({(3000, 4000): 3}) == 0
    assert data.Geometry([512, 512]).count_reduced({(3000, 4000): 3}) == 0


def test_folder_reads_index_and_colour_masks_alike(folder_set):
    split = open_folder(folder_set)
    image_path, mask_path = split.pairs[0]
    indexed = read_target(mask_path, split.spec)
    colours = np.array(split.spec.palette, np.uint8)[indexed]
    Image.fromarray(colours).save(mask_path)
    assert np.array_equal(read_target(mask_path, split.spec), indexed)
    paletted = Image.fromarray(indexed).convert("P")
    paletted.putpalette([i for colour in split.spec.palette for i in colour])
    paletted.save(mask_path)
    assert np.array_equal(read_target(mask_path, split.spec), indexed)
    Image.fromarray(indexed.astype(np.uint16)).save(mask_path)  # 16 bits a pixel
    assert np.array_equal(read_target(mask_path, split.spec), indexed)


def test_streethazards_coding():
    values = STREETHAZARDS.value_table
    assert values[0] == VOID
    assert values[1:15].tolist() == list(range(14))
    assert (values[15:] == UNKNOWN).all()
    assert STREETS.classes == STREETHAZARDS.classes


def test_label_map_overrides_values(folder_set):
    path = folder_set / "classes.json"
    content = json.loads(path.read_text()) | {"label_map": {"7": "blue", "9": None}}
    path.write_text(json.dumps(content))
    table = build_spec("folder", folder_set).value_table
    assert (table[7], table[9], table[2]) == (2, VOID, 2)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"classes": []}',
        '{"classes": ["a", "a"]}',
        '{"classes": [{"name": "a", "values": [1]}, {"name": "b", "values": [1]}]}',
        '{"classes": [{"name": "a", "color": [1, 2, 3]}, {"name": "b", "color": [1, 2, 3]}]}',
        '{"classes": ["a"], "label_map": {"3": "nobody"}}',
        '{"classes": ["a"], "void": [70000]}',
    ],
)
def test_a_wrong_classes_json_is_the_users_error(folder_set, content):
    (folder_set / "classes.json").write_text(content)
    with pytest.raises(UserError, match=r"classes\.json"):
        build_spec("folder", folder_set)


def test_a_missing_split_is_cut_from_train_by_name_alone(tmp_path):
    root = write_folder_set(tmp_path / "s", counts=(("train", 60),))
    spec = build_spec("folder", root)
    names = {s: {p.stem for p, _ in find_pairs(spec, root, s)} for s in ("train", "val", "test")}
    assert names["train"] | names["val"] | names["test"] == {f"{i:03}" for i in range(60)}
    assert sum(map(len, names.values())) == 60
    assert all(names.values())
    (root / "images" / "train" / "000.png").unlink()  # another image's presence does not move the rest
    (root / "masks" / "train" / "000.png").unlink()
    again = {p.stem for p, _ in find_pairs(spec, root, "val")}
    assert again == names["val"] - {"000"}


def test_camvid_counts_equal_an_independent_count(real_data):
    spec = CAMVID
    split = data.open_split(spec, real_data / "camvid", "val")
    audit = audit_split(split, GRID)
    expected = np.zeros(256, np.int64)
    for path in sorted((real_data / "camvid" / "valannot").glob("*.png")):
        expected += np.bincount(np.array(Image.open(path)).ravel(), minlength=256)
    assert audit.counts.tolist() == expected[:11].tolist()
    assert audit.void == expected[11]
    assert audit.error() is None


# ---- geometry


def test_stretching_keeps_image_and_target_in_place(folder_set):
    image, target = open_folder(folder_set).read(0)
    small, labels = data.Geometry([20, 28]).cut(image, target, SampleRequest(0, 0.0, 0.0))
    assert small.shape == (20, 28, 3)
    nearest = target[(2 * np.arange(20) + 1)[:, None], 2 * np.arange(28) + 1]  # pixel centres
    assert np.array_equal(labels.numpy(), nearest)


def test_crop_cuts_the_same_box_and_pads_with_void(folder_set):
    image, target = open_folder(folder_set).read(0)  # 40 x 56
    geometry = data.Geometry([1, 1], crop=[16, 24])
    crop, labels = geometry.cut(image, target, SampleRequest(0, 0.5, 0.25))
    top, left = int(0.5 * 25), int(0.25 * 33)
    assert np.array_equal(crop.numpy(), np.array(image)[top : top + 16, left : left + 24])
    assert np.array_equal(labels.numpy(), target[top : top + 16, left : left + 24])
    crop, labels = data.Geometry([1, 1], crop=[48, 64]).cut(image, target, SampleRequest(0, 0.9, 0.9))
    assert np.array_equal(labels.numpy()[:40, :56], target)
    assert (labels[40:] == VOID).all()
    assert (labels[:, 56:] == VOID).all()


def test_a_large_photo_enters_the_network_reduced():
    geometry = data.Geometry([1, 1], crop=[64, 64], most_pixels=1_000_000)
    height, width = geometry.network_size(3000, 4000)
    assert height * width == pytest.approx(1_000_000, rel=0.01)
    assert abs(width / height - 4 / 3) < 0.01
    assert geometry.network_size(300, 400) == (300, 400)
    assert data.Geometry([1, 1], crop=[64, 64], short_side=150).network_size(300, 400) == (150, 200)


def test_exif_orientation_is_honoured_only_when_the_mask_says_so(tmp_path):
    stored = Image.fromarray(np.arange(40 * 56 * 3, dtype=np.uint32).reshape(40, 56, 3).astype(np.uint8))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # a person sees it turned by 90 degrees: 56 x 40
    stored.save(tmp_path / "a.jpg", exif=exif)
    image = read_image(tmp_path / "a.jpg")
    assert match_size(image, (40, 56), "a.jpg").size == (56, 40)
    assert match_size(image, (56, 40), "a.jpg").size == (40, 56)
    with pytest.raises(UserError, match="differ in size"):
        match_size(image, (50, 56), "a.jpg")


# ---- requests and batches


@pytest.mark.parametrize(("images", "sizes"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (1, [1]), (3, [3])])
def test_every_image_once_and_no_last_batch_of_one(images, sizes):
    batches = draw_requests(images, 4, torch.Generator().manual_seed(1))
    assert [len(b) for b in batches] == sizes
    assert sorted(t.index for b in batches for t in b) == list(range(images))


def test_batches_do_not_depend_on_workers(folder_set):
    split, geometry = open_folder(folder_set), data.Geometry([1, 1], crop=[16, 16])
    batches = draw_requests(len(split), 4, torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    alone = list(data.training_batches(split, geometry, batches, 0))
    shared = list(data.training_batches(split, geometry, batches, 2))
    assert torch.equal(state, torch.get_rng_state())  # reading draws from nobody's generator
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_shares_of_several_processes_make_the_whole():
    batches = draw_requests(10, 4, torch.Generator().manual_seed(1))
    shares = [share_batches(batches, rank, 2) for rank in (0, 1)]
    assert [len(s) for s in shares[0]] == [2, 2]  # the last batch of 2 would leave each process one image
    for step, (a, b) in enumerate(zip(*shares, strict=True)):
        assert sorted(a + b) == sorted(batches[step])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_workers_error_stays_one_line(folder_set, workers):
    split = open_folder(folder_set)
    rewrite(split.pairs[2][1], lambda mask: mask + 50)
    with pytest.raises(UserError) as caught:
        list(data.evaluation_batches(split, data.Geometry([16, 16]), 2, workers))
    assert str(caught.value).startswith("label 50")
    assert "\n" not in str(caught.value)


# ---- augmentation


def scene(n=4, height=24, width=36):
    """Images whose red channel is the target: whatever moves one must move the other."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(0, 5, (n, height // 6, width // 6), generator=generator, dtype=torch.uint8)
    targets = targets.repeat_interleave(6, 1).repeat_interleave(6, 2)
    images = torch.stack([targets * 50, targets, targets], -1)
    return images, targets


@pytest.mark.parametrize("text", ["flip=1", "scale=0.5:2", "translate=0.3", "rotate=30", "flip,scale,translate,rotate"])
def test_image_and_target_move_together(text):
    images, targets = scene(16)
    moved, labels = data.Augment(data.parse_augment(text))(images, targets, torch.Generator().manual_seed(0))
    known = labels != VOID
    seen = moved[:, 0] * 255 / 50
    flat = (seen - seen.round()).abs() < 1e-3  # away from borders, where bilinear sampling mixes two labels
    clear = known & flat
    assert clear.float().mean() > 0.3
    wrong = seen.round()[clear] != labels[clear]
    assert wrong.float().mean() < 0.02  # a mixture can fall on another label's number
    assert not torch.equal(labels, targets)


def test_flip_twice_is_nothing_and_flip_is_a_mirror():
    images, targets = scene()
    always = data.Augment({"flip": 1.0})
    moved, labels = always(images, targets, torch.Generator())
    assert torch.equal(labels, targets.flip(2))
    assert torch.allclose(moved, data.to_float(images).flip(3), atol=1e-5)
    back, again = always((moved.permute(0, 2, 3, 1) * 255).round().to(torch.uint8), labels, torch.Generator())
    assert torch.equal(again, targets)
    assert torch.allclose(back, data.to_float(images), atol=1e-5)


def test_outside_is_void_never_class_0():
    images, targets = scene()
    _, labels = data.Augment({"scale": [0.5]})(images, targets + 1, torch.Generator().manual_seed(0))
    assert (labels == VOID).float().mean() == pytest.approx(0.75, abs=0.02)
    assert (labels != 0).all()


def test_rotation_is_rigid_in_pixels():
    """A quarter turn of a square part moves it exactly: torch.rot90 as reference, on a canvas that is not square."""
    image = torch.zeros(1, 1, 24, 36)
    image[0, 0, 4:20, 10:26] = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    augment = data.Augment({"rotate": 90.0})
    real = torch.rand
    try:
        torch.rand = lambda *size, **_: torch.ones(*size)  # every draw at its upper end: 90 degrees
        affine = augment.draw_affine(image, None)
    finally:
        torch.rand = real
    grid = torch.nn.functional.affine_grid(affine, image.shape, align_corners=False)
    turned = torch.nn.functional.grid_sample(image, grid, align_corners=False)
    assert torch.allclose(turned[0, 0, 4:20, 10:26], torch.rot90(image[0, 0, 4:20, 10:26], 1), atol=1e-4)


def test_augmentation_draws_from_its_generator_alone():
    images, targets = scene()
    augment = data.Augment(data.parse_augment("flip,scale,rotate,colour,noise"))
    state = torch.get_rng_state()
    first = augment(images, targets, torch.Generator().manual_seed(5))
    second = augment(images, targets, torch.Generator().manual_seed(5))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first[0], second[0])
    assert first[0].min() >= 0
    assert first[0].max() <= 1


def test_colour_jitter_leaves_the_target_alone_and_none_changes_nothing():
    images, targets = scene()
    moved, labels = data.Augment({"colour": 0.3})(images, targets, torch.Generator().manual_seed(0))
    assert torch.equal(labels, targets)
    assert not torch.allclose(moved, data.to_float(images))
    same, labels = data.Augment(data.parse_augment("none"))(images, targets, torch.Generator())
    assert torch.equal(same, data.to_float(images))


def test_no_jitter_touches_what_lies_outside_the_image():
    """Neither what zooming out brings in, nor what a crop larger than the image adds."""
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    images, targets = scene()
    generator = torch.Generator().manual_seed(0)
    moved, labels = data.Augment({"scale": [0.5], "colour": 0.5})(images, targets, generator)
    kept = (moved - mean).abs().amax(1) < 1e-5
    assert (kept & (labels == VOID)).float().mean() > 0.6  # 0.75 of the canvas, less a rim where colours mix
    crop = data.Geometry([1, 1], crop=[30, 50])
    image, target = crop.cut(Image.fromarray(images[0].numpy()), targets[0].numpy(), SampleRequest(0, 0.0, 0.0))
    moved, labels = data.Augment({"colour": 0.5})(image[None], target[None], generator)
    assert torch.equal(moved[0, :, 24:], data.to_float(image[None])[0, :, 24:])
    assert torch.equal(moved[0, :, :, 36:], data.to_float(image[None])[0, :, :, 36:])
    assert not torch.allclose(moved[0, :, :24, :36], data.to_float(image[None])[0, :, :24, :36])
    assert (labels[0, 24:] == VOID).all()


def test_colour_jitter_is_brightness_contrast_and_saturation_in_turn():
    """Against the three steps written one after the other."""
    images = 0.3 + 0.4 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # nothing is clamped
    draws = torch.rand(3, 2, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    brightness, contrast, saturation = 1 + 0.2 * (2 * draws - 1)
    grey = images.mean(dim=(1, 2, 3), keepdim=True)
    expected = ((images - grey) * contrast + grey) * brightness
    luma = expected.mean(dim=1, keepdim=True)
    expected = (expected - luma) * saturation + luma
    assert torch.allclose(data.jitter_colour(images, 0.2, torch.Generator().manual_seed(1)), expected, atol=1e-6)


@pytest.mark.parametrize("text", ["flip=2", "scale=0.1:2", "scale=2:0.5", "scale=0.5:1:2", "rotate=-3", "blur=1"])
def test_wrong_augmentations_are_refused(text):
    with pytest.raises(UserError):
        data.parse_augment(text)


def test_normalise_undoes_itself_with_imagenets_numbers():
    images = torch.rand(2, 3, 4, 4)
    normal = Normalise()(images)
    assert torch.allclose(normal[:, 1] * 0.224 + 0.456, images[:, 1], atol=1e-6)


# ---- the audit


def test_audit_counts_and_finds_every_fault(folder_set):
    split = open_folder(folder_set)
    clean = audit_split(split, GRID)
    assert clean.error() is None
    assert clean.counts.sum() + clean.void == clean.pixels == 8 * 40 * 56
    assert clean.grids.shape == (8, *GRID)
    rewrite(split.pairs[1][1], lambda mask: mask[:30])
    assert "differ in size" in str(audit_split(split, GRID).error())
    path = split.pairs[3][0]
    path.write_bytes(path.read_bytes()[:-40])
    broken = audit_split(split, GRID)
    assert len(broken.broken) == 2
    assert "1 more" in str(broken.error())


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda m: m + 1, "labels that start at 1"),
        (lambda m: np.where(m == 2, 255, m).astype(np.uint8), None),
        (lambda m: np.where(m == 2, 77, m).astype(np.uint8), "another set's coding"),
        (lambda m: np.add.outer(np.arange(m.shape[0]) * 4, np.arange(m.shape[1])).astype(np.uint8), "grey-scale"),
    ],
)
def test_unknown_labels_name_value_count_file_and_likely_cause(folder_set, change, cause):
    split = open_folder(folder_set)
    for _, mask in split.pairs:
        rewrite(mask, change)
    error = audit_split(split, GRID).error()
    if cause is None:
        assert error is None
        return
    assert cause in str(error)
    assert str(split.pairs[0][1]) in str(error)
    assert "in 8 files" in str(error)


@pytest.mark.parametrize(
    ("pixels", "texts"),
    [
        (np.array([[0, 70000], [1, 0]], np.int32), ["label 70000 (1 pixels)"]),
        (np.array([[0, -5], [1, -5]], np.int32), ["label -5 (2 pixels)"]),
        (np.array([[0, 0.5], [1, 2]], np.float32), ["label 0.5 (1 pixels)"]),
        (np.array([[0, 1.5], [-7, 1234567]], np.float32), ["label -7 (1 pixels), 1.5 (1 pixels), 1234567 (1 pixels)"]),
    ],
)
@pytest.mark.parametrize("declared", ["names", "values", "colours"])
def test_values_that_are_no_class_number_stay_what_they_are(folder_set, pixels, texts, declared):
    content = {"names": ["a", "b", "c"],
               "values": ["a", "b", {"name": "c", "values": [2, 65535]}],
               "colours": [{"name": name, "color": [i, 9, 9]} for i, name in enumerate("abc")]}[declared]  # fmt: skip
    (folder_set / "classes.json").write_text(json.dumps({"classes": content}))
    split = open_folder(folder_set)
    mask = split.pairs[0][1].with_suffix(".tif")
    split.pairs[0][1].unlink()
    Image.fromarray(pixels).save(mask)
    target, values = read_labels(mask, split.spec)
    whole = (pixels == pixels.round()) & (pixels >= 0) & (pixels <= 2)
    assert np.array_equal(target, np.where(whole, pixels, UNKNOWN))
    assert np.array_equal(values, pixels)
    with pytest.raises(UserError) as caught:
        read_target(mask, split.spec)
    for part in (*texts, "0 to 65535", mask.name):
        assert part in str(caught.value)
    assert "rgb" not in str(caught.value)
    assert "colours" not in str(caught.value)
    audit = audit_split(open_folder(folder_set), GRID, images=False)
    assert audit.fault()[0] == "unknown_labels"
    finding = judge_files({"train": audit})
    assert (finding.verdict, finding.cause) == ("fail", "unknown_labels")
    assert "colours" not in finding.why


def test_numbers_stored_wide_are_read_as_they_are(folder_set):
    split = open_folder(folder_set)
    for dtype in (np.int32, np.float32, np.uint16):
        path = folder_set / f"{np.dtype(dtype)}.tif"
        Image.fromarray(np.array([[0, 1], [2, 255]], dtype)).save(path)
        assert read_target(path, split.spec).tolist() == [[0, 1], [2, 255]]
    Image.fromarray(np.array([[0, np.nan]], np.float32)).save(path)
    with pytest.raises(UserError, match="cannot read mask"):
        read_target(path, split.spec)


def test_masks_of_one_bit_are_numbers(folder_set):
    (folder_set / "classes.json").write_text('{"classes": ["a"], "void": []}')
    spec = build_spec("folder", folder_set)
    path = folder_set / "bit.png"
    Image.fromarray(np.array([[False, True]])).save(path)
    with pytest.raises(UserError, match=r"label 1 \(1 pixels\)"):
        read_target(path, spec)
    (folder_set / "classes.json").write_text('{"classes": ["a", "b"]}')
    assert read_target(path, build_spec("folder", folder_set)).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"classes": [{"name": "a", "values": [1e400]}]}', "infinity"),
        ('{"classes": "abc"}', "no list"),
        ('{"classes": {"a": 1}}', "no list"),
        ('{"classes": ["a", "b"], "label_map": {"7": "zz"}}', "'zz'"),
        ('{"classes": ["a", "b"], "void": [255.7]}', "255.7"),
        ('{"classes": [{"name": "a", "values": [0.5]}]}', "0.5"),
    ],
)
def test_what_is_wrong_in_a_classes_json_is_named(folder_set, content, message):
    (folder_set / "classes.json").write_text(content)
    with pytest.raises(UserError, match="classes.json cannot be used") as caught:
        build_spec("folder", folder_set)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_classes_json_may_begin_with_a_byte_order_mark(folder_set):
    (folder_set / "classes.json").write_text('\ufeff{"classes": ["a", "b"]}', encoding="utf-8")
    assert build_spec("folder", folder_set).classes == ("a", "b")


def test_jpeg_masks_are_named_as_such(folder_set):
    split = open_folder(folder_set)
    for _, mask in split.pairs:
        Image.open(mask).point(lambda v: v * 40).save(mask.with_suffix(".jpg"), quality=60)
        mask.unlink()
    error = audit_split(open_folder(folder_set), GRID).error()
    assert "JPEG" in str(error)


def test_anomaly_pixels_in_training_are_an_error(tmp_path):
    spec = STREETS
    for part in spec.splits["train"]:
        (tmp_path / part).mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / spec.splits["train"][0] / f"{i}.png")
        Image.new("L", (8, 8), 3 if i else 14).save(tmp_path / spec.splits["train"][1] / f"{i}.png")
    audit = audit_split(data.open_split(spec, tmp_path, "train"), GRID)
    assert audit.anomaly == 64
    assert "64 anomaly pixels" in str(audit.error())


def test_pairing_faults(folder_set, capsys):
    (folder_set / "masks" / "train" / "000.png").unlink()
    with pytest.raises(UserError, match=r"1 of 8 images have no mask, the first 000\.png"):
        open_folder(folder_set)
    (folder_set / "images" / "train" / "000.png").unlink()
    (folder_set / "images" / "train" / "001.png").unlink()
    assert len(open_folder(folder_set)) == 6
    assert "1 masks" in capsys.readouterr().err
    with pytest.raises(UserError, match="no folder"):
        data.open_split(CAMVID, folder_set, "train")


def test_16_bit_images_keep_their_shades_and_unbounded_ones_are_refused(tmp_path):
    deep = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(np.array(read_image(tmp_path / "deep.png"))[..., 0], deep >> 8)
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match="mode F"):
        read_image(tmp_path / "float.tif")


def test_a_palette_mask_with_its_own_order_is_read_by_its_colours(folder_set):
    split = open_folder(folder_set)
    mask = split.pairs[0][1]
    target = read_target(mask, split.spec)
    turned = Image.fromarray((2 - target).astype(np.uint8))  # indices reversed, and the palette with them
    turned.putpalette([part for colour in reversed(split.spec.palette) for part in colour])
    turned.save(mask)
    assert np.array_equal(read_target(mask, split.spec), target)


def test_a_cut_that_leaves_a_split_empty_says_so(tmp_path):
    root = write_folder_set(tmp_path / "s", counts=(("train", 2),))
    with pytest.raises(UserError, match="none of the 2 images falls into split"):
        [open_folder(root, split) for split in ("val", "test")]
