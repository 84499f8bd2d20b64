"""A trained run as what can be asked: its predictor, the data it was trained on, other sets in its classes."""

import torch

import cli
import data
import metrics
from anomaly.features import ScoreStatistics
from cli import UserError
from datasets.audit import audit_split
from datasets.catalogue import IN_FOLDERS, parse_name
from datasets.label_spaces import MERGED, LabelSpace, declared_classes, declared_names, parse_sets, run_name
from engine.checkpoint import load_model, save_checkpoint
from engine.devices import all_gather, open_dataset
from engine.evaluation import ALARM_RATES, alarm_thresholds, collect_statistics, count_known, merge_all
from engine.predictor import Predictor
from networks.blocks import Normalise

ALARM_RATE = f"{ALARM_RATES[0]:g}"  # of the thresholds in the checkpoint, the one that figures are given for


def load_predictor(path, device="cpu"):
    """A checkpoint as (Predictor, the checkpoint's content). Raises UserError as `load_model` does."""
    model, content = load_model(path)
    about = content["data"]
    normalise = Normalise(about["mean"], about["std"])
    geometry = data.Geometry(**about["geometry"])
    statistics = dict(about.get("statistics") or {})
    if model.centres is not None:
        statistics["centres"] = model.centres.places.detach()
    return Predictor(
        model, len(about["classes"]), geometry, torch.device(device), normalise, statistics=statistics
    ), content


def layout_map_of(content):
    """The layout floor's map kept in a checkpoint, (rows, columns) uint8 array."""
    return content["data"]["layout_map"].numpy()


def alarms_of(content):
    """{score: alarm threshold} of a checkpoint."""
    return {name: rates[ALARM_RATE] for name, rates in content["data"].get("alarms", {}).items()}


# ---------------------------------------------------------------------------------------------------------------------
# Its data, and other sets in its classes


def trained_on(content, data_dir=None):
    """The data a checkpoint was trained on, as `open_dataset` takes it, in the folders noted there or `data_dir`'s."""
    config = content["config"]
    return {
        "dataset": config["dataset"],
        "data_dir": data_dir or config["data_dir"],
        "label_space": config.get("label_space", "own"),
        "held_out": cli.names(config.get("anomaly_classes", "")),
    }


def check_classes(spec, content):
    """Raise UserError unless a data set has exactly the classes a checkpoint was trained on."""
    trained = content["data"]["classes"]
    if list(spec.classes) != trained:
        different = sorted(set(spec.classes) ^ set(trained))
        what = f"{spec.name} has {spec.num_classes} classes, the checkpoint {len(trained)}"
        raise UserError(f"{what}, not both: {', '.join(different[:6])}", "--data-dir", "use the set it was trained on")


def space_of(content):
    """The classes a checkpoint was trained in, as a LabelSpace for other sets; what was held out comes last."""
    config, about = content["config"], content["data"]
    held_out = cli.names(config.get("anomaly_classes", ""))
    palette = [tuple(colour) for colour in about["palette"]] + [(255, 255, 255)] * len(held_out)
    merged = MERGED.get(config.get("label_space", "own"), {})
    return LabelSpace((*about["classes"], *held_out), tuple(palette), merged)


def is_other_set(content, dataset, data_dir=None):
    """Whether --dataset names other sets than the checkpoint's own; a set that only its classes.json describes is told
    by its folder."""
    if dataset is None:
        return False
    own = trained_on(content)
    if run_name(dataset) != run_name(own["dataset"]):
        return True
    named = parse_sets(dataset, data_dir) if data_dir else []
    pairs = zip(named, parse_sets(own["dataset"], own["data_dir"]), strict=False)
    return any(name in IN_FOLDERS and root.resolve() != found.resolve() for (name, root, _), (_, found, _) in pairs)


def own_folders(dataset, own):
    """Where sets lie when nobody says: the run's own where it found them, others in data/NAME; as --data-dir takes it.

    own: `trained_on`. Raises UserError where the run knows several sets of a name.
    """
    found = {}
    for name, root, _ in parse_sets(own["dataset"], own["data_dir"]):
        found.setdefault(parse_name(name)[0], set()).add(root)
    folders = []
    for name, root, _ in parse_sets(dataset, None):
        known = found.get(parse_name(name)[0], {root})
        if len(known) > 1:
            what = f"the model was trained on {len(known)} sets named {name}"
            raise UserError(what, "--dataset", "say which with --data-dir, or leave both out for all")
        folders.append(str(*known))
    return ",".join(folders)


def open_evaluated(content, split, dataset=None, data_dir=None, limit=0):
    """The Split to evaluate: of the checkpoint's own data, or of other sets in its classes.

    dataset, data_dir: as --dataset and --data-dir take them, None for the run's own; limit: the first N images, 0: all.
    Raises UserError.
    """
    own = trained_on(content)
    if not is_other_set(content, dataset, data_dir):
        spec, root = open_dataset(**trained_on(content, data_dir))
        check_classes(spec, content)
        return data.open_split(spec, root, split, limit)
    data_dir = data_dir or own_folders(dataset, own)
    spec, root = open_dataset(dataset, data_dir, held_out=own["held_out"], space=space_of(content))
    for label, part in [(part.label, part.spec) for part in spec.parts] or [(spec.name, spec)]:
        if len(declared_classes(part)) == 1:
            only = declared_names(part)[0]
            raise UserError(f"{label} shares only {only} with the model", "--dataset", "there is nothing to tell apart")
    return data.open_split(spec, root, split, limit)


def is_the_trained_set(part, content):
    """Whether a set is the one that the checkpoint's layout map was made of: by name, or by folder (`is_other_set`)."""
    own = trained_on(content)
    sets = parse_sets(own["dataset"], own["data_dir"])
    same = len(sets) == 1 and part.spec.name == sets[0][0]
    return same and (part.spec.name not in IN_FOLDERS or part.root.resolve() == sets[0][1].resolve())


def own_layouts(split, content, limit):
    """{set: layout map of its own training targets} of the sets that the checkpoint's one map is not made of alone."""
    maps = {}
    for label, part, _ in split.ranges():
        if is_the_trained_set(part, content) or "train" not in {*part.spec.splits, *part.spec.cut}:
            continue
        try:
            train = audit_split(data.open_split(part.spec, part.root, "train", limit), metrics.GRID, images=False)
            if train.error():
                raise train.error()
        except UserError as error:
            cli.warn(f"no floor from {label}'s own layout: {error}")
            continue
        maps[label] = metrics.fit_layout(train.grids, part.spec.num_classes).map
    return maps


def comparable_sets(split, content):
    """The other sets that have classes and a training split, as diagnose's --cross-dataset takes them."""
    return ",".join(
        f"{part.spec.name}:{part.root.as_posix()}"
        for _, part, _ in split.ranges()
        if declared_classes(part.spec)
        and {"train", "val"} <= {*part.spec.splits, *part.spec.cut}
        and not is_the_trained_set(part, content)
    )


# ---------------------------------------------------------------------------------------------------------------------
# What anomaly scores need beside the weights


def add_score_statistics(path, splits, device, *, batch_size=8, workers=0, rank=0, processes=1, stop=None):
    """Put into a checkpoint what anomaly scores need beside its weights; nothing is done where it is there already.

    splits: {"train", "val"}; every process counts its share of the images and the first one writes. stop: a StopSignal,
    which ends this with Interrupted.
    """
    predictor, content = load_predictor(path, device)
    if "alarms" in content["data"]:
        return
    images = {name: range(rank, len(split), processes) for name, split in splits.items()}
    progress = cli.Progress(sum(map(len, images.values())), "score statistics", "images")

    def check(step=0):
        if stop:
            stop.check(processes, step)

    def observe(done):
        progress.update(done)
        check(step=1)  # alone only: others are at other images

    options = {"batch_size": batch_size, "workers": workers}
    try:
        statistics = collect_statistics(predictor, splits["train"], indices=images["train"], observe=observe, **options)
        check()  # together: others may have been told to stop
        states = all_gather(statistics.state())
        parts = [ScoreStatistics.from_state(predictor.num_classes, state) for state in states]
        statistics = merge_all(parts).finish()
        predictor.statistics.update(statistics)
        before = len(images["train"])
        histograms = count_known(
            predictor,
            splits["val"],
            predictor.scores(),
            indices=images["val"],
            observe=lambda done: observe(before + done),
            **options,
        )
        check()
    finally:
        progress.close()
    parts = all_gather(histograms)
    histograms = {name: merge_all([part[name] for part in parts]) for name in histograms}
    if rank == 0:
        content["data"] |= {"statistics": statistics, "alarms": alarm_thresholds(histograms)}
        save_checkpoint(path, content)
