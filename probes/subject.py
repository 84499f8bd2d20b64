"""What is examined: the splits of a data set, a model or none, and what several probes share.

    Subject.open("camvid", "DIR")                       a data set alone
    Subject.load("runs/streets/best.pth")               a checkpoint of ours, on the data it was trained on
    Subject.foreign("net.py:build", "net.pth", "folder", "DIR")    somebody else's model
    Subject(splits, predictor)                          whatever is already there

and a probe is asked in one line: `odd_images(Subject.open("camvid", "DIR"))`.
"""

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

import cli
import data
import losses
import metrics
import models
from anomaly.outliers import open_outliers
from cli import UserError
from datasets.audit import audit_split
from datasets.label_spaces import parse_sets
from datasets.spec import by_condition
from engine.devices import choose_device, open_dataset
from engine.predictor import Predictor
from engine.sampling import draw_requests
from engine.trained_run import check_classes, layout_map_of, load_predictor, trained_on
from networks.blocks import Normalise
from networks.foreign import build_preparation, load_foreign, preparation_options
from probes.answers import take_sample
from probes.noise_test import TrainingSettings
from probes.survey import survey_split
from report.colours import distinct_palette


class Subject:
    """What is examined, and what probes share, each made once when first needed.

    splits: {"train": Split, "val": Split, and perhaps "test"}; predictor: a trained model, None for none; of a
    checkpoint content, where (what `open_dataset` was given) and run (the folder it lies in); name: the model's;
    settings: TrainingSettings, None for the defaults; device: None for the CPU; limit: images of a split of another
    set, 0 for all; opens_images: whether the audits read images too, which takes five times as long as masks alone.
    """

    def __init__(
        self,
        splits,
        predictor=None,
        *,
        content=None,
        where=None,
        run=None,
        name="",
        settings=None,
        device=None,
        limit=0,
        opens_images=True,
    ):
        self.splits, self.predictor, self.content, self.where = splits, predictor, content, where
        self.run, self.name = run, name
        self.config = content["config"] if content else {}  # the flags of the checkpoint's run
        self.settings, self.limit, self.opens_images = settings or TrainingSettings(), limit, opens_images
        self.device = device or torch.device("cpu")
        self.rows = []  # of trainings under conditions
        self.tell = lambda done, total: None  # how far the present probe is

    @classmethod
    def open(
        cls, dataset="streets", data_dir=None, *, label_space="own", held_out=(), limit=0, device="auto", **options
    ):
        """A data set, as --dataset, --data-dir, … name it; options: of `Subject`. Raises UserError."""
        device = choose_device(device)
        splits = open_splits(*open_dataset(dataset, data_dir, label_space=label_space, held_out=held_out), limit)
        return cls(splits, device=device, limit=limit, **options)

    @classmethod
    def load(cls, ckpt, data_dir=None, *, limit=0, device="auto", **options):
        """A checkpoint of ours on the data it was trained on, in the folder noted there or `data_dir`.

        options: of `Subject`. Raises UserError.
        """
        device = choose_device(device)
        predictor, content = load_predictor(ckpt, device)
        where = trained_on(content, data_dir)
        spec, root = open_dataset(**where)
        check_classes(spec, content)
        options |= {"content": content, "where": where, "run": Path(ckpt).parent, "name": content["model"]["name"]}
        return cls(open_splits(spec, root, limit), predictor, device=device, limit=limit, **options)

    @classmethod
    def foreign(cls, model_from, weights="none", *, mean=None, std=None, channel_order="rgb", settings=None, **options):
        """Somebody else's model on a data set, asked once whether it answers at all.

        model_from, weights: as `networks.foreign.load_foreign` takes them; mean, std, channel_order: of its images, as
        `build_preparation` takes them; settings: of the small trainings, and the size of its images; options: of
        `open`. Raises UserError.
        """
        subject = cls.open(settings=settings, name=Path(model_from).name, **options)
        settings, num_classes = subject.settings, subject.spec.num_classes
        torch.manual_seed(settings.seed)
        net = load_foreign(model_from, weights, num_classes)
        prepare = build_preparation(mean, std, channel_order)
        subject.predictor = Predictor(net, num_classes, settings.geometry, subject.device, prepare)
        subject.predictor.answer(torch.zeros(2, *settings.image_size, 3, dtype=torch.uint8))
        return subject

    @classmethod
    def from_args(cls, args, opens_images=True):
        """What the flags name. Raises UserError."""
        settings = TrainingSettings.from_args(args)
        options = {"settings": settings, "limit": args.limit, "device": args.device, "opens_images": opens_images}
        if args.ckpt:
            return cls.load(args.ckpt, args.data_dir, **options)
        options |= data.dataset_options(args)
        if args.model_from:
            options["settings"] = replace(settings, weights="none")  # a foreign model's weights are not for ours
            return cls.foreign(args.model_from, args.weights, **preparation_options(args), **options)
        subject = cls.open(**options)
        _ = subject.model  # built at once: a wrong --model, --weights or --freeze is the user's mistake
        return subject

    @property
    def spec(self):
        """The data set's declaration, as all splits but train read it: there, what is held out is void."""
        return [*self.splits.values()][-1].spec

    @property
    def title(self):
        """What is examined, in a few words."""
        return f"Diagnosis of {self.spec.name}" + (f", {self.name}" if self.name else "")

    @property
    def palette(self):
        """The classes' colours."""
        return self.spec.palette or distinct_palette(self.spec.num_classes)

    def tell_step(self, step):
        """A training has done so many of its steps."""
        self.tell(step, self.settings.iters)

    def _read(self, reader):
        """{split: reader(split, progress)}."""
        total, before, found = sum(map(len, self.splits.values())), 0, {}
        for name, split in self.splits.items():
            found[name] = reader(split, lambda done, before=before: self.tell(before + done, total))
            before += len(split)
        return found

    @cached_property
    def audits(self):
        """{split: Audit}."""
        return self._read(lambda split, tell: audit_split(split, metrics.GRID, tell, self.opens_images))

    @cached_property
    def surveys(self):
        """{split: Survey}."""
        return self._read(survey_split)

    @property
    def clean_audits(self):
        """The audits, for a probe that cannot work on faulty data. Raises UserError where they are."""
        if any(audit.error() for audit in self.audits.values()):
            raise UserError("needs sound files and labels", remedy="see data.files")
        return self.audits

    @cached_property
    def sample(self):
        """A few validation images as the network sees them."""
        return take_sample(self.splits["val"], self.predictor.geometry)

    @cached_property
    def layout_map(self):
        """The training masks' layout map: the checkpoint's own, or made here."""
        if self.content:
            return layout_map_of(self.content)
        return metrics.fit_layout(self.clean_audits["train"].grids, self.spec.num_classes).map

    @cached_property
    def log(self):
        """The lines of log.jsonl beside the checkpoint. Raises UserError where there is none."""
        path = self.run / "log.jsonl"
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(
                f"no log ({error.__class__.__name__})", path, "it lies beside a run's checkpoints"
            ) from None

    @cached_property
    def model(self):
        """The model to examine: the trained one, or without any the one that the settings start."""
        if self.predictor:
            return self.predictor.model
        return self.settings.start_model(self.spec.num_classes).to(self.device)

    def criterion(self):
        """The checkpoint's criterion, its freezing rule applied to the model; else plain cross-entropy."""
        model, config, options = self.model, self.config, {}
        terms = {"ce": [1.0]}
        if config:
            counts = torch.from_numpy(self.clean_audits["train"].image_counts)
            models.freeze_parameters(model, config["freeze"])
            terms = losses.choose_terms(config["loss"], config.get("outliers", "none"), model.centres is not None)
            options["class_weights"] = losses.class_weights(config["class_weights"], counts, self.spec.classes)
            options["label_smoothing"] = config["label_smoothing"]
        prepare = self.predictor.normalise if self.predictor else Normalise()
        criterion = losses.Criterion(terms, self.spec.num_classes, prepare, aux_weights=model.aux_weights, **options)
        return criterion.to(self.device)

    def outliers(self):
        """What was pasted into the checkpoint's training images, into every one here; None where nothing was."""
        config = self.config
        if config.get("outliers", "none") == "none":
            return None
        outliers, _ = open_outliers(
            self.spec,
            config["outliers"],
            outlier_classes=cli.names(config["outlier_classes"]),
            paste=config["paste"],
            sets=parse_sets(self.where["dataset"], self.where["data_dir"]),
            held_out=self.where["held_out"],
        )
        outliers.options["chance"] = 1.0
        return outliers

    def training_batch(self, count=4):
        """A few training examples on the device: images (N, 3, h, w) float32 in [0, 1], targets (N, h, w) uint8."""
        geometry = self.predictor.geometry if self.predictor else self.settings.geometry
        split = self.splits["train"]
        if len(split) < 2:
            raise UserError("a single training image", remedy="batch norm needs at least 2")
        order = torch.Generator().manual_seed(self.settings.seed)
        requests, outliers = draw_requests(len(split), count, order)[0], self.outliers()
        if outliers:
            requests = outliers.add_pastes(requests, order)
        pairs = data.TrainingPairs(split, geometry, outliers)
        examples = [pairs[request] for request in requests]
        images, targets = (torch.stack(part).to(self.device) for part in zip(*examples, strict=True))
        return data.to_float(images), targets


def open_splits(spec, root, limit=0):
    """{"train", "val", and "test" where there is one: Split}, the first `limit` images of each, 0 for all."""
    splits = {name: data.open_split(spec, root, name, limit) for name in ("train", "val")}
    test = _open_test(spec, root, limit)
    return {**splits, "test": test} if test else splits


def _open_test(spec, root, limit):
    """The test split, or None: a set without one is no fault, nor one with too few images to cut one from."""
    if spec.parts:
        there = all(_open_test(part.spec, part.root, limit) for part in spec.parts)
        return data.open_split(spec, root, "test", limit) if there else None
    folders = [folder for part in by_condition(spec) for folder in part.splits.get("test", ())]
    if "test" not in spec.cut and not (folders and all((Path(root) / folder).is_dir() for folder in folders)):
        return None
    try:
        return data.open_split(spec, root, "test", limit)
    except UserError:
        if "test" in spec.cut:  # train, read from the same folders, was sound
            return None
        raise
