"""Say what is wrong with a data set, a model, or a training, how that is known, and what to do.

    python diagnose.py --data --dataset folder --data-dir DIR   files, labels, do the masks fit the images? 20 seconds
    python diagnose.py --ckpt runs/streets/best.pth             every probe that applies and trains nothing; 2 minutes
    python diagnose.py --model-from FILE.py:FUNCTION --weights W --dataset folder --data-dir DIR   somebody else's model
    python diagnose.py --noise-test                             what do the labels alone teach? 2.5 minutes
    python diagnose.py --only duplicates,label_agreement --dataset camvid --data-dir DIR
    python diagnose.py --ckpt best.pth --cross-dataset camvid,other/folder    what does not travel, and why
    python diagnose.py --all --dataset camvid --data-dir DIR    all that applies, trainings included; half an hour

Exit code 0: nothing wrong was found; 1: a fault was found; 2: the input is wrong. Findings go to diagnosis.json, with
their evidence as pictures to diagnosis.html. Only a FILE.py that you name is ever executed.
"""

import json
import sys
import time
import traceback
from argparse import Namespace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch

import cli
import data
import losses
import metrics
import models
from anomaly.outliers import open_outliers, outlier_options
from cli import UserError
from datasets.audit import audit_split, require_clean
from datasets.catalogue import DATASETS, build_spec, parse_name, recognise
from datasets.label_spaces import parse_sets
from datasets.spec import by_condition
from engine.devices import choose_device, open_dataset
from engine.predictor import Predictor
from engine.sampling import draw_requests
from engine.trained_run import check_classes, layout_map_of, load_predictor, space_of, trained_on
from networks.blocks import Normalise
from networks.foreign import add_foreign_flags, build_preparation, load_foreign, preparation_options
from probes import files, shortcut, trained_weights
from probes.answers import class_assignment, collapse, flip_equivariance, prediction_shift, softmax_inside, take_sample
from probes.conditions import CONDITIONS, judge_conditions, noise_row, run_condition
from probes.cross_dataset import cross_dataset
from probes.files import audit_files, class_distribution, duplicates, layout_floor, mask_borders, odd_images
from probes.finding import Finding, conclude
from probes.image_mask_fit import label_agreement
from probes.noise_test import noise_test as noise_test_probe
from probes.noise_test import references
from probes.preprocessing import input_contrast, preprocessing
from probes.shortcut import feature_correlation
from probes.survey import survey_split
from probes.trained_weights import batch_norm_gap
from probes.training_log import training_log
from report.colours import distinct_palette
from report.files import save_exhibits, write_diagnosis_page, write_json
from report.findings import diagnosis_table

ABOUT_TRAINING = {"model", "freeze", "aux_task", "iters", "lr"}
OF_MASKS = {"classes", "layout_floor"}  # the probes that ask for no image


def build_parser():
    """All flags of diagnose.py."""
    parser = cli.Parser(__doc__ + "\n" + list_probes())
    group = parser.add_argument_group("what to look at; nothing given: all that applies and trains nothing")
    group.add_argument("--ckpt", metavar="FILE", help="a checkpoint; its data set, model and loss are used")
    group.add_argument("--data", action="store_true", help="the data set alone: every probe of the group data")
    group.add_argument("--noise-test", action="store_true", help="train on noise; with --ckpt: its score on noise")
    group.add_argument("--only", default="", metavar="NAME,...", help="these probes; empty: off")
    group.add_argument("--all", action="store_true", help="all that applies, those that train included")
    group.add_argument(
        "--cross-dataset",
        default="",
        metavar="SET,...",
        help="with --ckpt: names of data sets, or folders that hold one; how its score travels there; empty: off",
    )
    group.add_argument("--out", metavar="DIR", help="where the findings go; empty: beside --ckpt, else runs/diagnose")
    group.add_argument("--json", metavar="FILE", help="where the JSON goes; empty: OUT/diagnosis.json")
    data.add_data_flags(parser)
    models.add_model_flags(parser)
    add_foreign_flags(parser)
    group = parser.add_argument_group("how the fresh or foreign model sees images, and how probes that train do it")
    group.add_argument("--image-size", type=cli.size, default=[120, 160], metavar="HxW", help="canvas, pixels")
    group.add_argument("--iters", type=cli.positive_int, default=400, help="steps of each training")
    group.add_argument("--batch-size", type=cli.positive_int, default=8, help="images a step")
    group.add_argument("--lr", type=cli.non_negative, default=2e-3, help="peak learning rate")
    group.add_argument("--seed", type=cli.natural, default=0, help="of weights, order and noise")
    group.add_argument("--device", default="auto", help="auto (CUDA when there is one), cpu, cuda, cuda:N")
    return parser


class Subject:
    """What is examined: a data set, a model or none, and what probes share, each made once when first needed."""

    def __init__(self, args, names=()):
        self.args = args
        self.opens_images = not names or not {*names} <= OF_MASKS  # masks alone take a fifth of the time
        self.device = choose_device(args.device)
        self.predictor, self.content = load_predictor(args.ckpt, self.device) if args.ckpt else (None, None)
        self.config = Namespace(**self.content["config"]) if args.ckpt else None
        self.spec, root = open_dataset(**self._where())
        if self.content:
            check_classes(self.spec, self.content)
        self.splits = {name: data.open_split(self.spec, root, name, args.limit) for name in ("train", "val")}
        if test := open_test(self.spec, root, args.limit):
            self.splits["test"] = test
        if args.model_from:
            torch.manual_seed(args.seed)
            net = load_foreign(args.model_from, args.weights, self.spec.num_classes)
            prepare = build_preparation(**preparation_options(args))
            geometry = data.Geometry(args.image_size)
            self.predictor = Predictor(net, self.spec.num_classes, geometry, self.device, prepare)
            self.predictor.answer(torch.zeros(2, *args.image_size, 3, dtype=torch.uint8))  # does it answer at all?
        self.fresh = None
        if self.predictor is None:  # built at once: a wrong --model, --weights or --freeze is the user's mistake
            torch.manual_seed(args.seed)
            network, _ = models.start_model(num_classes=self.spec.num_classes, **models.model_options(args))
            self.fresh = network.to(self.device)
        self.rows = []  # of trainings under conditions
        self.tell = lambda done, total: None  # how far the present probe is

    @property
    def training_args(self):
        """The flags of a small training; a foreign model's weights are not for ours."""
        return Namespace(**{**vars(self.args), "weights": "none"}) if self.args.model_from else self.args

    def tell_step(self, step):
        """A training has done so many of its steps."""
        self.tell(step, self.args.iters)

    def _where(self):
        """The data set as `open_dataset` takes it: the checkpoint's own, in the folder that was given or noted."""
        if not self.config:
            return data.dataset_options(self.args)
        return trained_on(self.content, self.args.data_dir)

    @property
    def title(self):
        """What is examined, in a few words."""
        model = self.content["model"]["name"] if self.content else Path(self.args.model_from).name
        return f"Diagnosis of {self.spec.name}" + (f", {model}" if model else "")

    @property
    def palette(self):
        """The classes' colours."""
        return self.spec.palette or distinct_palette(self.spec.num_classes)

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
        path = Path(self.args.ckpt).parent / "log.jsonl"
        try:
            return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise UserError(
                f"no log ({error.__class__.__name__})", path, "it lies beside a run's checkpoints"
            ) from None

    def model_and_loss(self):
        """The model to examine and its criterion: the checkpoint's, or plain cross-entropy."""
        model = self.predictor.model if self.predictor else self.fresh
        prepare = self.predictor.normalise if self.predictor else Normalise()
        options = {"terms": {"ce": [1.0]}}
        if self.config:
            config, counts = self.config, self.clean_audits["train"].image_counts
            models.freeze_parameters(model, config.freeze)
            outliers = getattr(config, "outliers", "none")
            options = {
                "terms": losses.choose_terms(config.loss, outliers, model.centres is not None),
                "class_weights": losses.class_weights(
                    config.class_weights, torch.from_numpy(counts), self.spec.classes
                ),
                "label_smoothing": config.label_smoothing,
            }
        criterion = losses.Criterion(
            options.pop("terms"), self.spec.num_classes, prepare, aux_weights=model.aux_weights, **options
        )
        return model, criterion.to(self.device)

    def outliers(self):
        """What was pasted into the checkpoint's training images, into every one here; None where nothing was."""
        if getattr(self.config, "outliers", "none") == "none":
            return None
        where, config = self._where(), self.config
        outliers, _ = open_outliers(
            self.spec,
            **outlier_options(config),
            sets=parse_sets(where["dataset"], where["data_dir"]),
            held_out=where["held_out"],
        )
        outliers.options["chance"] = 1.0
        return outliers

    def training_batch(self, count=4):
        """A few training examples on the device: images (N, 3, h, w) float32 in [0, 1], targets (N, h, w) uint8."""
        geometry = self.predictor.geometry if self.predictor else data.Geometry(self.args.image_size)
        split = self.splits["train"]
        if len(split) < 2:
            raise UserError("a single training image", remedy="batch norm needs at least 2")
        order = torch.Generator().manual_seed(self.args.seed)
        requests, outliers = draw_requests(len(split), count, order)[0], self.outliers()
        if outliers:
            requests = outliers.add_pastes(requests, order)
        pairs = data.TrainingPairs(split, geometry, outliers)
        examples = [pairs[request] for request in requests]
        images, targets = (torch.stack(part).to(self.device) for part in zip(*examples, strict=True))
        return data.to_float(images), targets


def open_test(spec, root, limit):
    """The test split, or None: a set without one is no fault, nor one with too few images to cut one from."""
    if spec.parts:
        there = all(open_test(part.spec, part.root, limit) for part in spec.parts)
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


# ---------------------------------------------------------------------------------------------------------------------
# The probes


class Probe(NamedTuple):
    """When a probe applies, what it costs (about; seconds of one CPU core, weighs the progress line), what it runs.

    needs: "" a data set, "model" one that was trained, "ckpt" one of ours, "fresh" trains one itself.
    """

    group: str
    needs: str
    cost: float
    run: object  # Subject -> [Finding]


PROBES = {
    "files": Probe("data", "", 5, lambda p: [audit_files(p.audits)]),
    "classes": Probe("data", "", 0.1, lambda p: [class_distribution(p.clean_audits)]),
    "layout_floor": Probe("data", "", 0.2, lambda p: [layout_floor(p.clean_audits, "val")]),
    "mask_values": Probe("data", "", 5, lambda p: [mask_values(p)]),
    "mask_borders": Probe("data", "", 0.2, lambda p: [mask_borders(p.surveys)]),
    "images": Probe("data", "", 0.2, lambda p: [odd_images(p.surveys)]),
    "duplicates": Probe("data", "", 1, lambda p: [duplicates(p.surveys)]),
    "label_agreement": Probe("data", "", 8, lambda p: label_agreement(pairs_of(p.surveys), sizes_of(p.audits))),
    "log": Probe("model", "ckpt", 0.1, lambda p: training_log(p.log, vars(p.config))),
    "untrained": Probe("model", "model", 0.2, lambda p: [untrained(p)]),
    "gradient_flow": Probe("model", "", 3, lambda p: [gradient_flow(p)]),
    "softmax": Probe("model", "model", 3, lambda p: [softmax_inside(p.predictor, p.sample)]),
    "preprocessing": Probe("model", "model", 10, lambda p: [preprocessing(p.predictor, p.sample, p.layout_map)]),
    "input_contrast": Probe("model", "model", 0.2, lambda p: [input_contrast(p.predictor, p.sample)]),
    "batch_norm": Probe("model", "model", 3, lambda p: [batch_norm_gap(p.predictor, p.sample, p.layout_map)]),
    "class_ids": Probe("model", "model", 1, lambda p: [class_assignment(p.predictor, p.sample, p.layout_map)]),
    "shift": Probe("model", "model", 1, lambda p: [prediction_shift(p.predictor, p.sample, p.layout_map)]),
    "flip": Probe("model", "model", 3, lambda p: [flip_equivariance(p.predictor, p.sample, p.layout_map)]),
    "collapse": Probe("model", "model", 1, lambda p: [collapse(p.predictor, p.sample)]),
    "layout_reliance": Probe("shortcut", "model", 20, lambda p: [layout_reliance(p)]),
    "features": Probe("shortcut", "model", 3, lambda p: [feature_correlation(p.predictor, p.sample)]),
    "noise_test": Probe("training", "fresh", 150, lambda p: [noise_test(p)]),
    **{
        name: Probe("training", "fresh", 150, lambda p, name=name: train_under(p, name))
        for name in CONDITIONS
        if name != "noise"  # that is the noise test
    },
}


def list_probes():
    """The names of --only, by group."""
    groups = dict.fromkeys(probe.group for probe in PROBES.values())
    lines = [f"    {group:9} {', '.join(n for n, p in PROBES.items() if p.group == group)}" for group in groups]
    return "\n".join(["probes of --only:", *lines])


def choose_probes(args):
    """The names of the probes to run, in order. Raises UserError for an unknown one, or one that lacks its input."""
    trained = bool(args.ckpt or args.model_from)
    given = {"": True, "model": trained, "ckpt": bool(args.ckpt), "fresh": True}
    wanted = cli.names(args.only)
    if args.only and not wanted:
        raise UserError(f"{args.only!r} names no probe", "--only", "--help lists them")
    for name in wanted:
        if name not in PROBES:
            raise UserError(f"unknown probe {name!r}", "--only", cli.nearest(name, PROBES))
        if PROBES[name].needs == "model" and not trained:
            raise UserError(f"{name} judges a trained model", "--only", "give it with --ckpt FILE, or --model-from")
        if not given[PROBES[name].needs]:
            raise UserError(f"{name} reads a run of ours", "--only", "give it with --ckpt FILE")
    if args.noise_test:
        wanted.append("layout_reliance" if trained else "noise_test")
    if args.data:
        wanted += [name for name, probe in PROBES.items() if probe.group == "data"]
    if not wanted and not (args.cross_dataset and not args.all):
        wanted = [n for n, p in PROBES.items() if given[p.needs] and (args.all or p.needs != "fresh")]
    return [name for name in PROBES if name in wanted]


def check_flags(args, given, names):
    """Refuse what would be ignored. given: the flags' names. Raises UserError."""
    if args.ckpt and args.model_from:
        raise UserError("--model-from beside --ckpt", remedy="examine one model at a time")
    if args.cross_dataset and not args.ckpt:
        raise UserError("--cross-dataset judges a trained model", remedy="give it with --ckpt FILE")
    trains = any(PROBES[name].needs == "fresh" for name in names)
    useless = {}  # flag: why it would change nothing
    if args.ckpt or args.model_from:
        useless |= dict.fromkeys(() if trains else ABOUT_TRAINING, "no probe here trains; leave it out")
    if args.ckpt:
        own = "the checkpoint brings its own; leave it out"
        useless |= {"dataset": f"{own}, or judge it on another set with --cross-dataset"}
        useless |= dict.fromkeys(() if trains else ("image_size", "weights", "model"), own)
    if not args.model_from:
        useless |= dict.fromkeys(("mean", "std", "channel_order"), "it goes with --model-from")
    for name in sorted(useless.keys() & given):
        raise UserError(f"--{name.replace('_', '-')} would change nothing", remedy=useless[name])


def mask_values(subject):
    """Do the masks hold class numbers, in the coding of their set?"""
    if subject.spec.parts:
        raise UserError("several sets, each with a coding of its own", remedy="examine one: --data --dataset NAME")
    return files.mask_values(subject.audits, subject.surveys)


def untrained(subject):
    """What never moved: against the checkpoint's starting fingerprint, or by the looks of a foreign model's weights."""
    if subject.content:  # no image is needed, so faulty data are no hindrance
        return trained_weights.untrained(subject.predictor, None, subject.content["initial"], subject.config)
    return trained_weights.untrained(subject.predictor, subject.sample)


def gradient_flow(subject):
    """Does the loss reach every layer and the image?"""
    return shortcut.gradient_flow(*subject.model_and_loss(), *subject.training_batch())


def layout_reliance(subject):
    """How much of the score survives without the image."""
    return shortcut.layout_reliance(
        subject.predictor,
        subject.splits["val"],
        subject.layout_map,
        batch_size=subject.args.batch_size,
        seed=subject.args.seed,
        progress=subject.tell,
    )


def noise_test(subject):
    """Train on noise."""
    args, audits = subject.training_args, subject.clean_audits
    finding = noise_test_probe(args, subject.splits, audits, subject.device, progress=subject.tell_step)
    subject.rows.append(noise_row(finding))
    return finding


def train_under(subject, name):
    """Train under a condition; its finding comes at the end, when all are there to be compared (`judge_trainings`)."""
    args, audits = subject.training_args, subject.clean_audits
    subject.rows.append(run_condition(name, args, subject.splits, audits, subject.device, progress=subject.tell_step))
    return []


def judge_trainings(subject):
    """The findings on all trainings under conditions, judged beside each other."""
    if all(row["condition"] == "noise" for row in subject.rows):
        return []
    audits = subject.clean_audits
    layout = metrics.fit_layout(audits["train"].grids, subject.spec.num_classes)
    known = references(audits["train"], subject.splits["val"], layout)
    found = judge_conditions(subject.rows, known)
    return [finding for finding in found if finding.probe != "shortcut.noise"]  # the noise test has its own


def pairs_of(surveys):
    """{split: [(file, grey (h, w) uint8, target (h, w) uint8)]} of the pairs that a survey keeps pictures of."""
    return {
        name: [(survey.files[i], survey.greys[i], survey.targets[i]) for i in sorted(survey.greys)]
        for name, survey in surveys.items()
    }


def sizes_of(audits):
    """{file: (height, width)} of all images read."""
    return {
        audit.split.file(i): tuple(size)
        for audit in audits.values()
        for i, size in enumerate(audit.image_sizes.tolist())
    }


def run_probe(subject, name):
    """One probe's findings; one that cannot run is a skip with its reason, so that the others still run."""
    start = time.perf_counter()
    try:
        found = PROBES[name].run(subject)
    except UserError as error:
        found = [Finding(f"{PROBES[name].group}.{name}", "skip", str(error))]
    except FloatingPointError as error:
        about = {
            "cause": "answers_not_finite",
            "remedy": "use an earlier checkpoint, or train with --clip 1 or --amp off",
        }
        found = [Finding(f"{PROBES[name].group}.{name}", "fail", str(error), **about)]
    except Exception as error:  # a foreign model may do anything; what it did is shown, not hidden
        why = f"could not run: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        evidence = {"traceback": traceback.format_exc().splitlines()[-6:]}
        found = [Finding(f"{PROBES[name].group}.{name}", "skip", why, evidence=evidence)]
    for finding in found:
        finding.seconds = finding.seconds or (time.perf_counter() - start) / len(found)
    return found


def run_probes(subject, names):
    """All findings, with one line of progress over all of them.

    Data found faulty on the way is a finding of its own, whichever probe came upon it.
    """
    total, before, findings = sum(PROBES[name].cost for name in names), 0.0, []
    progress = cli.Progress(100, "diagnose", "%")
    for name in names:
        cost = PROBES[name].cost

        def tell(done, of, before=before, cost=cost, name=name):
            progress.update(round(100 * (before + cost * done / max(of, 1)) / total), probe=name)

        subject.tell = tell
        tell(0, 1)
        findings += run_probe(subject, name)
        before += cost
    progress.update(100)
    progress.close()
    findings += judge_trainings(subject)
    if "audits" in vars(subject) and "files" not in names:
        findings += [found for found in [audit_files(subject.audits)] if found.verdict == "fail"]
    return findings


def find_set(text):
    """(folder, spec) that --cross-dataset names: a folder that holds a set, a set by name in data/NAME, or NAME:FOLDER,
    the one way to name a condition in a folder of one's own: acdc/fog:DIR."""
    name, colon, folder = text.partition(":")
    if Path(text).is_dir() or parse_name(name)[0] not in DATASETS:
        return Path(text), recognise(text)
    folder = Path(folder) if colon else Path("data") / parse_name(name)[0]
    return folder, build_spec(name, folder)


def open_others(subject):
    """--cross-dataset's sets, opened and found sound: {name: (Split to measure on, training grids)}, the checkpoint's
    own first."""
    own = subject.splits["val"]
    sets = {f"{subject.spec.name}, its own": (own, subject.clean_audits["train"].grids)}
    for text in cli.names(subject.args.cross_dataset):
        folder, spec = find_set(text)
        if not own.parts and (spec.name, folder.resolve()) == (subject.spec.name, own.root.resolve()):
            continue
        splits = {name: data.open_split(spec, folder, name, subject.args.limit) for name in ("train", "val")}
        audits = {name: audit_split(split, metrics.GRID) for name, split in splits.items()}
        require_clean(audits.values())
        sets[text] = (splits["val"], audits["train"].grids)
    if len(sets) == 1:
        raise UserError("no other set to compare with", "--cross-dataset", "name a data set or a folder that holds one")
    return sets


def cross(subject, sets):
    """The findings of --cross-dataset."""
    progress = cli.Progress(100, "cross-dataset", "%")
    found = cross_dataset(
        subject.predictor,
        subject.spec.classes,
        sets,
        space=space_of(subject.content),
        progress=lambda done, of: progress.update(round(100 * done / of)),
    )
    progress.close()
    return found


def diagnose(words=None):
    """Examine what the flags name and write down what was found; returns diagnosis.json's content."""
    parser = build_parser()
    args = parser.parse_args(words)
    names = choose_probes(args)
    check_flags(args, parser.given, names)
    out = Path(args.out or (Path(args.ckpt).parent if args.ckpt else Path("runs") / "diagnose"))
    subject = Subject(args, names)
    out.mkdir(parents=True, exist_ok=True)  # now, and not after minutes of work
    if args.json and Path(args.json).is_dir():
        raise UserError("this is a folder", args.json, "give --json a file's name")
    others = open_others(subject) if args.cross_dataset else {}  # a wrong name costs no finding
    findings = run_probes(subject, names)
    if others:
        findings += cross(subject, others)
    drawn = save_exhibits(out, findings, subject.spec.classes, subject.palette)
    for finding, pictures in zip(findings, drawn, strict=True):
        if pictures:
            finding.evidence["pictures"] = pictures
    diagnosis = conclude(findings)
    write_json(args.json or out / "diagnosis.json", diagnosis)
    for finding in findings:
        if weights := finding.evidence.get("recommended_weights"):
            write_json(out / "class_weights.json", weights)
    write_diagnosis_page(out / "diagnosis.html", subject.title, diagnosis, out)
    return diagnosis


def main():
    """Diagnose; returns 1 when a fault was found."""
    diagnosis = diagnose()
    print(diagnosis_table(diagnosis))
    return 1 if diagnosis["verdict"] == "fail" else 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
