"""A checkpoint as what can be asked: its predictor, its data set, its classes, its layout map."""

import cli
import data
from cli import UserError
from datasets.label_spaces import MERGED, LabelSpace
from engine.checkpoint import load_model
from engine.predictor import Predictor
from networks.blocks import Normalise


def load_predictor(path, device):
    """A checkpoint as (Predictor, the checkpoint's content). Raises UserError as checkpoint.load_model does."""
    model, content = load_model(path)
    about = content["data"]
    normalise = Normalise(about["mean"], about["std"])
    geometry = data.Geometry(**about["geometry"])
    statistics = dict(about.get("statistics") or {})
    if model.centres is not None:
        statistics["centres"] = model.centres.places.detach()
    return Predictor(model, len(about["classes"]), geometry, device, normalise, statistics=statistics), content


def check_classes(spec, content):
    """Raise UserError unless a data set has exactly the classes a checkpoint was trained on."""
    trained = content["data"]["classes"]
    if list(spec.classes) != trained:
        different = sorted(set(spec.classes) ^ set(trained))
        what = f"{spec.name} has {spec.num_classes} classes, the checkpoint {len(trained)}"
        raise UserError(f"{what}, not both: {', '.join(different[:6])}", "--data-dir", "use the set it was trained on")


def trained_on(content, data_dir=None):
    """The data a checkpoint was trained on, as `open_dataset` takes it, in the folders noted there or `data_dir`'s."""
    config = content["config"]
    return {
        "dataset": config["dataset"],
        "data_dir": data_dir or config["data_dir"],
        "label_space": config.get("label_space", "own"),
        "held_out": cli.names(config.get("anomaly_classes", "")),
    }


def space_of(content):
    """The classes a checkpoint was trained in, as a LabelSpace for other sets; what was held out comes last."""
    config, about = content["config"], content["data"]
    held_out = cli.names(config.get("anomaly_classes", ""))
    palette = [tuple(colour) for colour in about["palette"]] + [(255, 255, 255)] * len(held_out)
    merged = MERGED.get(config.get("label_space", "own"), {})
    return LabelSpace((*about["classes"], *held_out), tuple(palette), merged)


def layout_map_of(content):
    """The layout floor's map kept in a checkpoint, (rows, columns) uint8 array."""
    return content["data"]["layout_map"].numpy()
