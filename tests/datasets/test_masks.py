"""Images and masks decoded: of every depth, in numbers and in colours, with values that no class has."""

import json

import numpy as np
import pytest
from PIL import Image

from cli import UserError
from datasets.audit import ORIENTATION, audit_split
from datasets.catalogue import build_spec
from datasets.masks import match_size, read_image, read_labels, read_target
from datasets.spec import UNKNOWN
from probes.files import judge_files
from tests.datasets.miniatures import GRID, open_folder


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


def test_a_palette_mask_with_its_own_order_is_read_by_its_colours(folder_set):
    split = open_folder(folder_set)
    mask = split.pairs[0][1]
    target = read_target(mask, split.spec)
    turned = Image.fromarray((2 - target).astype(np.uint8))  # indices reversed, and the palette with them
    turned.putpalette([part for colour in reversed(split.spec.palette) for part in colour])
    turned.save(mask)
    assert np.array_equal(read_target(mask, split.spec), target)


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


def test_16_bit_images_keep_their_shades_and_unbounded_ones_are_refused(tmp_path):
    deep = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.array_equal(np.array(read_image(tmp_path / "deep.png"))[..., 0], deep >> 8)
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match="mode F"):
        read_image(tmp_path / "float.tif")


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
