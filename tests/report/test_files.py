"""Files are read back, and an older one stays whole where writing fails."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from cli import UserError
from probes.finding import Exhibit, Finding, Tile
from report.colours import ANOMALY_COLOUR, colour_mask
from report.files import save_exhibits, save_mask, save_picture, write_json
from tests.report.examples import CLASSES, PALETTE, photo


def test_saved_mask_reads_back_as_ids_and_as_colours(tmp_path):
    target = np.random.default_rng(0).choice([0, 1, 2, 3, 255], (40, 60)).astype(np.uint8)
    path = tmp_path / "new" / "mask.png"
    save_mask(path, target, PALETTE)
    with Image.open(path) as image:
        assert (image.mode, image.format) == ("P", "PNG")
        assert (np.asarray(image) == target).all()
        assert np.reshape(image.getpalette()[:12], (4, 3)).tolist() == [[*c] for c in [*PALETTE, ANOMALY_COLOUR]]
        assert (np.asarray(image.convert("RGB")) == np.asarray(colour_mask(target, PALETTE))).all()
    assert [file.name for file in path.parent.iterdir()] == ["mask.png"]


def test_a_failed_save_leaves_the_older_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    save_picture(Image.new("RGB", (3, 2), "red"), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(UserError, match=r"No space left on device.* at .*picture\.png"):
            save_picture(Image.new("RGB", (3, 2), "blue"), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["picture.png"]
    with pytest.raises(UserError, match="cannot write"):
        write_json(path / "in a file.json", {})


def test_json_is_readable_and_holds_no_nan(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"iou": {"Straße": None}, "miou": 0.5})
    text = (tmp_path / "new" / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"iou": {"Straße": None}, "miou": 0.5}
    assert "Straße" in text
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", {"miou": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_json_writes_a_list_of_numbers_as_one_line_and_changes_nothing_else(tmp_path):
    content = {"a": [[1, 2], [3, -4e-9]], "b": ["[\n  1,\n  2\n]", "x"], "c": [], "d": [{"e": [None, True]}], "f": [[]]}
    write_json(tmp_path / "a.json", content)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == content
    assert "[1, 2],\n" in text
    assert '"e": [null, true]\n' in text


def test_every_exhibit_is_a_file_of_its_own_and_findings_keep_their_order(tmp_path):
    first, second = Exhibit("own", [Tile("a", photo())]), Exhibit("curve", curves={"x": [(0, 1), (1, 2)]})
    findings = [
        Finding("data.label_agreement", "fail", "", exhibits=[first, second]),
        Finding("model.softmax", "pass", ""),
        Finding("data.label_agreement", "warn", "", exhibits=[second]),
        Finding("cross.../evil", "warn", "", exhibits=[second]),
    ]
    drawn = save_exhibits(tmp_path, findings, CLASSES, PALETTE)
    files = [[picture["file"] for picture in pictures] for pictures in drawn]
    assert re.fullmatch(r"diagnosis/data-label_agreement-1\.(png|jpg)", files[0][0])
    names = [["diagnosis/data-label_agreement-3.png"], ["diagnosis/cross-evil-1.png"]]
    assert files[0][1:] == ["diagnosis/data-label_agreement-2.png"]
    assert files[1:] == [[], *names]
    assert [picture["caption"] for picture in drawn[0]] == ["own", "curve"]
    written = {f"diagnosis/{path.name}" for path in (tmp_path / "diagnosis").iterdir()}
    assert written == {file for row in files for file in row}
    json.dumps(drawn, allow_nan=False)
