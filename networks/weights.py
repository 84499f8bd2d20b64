"""How pretrained weights get into a model: from torchvision, or from a file whose own keys tell what it holds."""

import http.client
import pickle
import re
import sys
import zipfile
from collections import Counter
from pathlib import Path

import torch

from cli import UserError
from networks.key_styles import DERIVED, to_torchvision

# Under which names checkpoints keep their weights.
WRAPPERS = ("state", "state_dict", "model_state_dict", "model_state", "model", "net", "network", "params", "weights")

OPTIONAL = ("aux_classifier.", "property_head.", "residual_head.")  # heads that only one of file and model may have
# A file may lack what the model makes for itself: Swin's tables of positions, batch norm's counters (torch 0.4).
OWN_TENSORS = (*DERIVED, "num_batches_tracked")


def load_weights(model, source):
    """Start the model from pretrained weights and return lines that say what was loaded and what was not.

    source: "none"; "imagenet", torchvision's weights for the backbone, or "coco", torchvision's for the whole model,
    both downloaded; or a file with a state dict of the backbone (torchvision's or timm's keys, PVT's own) or of a whole
    model (torchvision's segmentation checkpoints, ours), bare or under "state_dict", "model" or "state", with or
    without "module." before every key. The keys themselves tell which.

    Loading is strict. What may stay unloaded: the ImageNet classifier; layers that have another number of classes; an
    auxiliary or a second head that only one side has.
    Raises UserError for anything else that is missing, unexpected or of another shape, and for an unreadable file.
    """
    if source == "none":
        return [f"new, random: the whole model ({len(model.state_dict())} tensors)"]
    if source in ("imagenet", "coco"):
        published = getattr(model, source)
        if published is None:
            remedy = "give a file of its weights, or none"
            raise UserError(f"torchvision has no {source} weights for {model.name}", f"--weights {source}", remedy)
        return _load(model, download(published), str(published))
    return _load(model, read_tensors(source), source)


def download(weights):
    """The state dict of one of torchvision's weights, from torch hub's cache or the network.

    Raises UserError, with the remedy, where it cannot be had.
    """
    try:
        return weights.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, map_location="cpu", weights_only=True
        )
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, pickle.UnpicklingError) as error:
        remedy = f"download {weights.url} on a connected machine and give the file with --weights FILE"
        raise UserError(f"cannot get torchvision's weights ({_first_line(error)})", weights.url, remedy) from None


def read_tensors(path):
    """The {key: tensor} in a weights file of any of the kinds that `load_weights` names, on the CPU.

    Raises UserError for a file that is missing, no weights file, cut short or damaged.
    """
    if not Path(path).is_file():
        raise UserError("no such weights file", path, "give --weights none, imagenet, or a file that exists")
    damaged = None
    try:
        if zipfile.is_zipfile(path):  # torch does not compare checksums: a flipped bit would load as another weight
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        content = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling a file that is cut short, or no weights at all, raises nearly anything
        remedy = "give a file of tensors alone (a saved state dict), whole"
        raise UserError(f"this file cannot be read as weights ({_first_line(error)})", path, remedy) from None
    if damaged:
        raise UserError(f"damaged weights file (checksum of {damaged} differs)", path, "copy or download it again")
    return _unwrap(content, path)


def read_class_names(source):
    """The class names of --weights where it is a checkpoint of ours, None where it is anything else."""
    if source in ("none", "imagenet", "coco") or not zipfile.is_zipfile(source):
        return None
    try:
        content = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, OSError, EOFError, ValueError):
        return None  # `load_weights` says what is wrong with the file
    about = content.get("data") if isinstance(content, dict) else None
    return about.get("classes") if isinstance(about, dict) else None


def _unwrap(content, path):
    """The state dict inside a checkpoint, without the "module." that data parallel training puts before each key."""
    while isinstance(content, dict) and (inner := [content[k] for k in WRAPPERS if isinstance(content.get(k), dict)]):
        content = inner[0]
    named = isinstance(content, dict) and all(isinstance(k, str) and torch.is_tensor(v) for k, v in content.items())
    if not named or not content:
        remedy = 'give a state dict, bare or under "state_dict" or "model"'
        raise UserError("no weights in this file (they are tensors by name)", path, remedy)
    if all(key.startswith("module.") for key in content):
        return {key.removeprefix("module."): value for key, value in content.items()}
    return content


def _load(model, state, origin):
    """Load a state dict into the whole model or, if it is not one of a whole model, into the backbone."""
    whole = any(key.startswith("backbone.") for key in state)
    if whole:
        # torchvision's DeepLab keeps MobileNetV3's blocks right under "backbone."
        state = {re.sub(r"^backbone\.(\d+)\.", r"backbone.features.\1.", key): value for key, value in state.items()}
        style = "own"
    else:
        state, style = to_torchvision(state)
    target = model if whole else model.backbone
    own = target.state_dict()
    left, new = _class_difference(model, state, own) if whole else (model.left_out & state.keys(), set())
    loaded = {key: state[key] for key in own if key in state and key not in new}
    _check_fit(model, own, state, loaded, left, new, origin)
    target.load_state_dict({**own, **loaded})
    from_file = set(loaded) if whole else {f"backbone.{key}" for key in loaded}
    fresh = {key for key in model.state_dict() if key not in from_file and not key.endswith(OWN_TENSORS)}
    keys = f" ({style} keys)" if style.startswith("timm") else ""
    lines = [f"loaded from {origin}{keys}: {_groups(from_file)}"]
    if left:
        lines.append("left in file: " + ", ".join(sorted(left)))
    if fresh:
        lines.append(f"new, random: {_groups(fresh)}")
    return lines


def _groups(keys):
    """'backbone (312 tensors), classifier (2)': keys counted by the part of the model they belong to."""
    counts = Counter(key.partition(".")[0] for key in sorted(keys))
    return ", ".join(f"{name} ({n} tensors)" for name, n in counts.items())


def _class_difference(model, state, own):
    """The keys that a whole model's file and the model need not share: (left in the file, new in the model).

    They are the layers with another number of classes, and a head of `OPTIONAL` that only one of the two has.
    """
    layers = [f"{layer}.{part}" for layer in model.class_layers for part in ("weight", "bias")]
    differ = {key for key in layers if key in state and state[key].shape[:1] != own[key].shape[:1]}
    left, new = set(differ), set(differ)
    for head in OPTIONAL:
        in_file, in_model = ({key for key in keys if key.startswith(head)} for keys in (state, own))
        left |= set() if in_model else in_file
        new |= set() if in_file else in_model
    return left, new


def _check_fit(model, own, state, loaded, left, new, origin):
    """Raise UserError unless the file holds exactly the tensors expected of it, in the model's shapes."""
    missing = own.keys() - loaded.keys() - new
    missing = {key for key in missing if not key.endswith(OWN_TENSORS)}
    unexpected = state.keys() - loaded.keys() - left
    shapes = {key for key in loaded if loaded[key].shape != own[key].shape}
    if misfits := describe_misfits({"missing": missing, "unexpected": unexpected, "of another shape": shapes}):
        such = f" (such as {model.imagenet.url.rpartition('/')[2]})" if model.imagenet else ""
        remedy = f"give a checkpoint of this model or ImageNet weights of its backbone{such}"
        raise UserError(f"these weights do not fit {model.name}: {misfits}", origin, remedy)


def describe_misfits(faults):
    """'7 missing (a, b, c, d, e and 2 more); 1 unexpected (f)' of {what is wrong: keys}; "" where nothing is."""
    texts = []
    for what, keys in faults.items():
        more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
        texts += [f"{len(keys)} {what} ({', '.join(sorted(keys)[:5])}{more})"] * bool(keys)
    return "; ".join(texts)


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]
