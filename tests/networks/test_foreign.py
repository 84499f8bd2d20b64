"""Somebody else's model: its file keeps its own imports, its weights load whole or not at all, its answer is ours."""

import copy
import importlib
import sys
import types

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import segmentation

import cli
import data
import losses
import models
from cli import UserError
from engine.predictor import Predictor
from engine.training import batch_loss
from networks.blocks import Normalise
from networks.foreign import (
    REPO_ROOT,
    Foreign,
    ImportIsolation,
    add_foreign_flags,
    build_preparation,
    load_foreign,
    preparation_options,
)

CLASSES = 5
CPU = torch.device("cpu")
NET = """
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Conv2d(3, num_classes, 4, stride=4)

    def forward(self, images):
        return self.head(images)
"""


@pytest.fixture
def write(tmp_path):
    """write(name, text) a file of somebody else's; returns its path."""

    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write_file


@pytest.fixture(autouse=True)
def intact(monkeypatch):
    """Whatever a test loads, afterwards every module and search path is what it was."""
    before, path = dict(sys.modules), sys.path[:]
    yield
    monkeypatch.undo()
    assert {name for name, module in before.items() if sys.modules.get(name) is not module} == set()
    assert sys.path == path


def images(count=2, size=(64, 96)):
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(0))


class Answers(nn.Module):
    """A network that returns what `answer` makes of the logits."""

    def __init__(self, answer, classes=CLASSES):
        super().__init__()
        self.answer, self.head = answer, nn.Conv2d(3, classes, 4, stride=4)

    def forward(self, images):
        return self.answer(self.head(images))


# ---- whose module is found


def test_their_neighbours_are_found_before_ours_and_ours_stay(write):
    write("models.py", "WHO = 'theirs'\nimport data\n" + NET)
    write("data.py", "WHO = 'theirs'")
    write("losses/__init__.py", "")
    write("losses/late.py", "import models\nWHO = models.WHO")
    file = write(
        "build.py",
        "import importlib\nimport data, models\n"
        "class Late(models.Net):\n"
        "    def forward(self, images):\n"
        "        import data, metrics_of_mine\n"
        "        import losses.late\n"
        "        assert importlib.import_module('data') is data and data.WHO == losses.late.WHO == 'theirs'\n"
        "        return super().forward(images) + metrics_of_mine.ZERO\n"
        "def make(num_classes):\n"
        "    import models as again\n"
        "    assert again.data is data\n"
        "    return Late(num_classes)\n",
    )
    write("metrics_of_mine.py", "import torch, random\nfrom data import WHO\nZERO = torch.zeros(())")
    known = set(sys.modules)
    net = load_foreign(f"{file}:make", "none", CLASSES)
    for _ in range(2):
        assert net(images())["out"].shape == (2, CLASSES, 64, 96)
    assert copy.deepcopy(net)(images())["out"].equal(net(images())["out"])
    import data as ours  # found afresh, after theirs has run

    assert ours is data
    assert ours.Geometry
    assert not hasattr(ours, "WHO")
    assert set(sys.modules) == known
    assert {"models", "data", "losses", "losses.late", "metrics_of_mine"} <= set(net.home.modules)
    assert net.home.modules["metrics_of_mine"].torch is torch


def test_two_model_files_with_neighbours_of_the_same_names_stay_apart(write):
    for name, bias in (("a", 1.0), ("b", 2.0)):
        write(f"{name}/utils.py", f"BIAS = {bias}")
        text = "def make():\n    return Late(3)\nclass Late(Net):\n    def forward(self, images):\n"
        late = "        from utils import BIAS\n        return super().forward(images) * 0 + BIAS\n"
        write(f"{name}/models.py", NET + text + late)
    nets = [load_foreign(f"{write(f'{n}/x.txt', '').parent}/models.py:make") for n in "ab"]
    for _ in range(2):
        assert [net(images())["out"].mean().item() for net in nets] == [1.0, 2.0]


def test_ours_is_hidden_from_them_and_a_failure_restores_it(write):
    file = write("build.py", "import probes.finding\n")
    with pytest.raises(UserError, match=r"ModuleNotFoundError: No module named 'probes' at .*build.py:1$"):
        load_foreign(f"{file}:make")


# A model file that asks for `datasets` when it is read, in its function and in every forward pass.
ASKS_FOR_DATASETS = (
    NET
    + """
import datasets, datasets.masks
FIRST = datasets

class Late(Net):
    def forward(self, images):
        import datasets
        from datasets import masks
        from datasets.late import WHO
        assert datasets is FIRST and masks is FIRST.masks
        return super().forward(images) * 0 + WHO

def make(num_classes):
    import datasets.masks as again
    assert again is FIRST.masks and again.WHO == 7.0
    return Late(num_classes)
"""
)


def write_datasets(write, folder, package):
    """Somebody else's `datasets`, as a package or as a folder without __init__.py."""
    if package:
        write(f"{folder}/datasets/__init__.py", "")
    for name in ("masks", "late"):
        write(f"{folder}/datasets/{name}.py", "WHO = 7.0")


def ours_of_datasets():
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "datasets"}


@pytest.mark.parametrize("entry", [None, "", ".", REPO_ROOT])
@pytest.mark.parametrize("package", [True, False])
def test_their_own_datasets_is_found_wherever_ours_lies_on_the_path(write, monkeypatch, package, entry):
    """In the project's root, or with it in PYTHONPATH, the project's own folder would come first."""
    monkeypatch.chdir(REPO_ROOT)
    if entry is not None:
        monkeypatch.syspath_prepend(entry)
    write_datasets(write, "theirs", package)
    file = write("theirs/build.py", ASKS_FOR_DATASETS)
    before = ours_of_datasets()
    assert "datasets.masks" in before
    net = load_foreign(f"{file}:make", "none", CLASSES)
    for _ in range(2):
        assert (net(images())["out"] == 7.0).all()
    assert ours_of_datasets() == before
    assert importlib.import_module("datasets.masks").read_pair
    assert "datasets.late" in net.home.modules


def test_an_installed_package_named_as_a_folder_of_ours_is_theirs(write, monkeypatch, tmp_path):
    """It is executed once, and kept apart from ours, which several of its submodules share their names with."""
    write_datasets(write, "site", package=True)
    write("site/datasets/__init__.py", "import installed_log\ninstalled_log.TIMES.append(1)")
    write("site/installed_log.py", "TIMES = []")
    monkeypatch.syspath_prepend(tmp_path / "site")
    sys.path.append(sys.path.pop(0))  # after ours, as site-packages stand
    monkeypatch.setitem(sys.modules, "installed_log", types.SimpleNamespace(TIMES=[]))
    file, before = write("theirs/build.py", ASKS_FOR_DATASETS), ours_of_datasets()
    net = load_foreign(f"{file}:make", "none", CLASSES)
    for _ in range(2):
        assert (net(images())["out"] == 7.0).all()
    assert ours_of_datasets() == before
    assert sys.modules["installed_log"].TIMES == [1]


def test_what_we_import_only_after_them_is_ours(write, monkeypatch, tmp_path):
    write("site/download.py", "WHO = 7.0")
    monkeypatch.delitem(sys.modules, "download", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "site")
    sys.path.append(sys.path.pop(0))
    file = write("theirs/build.py", NET + "import download\nassert download.WHO == 7.0\n")
    load_foreign(f"{file}:Net", "none", CLASSES)
    assert importlib.import_module("download").obtain
    del sys.modules["download"]


def test_folders_their_code_adds_to_the_search_path_count(write):
    write("lib/models/__init__.py", "from .parts import Net")
    write("lib/models/parts.py", NET)
    text = "import os, sys\nsys.path.insert(0, os.path.join(os.path.dirname(__file__), 'x', '..', 'lib'))\n"
    file = write("tools/../build.py", text + "import models\ndef make():\n    return models.Net(2)\n")
    write("x/empty.txt", "")
    assert load_foreign(f"{file}:make")(images())["out"].shape[1] == 2


def test_a_file_that_asks_for_ours_by_its_folder_gets_them(write):
    text = f"import sys\nsys.path.insert(0, {REPO_ROOT!r})\ndef make(num_classes):\n    import models\n"
    file = write("build.py", text + "    return models.build_model('mobilenetv2', num_classes)\n")
    net = load_foreign(f"{file}:make", "none", 2)
    assert isinstance(net.net, models.MobileNetV2)


def test_a_file_in_a_package_reaches_its_siblings(write):
    write("unet/__init__.py", "")
    write("unet/parts.py", NET)
    write("unet/test_ignored.py", "raise SystemExit('nobody asked for this file')")
    file = write("unet/models.py", "from .parts import Net\nfrom unet import parts\nassert parts.Net is Net\n")
    assert load_foreign(f"{file}:Net", "none", 4)(images())["out"].shape[1] == 4


def test_a_neighbour_that_is_in_use_already_is_shared(write, monkeypatch, tmp_path):
    """As for a model file that stands among the modules it imports and that this process runs."""
    file = write("build.py", "import guest_neighbour\n" + NET)
    write("guest_neighbour.py", "")
    monkeypatch.syspath_prepend(tmp_path)
    shared = importlib.import_module("guest_neighbour")
    net = load_foreign(f"{file}:Net", "none", 2)
    assert net.home.modules["build"].guest_neighbour is shared is sys.modules.pop("guest_neighbour")


def test_only_the_named_file_is_executed(write):
    write("other.py", "raise RuntimeError('executed')")
    write("setup.py", "raise RuntimeError('executed')")
    file = write("build.py", NET + "def make():\n    return Net(2)\n")
    assert load_foreign(f"{file}:make").net.head.out_channels == 2


def test_a_name_of_the_standard_library_stays_the_librarys(write):
    write("random.py", "raise RuntimeError('not the library')")
    write("torch.py", "raise RuntimeError('not torch')")
    file = write("types.py", "import random, torch\nfrom types import ModuleType\n" + NET)
    assert load_foreign(f"{file}:Net", "none", 2).net.head.out_channels == 2


# ---- what can be wrong with it


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        ("def make(): return 3", "make", r"make\(\) returns int, not a torch.nn.Module at .*build.py; "),
        ("def make(): return 3", "maker", r"no function 'maker' at .*build.py; did you mean 'make'\?"),
        ("make = 3", "make", "no function 'make'"),
        ("x = 1\nx.y", "make", r"build.py raises AttributeError: 'int' object has no attribute 'y' at .*build.py:2$"),
        ("def make(:", "make", r"build.py raises SyntaxError: .* at .*build.py:1$"),
        ("import sys\nsys.exit('usage')", "make", r"build.py raises SystemExit: usage at .*build.py:2$"),
        ("def make():\n  return [][1]", "make", r"make\(\) raises IndexError: list index .* at .*build.py:2$"),
        ("def make(cfg, num_classes): pass", "make", r"make\(\) needs cfg at .*build.py; name a function"),
    ],
)
def test_what_is_wrong_in_their_file_is_one_line(write, text, function, message):
    file = write("build.py", text)
    with pytest.raises(UserError, match=message) as error:
        load_foreign(f"{file}:{function}", "none", CLASSES)
    assert "\n" not in str(error.value)


def test_what_is_wrong_with_the_flag(write, tmp_path):
    for text, message in (
        ("build.py", "names no function"),
        (":make", "names no function"),
        (f"{tmp_path}/no.py:make", "no such file at .*no.py"),
        (f"{write('weights.txt', '')}:make", "no Python file"),
    ):
        with pytest.raises(UserError, match=message):
            load_foreign(text)


def test_the_number_of_classes_goes_where_the_function_asks(write):
    file = write(
        "build.py",
        NET + "def default(num_classes=21):\n    return Net(num_classes)\n"
        "def other(n_classes, *args, **kwargs):\n    return Net(n_classes)\ndef none():\n    return Net(7)\n",
    )
    for function, number, wanted in (("default", 5, 5), ("default", None, 21), ("other", 3, 3), ("none", 7, 7)):
        assert load_foreign(f"{file}:{function}", "none", number).net.head.out_channels == wanted
    with pytest.raises(UserError, match=r"other\(\) needs n_classes"):
        load_foreign(f"{file}:other")


# ---- weights


@pytest.fixture
def net_file(write):
    return f"{write('build.py', NET)}:Net"


def saved(path, content):
    torch.save(content, path)
    return str(path)


@pytest.mark.parametrize("wrap", [(), ("state_dict",), ("model",), ("model_state_dict",), ("net",), ("state", "model")])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_weights_load_bare_or_wrapped(net_file, tmp_path, wrap, prefix):
    source = Answers(None).state_dict()
    content = {prefix + key: value for key, value in source.items()}
    for key in wrap:
        content = {key: content, "epoch": 3, "step": torch.tensor(7)}
    net = load_foreign(net_file, saved(tmp_path / "w.pth", content), CLASSES)
    assert not net.training
    assert all(net.net.state_dict()[key].equal(value) for key, value in source.items())


def test_a_network_wrapped_for_data_parallel_takes_bare_keys(write, tmp_path):
    file = write("build.py", NET + "def make():\n    return nn.Sequential()\n" + WRAPPED)
    source = Answers(None).state_dict()
    net = load_foreign(f"{file}:wrapped", saved(tmp_path / "w.pth", source), CLASSES)
    assert net.net.module.head.weight.equal(source["head.weight"])


WRAPPED = """
class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

def wrapped(num_classes):
    return Wrapper(Net(num_classes))
"""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("head.bias"), r"1 missing \(head.bias\) at .*w.pth; "),
        (lambda s: s.update(extra=torch.ones(1)), r"1 unexpected \(extra\)"),
        (
            lambda s: (s.pop("head.bias"), s.update({f"x{i}": torch.ones(1) for i in range(7)})),
            r"1 missing \(head.bias\); 7 unexpected \(x0, x1, x2, x3, x4 and 2 more\)",
        ),
        (lambda s: s.update({"head.bias": torch.ones(9)}), r"1 of another shape \(head.bias \(9,\) for \(5,\)\)"),
    ],
)
def test_weights_that_do_not_fit_are_listed(net_file, tmp_path, change, message):
    state = dict(Answers(None).state_dict())
    change(state)
    with pytest.raises(UserError, match=message):
        load_foreign(net_file, saved(tmp_path / "w.pth", state), CLASSES)


def test_files_that_are_no_weights(net_file, tmp_path, write):
    whole = saved(tmp_path / "whole.pth", nn.Conv2d(3, 5, 4))
    with pytest.raises(UserError, match="cannot be read as weights .*saved state dict"):
        load_foreign(net_file, whole, CLASSES)
    with pytest.raises(UserError, match="no weights in this file"):
        load_foreign(net_file, saved(tmp_path / "e.pth", {"epoch": 3}), CLASSES)
    with pytest.raises(UserError, match="cannot be read as weights"):
        load_foreign(net_file, str(write("text.pth", "no weights")), CLASSES)
    with pytest.raises(UserError, match="no such weights file"):
        load_foreign(net_file, "missing.pth", CLASSES)


def test_a_flipped_bit_in_the_weights_is_found(net_file, tmp_path):
    state, path = Answers(None).state_dict(), tmp_path / "w.pth"
    saved(path, state)
    content = bytearray(path.read_bytes())
    content[content.index(state["head.weight"].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="damaged weights file .checksum of .* differs"):
        load_foreign(net_file, str(path), CLASSES)


# ---- what it answers


@pytest.mark.parametrize(
    "answer",
    [
        lambda logits: logits,
        lambda logits: {"out": logits, "aux": None},
        lambda logits: {"loss": None, "logits": logits},
        lambda logits: (logits, logits * 2),
        lambda logits: [logits],
        lambda logits: types.SimpleNamespace(logits=logits),
        lambda logits: logits.to(torch.bfloat16).double(),
    ],
)
def test_every_kind_of_answer_becomes_logits_of_the_images_size(answer):
    net = Answers(answer)
    batch = images()
    found = Foreign(net, CLASSES)(batch)
    assert list(found) == ["out"]
    assert found["out"].dtype == torch.float32
    expected = F.interpolate(net.head(batch), batch.shape[2:], mode="bilinear", align_corners=False)
    torch.testing.assert_close(found["out"], expected, atol=0.01, rtol=0.01)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda logits: logits.argmax(1), "returns 2 x 16 x 24 int64, not logits of 2 x 5 x height x width"),
        (lambda logits: logits.argmax(1, keepdim=True), "returns 2 x 1 x 16 x 24 int64"),
        (lambda logits: logits[:1], "returns 1 x 5 x 16 x 24 float32"),
        (lambda logits: logits[:, :3], r"knows 3 classes, the data set has 5 \(logits 2 x 3 x 16 x 24"),
        (lambda logits: {"mask": logits}, "returns dict with 'mask', no logits"),
        (lambda logits: None, "returns NoneType, no logits"),
        (lambda logits: [], "returns list, no logits"),
        (lambda logits: logits.view(7), "raises RuntimeError: .*at .*test_foreign.py"),
    ],
)
def test_answers_that_are_no_logits_say_what_came(answer, message):
    net = Foreign(Answers(answer), CLASSES, ImportIsolation([__file__.rpartition("/")[0]]))
    with pytest.raises(UserError, match=message):
        net(images())


def test_out_of_memory_stays_what_it_is():
    def fail(_):
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(torch.OutOfMemoryError):
        Foreign(Answers(fail), CLASSES)(images())


STRANGERS = {
    "torchvision": "from torchvision.models.segmentation import lraspp_mobilenet_v3_large as lraspp\n"
    "def make(num_classes):\n    return lraspp(weights=None, weights_backbone=None, num_classes=num_classes)\n",
    "smp": "import segmentation_models_pytorch as smp\n"
    "def make(num_classes):\n    return smp.Unet('mobilenet_v2', encoder_weights=None, classes=num_classes)\n",
    "own": NET + "make = Net\n",
}


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_predict_and_learn_as_ours_do(write, tmp_path, name):
    """Weights saved by the library itself, loaded through the file, give the library's own answer."""
    reference = {
        "torchvision": lambda: segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=CLASSES
        ),
        "smp": lambda: smp.Unet("mobilenet_v2", encoder_weights=None, classes=CLASSES),
        "own": lambda: Answers(lambda logits: logits),
    }[name]().eval()
    weights = saved(tmp_path / "w.pth", {"state_dict": reference.state_dict()})
    net = load_foreign(f"{write('build.py', STRANGERS[name])}:make", weights, CLASSES)
    preparation = build_preparation()
    predictor = Predictor(net, CLASSES, data.Geometry([64, 96]), CPU, preparation)
    raw = torch.randint(0, 256, (2, 64, 96, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = reference(Normalise()(data.to_float(raw)))
    wanted = wanted["out"] if isinstance(wanted, dict) else wanted
    wanted = F.interpolate(wanted, (64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(predictor.logits(raw), wanted, atol=1e-4, rtol=1e-3)

    models.train_mode(net)
    criterion = losses.Criterion({"ce": [1.0]}, CLASSES, preparation, aux_weights=net.aux_weights)
    targets = torch.zeros(2, 64, 96, dtype=torch.uint8)
    batch_loss(net, criterion, data.to_float(raw), targets).backward()
    assert all(p.grad is not None for p in net.parameters())


# ---- what enters it


def prepared(*words):
    parser = cli.Parser("test")
    add_foreign_flags(parser)
    return build_preparation(**preparation_options(parser.parse_args(list(words))))


def test_the_default_is_our_own_normalisation():
    assert prepared()(images()).equal(Normalise()(images()))
    flipped = prepared("--channel-order", "bgr")(images())
    assert flipped.equal(Normalise()(images()).flip(1))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--mean", "0,0,0", "--std", "1,1,1"), lambda x: x),
        (("--mean", "0,0,0", "--std", "1/255,1/255,1/255"), lambda x: 255 * x),
        (("--mean", "0.5,1/2,0.5", "--std", "0.5,0.5,0.5"), lambda x: 2 * x - 1),
        (("--mean", "127.5,127.5,127.5", "--std", "127.5,127.5,127.5"), lambda x: 2 * x - 1),
        (("--mean", "123.675,116.28,103.53", "--std", "58.395,57.12,57.375"), lambda x: Normalise()(x)),
        (("--mean", "123.675,116.28,103.53"), lambda x: Normalise()(x)),
        (
            ("--mean", "104,117,123", "--std", "1,1,1", "--channel-order", "bgr"),  # Caffe
            lambda x: 255 * x.flip(1) - torch.tensor([104.0, 117.0, 123.0]).view(3, 1, 1),
        ),
    ],
)
def test_numbers_of_either_range_and_fractions(words, expected):
    torch.testing.assert_close(prepared(*words)(images()), expected(images()), atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "words", [("--mean", "1,2"), ("--std", "a,b,c"), ("--mean", "1/0,0,0"), ("--std", "0,1,1"), ("--mean", "nan,0,0")]
)
def test_numbers_that_cannot_be_meant(words):
    with pytest.raises(UserError, match=words[0]):
        prepared(*words)
