"""Somebody else's model: a function in a Python file the user names, its weights, and what enters it.

`load_foreign` calls the function, loads the weights strictly and wraps the network in `Foreign`, which answers as our
own models do. The file keeps its own world of imports (`ImportIsolation`): its `models.py` and `data.py` are found
before ours, and ours stay where they are.
"""

import argparse
import contextlib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from fractions import Fraction
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from cli import UserError, nearest
from networks.blocks import MEAN, STD, Normalise
from networks.weights import describe_misfits, read_tensors

IMAGENET = MEAN, STD
CLASS_COUNTS = ("num_classes", "n_classes", "nclass", "classes")  # how a function calls the number of its classes
REPO_ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
SHARED = {*sys.stdlib_module_names, "torch", "torchvision", "numpy", "PIL"}  # the same modules for them and for us


def add_foreign_flags(parser):
    """The flags of somebody else's model; its weights come with --weights."""
    group = parser.add_argument_group("somebody else's model")
    group.add_argument(
        "--model-from",
        default="",
        metavar="FILE.py:FUNCTION",
        help="a function that returns the network, called with the number of classes if it asks for one; empty: off",
    )
    group.add_argument(
        "--mean",
        type=three_numbers,
        metavar="A,B,C",
        help="taken off the channels, in the order the network wants them, of images in [0, 1], or in [0, 255] where a "
        "number is above 1.5; fractions too; empty: ImageNet's",
    )
    group.add_argument("--std", type=three_numbers, metavar="A,B,C", help="what they are then divided by, likewise")
    group.add_argument("--channel-order", default="rgb", choices=("rgb", "bgr"), help="as the network wants it")


def three_numbers(text):
    """'0.5,1/2,0.5' -> (0.5, 0.5, 0.5)."""
    try:
        values = tuple(float(Fraction(part.strip())) for part in text.split(","))
    except (ValueError, ZeroDivisionError, OverflowError):
        values = ()
    if len(values) != 3:
        raise argparse.ArgumentTypeError(f"{text!r} is not three numbers; write them like 0.485,0.456,0.406")
    return values


# ---------------------------------------------------------------------------------------------------------------------
# What enters the network


class Preparation(Normalise):
    """RGB images (N, 3, H, W) float in [0, 1] -> the network's channel order, then (x - mean) / std.

    mean, std: three numbers in the network's own channel order, of images in [0, 1]. channel_order: rgb or bgr.
    """

    def __init__(self, mean, std, channel_order):
        super().__init__(mean, std)
        self.channel_order = channel_order

    def forward(self, images):
        return super().forward(images.flip(1) if self.channel_order == "bgr" else images)


def preparation_options(args):
    """What the flags of somebody else's input say, as `build_preparation` takes it."""
    return {"mean": args.mean, "std": args.std, "channel_order": args.channel_order}


def build_preparation(mean=None, std=None, channel_order="rgb"):
    """The Preparation that --mean, --std and --channel-order describe; what is not given is ImageNet's.

    A mean or std with a number above 1.5 is of images in [0, 255]; a std of 1 beside such a mean is so, too: there it
    stands for "not divided", as in networks that came from Caffe.
    Raises UserError for a std that is not above 0.
    """
    turn = -1 if channel_order == "bgr" else 1
    mean, std = mean or IMAGENET[0][::turn], std or IMAGENET[1][::turn]
    if min(std) <= 0:
        raise UserError(f"standard deviation {min(std):g}", "--std", "give numbers above 0")
    bytes_in = max(map(abs, mean)) > 1.5
    if max(std) > 1.5 or (bytes_in and min(std) == 1):
        std = tuple(value / 255 for value in std)
    if bytes_in:
        mean = tuple(value / 255 for value in mean)
    return Preparation(mean, std, channel_order)


# ---------------------------------------------------------------------------------------------------------------------
# Their imports


def _names_in(folder):
    """The names under which the modules and packages in a folder are imported."""
    folder = Path(folder)
    return {file.stem for file in folder.glob("*.py")} | {file.parent.name for file in folder.glob("*/__init__.py")}


OURS = _names_in(REPO_ROOT) - SHARED - {"__main__"}


class ImportIsolation:
    """Where somebody else's code finds its imports: in its own folder first, in no module or folder of ours.

    Python keeps one table of modules, in which `models` and `datasets` are ours. While their code runs (`with
    at_home()`) that table shows theirs under such names, afterwards ours again, so that an import inside a function or
    a forward pass finds the same file as one at the top. Theirs is what lies in their folders, and an installed
    package that is called as one of ours. What is shared is the standard library, torch, torchvision, numpy, PIL, and
    every other installed package. Not for several threads at once: the table is the whole process's.

    path: folders searched before all others, to which their code may add; modules: {name: module} of theirs.
    """

    def __init__(self, folders):
        self.path = list(dict.fromkeys(os.path.abspath(folder) for folder in folders))
        self.modules = {}

    def __deepcopy__(self, memo):
        return self  # a copied network runs the same code

    @contextlib.contextmanager
    def at_home(self):
        """Let imports find their files; afterwards sys.path and sys.modules are what they were."""
        path, modules, state = sys.path[:], dict(sys.modules), _global_state()
        for name in self._hidden(modules):
            del sys.modules[name]
        shared = {name.partition(".")[0] for name in sys.modules}
        sys.modules.update(self.modules)
        visible = self.path + [entry for entry in path if os.path.realpath(entry) != REPO_ROOT]
        sys.path[:] = visible
        try:
            yield
        finally:
            _restore(state)
            self.path += [entry for entry in sys.path if entry not in visible]
            self.modules = {name: module for name, module in [*sys.modules.items()] if self._owns(name, module, shared)}
            sys.path[:] = path  # only now: a folder without __init__.py looks itself up in it
            for name in self.modules:
                del sys.modules[name]
            sys.modules.update(modules)

    def _hidden(self, modules):
        """Names of the modules that are ours, or are called as files beside theirs; submodules included."""
        names = OURS.union(*map(_names_in, self.path)) - SHARED - {"__main__"}
        tops = {name for name in names if name in modules and not self._holds(modules[name])}
        return [name for name in modules if name.partition(".")[0] in tops]

    def _owns(self, name, module, shared):
        """Whether a module is theirs alone. shared: the top-level names of the modules that are not."""
        top = name.partition(".")[0]
        return top not in shared and (top in OURS or self._holds(module))

    def _holds(self, module):
        """Whether a module lies in one of the folders."""
        place = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
        return place is not None and self._contains(place)

    def _contains(self, place):
        return any(Path(os.path.abspath(place)).is_relative_to(os.path.abspath(folder)) for folder in self.path)

    def explain(self, error, what):
        """Their exception as one line: its type, its text, and the deepest line of their own code that it passed."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if self._contains(frame.filename)]
        file, line = (own or frames)[-1].filename, (own or frames)[-1].lineno
        if isinstance(error, SyntaxError) and error.filename:
            file, line = error.filename, error.lineno
        text = " ".join(str(error).split())[:300]
        return UserError(f"{what} raises {type(error).__name__}{text and ': ' + text}", f"{file}:{line}")


def _global_state():
    """What their code may change for the whole process."""
    return torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device(), os.getcwd()


def _restore(state):
    gradients, dtype, device, folder = state
    torch.set_grad_enabled(gradients)
    if torch.get_default_dtype() != dtype:
        torch.set_default_dtype(dtype)
    if torch.get_default_device() != device:
        torch.set_default_device(device)
    os.chdir(folder)


def import_file(path):
    """Execute a Python file as a module: (module, its ImportIsolation).

    A file inside a package (a folder with __init__.py) is imported as its part, so that `from .parts import x` works.
    Raises UserError for a file that is not there, no Python file, or raises an exception.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no such file", path, "--model-from FILE.py:FUNCTION names a Python file")
    if path.suffix != ".py":
        raise UserError("no Python file", path, "--model-from FILE.py:FUNCTION names a file that ends in .py")
    top, parts = path.resolve().parent, [] if path.stem == "__init__" else [path.stem]
    while (top / "__init__.py").is_file():
        top, parts = top.parent, [top.name, *parts]
    home = ImportIsolation([path.resolve().parent, top])
    importlib.invalidate_caches()  # files may be newer than what Python remembers of the folder
    with home.at_home():
        try:
            module = _execute(path.resolve(), parts)
        except (Exception, SystemExit) as error:  # theirs may be anything
            raise home.explain(error, path.name) from error
    return module, home


def _execute(path, parts):
    if len(parts) != 1:
        return importlib.import_module(".".join(parts))
    name = parts[0] if parts[0] not in sys.modules else f"foreign {parts[0]}"  # a namesake of what is shared
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---------------------------------------------------------------------------------------------------------------------
# The network and its weights


def load_foreign(text, weights="none", num_classes=None):
    """Somebody else's network in evaluation mode, as a `Foreign`.

    text: "FILE.py:FUNCTION"; the function (or class) is called with num_classes where it has a parameter of that
    meaning, else without anything. weights: "none" for what the function returns, or a file with a state dict, bare or
    wrapped, its keys with or without "module.". num_classes: what every pixel's logits must count, None for any.
    Only this file is executed, and what it imports. Raises UserError for whatever goes wrong in it or with it.
    """
    file, colon, function = text.rpartition(":")
    if not (colon and file and function):
        raise UserError(f"{text!r} names no function", "--model-from", "write FILE.py:FUNCTION")
    module, home = import_file(file)
    maker = getattr(module, function, None)
    if not callable(maker):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UserError(f"no function {function!r}", file, nearest(function, sorted(known)))
    net = _make(maker, function, file, num_classes, home)
    if weights != "none":
        load_strictly(net, read_tensors(weights), weights, home)
    return Foreign(net, num_classes, home).eval()


def _make(maker, function, file, num_classes, home):
    """Call their function, which must return a network."""
    options = _class_option(maker, function, file, num_classes)
    with home.at_home():
        try:
            net = maker(**options)
        except (Exception, SystemExit) as error:
            raise home.explain(error, f"{function}()") from error
    if not isinstance(net, nn.Module):
        what = f"{function}() returns {type(net).__name__}, not a torch.nn.Module"
        raise UserError(what, file, "return the network itself")
    if any(map(nn.parameter.is_lazy, net.parameters())):
        raise UserError(f"{function}() returns layers without weights", file, "show it one batch before returning it")
    return net


def _class_option(maker, function, file, num_classes):
    """{the parameter's own name: num_classes} where their function has such a parameter, else {}."""
    try:
        parameters = inspect.signature(maker).parameters
    except (TypeError, ValueError):  # written in C: nothing is known of it
        return {}
    wanted = next((name for name in CLASS_COUNTS if name in parameters), None)
    options = {wanted: num_classes} if wanted and num_classes is not None else {}
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in stars and n not in options]
    if needed:
        remedy = f"name a function that takes nothing or num_classes: def make(num_classes): return {function}(…)"
        raise UserError(f"{function}() needs {', '.join(needed)}", file, remedy)
    return options


def load_strictly(net, state, where, home):
    """Load a state dict: every key of the network, no other key, every shape.

    Keys may differ by the "module." of data parallel training and the "_orig_mod." of a compiled network.
    Raises UserError listing what is missing, unexpected or of another shape.
    """
    own = {_bare(key): key for key in net.state_dict()}
    state = {own.get(_bare(key), key): value for key, value in state.items()}
    shapes = {key: value.shape for key, value in net.state_dict().items() if torch.is_tensor(value)}
    differ = [k for k, v in state.items() if torch.is_tensor(v) and shapes.get(k, v.shape) != v.shape]
    faults = {"of another shape": [f"{k} {tuple(state[k].shape)} for {tuple(shapes[k])}" for k in differ]}
    if not differ:
        with home.at_home():
            try:
                result = net.load_state_dict(state, strict=False)
            except Exception as error:
                raise home.explain(error, "load_state_dict") from error
        faults = {"missing": result.missing_keys, "unexpected": result.unexpected_keys}
    if misfits := describe_misfits(faults):
        what = f"these weights do not fit the network: {misfits}"
        raise UserError(what, where, "use the file that this very network was saved to")


def _bare(key):
    return re.sub(r"^((module|_orig_mod)\.)+", "", key)


# ---------------------------------------------------------------------------------------------------------------------
# The wrapped network


class Foreign(nn.Module):
    """Somebody else's network, answering as ours do: images (N, 3, H, W) -> {"out": logits (N, C, H, W) float32}.

    The network may return logits as a tensor, first in a tuple or list, under "out" or "logits" of a dict, or as
    `.logits`; of another size than the images they are resized (bilinear, align_corners=False). Anything else is a
    UserError that says what came.
    """

    centres = None  # no distance head

    def __init__(self, net, num_classes=None, home=None):
        super().__init__()
        self.net, self.num_classes = net, num_classes
        self.home = home or ImportIsolation([])
        self.aux_weights = {}  # what else it returns in training is no business of the loss here

    def forward(self, images):
        with self.home.at_home():
            try:
                outputs = self.net(images.clone())  # a copy, whatever is done to it in place
            except (torch.OutOfMemoryError, MemoryError):
                raise
            except (Exception, SystemExit) as error:
                raise self.home.explain(error, f"the network, given images of {_size(images)},") from error
        logits = self._checked(find_logits(outputs), images)
        if logits.shape[2:] != images.shape[2:]:
            logits = F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)
        return {"out": logits}

    def _checked(self, logits, images):
        """Float32 logits of the images' number and the data set's classes. Raises UserError."""
        classes = self.num_classes or "C"
        expected = f"{len(images)} x {classes} x height x width"
        if logits.ndim != 4 or len(logits) != len(images) or not logits.is_floating_point():
            what = f"the network returns {_size(logits)} {str(logits.dtype).removeprefix('torch.')}"
            raise UserError(f"{what}, not logits of {expected}", "--model-from", "return logits before any argmax")
        if self.num_classes and logits.shape[1] != self.num_classes:
            what = f"the network knows {logits.shape[1]} classes, the data set has {self.num_classes}"
            raise UserError(f"{what} (logits {_size(logits)}, expected {expected})", "--model-from")
        return logits.float()


def find_logits(outputs):
    """The logits in what a network returned. Raises UserError where there is no tensor to be found."""
    found = outputs
    if isinstance(found, dict):
        found = next((found[key] for key in ("out", "logits") if key in found), found)
    elif not torch.is_tensor(found) and hasattr(found, "logits"):
        found = found.logits
    elif isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not torch.is_tensor(found):
        keys = f" with {', '.join(map(repr, list(outputs)[:6]))}" if isinstance(outputs, dict) else ""
        remedy = 'return a tensor, {"out": tensor} or {"logits": tensor}'
        raise UserError(f"the network returns {type(outputs).__name__}{keys}, no logits", "--model-from", remedy)
    return found


def _size(tensor):
    return " x ".join(map(str, tensor.shape)) or "one number"
