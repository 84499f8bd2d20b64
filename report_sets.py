"""One model on several sets: a row each, and one of all together, for the terminal and for the page.

Takes the JSON of evaluate.py with its "sets". Every figure may be None; both layout floors stand beside the mIoU.
"""

from html import escape

from report_svg import score_text

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
    return "\n".join(_line(row, widths) for row in table)


def _line(row, widths):
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
