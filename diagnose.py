"""Say what is wrong with a data set, a model, or a training, how that is known, and what to do.

    python diagnose.py --noise-test                             what do the labels alone teach? about 3 minutes
    python diagnose.py --data --dataset folder --data-dir DIR   files, labels, classes, layout floor
    python diagnose.py --ckpt runs/streets/best.pth             every probe that applies and trains nothing
    python diagnose.py --all --dataset camvid --data-dir DIR    everything that needs no checkpoint

Exit code 0: nothing wrong was found; 1: a fault was found; 2: the input is wrong. Findings go to diagnosis.json.
"""

import sys
import time
from argparse import Namespace
from pathlib import Path

import torch

import data
import data_audit
import data_outliers
import engine
import flags
import losses
import metrics
import models
import probes
import probes_noise
import report
from flags import UserError

PROBES = ("data", "gradient_flow", "collapse", "noise_test")
ABOUT_A_FRESH_MODEL = {"dataset", "model", "weights", "freeze", "aux_task", "image_size", "iters", "lr"}


def build_parser():
    """All flags of diagnose.py."""
    parser = flags.Parser(__doc__)
    group = parser.add_argument_group("what to look at; nothing given: all that trains nothing")
    group.add_argument("--ckpt", metavar="FILE", help="a checkpoint; its data set, model and loss are used")
    group.add_argument("--data", action="store_true", help="files, label values, classes, weights, layout floor")
    group.add_argument("--gradient-flow", action="store_true", help="does the loss reach every layer and the image?")
    group.add_argument("--collapse", action="store_true", help="classes used, same mask for all (needs --ckpt)")
    group.add_argument("--noise-test", action="store_true", help="train on noise; with --ckpt: its score on noise")
    group.add_argument("--all", action="store_true", help="all of them")
    group.add_argument("--out", metavar="DIR", help="where the JSON files go; empty: beside --ckpt, else runs/diagnose")
    group.add_argument("--json", metavar="FILE", help="where the findings go; empty: OUT/diagnosis.json")
    data.add_data_flags(parser)
    models.add_model_flags(parser)
    group = parser.add_argument_group("noise test")
    group.add_argument("--image-size", type=flags.size, default=[120, 160], metavar="HxW", help="canvas, pixels")
    group.add_argument("--iters", type=flags.positive_int, default=600, help="steps")
    group.add_argument("--batch-size", type=flags.positive_int, default=8, help="images a step")
    group.add_argument("--lr", type=flags.non_negative, default=2e-3, help="peak learning rate")
    group.add_argument("--seed", type=flags.natural, default=0, help="of weights, order and noise")
    group.add_argument("--device", default="auto", help="auto (CUDA when there is one), cpu, cuda, cuda:N")
    return parser


def choose_probes(args):
    """The names of the probes to run, in order. Raises UserError for one that lacks its input."""
    chosen = [name for name in PROBES if args.all or getattr(args, name)]
    if args.collapse and not args.ckpt:
        raise UserError("--collapse judges a trained model", remedy="give it with --ckpt FILE")
    if not chosen:
        chosen = list(PROBES) if args.ckpt else ["data", "gradient_flow"]
    return [name for name in chosen if name != "collapse" or args.ckpt]


class Patient:
    """What is examined: a data set, audited once when first needed, and a model with its loss."""

    def __init__(self, args):
        self.args = args
        self.device = engine.choose_device(args.device)
        self.predictor, self.content = engine.load_predictor(args.ckpt, self.device) if args.ckpt else (None, None)
        config = Namespace(**self.content["config"]) if args.ckpt else None
        where = args
        if config:
            where = Namespace(
                dataset=self.content["data"]["dataset"],
                data_dir=args.data_dir or config.data_dir,
                anomaly_classes=getattr(config, "anomaly_classes", ""),
            )
        self.config = config
        self.spec, root = engine.open_dataset(where)
        if config:
            engine.check_classes(self.spec, self.content)
        self.splits = {name: data.open_split(self.spec, root, name, args.limit) for name in ("train", "val")}
        self.fresh = None
        if not args.ckpt:  # built at once: a wrong --model, --weights or --freeze is the user's mistake, not a finding
            torch.manual_seed(args.seed)
            self.fresh = models.start_model(args, self.spec.num_classes)[0].to(self.device)
        self.audits = None
        self.noted = None  # (finding, totals, statistics) of the one pass that two probes share

    def audit(self):
        """{split: Audit}, read once."""
        if self.audits is None:
            self.audits = {}
            for name, split in self.splits.items():
                progress = report.Progress(len(split), f"read {name}", "images")
                self.audits[name] = data_audit.audit(split, metrics.GRID, progress.update)
                progress.close()
        return self.audits

    def clean_audit(self):
        """The audits, for a probe that cannot work on faulty data. Raises UserError naming the fault."""
        for audit in self.audit().values():
            if error := audit.error():
                raise error
        return self.audits

    def rely(self):
        """image_reliance's (finding, totals, statistics), computed once."""
        if self.noted is None:
            val, batch = self.splits["val"], self.args.batch_size
            seen = iter(range(3 * len(val) + 1))
            progress = report.Progress(3 * len(val), "predict val", "images")
            self.noted = probes.image_reliance(
                self.predictor,
                val,
                engine.layout_map_of(self.content),
                batch_size=batch,
                workers=self.args.workers,
                seed=self.args.seed,
                progress=lambda: progress.update(next(seen) + 1),
            )
            progress.close()
        return self.noted

    def model_and_loss(self):
        """The model to examine and its criterion: the checkpoint's, or a fresh one with plain cross-entropy."""
        if self.config is None:
            criterion = losses.Criterion(
                {"ce": [1.0]}, self.spec.num_classes, data.Normalise(), aux_weights=self.fresh.aux_weights
            )
            return self.fresh, criterion.to(self.device)
        config, counts = self.config, self.clean_audit()["train"].image_counts
        models.freeze(self.predictor.model, config.freeze)
        criterion = losses.Criterion(
            losses.choose_terms(
                config.loss, getattr(config, "outliers", "none"), self.predictor.model.centres is not None
            ),
            self.spec.num_classes,
            self.predictor.normalise,
            class_weights=losses.class_weights(config.class_weights, torch.from_numpy(counts), self.spec.classes),
            label_smoothing=config.label_smoothing,
            aux_weights=self.predictor.model.aux_weights,
        )
        return self.predictor.model, criterion.to(self.device)

    def outliers(self):
        """What was pasted into the checkpoint's training images, into every one here; None where nothing was."""
        if getattr(self.config, "outliers", "none") == "none":
            return None
        outliers, _ = data_outliers.open_outliers(self.config, self.spec, self.splits["train"].root)
        outliers.options["chance"] = 1.0
        return outliers

    def training_batch(self, count=4):
        """A few training examples on the device: images (N, 3, h, w) float32 in [0, 1], targets (N, h, w) uint8."""
        geometry = self.predictor.geometry if self.predictor else data.Geometry(self.args.image_size)
        split = self.splits["train"]
        if len(split) < 2:
            raise UserError("a single training image", remedy="batch norm needs at least 2")
        order = torch.Generator().manual_seed(self.args.seed)
        tickets, outliers = data.draw_tickets(len(split), count, order)[0], self.outliers()
        if outliers:
            tickets = outliers.add_pastes(tickets, order)
        pairs = data.TrainingPairs(split, geometry, outliers)
        examples = [pairs[ticket] for ticket in tickets]
        images, targets = (torch.stack(part).to(self.device) for part in zip(*examples, strict=True))
        return data.to_float(images), targets


def examine(patient, name):
    """Run one group of probes: a list of findings."""
    if name == "data":
        audits = patient.audit()
        findings = [probes.audit_files(audits)]
        if findings[0].verdict == "pass":
            findings += [probes.class_distribution(audits), probes.layout_floor(audits, "val")]
        return findings
    if name == "gradient_flow":
        model, criterion = patient.model_and_loss()
        return [probes.gradient_flow(model, criterion, *patient.training_batch())]
    if name == "collapse":
        _, totals, statistics = patient.rely()
        return [probes.collapse(totals, statistics, patient.spec.classes)]
    if patient.predictor:
        return [patient.rely()[0]]
    progress = report.Progress(patient.args.iters, "noise test", "steps")
    finding = probes_noise.noise_test(
        patient.args, patient.splits, patient.clean_audit(), patient.device, progress=progress.update
    )
    progress.close()
    return [finding]


def run_probes(patient, names):
    """All findings; a probe that cannot run is a skip with its reason, and the others still run.

    Data found faulty on the way is a finding of its own, whichever probe came upon it.
    """
    findings = []
    for name in names:
        start = time.perf_counter()
        try:
            found = examine(patient, name)
        except UserError as error:
            found = [probes.Finding(name, "skip", str(error))]
        for finding in found:
            finding.seconds = finding.seconds or (time.perf_counter() - start) / len(found)
        findings += found
    if patient.audits and "data" not in names:
        findings += [found for found in [probes.audit_files(patient.audits)] if found.verdict == "fail"]
    return findings


def print_findings(diagnosis):
    """The findings on the terminal, most likely root cause first."""
    for one in diagnosis["findings"]:
        print(f"{one['verdict'].upper():4}  {one['probe']} ({one['seconds']:.1f} s): {one['why']}")
        if one["remedy"] and one["verdict"] != "pass":
            print(f"      remedy: {one['remedy']}")
        for step in one["evidence"].get("curve", []):
            print(
                f"      after {step['iteration']:4} steps: validation loss {step['loss']:.3f}, "
                f"training loss {step['train_loss']:.3f}, mIoU {step['miou']:.3f}"
            )
        if "references" in one["evidence"]:
            known = one["evidence"]["references"]
            print(
                f"      lines: chance mIoU {known['chance']:.3f}, prior {known['prior']:.3f} nats (mIoU "
                f"{known['prior_miou']:.3f}), layout {known['layout']:.3f} nats, a = 0 map mIoU "
                f"{known['layout_map']:.3f}, layout floor {known['floor']:.3f}"
            )
    cause = f", root cause: {diagnosis['root_cause']}" if diagnosis["root_cause"] else ""
    print(f"verdict: {diagnosis['verdict']}{cause}")


def main():
    """Diagnose; returns 1 when a fault was found."""
    parser = build_parser()
    args = parser.parse_args()
    if args.ckpt and parser.given & ABOUT_A_FRESH_MODEL:
        name = min(parser.given & ABOUT_A_FRESH_MODEL).replace("_", "-")
        raise UserError(f"--{name} beside --ckpt", remedy="the checkpoint brings its own; leave one of the two out")
    names = choose_probes(args)
    patient = Patient(args)
    diagnosis = probes.conclude(run_probes(patient, names))
    out = Path(args.out or (Path(args.ckpt).parent if args.ckpt else Path("runs") / "diagnose"))
    report.write_json(args.json or out / "diagnosis.json", diagnosis)
    for finding in diagnosis["findings"]:
        if weights := finding["evidence"].get("recommended_weights"):
            report.write_json(out / "class_weights.json", weights)
    print_findings(diagnosis)
    return 1 if diagnosis["verdict"] == "fail" else 0


if __name__ == "__main__":
    sys.exit(flags.run(main))
