"""Tables for the terminal."""

from html import escape

from cli import figure_text
from report.anomaly_section import certified, chance_figures, figure, ranked
from report.charts import score_text

# ---------------------------------------------------------------------------------------------------------------------
# Terminal


def class_table(classes, iou, shares=None):
    """The per-class table for the terminal.

    classes: names; iou: 0..1 or None (absent) each; shares: each class's share of the target pixels, or None.
    """
    width = max([5, *(len(name) for name in classes)])
    lines = [f"{'class':<{width}}    IoU  {'':24}" + ("  share of pixels" if shares else "")]
    for index, (name, value) in enumerate(zip(classes, iou, strict=True)):
        figure = "     -" if value is None else f"{value:6.3f}"
        share = f"  {shares[index]:15.4f}" if shares else ""
        lines.append(f"{name:<{width}} {figure}  {'#' * round(24 * (value or 0)):24}{share}")
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
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(_line(cells, widths) for cells in table)


def _aupr(scores):
    value, bound = certified(scores, "aupr")
    interval = scores.get("aupr_interval")
    parts = ["-" if scores.get("aupr") is None else value, f"± {bound}" if bound else ""]
    return " ".join(part for part in [*parts, "[{:.3f}, {:.3f}]".format(*interval) if interval else ""] if part)


def _line(cells, widths):
    """Cells under each other in columns, the first two from the left, the others from the right."""
    places = [
        f"{cell:{'<' if at < 2 else '>'}{width}}" for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(places).rstrip()


ALL = "all together"


def _interval(one):
    between = one.get("miou_interval")
    return "[{:.3f}, {:.3f}]".format(*between) if between else "–"


def _score(name):
    return lambda one: score_text(one.get(name))


# heading -> the cell of one set's figures, as text
COLUMNS = {
    "images": lambda one: f"{one['images']:,}",
    "classes": lambda one: str(one["classes_averaged"]),
    "mIoU": _score("miou"),
    "95 %": _interval,
    "floor": _score("layout_floor"),
    "own floor": _score("own_layout_floor"),
    "gain": _score("semantic_gain"),
    "accuracy": _score("pixel_accuracy"),
    "safe mIoU": _score("safe_miou"),
}


def set_rows(evaluation):
    """[(set, its figures)], all of them together last."""
    return [*evaluation["sets"].items(), (ALL, evaluation)]


def set_columns(evaluation):
    """`COLUMNS` without a safe mIoU that no set has."""
    known = any(one.get("safe_miou") is not None for _, one in set_rows(evaluation))
    return {head: cell for head, cell in COLUMNS.items() if known or head != "safe mIoU"}


def sets_table(evaluation):
    """The sets for the terminal, as lines."""
    columns = set_columns(evaluation)
    table = [["set", *columns]]
    table += [[name, *(cell(one) for cell in columns.values())] for name, one in set_rows(evaluation)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(_set_line(row, widths) for row in table)


def _set_line(row, widths):
    """Cells under each other, the first from the left, the figures from the right."""
    cells = (f"{cell:{'>' if at else '<'}{width}}" for at, (cell, width) in enumerate(zip(row, widths, strict=True)))
    return "  ".join(cells).rstrip()


def sets_section(evaluation):
    """The sets for the page, as HTML; nothing where there is but one."""
    if not evaluation.get("sets"):
        return ""
    columns = set_columns(evaluation)
    heads = "".join(f'<th class="n">{escape(head)}</th>' for head in columns)
    rows = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f'<td class="n">{escape(cell(one))}</td>' for cell in columns.values())
        + "</tr>"
        for name, one in set_rows(evaluation)
    )
    note = (
        "<p class=\"note\">floor: what the training set's layout gets here; own floor: what the set's own layout gets. "
        "The gain is over the higher one. Classes: those averaged; what a set does not label is not.</p>"
    )
    return f'<div class="scroll"><table class="files"><tr><th>set</th>{heads}</tr>{rows}</table></div>{note}'
