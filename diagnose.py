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

import sys
from pathlib import Path

import cli
import data
import models
from cli import UserError
from networks.foreign import add_foreign_flags
from probes.cross_dataset import cross_dataset, open_others
from probes.finding import conclude
from probes.noise_test import add_training_flags
from probes.registry import PROBES, choose_probes, list_probes, open_images, run_probes
from probes.subject import Subject
from report.files import save_exhibits, write_diagnosis_page, write_json
from report.findings import diagnosis_table

ABOUT_TRAINING = {"model", "freeze", "aux_task", "iters", "lr"}


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
    add_training_flags(parser)
    return parser


def asked_for(args):
    """The names of the probes that the flags ask for, in order. Raises UserError."""
    return choose_probes(
        args.only,
        ckpt=bool(args.ckpt),
        foreign=bool(args.model_from),
        data=args.data,
        noise_test=args.noise_test,
        everything=args.all,
        nothing_else=bool(args.cross_dataset),
    )


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


def diagnose(words=None):
    """Examine what the flags name and write down what was found; returns diagnosis.json's content."""
    parser = build_parser()
    args = parser.parse_args(words)
    names = asked_for(args)
    check_flags(args, parser.given, names)
    out = Path(args.out or (Path(args.ckpt).parent if args.ckpt else Path("runs") / "diagnose"))
    subject = Subject.from_args(args, open_images(names))
    out.mkdir(parents=True, exist_ok=True)  # now, and not after minutes of work
    if args.json and Path(args.json).is_dir():
        raise UserError("this is a folder", args.json, "give --json a file's name")
    others = open_others(subject, cli.names(args.cross_dataset)) if args.cross_dataset else {}  # before any work
    findings = run_probes(subject, names)
    if others:
        findings += cross_dataset(subject, others)
    return write_diagnosis(findings, subject, out, args.json or out / "diagnosis.json")


def write_diagnosis(findings, subject, out, path):
    """Write the JSON into `path`, all else into the folder `out`; returns the JSON's content."""
    drawn = save_exhibits(out, findings, subject.spec.classes, subject.palette)
    for finding, pictures in zip(findings, drawn, strict=True):
        if pictures:
            finding.evidence["pictures"] = pictures
    diagnosis = conclude(findings)
    write_json(path, diagnosis)
    for finding in findings:
        if weights := finding.evidence.get("recommended_weights"):
            write_json(out / "class_weights.json", weights)
    write_diagnosis_page(out / "diagnosis.html", subject.title, diagnosis, out)
    return diagnosis


def main(words=None):
    """Diagnose; returns 1 when a fault was found."""
    diagnosis = diagnose(words)
    print(diagnosis_table(diagnosis))
    return 1 if diagnosis["verdict"] == "fail" else 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
