"""Does a diagnosis name what is wrong, and stay silent where nothing is?

    python benchmarks/panel.py --camvid DIR [--weights FILE]      both sets; about 25 minutes on 2 quiet cores
    python benchmarks/panel.py                                    streets alone
    python benchmarks/panel.py --only "BGR,shuffled"              cases whose name contains one of these

One base is trained per set; faults of files are planted in a small copy of each set (all files, and a tenth of them),
faults of checkpoints in the base, faults of training in a few steps more. Every case is diagnosed as a user would; its
first finding must name the planted fault. Healthy controls must not fail. Prints the confusion table, every miss, and
each threshold's figure on both sides; exit code 1 if a fault was not named first or a healthy control failed.
"""

import contextlib
import io
import json
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli
import diagnose
import train
from benchmarks.panel_faults import (
    CHECKPOINT_FAULTS,
    FILE_FAULTS,
    FOREIGN_FAULTS,
    HEALTHY_FOREIGN,
    TRAINING_FAULTS,
    WRAPPER,
    copy_set,
)
from datasets.catalogue import build_spec
from engine.checkpoint import load_checkpoint, save_checkpoint
from engine.devices import open_dataset
from probes.registry import PROBES

REPO_ROOT = str(Path(__file__).resolve().parent.parent)
COUNTS = {"train": 120, "val": 40, "test": 60}
AUGMENT = "flip=0.5,scale=0.8:1.25,colour=0.2"
BASES = {  # what each set's models are trained with
    "camvid": f"--image-size 120x160 --augment {AUGMENT} --class-weights sqrt --lr 2e-3",
    "streets": f"--image-size 96x176 --augment {AUGMENT} --class-weights sqrt --lr 2e-3",
}
HEALTHY = {  # name: (flags, whether --weights apply)
    "late": ("--model fpn_mobilenet_v2 --epochs 16", True),
    "early": ("--model fpn_mobilenet_v2 --epochs 5", True),
    "U-Net": ("--model unet_mobilenet_v2 --epochs 8", True),
    "ViT": ("--model vit_tiny --epochs 12", False),
}
MODEL_PROBES = [name for name, probe in PROBES.items() if probe.group in ("model", "shortcut")]


@dataclass
class Case:
    """One diagnosis. expected: the cause that is to come first, None for a healthy control."""

    set: str
    name: str
    expected: str | None
    words: list  # diagnose.py's flags
    diagnosis: dict = None
    seconds: float = 0.0

    @property
    def named(self):
        """What comes first: the first finding's cause, None where nothing failed or warned."""
        first = self.diagnosis["findings"][0]
        return first["cause"] if first["verdict"] in ("fail", "warn") else None

    @property
    def right(self):
        """A fault named first; a healthy control without a failure."""
        return self.named == self.expected if self.expected else self.diagnosis["verdict"] != "fail"


def add_panel_flags(parser):
    """The flags of the panel."""
    parser.add_argument("--camvid", metavar="DIR", help="CamVid in the SegNet layout; empty: streets alone")
    parser.add_argument("--streets", metavar="DIR", default="data/streets", help="the embedded scenes")
    parser.add_argument("--weights", default="none", help="MobileNetV2's ImageNet weights; none: from scratch")
    parser.add_argument("--shares", default="1,0.1", help="of the files that a fault is planted in")
    parser.add_argument("--only", default="", help="cases whose name contains one of these texts; empty: all")
    parser.add_argument("--files-only", action="store_true", help="only what needs no training")
    parser.add_argument("--out", default="runs/panel", metavar="DIR", help="where everything is kept")


def is_wanted(args, name):
    """Whether --only lets a case through."""
    return not args.only or any(part in name for part in cli.names(args.only))


# ---------------------------------------------------------------------------------------------------------------------
# Preparing


def train_run(run, words, patch=None):
    """Train in this process, unless it was done before; returns best.pth."""
    best = run / "best.pth"
    if not (run / "done").exists():
        shutil.rmtree(run, ignore_errors=True)
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        quiet = io.StringIO()
        argv = mock.patch.object(sys, "argv", ["train.py", *map(str, words), "--run-dir", str(run)])
        with patch() if patch else contextlib.nullcontext(), contextlib.redirect_stdout(quiet), argv:
            code = train.main()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if code:
            raise SystemExit(f"training {run} ended with {code}")
        (run / "done").touch()
    return best


def base_words(name, root, args, extra, weights=True):
    """train.py's flags of a model on a set."""
    chosen = ["--weights", args.weights, "--backbone-lr", "5e-4"] if weights and args.weights != "none" else []
    words = f"--dataset {name} {BASES[name]} --validate-every 4 --workers 1 {extra}".split()
    return [*chosen, *words, "--data-dir", root]  # what stands later wins: extra may bring its own weights


def small_copy(args, name, root, case, fault=None, share=1.0):
    """A copy of a set with a fault in it; returns its folder."""
    target = Path(args.out) / name / "data" / case
    shutil.rmtree(target, ignore_errors=True)
    spec = build_spec(name, root)
    copied = copy_set(spec, root, target, COUNTS)
    if fault:
        fault.plant(copied, spec, share)
    return target


def file_cases(args, name, root):
    """Faults of files, each in its own copy."""
    for fault_name, fault in FILE_FAULTS.items():
        for share in map(float, args.shares.split(",")):
            case = f"{fault_name}, {share:.0%} of the files"
            if is_wanted(args, case):
                target = small_copy(args, name, root, case.replace(" ", "-"), fault, share)
                yield Case(name, case, fault.cause, ["--data", "--dataset", name, "--data-dir", target])
                shutil.rmtree(target)
    if is_wanted(args, "healthy files"):
        target = small_copy(args, name, root, "healthy")
        yield Case(name, "healthy files", None, ["--data", "--dataset", name, "--data-dir", target])


def model_words(best, root):
    """diagnose.py's flags: what a checkpoint of ours tells, the files aside."""
    return ["--ckpt", best, "--data-dir", root, "--only", ",".join(MODEL_PROBES), "--limit", "120"]


def foreign_words(name, path, root):
    """The same for somebody else's model, which has no log."""
    only = ",".join(name for name in MODEL_PROBES if PROBES[name].needs != "ckpt")
    size = BASES[name].split()[1]
    words = ["--model-from", f"{path}:build", "--dataset", name, "--data-dir", root, "--limit", "120"]
    return [*words, "--image-size", size, "--only", only]


def checkpoint_cases(args, name, root, base):
    """Faults of evaluation, derived from the base."""
    folder = Path(args.out) / name / "checkpoints"
    for fault_name, (cause, plant) in CHECKPOINT_FAULTS.items():
        if is_wanted(args, fault_name):
            content = load_checkpoint(base)
            plant(content)
            run = folder / fault_name.replace(" ", "-")
            run.mkdir(parents=True, exist_ok=True)
            shutil.copy(base.parent / "log.jsonl", run)
            save_checkpoint(run / "best.pth", content)
            yield Case(name, fault_name, cause, model_words(run / "best.pth", root))
    for fault_name, (cause, line) in FOREIGN_FAULTS.items():
        if is_wanted(args, fault_name):
            path = folder / f"{fault_name.replace(' ', '_')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(WRAPPER.format(root=REPO_ROOT, path=str(base.resolve()), line=line))
            yield Case(name, fault_name, cause, foreign_words(name, path, root))


def training_cases(args, name, root, base):
    """Faults of training."""
    for fault_name, (cause, extra, patch) in TRAINING_FAULTS.items():
        if is_wanted(args, fault_name):
            extra = extra.replace("BASE", str(base))
            words = base_words(name, root, args, f"--model fpn_mobilenet_v2 {extra}")
            best = train_run(Path(args.out) / name / fault_name.replace(" ", "-"), words, patch)
            yield Case(name, fault_name, cause, model_words(best, root))


def healthy_cases(args, name, root):
    """Healthy controls: every probe that trains nothing must let them pass."""
    folder = Path(args.out) / name
    for control, (extra, weights) in HEALTHY.items():
        if is_wanted(args, f"healthy {control}"):
            best = train_run(folder / control, base_words(name, root, args, extra, weights))
            yield Case(name, f"healthy {control}", None, ["--ckpt", best, "--data-dir", root])
    if is_wanted(args, "healthy foreign"):
        base = train_run(folder / "late", base_words(name, root, args, HEALTHY["late"][0]))
        path = folder / "healthy_foreign.py"
        path.write_text(WRAPPER.format(root=REPO_ROOT, path=str(base.resolve()), line=HEALTHY_FOREIGN))
        yield Case(name, "healthy foreign", None, foreign_words(name, path, root))


def all_cases(args):
    """Every case of every set, prepared when it is its turn."""
    roots = {"camvid": args.camvid, "streets": args.streets}
    for name, root in roots.items():
        if root is None:
            continue
        yield from file_cases(args, name, Path(root))
        if not args.files_only:
            folder = Path(args.out) / name
            base = train_run(folder / "late", base_words(name, Path(root), args, HEALTHY["late"][0]))
            yield from healthy_cases(args, name, Path(root))
            yield from checkpoint_cases(args, name, Path(root), base)
            yield from training_cases(args, name, Path(root), base)


# ---------------------------------------------------------------------------------------------------------------------
# Judging


def run_case(case, out):
    """Diagnose as a user would."""
    start = time.perf_counter()
    words = [*map(str, case.words), "--out", str(out / case.name.replace(" ", "-"))]
    with contextlib.redirect_stderr(io.StringIO()):
        case.diagnosis = diagnose.diagnose(words)
    case.seconds = time.perf_counter() - start


def print_case(case):
    """One line: what was planted, what was named, and by which sentence."""
    first = case.diagnosis["findings"][0]
    mark = "ok  " if case.right else "MISS"
    named = case.named or "nothing"
    print(f"{mark}  {case.set:8} {case.name:45} {first['verdict']:4} {named:24} {case.seconds:5.1f} s", flush=True)
    if not case.right:
        print(f"      expected {case.expected or 'no failure'}; {first['probe']}: {first['why']}", flush=True)


def print_confusion(cases):
    """fault × named cause, over sets and sizes."""
    planted = [case for case in cases if case.expected]
    print("\nplanted, over both sets and all sizes -> named first")
    for expected in dict.fromkeys(case.expected for case in planted):
        rows = [case.named or "nothing" for case in planted if case.expected == expected]
        shown = ", ".join(f"{name} {rows.count(name)}" for name in dict.fromkeys(rows))
        print(f"  {expected:24} -> {shown}")
    healthy = [case for case in cases if not case.expected]
    failed = sum(case.diagnosis["verdict"] == "fail" for case in healthy)
    print(f"  healthy controls: {len(healthy)}, of which failed: {failed}")


def print_figures(cases):
    """Each probe's figure on healthy controls, and where it named the fault that was planted."""
    print("\nprobe                      value, healthy controls            value, where it named the planted fault")
    probes = dict.fromkeys(f["probe"] for case in cases for f in case.diagnosis["findings"])
    for probe in probes:
        healthy = _values(f for c in cases if not c.expected for f in c.diagnosis["findings"] if f["probe"] == probe)
        faulty = _values(
            f for c in cases if c.expected for f in c.diagnosis["findings"]
            if f["probe"] == probe and f["cause"] == c.expected
        )  # fmt: skip
        print(f"{probe:26} {healthy:34} {faulty}")


def _values(findings):
    values = sorted(f["value"] for f in findings if f["value"] is not None and f["verdict"] != "skip")
    return f"{values[0]:.3g} to {values[-1]:.3g} ({len(values)})" if values else "-"


def main(words=None):
    """Run the panel."""
    parser = cli.Parser(__doc__)
    add_panel_flags(parser)
    args = parser.parse_args(words)
    if not Path(args.streets).exists():
        open_dataset("streets", args.streets)
    cases, start = [], time.perf_counter()
    for case in all_cases(args):
        run_case(case, Path(args.out) / case.set / "diagnoses")
        print_case(case)
        cases.append(case)
    print_confusion(cases)
    print_figures(cases)
    wrong = sum(not case.right for case in cases)
    print(f"\n{len(cases)} cases, {wrong} wrong, {(time.perf_counter() - start) / 60:.0f} minutes")
    rows = [
        {"set": c.set, "case": c.name, "expected": c.expected, "named": c.named, "seconds": c.seconds} for c in cases
    ]
    (Path(args.out) / "panel.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
