"""Checkpoints: whole or not at all, checked, rebuilt, refused with a reason."""

import errno

import pytest
import torch

import models
from cli import UserError
from engine.checkpoint import fingerprint, load_checkpoint, load_last, load_model, load_state, save_checkpoint


def small(step=0):
    torch.manual_seed(0)
    model = models.build_model("mobilenetv2", 3)
    content = {
        "model": {"name": model.name, "options": model.options},
        "state": model.state_dict(),
        "data": {"classes": ["a", "b", "c"]},
        "config": {"lr": 0.1, "image_size": [2, 3], "data_dir": None},
        "progress": {"step": step},
    }
    return model, content


def test_a_saved_model_comes_back_the_same(tmp_path):
    model, content = small()
    save_checkpoint(tmp_path / "best.pth", content)
    again, loaded = load_model(tmp_path / "best.pth")
    images = torch.rand(1, 3, 33, 47)
    assert torch.equal(model.eval()(images)["out"], again(images)["out"])
    assert loaded["config"] == content["config"]
    assert [p.name for p in tmp_path.iterdir()] == ["best.pth"]


def test_every_single_flipped_bit_in_the_weights_is_caught(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"state": {"w": torch.arange(4000.0)}})
    raw = bytearray(path.read_bytes())
    start = raw.find(torch.arange(100.0, 110.0).numpy().tobytes())
    assert start > 0
    for offset in range(0, 40, 3):
        raw[start + offset] ^= 1 << offset % 8
        path.write_bytes(raw)
        with pytest.raises(UserError, match=r"damaged.*a\.pth"):
            load_checkpoint(path)
        raw[start + offset] ^= 1 << offset % 8


def test_a_checkpoint_cut_at_any_place_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"state": {"w": torch.arange(500.0)}})
    raw = path.read_bytes()
    for length in range(0, len(raw), len(raw) // 40):
        path.write_bytes(raw[:length])
        with pytest.raises(UserError, match=r"a\.pth"):
            load_checkpoint(path)


class Hostile:
    def __reduce__(self):
        return print, ("executed",)


def test_what_is_no_checkpoint_is_refused(tmp_path, capsys):
    cases = {"text.pth": None, "weights.pth": {"w": torch.ones(2)}, "list.pth": [1], "code.pth": {"x": Hostile()}}
    for name, content in cases.items():
        if content is None:
            (tmp_path / name).write_text("hello")
        else:
            torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=name):
            load_checkpoint(tmp_path / name)
    assert "executed" not in capsys.readouterr().out
    with pytest.raises(UserError, match="no checkpoint"):
        load_checkpoint(tmp_path / "nowhere.pth")


def test_a_damaged_last_falls_back_to_the_one_before(tmp_path, capsys):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path / "last.pth", small(step)[1], keep_previous=True)
    assert load_last(tmp_path)["progress"]["step"] == 3
    path = tmp_path / "last.pth"
    path.write_bytes(path.read_bytes()[:1000])
    assert load_last(tmp_path)["progress"]["step"] == 2
    assert "falling back to last.previous.pth" in capsys.readouterr().err
    path.unlink()  # killed between the two renames
    assert load_last(tmp_path)["progress"]["step"] == 2


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "last.pth"
    save_checkpoint(path, small(1)[1], keep_previous=True)

    def full(content, file):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(path, small(2)[1], keep_previous=True)
    assert load_last(tmp_path)["progress"]["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pth"]


def test_weights_that_do_not_fit_are_listed(tmp_path):
    model, content = small()
    state = dict(content["state"])
    state["classifier.weight"] = torch.zeros(5, 16, 1, 1)
    state["stranger"] = state.pop("classifier.bias")
    with pytest.raises(UserError, match="3 weights do not fit") as caught:
        load_state(model, state, "x.pth")
    for part in ("missing classifier.bias", "unexpected stranger", "shape of classifier.weight"):
        assert part in str(caught.value)


def test_fingerprint_tells_which_module_moved():
    model, _ = small()
    before = fingerprint(model)
    with torch.no_grad():
        model.classifier.weight[0, 0] += 1e-6
    after = fingerprint(model)
    assert [name for name in before if before[name] != after[name]] == ["classifier"]
    assert before["classifier"]["norm"] > 0
