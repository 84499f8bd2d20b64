"""Images and their masks, found: by lists, or cut from train by the hash of their names."""

import pytest
from PIL import Image

from cli import UserError
from datasets.catalogue import build_spec
from datasets.pairs import find_pairs
from tests.datasets.miniatures import BY_ID, picture, save
from tests.folder_set import write_folder_set


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


def test_a_cut_that_leaves_a_split_empty_says_so(tmp_path):
    root = write_folder_set(tmp_path / "s", counts=(("train", 2),))
    with pytest.raises(UserError, match="none of the 2 images falls into split"):
        [find_pairs(build_spec("folder", root), root, split) for split in ("val", "test")]


def read_lists(root):
    spec = build_spec("msrc", root)
    return {split: [image.stem for image, _ in find_pairs(spec, root, split)] for split in ("train", "val", "test")}


def test_a_listed_set_is_read_by_its_lists(tmp_path):
    """Of names, or of files, as its own archive calls them."""
    BY_ID["msrc-lists"].write(tmp_path)
    names = {split: (tmp_path / f"{split}.txt").read_text().split() for split in ("train", "val", "test")}
    assert read_lists(tmp_path) == names
    (tmp_path / "train.txt").write_text("".join(f"{name}.bmp\n" for name in names["train"]))
    assert read_lists(tmp_path) == names


def break_list(root, added):
    path = root / "train.txt"
    path.write_text(path.read_text() + added)


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        (lambda r: break_list(r, "nobody\n"), r"1 of 4 names have no image, the first nobody at .*train"),
        (lambda r: break_list(r, "3_1_s\n"), "1 names are in train and in val too, the first 3_1_s"),
        (lambda r: (r / "val.txt").unlink(), "cannot read the list of split 'val'"),
        (lambda r: save(r / "Images" / "3_1_s.png", Image.fromarray(picture())), "two files named 3_1_s"),
        (lambda r: (r / "Images").rename(r / "images0"), "no folder Images .*expects Images/ with GroundTruth/, train"),
    ],
)
def test_faults_of_a_listed_set_are_one_line(tmp_path, fault, text):
    fault(BY_ID["msrc-lists"].write(tmp_path))
    with pytest.raises(UserError, match=text) as caught:
        read_lists(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_mask_without_an_image_is_a_warning(folder_set, capsys):
    for name in ("000", "001"):
        (folder_set / "images" / "train" / f"{name}.png").unlink()
    (folder_set / "masks" / "train" / "000.png").unlink()
    assert len(find_pairs(build_spec("folder", folder_set), folder_set, "train")) == 6
    assert "1 masks" in capsys.readouterr().err
