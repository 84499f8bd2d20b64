"""classes.json and labelmap.txt: what they may say, and what is wrong in one."""

import json

import pytest

from cli import UserError
from datasets.catalogue import build_spec, recognise
from datasets.spec import VOID
from tests.datasets.miniatures import THREE, voc_export


def test_label_map_overrides_values(folder_set):
    path = folder_set / "classes.json"
    content = json.loads(path.read_text()) | {"label_map": {"7": "blue", "9": None}}
    path.write_text(json.dumps(content))
    table = build_spec("folder", folder_set).value_table
    assert (table[7], table[9], table[2]) == (2, VOID, 2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be used"),
        ("[]", "cannot be used"),
        ('{"classes": []}', "0 classes"),
        ('{"classes": ["a", "a"]}', "repeats"),
        ('{"classes": [{"name": "a", "values": [1]}, {"name": "b", "values": [1]}]}', "belongs to two classes"),
        ('{"classes": [{"name": "a", "color": [1, 2, 3]}, {"name": "b", "color": [1, 2, 3]}]}', "repeats"),
        ('{"classes": ["a"], "label_map": {"3": "nobody"}}', "'nobody'"),
        ('{"classes": ["a"], "void": [70000]}', "0 and 65535"),
        ('{"classes": [{"name": "a", "values": [1e400]}]}', "infinity"),
        ('{"classes": "abc"}', "no list"),
        ('{"classes": {"a": 1}}', "no list"),
        ('{"classes": ["a", "b"], "void": [255.7]}', "255.7"),
        ('{"classes": [{"name": "a", "values": [0.5]}]}', "0.5"),
    ],
)
def test_what_is_wrong_in_a_classes_json_is_named(folder_set, content, message):
    (folder_set / "classes.json").write_text(content)
    with pytest.raises(UserError, match=r"classes\.json") as caught:
        build_spec("folder", folder_set)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_classes_json_may_begin_with_a_byte_order_mark(folder_set):
    (folder_set / "classes.json").write_text('\ufeff{"classes": ["a", "b"]}', encoding="utf-8")
    assert build_spec("folder", folder_set).classes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 classes"),
        ("background\n", "cannot be used"),
        ("a:0,0\n", "cannot be used"),
        ("a:0,0,300\n", "0 to 255"),
        ("a:1,1,1\na:2,2,2\n", "repeats"),
        ("a:1,1,1\nb:1,1,1\n", "repeats"),
    ],
)
def test_a_wrong_labelmap_is_the_users_error(text, message, tmp_path):
    case = voc_export()
    case.write(tmp_path)
    (tmp_path / "labelmap.txt").write_text(text)
    with pytest.raises(UserError, match="labelmap.txt") as caught:
        build_spec("voc", tmp_path)
    assert message in str(caught.value)


def test_an_export_may_name_its_void_and_its_classes_json_wins(tmp_path):
    case = voc_export()
    case.write(tmp_path)
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nweed:51,221,255::\nignored:250,50,83::\n")
    spec = build_spec("voc", tmp_path)
    assert spec.classes == ("background", "weed")
    assert spec.values == {0: 0, 1: 1, 2: 255, 255: 255}
    assert spec.colours[250, 50, 83] == 255
    (tmp_path / "classes.json").write_text(THREE)
    assert build_spec("voc", tmp_path).classes == ("sky", "ground", "thing")
    assert recognise(tmp_path).name == "voc"
