"""Checkpoints: written whole or not at all, checked before they are believed.

Only this module writes `.pth` files. A checkpoint holds dicts, lists, numbers, strings and tensors, so that
`torch.load(weights_only=True)` always reads it. "How to rebuild the model" (`model`, `state`, `data`) and "how it was
trained" (`config`, `progress`, and `training` in last.pth) are apart.
"""

import hashlib
import os
import pickle
import zipfile
from pathlib import Path

import torch

from cli import UserError, warn
from models import build_model

FORMAT = "honestseg 1"


def save_checkpoint(path, content, keep_previous=False):
    """Write a checkpoint under a temporary name, flush it to disk, and rename it.

    keep_previous: the file that stood there stays as NAME.previous.pth. A kill at any moment leaves a whole file under
    one of the two names.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.part")
    try:
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        temporary.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise UserError(f"cannot write the checkpoint ({reason})", path, "free some space and --resume") from None
    if keep_previous and path.exists():
        os.replace(path, previous_of(path))
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    finally:
        os.close(folder)


def previous_of(path):
    """The name under which the checkpoint before this one is kept."""
    return Path(path).with_suffix(".previous.pth")


def load_checkpoint(path):
    """Read a checkpoint on the CPU, after comparing every part with its checksum.

    torch.load alone does not look at the checksums: a flipped bit in a weight would load as another weight.
    Raises UserError for a file that is missing, no checkpoint, cut short, damaged, or of another format.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError("no checkpoint", path, "train first (python train.py), or check the path")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise UserError(f"no checkpoint, or one cut short ({error})", path, "use another checkpoint") from None
    if damaged:
        raise UserError(f"damaged checkpoint (checksum of {damaged} differs)", path, "use another checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, KeyError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"this file cannot be read as a checkpoint ({reason})", path, "use another one") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format", "none") if isinstance(content, dict) else type(content).__name__
        remedy = "plain weights go to train.py --weights; a checkpoint is written by train.py"
        raise UserError(f"no {FORMAT} checkpoint (format {found})", path, remedy)
    return content


def load_last(run_dir):
    """The newest whole checkpoint of a run: last.pth or, saying so, the one before it.

    Raises UserError when neither can be read.
    """
    path = Path(run_dir) / "last.pth"
    try:
        return load_checkpoint(path)
    except UserError as error:
        if not previous_of(path).is_file():
            raise
        warn(f"{error}; falling back to {previous_of(path).name}")
        return load_checkpoint(previous_of(path))


def load_model(path):
    """Rebuild the model of a checkpoint: (model in evaluation mode on the CPU, the checkpoint).

    Raises UserError for a checkpoint that cannot be read or whose weights are not exactly the model's.
    """
    content = load_checkpoint(path)
    model = build_model(content["model"]["name"], len(content["data"]["classes"]), content["model"]["options"])
    load_state(model, content["state"], path)
    return model.eval(), content


def load_state(model, state, where):
    """Load weights strictly: every key of the model, no other key, every shape.

    Raises UserError listing what is missing, unexpected or of another shape.
    """
    own = model.state_dict()
    faults = [f"missing {key}" for key in own.keys() - state.keys()]
    faults += [f"unexpected {key}" for key in state.keys() - own.keys()]
    faults += [f"shape of {key}" for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if faults:
        shown = ", ".join(sorted(faults)[:5])
        raise UserError(f"{len(faults)} weights do not fit the model: {shown}", where, "use the model it came from")
    model.load_state_dict(state)


def fingerprint(model):
    """{module name: {"norm", "hash"}} of each module's own parameters, to see later which never changed."""
    prints = {}
    for name, module in model.named_modules():
        own = [p.detach().cpu().contiguous() for p in module.parameters(recurse=False)]
        if own:
            digest = hashlib.sha256(b"".join(p.numpy().tobytes() for p in own)).hexdigest()[:16]
            norm = sum(float(p.double().square().sum()) for p in own) ** 0.5
            prints[name] = {"norm": norm, "hash": digest}
    return prints
