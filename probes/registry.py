"""The probes by name: when each applies, what it costs, which function it is; and how they are chosen and run.

Every function takes a `Subject` and returns a list of Findings.
"""

import time
import traceback
from functools import partial
from typing import NamedTuple

import cli
import metrics
from cli import UserError
from probes.answers import class_assignment, collapse, flip_equivariance, prediction_shift, softmax_inside
from probes.conditions import CONDITIONS, judge_conditions, noise_row, train_under
from probes.dataset import class_distribution, duplicates, layout_floor
from probes.files import audit_files, mask_borders, mask_values, odd_images
from probes.finding import Finding
from probes.image_mask_fit import label_agreement
from probes.noise_test import noise_test, references
from probes.preprocessing import input_contrast, preprocessing
from probes.shortcut import feature_correlation, gradient_flow, layout_reliance
from probes.trained_weights import batch_norm_gap, untrained
from probes.training_log import training_log


class Probe(NamedTuple):
    """When a probe applies, what it costs (about; seconds of one CPU core, weighs the progress line), what it runs.

    needs: "" a data set, "model" one that was trained, "ckpt" one of ours, "fresh" trains one itself.
    """

    group: str
    needs: str
    cost: float
    run: object  # Subject -> [Finding]


PROBES = {
    "files": Probe("data", "", 5, audit_files),
    "classes": Probe("data", "", 0.1, class_distribution),
    "layout_floor": Probe("data", "", 0.2, layout_floor),
    "mask_values": Probe("data", "", 5, mask_values),
    "mask_borders": Probe("data", "", 0.2, mask_borders),
    "images": Probe("data", "", 0.2, odd_images),
    "duplicates": Probe("data", "", 1, duplicates),
    "label_agreement": Probe("data", "", 8, label_agreement),
    "log": Probe("model", "ckpt", 0.1, training_log),
    "untrained": Probe("model", "model", 0.2, untrained),
    "gradient_flow": Probe("model", "", 3, gradient_flow),
    "softmax": Probe("model", "model", 3, softmax_inside),
    "preprocessing": Probe("model", "model", 10, preprocessing),
    "input_contrast": Probe("model", "model", 0.2, input_contrast),
    "batch_norm": Probe("model", "model", 3, batch_norm_gap),
    "class_ids": Probe("model", "model", 1, class_assignment),
    "shift": Probe("model", "model", 1, prediction_shift),
    "flip": Probe("model", "model", 3, flip_equivariance),
    "collapse": Probe("model", "model", 1, collapse),
    "layout_reliance": Probe("shortcut", "model", 20, layout_reliance),
    "features": Probe("shortcut", "model", 3, feature_correlation),
    "noise_test": Probe("training", "fresh", 150, noise_test),
    **{
        name: Probe("training", "fresh", 150, partial(train_under, name=name))
        for name in CONDITIONS
        if name != "noise"  # that is the noise test
    },
}
OF_MASKS = {"classes", "layout_floor"}  # the probes that ask for no image


def list_probes():
    """The names of --only, by group."""
    groups = dict.fromkeys(probe.group for probe in PROBES.values())
    lines = [f"    {group:9} {', '.join(n for n, p in PROBES.items() if p.group == group)}" for group in groups]
    return "\n".join(["probes of --only:", *lines])


# ---------------------------------------------------------------------------------------------------------------------
# Choosing


def choose_probes(
    only="", *, ckpt=False, foreign=False, data=False, noise_test=False, everything=False, nothing_else=False
):
    """The names of the probes to run, in the table's order.

    only: their names, separated by commas; ckpt, foreign: whether there is a checkpoint, or somebody else's model;
    data, noise_test: these as well; everything: all that applies; nothing_else: none unless one is named.
    Raises UserError for an unknown one, or one that lacks its input.
    """
    trained = ckpt or foreign
    given = {"": True, "model": trained, "ckpt": ckpt, "fresh": True}
    wanted = cli.names(only)
    if only and not wanted:
        raise UserError(f"{only!r} names no probe", "--only", "--help lists them")
    for name in wanted:
        if name not in PROBES:
            raise UserError(f"unknown probe {name!r}", "--only", cli.nearest(name, PROBES))
        if PROBES[name].needs == "model" and not trained:
            raise UserError(f"{name} judges a trained model", "--only", "give it with --ckpt FILE, or --model-from")
        if not given[PROBES[name].needs]:
            raise UserError(f"{name} reads a run of ours", "--only", "give it with --ckpt FILE")
    if noise_test:
        wanted.append("layout_reliance" if trained else "noise_test")
    if data:
        wanted += [name for name, probe in PROBES.items() if probe.group == "data"]
    if not wanted and (everything or not nothing_else):
        wanted = [n for n, p in PROBES.items() if given[p.needs] and (everything or p.needs != "fresh")]
    return [name for name in PROBES if name in wanted]


def open_images(names):
    """Whether these probes need the audits to read images, too; none: what else is done may need it."""
    return not names or not {*names} <= OF_MASKS


# ---------------------------------------------------------------------------------------------------------------------
# Running


def run_probe(subject, name):
    """One probe's findings; one that cannot run is a skip with its reason, so that the others still run."""
    start, probe = time.perf_counter(), f"{PROBES[name].group}.{name}"
    try:
        found = PROBES[name].run(subject)
    except UserError as error:
        found = [Finding(probe, "skip", str(error))]
    except FloatingPointError as error:
        remedy = "use an earlier checkpoint, or train with --clip 1 or --amp off"
        found = [Finding(probe, "fail", str(error), cause="answers_not_finite", remedy=remedy)]
    except Exception as error:  # a foreign model may do anything; what it did is shown, not hidden
        why = f"could not run: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        evidence = {"traceback": traceback.format_exc().splitlines()[-6:]}
        found = [Finding(probe, "skip", why, evidence=evidence)]
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
    findings += judge_trainings(subject, findings)
    if "audits" in vars(subject) and "files" not in names:
        findings += [found for found in audit_files(subject) if found.verdict == "fail"]
    return findings


def judge_trainings(subject, findings=()):
    """The findings on all trainings under conditions, judged beside each other, and beside the noise test's finding."""
    if not subject.rows:
        return []
    rows = [noise_row(finding) for finding in findings if finding.probe == "noise_test"] + subject.rows
    audits = subject.clean_audits
    layout = metrics.fit_layout(audits["train"].grids, subject.spec.num_classes)
    found = judge_conditions(rows, references(audits["train"], subject.splits["val"], layout))
    return [finding for finding in found if finding.probe != "shortcut.noise"]  # the noise test has its own
