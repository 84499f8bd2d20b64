"""Train a segmentation model, and show every mIoU beside what a predictor gets that never opens the image.

    python train.py @recipes/streets.args                       the embedded street scenes, what `make` trains
    python train.py @recipes/camvid.args --data-dir DIR         a recipe on real data
    python train.py --dataset folder --data-dir DIR             your own images and masks
    python train.py --run-dir runs/camvid --resume              go on where a run stopped, bit for bit
    torchrun --nproc-per-node 4 train.py @recipes/camvid.args   several processes

The run directory holds config.json, log.jsonl, samples.png (what the network is shown), best.pth and last.pth.
"""

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path

import torch

import cli
import data
import losses
import metrics
import models
from anomaly.outliers import add_outlier_flags, check_outliers, open_outliers, outlier_options
from cli import UserError
from datasets.audit import audit_split, require_clean, unmapped_shares
from datasets.label_spaces import declared_names, parse_sets, run_name
from engine.cache import add_cache_flags, cache_split
from engine.checkpoint import fingerprint, load_last, load_state
from engine.devices import (
    add_run_flags,
    all_gather,
    autocast_dtype,
    choose_device,
    describe_device,
    open_dataset,
    start_processes,
)
from engine.optim import Schedule, add_optim_flags, build_optimizer, optimizer_options
from engine.predictor import Predictor
from engine.run_directory import Interrupted, Run, StopSignal
from engine.sampling import build_sampling, parse_sampling, share_batches
from engine.trained_run import add_score_statistics
from engine.training import Training, train_one_epoch, validate
from networks.blocks import MEAN, STD, Normalise
from report.colours import distinct_palette
from report.files import save_picture
from report.pictures import contact_sheet
from report.tables import score_text

# What may differ between a run and its continuation: where things are, not what is computed.
FREE_ON_RESUME = {"run_dir", "resume", "data_dir", "workers", "cache", "device", "save_every", "tensorboard"}


def build_parser():
    """All flags of train.py."""
    parser = cli.Parser(__doc__)
    data.add_data_flags(parser)
    add_cache_flags(parser)
    data.add_geometry_flags(parser)
    models.add_model_flags(parser)
    losses.add_loss_flags(parser)
    add_outlier_flags(parser)
    add_optim_flags(parser)
    add_run_flags(parser)
    group = parser.add_argument_group("run")
    group.add_argument("--run-dir", metavar="DIR", help="where everything is written; empty: runs/DATASET")
    group.add_argument("--resume", action="store_true", help="go on from the run directory's last checkpoint")
    group.add_argument("--monitor", default="miou", choices=("miou", "accuracy"), help="what best.pth is best in")
    group.add_argument("--validate-every", type=cli.positive_int, default=1, help="epochs between validations")
    group.add_argument("--save-every", type=cli.positive_int, default=200, help="steps between checkpoints at most")
    group.add_argument("--log-every", type=cli.positive_int, default=10, help="steps between lines of the log")
    group.add_argument("--tensorboard", action="store_true", help="write the log's figures for TensorBoard as well")
    return parser


def read_args(parser, words=None):
    """The flags of a new run, or of the run to go on with: (args, its last checkpoint or None).

    Raises UserError for a run directory that is in use, and for flags that would make the continuation another run.
    """
    args = parser.parse_args(words)
    args.run_dir = str(args.run_dir or Path("runs") / run_name(args.dataset))
    if args.tensorboard and not importlib.util.find_spec("tensorboard"):
        raise UserError("TensorBoard is not installed", "--tensorboard", "pip install tensorboard, or leave it out")
    if not args.resume:
        if any(Path(args.run_dir).glob("*.pth")):
            remedy = "add --resume to go on with it, or choose another --run-dir"
            raise UserError("the run directory already holds a run", args.run_dir, remedy)
        return args, None
    last = load_last(args.run_dir)
    saved = {**{name: parser.get_default(name) for name in vars(args)}, **last["config"]}  # flags that came later
    changed = [n for n in sorted(parser.given - FREE_ON_RESUME) if getattr(args, n) != saved[n]]
    if changed:
        name = changed[0]
        what = f"--{name.replace('_', '-')} {getattr(args, name)} differs from the run's {saved[name]}"
        raise UserError(what, args.run_dir, "leave it out to go on with the run, or start another --run-dir")
    kept = {name: getattr(args, name) for name in parser.given & FREE_ON_RESUME}
    return Namespace(**{**vars(args), **saved, **kept, "run_dir": args.run_dir, "resume": True}), last


def choose_terms(args):
    """The terms of the loss that --loss, --outliers and --model describe together."""
    _, options = models.parse_model(args.model)
    return losses.choose_terms(args.loss, args.outliers, options["centres"] != "none")


def check_flags(args, processes):
    """Read every flag that has a language of its own, before hours go into reading data. Raises UserError."""
    _, options = models.parse_model(args.model)
    losses.check_heads(choose_terms(args), options)
    check_outliers(**outlier_options(args))
    parse_sampling(args.sampling, args.crop)
    Schedule(args.schedule, 1, 1)
    data.parse_augment(args.augment)
    if args.batch_size < 2 * processes:
        what = f"--batch-size {args.batch_size} leaves fewer than 2 images for each process, which batch norm refuses"
        raise UserError(what, remedy=f"use at least {2 * processes}")
    if args.batch_size < 2 * processes * args.accumulate:
        what = f"--accumulate {args.accumulate} leaves parts of fewer than 2 images, which batch norm refuses"
        raise UserError(what, remedy=f"use --batch-size {2 * processes * args.accumulate} or more")
    if not 0 <= args.ema < 1:
        raise UserError(f"decay {args.ema}", "--ema", "give at least 0 and below 1, such as 0.999")


def prepare_data(args, processes=1):
    """Open and audit the training and validation split: (spec, {split: Split}, {split: Audit}, Layout)."""
    spec, root = open_dataset(**data.dataset_options(args))
    splits = {name: data.open_split(spec, root, name, args.limit) for name in ("train", "val")}
    if len(splits["train"]) < 2 * processes:
        raise UserError(f"training needs at least {2 * processes} images", root, "add images, or raise --limit")
    audits = {name: audit_split(split, metrics.GRID) for name, split in splits.items()}
    require_clean(audits.values())
    layout = metrics.fit_layout(audits["train"].grids, spec.num_classes)
    for name, one in audits.items():
        print(f"{name}: {len(splits[name])} images, void {one.void / one.pixels:.3f} of the pixels")
    print("".join(f"{line}\n" for line in describe_sets(audits["train"])), end="")
    return spec, splits, audits, layout


def describe_sets(audit):
    """Lines that say what each of several sets brings, and what of a set has no place in the label space."""
    for (label, part, _), one in zip(audit.split.ranges(), audit.parts or [audit], strict=True):
        if audit.parts:
            yield f"  {label}: {len(part)} images, classes {', '.join(declared_names(part.spec))}"
        if lost := unmapped_shares(one):
            listed = ", ".join(f"{name} {share:.1%}" for name, share in lost.items())
            yield f"  {label}: void here, for want of a place in --label-space: {listed}"


def cache_splits(args, splits, geometry):
    """The splits decoded once, as --cache says, for the batches of training and of validation."""
    cached = {}
    for name, split in splits.items():
        progress = cli.Progress(len(split), f"cache {name}", "images")
        cached[name] = cache_split(
            split,
            geometry,
            args.cache,
            training=name == "train",
            progress=progress.update,
            barrier=lambda: all_gather(None),
        )
        if progress.done:
            progress.close()
    return cached


def write_samples(path, split, training, geometry, spec, palette, count=8):
    """A picture of training examples exactly as the network gets them, masks beside them."""
    generator = torch.Generator().manual_seed(0)
    requests = training.sampling.draw(generator, count)[0]
    pairs = data.TrainingPairs(split, geometry, training.sampling.outliers)
    raw = [pairs[request] for request in requests]
    images, targets = (torch.stack(part) for part in zip(*raw, strict=True))
    images, targets = training.augment(images, targets, generator)
    images = (images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
    names = [split.file(request.index) for request in requests]
    examples = list(zip(images.numpy(), targets.numpy(), names, strict=True))
    save_picture(contact_sheet(examples, spec.classes, palette), path)


def prepare_geometry(args, spec, audit):
    """The geometry of the flags; warns where memory makes it smaller than what was asked for."""
    geometry = data.Geometry.from_args(args, spec.num_classes)
    if reduced := geometry.count_reduced(audit.sizes):
        limit = f"{geometry.most_pixels:,} pixels, the most whose logits fit for {spec.num_classes} classes"
        cli.warn(f"{reduced} training images are reduced to {limit}, before they are cut; --short-side says to what")
    return geometry


def prepare_sampling(args, spec, audit, geometry, rank):
    """What draws the training examples, and what is pasted into them; says so."""
    outliers, lines = open_outliers(
        spec,
        **outlier_options(args),
        sets=parse_sets(args.dataset, args.data_dir),
        held_out=cli.names(args.anomaly_classes),
    )
    for line in lines if rank == 0 else []:
        print(line)
    return build_sampling(args.sampling, audit, geometry, outliers)


def prepare_model(args, spec, last, device):
    """The model, from the run's last checkpoint or from --weights, frozen as told: (model, starting fingerprint)."""
    if last:
        model, _ = models.start_model(num_classes=spec.num_classes, **{**models.model_options(args), "weights": "none"})
        load_state(model, last["state"], args.run_dir)
        initial = last["initial"]
    else:
        models.check_trained_classes(args.weights, spec.classes, cli.names(args.anomaly_classes), args.freeze)
        model, lines = models.start_model(num_classes=spec.num_classes, **models.model_options(args))
        print("\n".join(lines))
        initial = fingerprint(model)
    return model.to(device, memory_format=torch.channels_last), initial


def build_criterion(args, model, audit, spec):
    """The loss that --loss, --class-weights and --label-smoothing describe; weights from the training targets."""
    weights = losses.class_weights(args.class_weights, torch.from_numpy(audit.image_counts), spec.classes)
    return losses.Criterion(
        choose_terms(args),
        spec.num_classes,
        Normalise(),
        class_weights=weights,
        label_smoothing=args.label_smoothing,
        aux_weights=model.aux_weights,
    )


def prepare_training(args, model, sampling, device, dtype, rank, processes):
    """What changes while training, before its first step: (Training, steps in all)."""
    batches = sampling.draw(torch.Generator(), args.batch_size)
    steps = len(share_batches(batches, rank, processes))
    total_steps = args.iters or args.epochs * steps
    training = Training(
        model=model,
        optimizer=build_optimizer(model, **optimizer_options(args)),
        schedule=Schedule(args.schedule, total_steps, steps, args.warmup),
        sampling=sampling,
        augment=data.Augment(data.parse_augment(args.augment)),
        device=device,
        dtype=dtype,
        clip=args.clip,
        seed=args.seed,
        accumulate=args.accumulate,
        ema=args.ema,
        rank=rank,
        processes=processes,
    )
    return training, total_steps


def describe(args, spec, geometry, layout, palette, model, initial):
    """The part of a checkpoint that says how to rebuild the model and what it was trained on."""
    return {
        "model": {"name": model.name, "options": model.options},
        "initial": initial,
        "data": {
            "dataset": spec.name,
            "label_space": args.label_space,
            "classes": list(spec.classes),
            "palette": [list(colour) for colour in palette],
            "anomaly": spec.anomaly,
            "mean": list(MEAN),
            "std": list(STD),
            "geometry": dict(vars(geometry)),
            "layout_map": torch.from_numpy(layout.map.copy()),
            "layout_exponent": float(layout.exponent),
        },
        "config": vars(args),
    }


def fit(run, args, training, criterion, predictor, splits, layout, total_steps, stop):
    """The epoch loop. Returns 0, or 128 + the signal that interrupted it, with a checkpoint written."""
    figures, geometry = {}, predictor.geometry
    progress = cli.Progress(total_steps, "train", "steps", done=training.step)
    try:
        while training.step < total_steps or training.offset:  # an epoch ends with its validation
            run.log.restart_clock()
            for result in train_one_epoch(
                training, criterion, splits["train"], geometry, args.batch_size, args.workers, total_steps
            ):
                if line := run.log.add_step(result, training):
                    figures.update(loss=line["loss"], images_per_second=line["images_per_second"])
                progress.update(training.step, **figures)
                if training.step % args.save_every == 0:
                    run.save(training)
                stop.check(training.processes, training.step)
            if (training.epoch + 1) % args.validate_every == 0 or training.step >= total_steps:
                line = validate(training, predictor, splits["val"], layout.map, args.batch_size, args.workers, stop)
                run.note_validation(line, training)
                figures.update(miou=line["miou"], floor=line["layout_floor"], active_classes=line["active_classes"])
            training.finish_epoch()
            run.save(training)
    except Interrupted:
        run.save(training)
        print(f"stopped at step {training.step} of {total_steps}; go on with --run-dir {run.path} --resume")
        return 128 + max(all_gather(stop.number))
    finally:
        progress.close()
        run.log.close()
    return 0


def finish(run, args, splits, training, stop):
    """After the last step: what anomaly scores need, into best.pth. Returns the exit code, as `fit` does."""
    try:
        add_score_statistics(
            run.path / "best.pth",
            splits,
            training.device,
            batch_size=args.batch_size,
            workers=args.workers,
            rank=training.rank,
            processes=training.processes,
            stop=stop,
        )
    except Interrupted:
        print(f"stopped before the score statistics; go on with --run-dir {run.path} --resume")
        return 128 + max(all_gather(stop.number))
    return 0


def print_result(run, monitor):
    """The last validation, beside what needs no image."""
    line = run.validation
    miou, floor = line["miou"], line["layout_floor"]
    if miou is None or floor is None:
        print("no labelled pixel in the validation split: no mIoU")
    else:
        gain = metrics.semantic_gain(miou, floor)
        shown = "undefined" if gain is None else f"{gain:.3f}"
        print(f"validation mIoU {miou:.3f}, layout floor {floor:.3f} (no image read), semantic gain {shown}")
    if "sets" in line:
        print("of which " + ", ".join(f"{name} {score_text(one)}" for name, one in line["sets"].items()))
    print(f"best {monitor} {run.best:.3f}; next: python evaluate.py --ckpt {run.path}/best.pth")


def main(words=None):
    """Train, or go on training."""
    args, last = read_args(build_parser(), words)
    device = choose_device(args.device)
    rank, processes = start_processes(device, one_size=args.crop is None)
    torch.manual_seed(args.seed)
    check_flags(args, processes)
    dtype = autocast_dtype(args.amp, device)
    if rank == 0:
        print(f"device: {describe_device(device)}, autocast {str(dtype or 'off').removeprefix('torch.')}")

    spec, splits, audits, layout = prepare_data(args, processes)
    geometry = prepare_geometry(args, spec, audits["train"])
    model, initial = prepare_model(args, spec, last, device)
    if rank:  # every process has the same model, and dropout and noise of its own
        torch.manual_seed(args.seed + rank)
    criterion = build_criterion(args, model, audits["train"], spec).to(device)
    splits = cache_splits(args, splits, geometry)
    sampling = prepare_sampling(args, spec, audits["train"], geometry, rank)
    training, total_steps = prepare_training(args, model, sampling, device, dtype, rank, processes)
    palette = spec.palette or distinct_palette(spec.num_classes)
    run = Run(
        args.run_dir,
        describe(args, spec, geometry, layout, palette, model, initial),
        log_every=args.log_every,
        monitor=args.monitor,
        tensorboard=args.tensorboard,
        main=rank == 0,
        last=last,
    )
    if last:
        training.restore(last["training"])
    elif rank == 0:
        (run.path / "config.json").write_text(json.dumps(vars(args), indent=2) + "\n")
        write_samples(run.path / "samples.png", splits["train"], training, geometry, spec, palette)
        print(f"{run.path}/samples.png shows what the network will see")
    predictor = Predictor(training.best, spec.num_classes, geometry, device)
    stop = StopSignal()
    code = fit(run, args, training, criterion, predictor, splits, layout, total_steps, stop)
    code = code or finish(run, args, splits, training, stop)
    if rank == 0 and not code:
        print_result(run, args.monitor)
    return code


if __name__ == "__main__":
    sys.exit(cli.run(main))
