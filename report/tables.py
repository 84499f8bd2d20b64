"""Figures as text, and tables for the terminal."""

import math

from cli import figure_text

# ---------------------------------------------------------------------------------------------------------------------
# Figures as text


def score_text(value, none="–"):
    """A fraction with three digits; `none` where it is None."""
    return none if value is None else f"{value:.3f}"


def percent_text(share, exact=False):
    """A share as percent with two digits: 31 %, 3.4 %, 0.052 %; exact: a chosen one as it was written, 1 %, 0.1 %."""
    value = 100 * share
    if exact:
        return f"{value:g} %"
    return f"{value:.0f} %" if value >= 9.95 else f"{value:#.2g} %" if value >= 0.01 else "under 0.01 %"


def interval_text(interval):
    """The ends of an interval (low, high): 0.588 to 0.634."""
    return "{:.3f} to {:.3f}".format(*interval)


def words(name):
    """A name as a person says it: shuffled_masks -> shuffled masks."""
    return str(name).replace("_", " ")


def show(value):
    """Any JSON value as short plain text: None as a dash, floats with four digits, lists and dicts in line."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {show(part)}" for name, part in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(show(part) for part in value) or "–"
    return str(value)


def confusion_words(row):
    """One entry of evaluation["confusions"] as a sentence without its full stop."""
    return (
        f"{percent_text(row['share_of_all'])} of all pixels: {row['target']} taken for {row['prediction']} "
        f"({percent_text(row['share_of_target'])} of {row['target']})"
    )


# ---------------------------------------------------------------------------------------------------------------------
# An anomaly score's figures


def ranked(anomaly):
    """[(score, figures)], the largest AUPR first; those without one come last."""
    rows = (anomaly or {}).items()
    return sorted(rows, key=lambda row: (row[1].get("aupr") is None, -(row[1].get("aupr") or 0)))


def figure(scores, place):
    """The figure at a place such as "per_image/aupr", None where a part of the way is missing."""
    for name in place.split("/"):
        scores = (scores or {}).get(name)
    return scores


def certified(scores, name):
    """A figure and the bound of its error as text: ("0.31236", "0.00005"), the bound "" where none is known.

    The bound is rounded up and covers the rounding of the figure too: the exact value lies within it of what is shown.
    """
    value, error = figure(scores, name), figure(scores, f"{name}_error")
    if value is None or error is None:
        return f"{value:.4f}" if value and value < 0.01 else score_text(value), ""
    digits = min(5, max(4, -math.floor(math.log10(error)))) if error else 4
    bound = error + abs(value - round(value, digits))
    return f"{value:.{digits}f}", f"{math.ceil(bound * 10**digits - 1e-6) / 10**digits:.{digits}f}"


def chance_figures(chance):
    """What a score gets that is drawn at random, in the shape of a score's figures; {} where the share is not known."""
    if chance is None:
        return {}
    f1 = 2 * chance / (1 + chance)  # at its best, where every pixel raises an alarm
    found = {"0.01": 0.01, "0.001": 0.001}
    return {"aupr": chance, "auroc": 0.5, "fpr95": 0.95, "best_f1": f1, "found_at": found}


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _align(rows, left=1):
    """Rows of cells under each other as text, the first `left` columns from the left, the others from the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    forms = [f"{'<' if at < left else '>'}{width}" for at, width in enumerate(widths)]
    return "\n".join("  ".join(map(format, row, forms)).rstrip() for row in rows)


def _bracketed(interval):
    return "[{:.3f}, {:.3f}]".format(*interval) if interval else ""


def class_table(classes, iou, shares=None):
    """The per-class table for the terminal.

    classes: names; iou: 0..1 or None (absent) each; shares: each class's share of the target pixels, or None.
    """
    width = max([5, *(len(name) for name in classes)])
    lines = [f"{'class':<{width}}    IoU  {'':24}" + ("  share of pixels" if shares else "")]
    for index, (name, value) in enumerate(zip(classes, iou, strict=True)):
        share = f"  {shares[index]:15.4f}" if shares else ""
        lines.append(f"{name:<{width}} {score_text(value, '-'):>6}  {'#' * round(24 * (value or 0)):24}{share}")
    return "\n".join(line.rstrip() for line in lines)


def feature_table(stages):
    """The stages' maps for the terminal. stages: [{"stage", "shape", "mean", "std", "zeros"}], figures may be None."""
    width = max([5, *(len(row["stage"]) for row in stages)])
    lines = [f"{'stage':<{width}}  {'shape':>15} {'mean':>10} {'std':>10}  zeros"]
    for row in stages:
        mean, std, zeros = (figure_text(row[name]) for name in ("mean", "std", "zeros"))
        shape = " x ".join(map(str, row["shape"]))
        lines.append(f"{row['stage']:<{width}}  {shape:>15} {mean:>10} {std:>10}  {zeros}")
    return "\n".join(lines)


ANOMALY_COLUMNS = {
    "AUROC": "auroc",
    "FPR95": "fpr95",
    "per image": "per_image/aupr",
    "found at 1 %": "found_at/0.01",
    "comp. F1": "components/f1",
}


def anomaly_table(anomaly, chance=None):
    """The anomaly scores for the terminal, the largest AUPR first: AUPR ± its certified error and [95 % interval].

    anomaly: evaluation["anomaly"]; chance: the share of anomalous pixels, whose row comes last, or None. "per image" is
    the mean AUPR of single images; component F1 is shown where a score has it. Of a name longer
    than 24 letters the middle is left out.
    """
    rows = [*ranked(anomaly), *([("chance", chance_figures(chance))] if chance is not None else [])]
    columns = dict(ANOMALY_COLUMNS)
    if all(figure(scores, columns["comp. F1"]) is None for _, scores in rows):
        del columns["comp. F1"]
    table = [["score", "AUPR", *columns]]
    for name, scores in rows:
        figures = [figure(scores, place) for place in columns.values()]
        name = name if len(name) <= 24 else f"{name[:11]}..{name[-11:]}"
        table.append([name, _aupr(scores), *("-" if value is None else f"{value:.4f}" for value in figures)])
    return _align(table, left=2)


def _aupr(scores):
    value, bound = certified(scores, "aupr")
    parts = ["-" if scores.get("aupr") is None else value, f"± {bound}" if bound else ""]
    return " ".join(filter(None, [*parts, _bracketed(scores.get("aupr_interval"))]))


def _score(name):
    return lambda one: score_text(one.get(name))


# heading -> the cell of one set's figures, as text
SET_COLUMNS = {
    "images": lambda one: f"{one['images']:,}",
    "classes": lambda one: str(one["classes_averaged"]),
    "mIoU": _score("miou"),
    "95 %": lambda one: _bracketed(one.get("miou_interval")) or "–",
    "floor": _score("layout_floor"),
    "own floor": _score("own_layout_floor"),
    "gain": _score("semantic_gain"),
    "accuracy": _score("pixel_accuracy"),
    "safe mIoU": _score("safe_miou"),
}


def set_rows(evaluation):
    """The table of several sets as rows of text, its heads first, all sets together last.

    evaluation: evaluate's JSON with its "sets". The column of the safe mIoU is there where a set has one.
    """
    sets = [*evaluation["sets"].items(), ("all together", evaluation)]
    known = any(one.get("safe_miou") is not None for _, one in sets)
    columns = {head: cell for head, cell in SET_COLUMNS.items() if known or head != "safe mIoU"}
    return [["set", *columns], *([name, *(cell(one) for cell in columns.values())] for name, one in sets)]


def sets_table(evaluation):
    """The sets for the terminal."""
    return _align(set_rows(evaluation))
