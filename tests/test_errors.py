"""Every wrong input of the list: one line `error: what, where, remedy`, exit code 2, no traceback, nothing lost."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

import cli
import diagnose
import evaluate
import predict
import train
from tests.folder_set import write_folder_set
from tests.scripts import TINY


def rewrite_all(root, split, change, ending=".png"):
    for path in sorted((root / "masks" / split).iterdir()):
        mask = change(np.array(Image.open(path)))
        path.unlink()
        Image.fromarray(mask).save(path.with_suffix(ending))


def no_masks(root):
    shutil.rmtree(root / "masks")


def lonely_image(root):
    (root / "masks" / "train" / "003.png").unlink()


def other_size(root):
    rewrite_all(root, "train", lambda m: m[:, :-3])


def one_based(root):
    rewrite_all(root, "train", lambda m: m + 1)


def grey_scale(root):
    rewrite_all(root, "train", lambda m: (np.arange(m.size).reshape(m.shape) % 256).astype(np.uint8))


def jpeg_masks(root):
    rewrite_all(root, "train", lambda m: m * 40, ".jpg")


def cut_image(root):
    path = root / "images" / "val" / "001.png"
    path.write_bytes(path.read_bytes()[:100])


def no_image_at_all(root):
    (root / "images" / "train" / "000.png").write_text("hello")


def no_classes(root):
    (root / "classes.json").unlink()


def all_void(root):
    rewrite_all(root, "train", lambda m: np.full_like(m, 255))


DATA_FAULTS = [
    (no_masks, ["no folder masks/train", "images/train/ with masks/train/"]),
    (lonely_image, ["1 of 8 images have no mask", "003.png", "give every image a mask"]),
    (other_size, ["differ in size", "image 40x56, mask 40x53", "000.png"]),
    (one_based, ["label 3", "pixels", "000.png", "start at 1", "label_map"]),
    (grey_scale, ["outside the 3 classes", "grey-scale", "000.png"]),
    (jpeg_masks, ["outside the 3 classes", "JPEG", "PNG"]),
    (cut_image, ["cannot read image", "val/001.png", "damaged"]),
    (no_image_at_all, ["cannot read image", "train/000.png"]),
    (no_classes, ["no classes.json", "a folder set holds"]),
    (all_void, ["no labelled pixel in split train"]),
]


def run(script, words, monkeypatch, capsys):
    """Run a script's main in this process as its file would: (exit code, standard error)."""
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, words)])
    code = cli.run(script.main)
    return code, capsys.readouterr().err


def is_one_error_line(err, parts):
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: "), err
    assert "Traceback" not in err
    for part in parts:
        assert part in last, last


@pytest.mark.parametrize(("fault", "parts"), DATA_FAULTS, ids=[fault.__name__ for fault, _ in DATA_FAULTS])
def test_training_stops_before_the_first_step(fault, parts, folder_set, tmp_path, monkeypatch, capsys):
    fault(folder_set)
    run_dir = tmp_path / "run"
    words = ["--dataset", "folder", "--data-dir", folder_set, "--run-dir", run_dir, *TINY]
    code, err = run(train, words, monkeypatch, capsys)
    assert code == 2
    is_one_error_line(err, parts)
    assert not run_dir.exists()


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--data-dir", "/nowhere/at/all", "--dataset", "camvid"], ["no folder", "/nowhere/at/all", "trainannot/"]),
        (["--dataset", "camvids"], ["--dataset", "camvids"]),
        (["--model", "unet"], ["unknown choice 'unet'", "known: deeplabv3_resnet50"]),
        (["--model", "mobilenetv2:width=3"], ["unknown option 'width'"]),
        (["--loss", "fokal=1"], ["unknown option 'fokal'", "did you mean 'focal'"]),
        (["--sampling", "balance"], ["unknown choice 'balance'", "did you mean 'balanced'"]),
        (["--sampling", "rare-crops"], ["rare-crops without --crop", "add --crop HxW"]),
        (["--aux-task", "depth"], ["unknown choice 'depth'", "properties"]),
        (["--weights", "coco"], ["torchvision has no coco weights for mobilenetv2"]),
        (["--freeze", "head"], ["unknown rule 'head'", "all-but-head"]),
        (["--augment", "mirror=1"], ["unknown option 'mirror'"]),
        (["--schedule", "exponential"], ["exponential", "onecycle"]),
        (["--device", "cuda:99"], ["cuda:99", "--device"]),
        (["--weights", "nowhere.pth"], ["no such weights file", "nowhere.pth"]),
        (["--class-weights", "nowhere.json"], ["cannot read class weights"]),
        (["--freeze", "everything"], ["--freeze"]),
        (["--learning-rate", "1"], ["unknown flag '--learning-rate'"]),
        (["--batch-size", "0"], ["--batch-size"]),
        (["--limit", "1"], ["at least 2 images"]),
        (["--short-side", "20"], ["--short-side without --crop"]),
        (["--amp", "fp16"], ["fp16 needs CUDA"]),
        (["--resume"], ["no checkpoint"]),
    ],
)
def test_wrong_flags_of_train(words, parts, folder_set, tmp_path, monkeypatch, capsys):
    usual = ["--dataset", "folder", "--data-dir", folder_set, "--run-dir", tmp_path / "run", *TINY]
    code, err = run(train, [*usual, *words], monkeypatch, capsys)
    assert code == 2
    is_one_error_line(err, parts)


def test_tensorboard_where_it_is_not_installed(folder_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    usual = ["--dataset", "folder", "--data-dir", folder_set, "--run-dir", tmp_path / "run", *TINY]
    code, err = run(train, [*usual, "--tensorboard"], monkeypatch, capsys)
    assert code == 2
    is_one_error_line(err, ["TensorBoard is not installed", "pip install tensorboard"])


def test_imagenet_without_a_network_says_what_to_do(folder_set, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    usual = ["--dataset", "folder", "--data-dir", folder_set, "--run-dir", tmp_path / "run", *TINY]
    code, err = run(train, [*usual, "--weights", "imagenet"], monkeypatch, capsys)
    assert code == 2
    is_one_error_line(err, ["cannot get torchvision's weights", "--weights FILE"])


def broken_checkpoints(tmp_path, good):
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "cut.pth").write_bytes(good.read_bytes()[:-3000])
    yield "nowhere.pth", "no checkpoint"
    yield "text.pth", "no checkpoint, or one cut short"
    yield "cut.pth", "cut short"


@pytest.mark.parametrize("script", [evaluate, diagnose, predict], ids=["evaluate", "diagnose", "predict"])
def test_a_wrong_checkpoint(script, trained, tmp_path, monkeypatch, capsys):
    run_dir, _ = trained
    for name, part in broken_checkpoints(tmp_path, run_dir / "best.pth"):
        words = ["--ckpt", tmp_path / name] + (["photo.jpg"] if script is predict else [])
        code, err = run(script, words, monkeypatch, capsys)
        assert code == 2
        is_one_error_line(err, [part, name])


def test_evaluate_on_another_set_of_classes(trained, tmp_path, monkeypatch, capsys):
    run_dir, _ = trained
    other = write_folder_set(tmp_path / "other", classes=4)
    words = ["--ckpt", run_dir / "best.pth", "--data-dir", other]
    code, err = run(evaluate, words, monkeypatch, capsys)
    assert code == 2
    is_one_error_line(err, ["folder has 4 classes, the checkpoint 3", "yellow"])


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--only", "collapse"], "--ckpt FILE"),
        (["--only", "log"], "--ckpt FILE"),
        (["--only", "colapse"], "collapse"),
        (["--cross-dataset", "camvid"], "--ckpt FILE"),
        (["--ckpt", "a.pth", "--model-from", "b.py:build"], "one model at a time"),
        (["--mean", "0,0,0"], "--model-from"),
        (["--model-from", "nowhere.py:build"], "nowhere.py"),
    ],
)
def test_diagnose_says_which_flags_do_not_go_together(words, part, folder_set, monkeypatch, capsys):
    about_data = [] if "--ckpt" in words else ["--dataset", "folder", "--data-dir", folder_set]
    code, err = run(diagnose, [*about_data, *words], monkeypatch, capsys)
    assert code == 2
    is_one_error_line(err, [part])


def test_predict_names_the_bad_photo_and_keeps_the_others(trained, tmp_path, monkeypatch, capsys):
    run_dir, data = trained
    photos = tmp_path / "photos"
    shutil.copytree(data / "images" / "test", photos)
    (photos / "bad.jpg").write_text("no picture")
    words = ["--ckpt", run_dir / "best.pth", photos, "--out", tmp_path / "out"]
    code, err = run(predict, words, monkeypatch, capsys)
    assert code == 2
    is_one_error_line(err, ["bad.jpg", "cannot read image"])
    assert len(list((tmp_path / "out" / "classes").iterdir())) == 3


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(folder_set, tmp_path, monkeypatch, capsys):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    words = ["--dataset", "folder", "--data-dir", folder_set, "--run-dir", locked / "run", *TINY]
    code, err = run(train, words, monkeypatch, capsys)
    assert code == 2
    is_one_error_line(err, ["locked"])


# ---- found by a hostile reader


def classes_json(folder_set, **content):
    path = folder_set / "classes.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | content))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"void": [0]}, "mask value 0 is void and class red"),
        ({"void": [[200, 40, 40]]}, "both void and a class"),
        ({"classes": [{"name": "a", "color": [1, 2]}]}, "classes.json cannot be used"),
        ({"classes": [{"name": "a", "color": [300, 2, 3]}]}, "0 to 255"),
    ],
)
def test_contradictions_in_classes_json(content, part, folder_set, tmp_path, monkeypatch, capsys):
    classes_json(folder_set, **content)
    words = ["--dataset", "folder", "--data-dir", folder_set, "--run-dir", tmp_path / "run", *TINY]
    code, err = run(train, words, monkeypatch, capsys)
    assert code == 2
    is_one_error_line(err, [part])


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--schedule", "cosine-restarts:t0=0"], ["t0=0", "out of range"]),
        (["--augment", "rotate=5:10"], ["rotate='5:10'"]),
        (["--loss", "ce=1:2"], ["2 numbers for term 'ce'", "--loss"]),
        (["--loss", "focal=1:-1"], ["gamma -1", "--loss"]),
        (["--loss", "noisy=0.1:0.1,consistency=0.05:0.2"], ["sigma", "--loss"]),
        (["--aux-task", "properties:weight=0"], ["weight 0.0", "above 0"]),
        (["--ema", "1"], ["decay 1.0", "below 1"]),
        (["--accumulate", "3", "--batch-size", "4"], ["--accumulate 3", "--batch-size 6"]),
        (["--batch-size", "1"], ["fewer than 2 images", "use at least 2"]),
    ],
)
def test_values_that_parse_but_cannot_be_meant(words, parts, folder_set, tmp_path, monkeypatch, capsys):
    usual = ["--dataset", "folder", "--data-dir", folder_set, "--run-dir", tmp_path / "run", *TINY]
    code, err = run(train, [*usual, *words], monkeypatch, capsys)
    assert code == 2
    is_one_error_line(err, parts)


def test_an_output_folder_that_is_a_file(trained, folder_set, tmp_path, monkeypatch, capsys):
    run_dir, data = trained
    (tmp_path / "file").write_text("here")
    words = ["--dataset", "folder", "--data-dir", folder_set, "--run-dir", tmp_path / "file", *TINY]
    code, err = run(train, words, monkeypatch, capsys)
    assert code == 2
    is_one_error_line(err, ["file"])
    words = ["--ckpt", run_dir / "best.pth", data / "images" / "test", "--out", tmp_path / "file"]
    code, err = run(predict, words, monkeypatch, capsys)
    assert code == 2
    is_one_error_line(err, ["file"])


def test_evaluate_reads_every_file_before_it_computes_anything(trained, tmp_path, monkeypatch, capsys):
    run_dir, _ = trained
    data = write_folder_set(tmp_path / "other")
    rewrite_all(data, "test", lambda m: m + 7)
    code, err = run(evaluate, ["--ckpt", run_dir / "best.pth", "--data-dir", data], monkeypatch, capsys)
    assert code == 2
    is_one_error_line(err, ["label 7", "in 3 files"])
    assert "evaluate test" not in err


def test_evaluate_on_one_image_says_what_is_undefined(trained, tmp_path, monkeypatch, capsys):
    run_dir, _ = trained
    words = ["--ckpt", run_dir / "best.pth", "--limit", 1, "--out", tmp_path]
    code, _ = run(evaluate, words, monkeypatch, capsys)
    assert code == 0
    assert json.loads((tmp_path / "evaluation.json").read_text())["miou_interval"] is None


@pytest.mark.parametrize(
    "words", [["--model", "unet"], ["--weights", "nowhere.pth"], ["--freeze", "all"], ["--ckpt", "x", "--lr", "1"]]
)
def test_diagnose_takes_a_wrong_flag_for_what_it_is(words, folder_set, monkeypatch, capsys):
    code, err = run(diagnose, ["--dataset", "folder", "--data-dir", folder_set, *words], monkeypatch, capsys)
    assert code == 2
    is_one_error_line(err, [])


def test_diagnose_names_faulty_data_whichever_probe_comes_upon_it(folder_set, tmp_path, monkeypatch, capsys):
    one_based(folder_set)
    words = ["--noise-test", "--dataset", "folder", "--data-dir", folder_set, "--out", tmp_path]
    code, _ = run(diagnose, words, monkeypatch, capsys)
    assert code == 1
    assert json.loads((tmp_path / "diagnosis.json").read_text())["root_cause"] == "one_based_labels"


def test_a_lost_log_does_not_spoil_the_resumed_one(trained, tmp_path, monkeypatch, capsys):
    run_dir, _ = trained
    shutil.copytree(run_dir, tmp_path / "run")
    (tmp_path / "run" / "log.jsonl").unlink()
    code, err = run(train, ["--run-dir", tmp_path / "run", "--resume"], monkeypatch, capsys)
    assert code == 0
    assert "lines are missing" in err
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == b""
