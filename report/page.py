"""The report page: one HTML file without script, network or font, readable on a phone, in the dark and on paper.

The score always stands beside the layout floor, with one sentence that says what the two mean together. Everything
that comes from outside (class names, captions, flags) is escaped. Figures are fractions; a sentence says percent.
"""

from html import escape
from pathlib import Path

from report.anomaly_section import anomaly_bar, anomaly_heads, anomaly_reading, anomaly_section
from report.charts import chart_grid, finite, floor_bar, line_chart
from report.elements import fold, gallery, numbered, pairs, paragraph, scroll, table
from report.findings import banner, findings_section
from report.tables import confusion_words, interval_text, score_text, set_rows, show

STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")


def _section(title, body, anchor=""):
    return f"<section{f' id={anchor}' if anchor else ''}><h2>{escape(title)}</h2>{body}</section>" if body else ""


# ---------------------------------------------------------------------------------------------------------------------
# The score and its floor


def reading(miou, floor, interval=None):
    """One plain sentence: what the score is worth beside the layout floor."""
    if miou is None:
        return "No pixel of this split has a known label, so there is no score."
    if floor is None:
        return f"{miou:.2f}. The layout floor is not known, so neither is how much of this a blind predictor would get."
    if miou <= floor:
        return (
            f"{miou:.2f}, where a predictor that never opens the image gets {floor:.2f}: "
            "this score gives no evidence that the model looks at the image."
        )
    text = f"{miou:.2f}, of which a predictor that never opens the image gets {floor:.2f}"
    if interval and interval[0] <= floor:
        return f"{text}; the floor lies inside the interval, so the rest may be chance."
    gain = (miou - floor) / (1 - floor)
    return f"{text}. The model covers {gain:.2f} of the way from there to a perfect 1."


def _heads(items):
    """Large figures side by side. items: [(name, text, note)]."""
    cells = (
        f'<div class="head">{name}<b>{text}</b><span class="note">{escape(note)}</span></div>'
        for name, text, note in items
    )
    return f'<div class="heads">{"".join(cells)}</div>'


def headline(evaluation):
    """mIoU, layout floor and semantic gain side by side, the sentence, and the bar; without mIoU, the anomaly's."""
    miou = evaluation.get("miou")
    floors = [evaluation.get(name) for name in ("layout_floor", "own_layout_floor")]
    floor = max((value for value in floors if value is not None), default=None)
    if miou is None and (heads := anomaly_heads(evaluation)):
        return _heads(heads) + paragraph(anomaly_reading(evaluation), "reading") + anomaly_bar(evaluation)
    interval = evaluation.get("miou_interval")
    between = f"95 % interval {interval_text(interval)}" if interval else "no interval"
    whose = "" if floors[1] is None else f"; of the training layout {score_text(floors[0])}, its own {floors[1]:.3f}"
    heads = [
        ("mIoU", score_text(miou), between),
        ("layout floor", score_text(floor), f"mIoU of a predictor that never opens the image{whose}"),
        ("semantic gain", score_text(evaluation.get("semantic_gain")), "(mIoU − floor) / (1 − floor)"),
    ]
    bar = "" if miou is None else f'<div class="barbox">{floor_bar(miou, floor, interval)}</div>'
    return _heads(heads) + paragraph(reading(miou, floor, interval), "reading") + bar


def sets_section(evaluation):
    """The table of several sets, nothing where there is but one."""
    if not evaluation.get("sets"):
        return ""
    heads, *rows = set_rows(evaluation)
    note = (
        "floor: what the training set's layout gets here; own floor: what the set's own layout gets. "
        "The gain is over the higher one. Classes: those averaged; what a set does not label is not."
    )
    return scroll(table("files", heads, rows)) + f'<p class="note">{note}</p>'


FIGURES = {
    "pixel_accuracy": "pixel accuracy",
    "mean_accuracy": "mean class accuracy",
    "fwiou": "frequency-weighted IoU",
    "safe_miou": "safe mIoU (IDD-AW: less a penalty for confusions with road users)",
    "boundary_iou": "boundary IoU",
    "boundary_f1": "boundary F1",
    "ece": "calibration error (ECE)",
    "loss": "cross-entropy, nats per pixel",
}


def figures(evaluation, classes):
    """The other numbers of the evaluation, those that are there; without mIoU only those that are defined."""
    labelled = evaluation.get("miou") is not None
    there = [name for name in FIGURES if name in evaluation and (labelled or evaluation[name] is not None)]
    items = [(FIGURES[name], score_text(evaluation[name])) for name in there]
    if labelled and evaluation.get("active_classes") is not None:
        items.append(("active classes (IoU above 0.01)", f"{evaluation['active_classes']} of {len(classes)}"))
    if labelled and evaluation.get("classes_averaged") is not None:
        items.append(("classes averaged", evaluation["classes_averaged"]))
    spurious = [classes[c] if isinstance(c, int) else c for c in evaluation.get("spurious_classes") or []]
    if labelled and spurious:
        items.append(("predicted, though no target has them", spurious))
    items += [(name, f"{evaluation[name]:,}") for name in ("images", "pixels") if evaluation.get(name) is not None]
    return pairs(items) if items else ""


def class_rows(evaluation, palette):
    """The per-class table: colour, name, IoU, bar, and the share of the target pixels where it is known."""
    shares = evaluation.get("pixel_share")
    head = '<th class="n">pixel share</th>' if shares else ""
    rows = []
    for index, (name, value) in enumerate(evaluation.get("iou", {}).items()):
        red, green, blue = (int(part) for part in palette[index])
        bar = "" if value is None else f'<div style="width:{value:.2%}"></div>'
        share = f'<td class="n">{show(shares.get(name))}</td>' if shares else ""
        rows.append(
            f'<tr><td><span class="chip" style="background:rgb({red},{green},{blue})"></span>{escape(name)}</td>'
            f'<td class="n">{score_text(value)}</td><td class="iou">{bar}</td>{share}</tr>'
        )
    if not rows:
        return ""
    absent = '<p class="note">– : neither in the targets nor predicted, so without an IoU.</p>'
    heads = f'<tr><th>class</th><th class="n">IoU</th><th></th>{head}</tr>'
    absent = absent if None in evaluation["iou"].values() else ""
    return f'<table class="classes">{heads}{"".join(rows)}</table>{absent}'


def confusions(rows, picture):
    """What is taken for what: the largest confusions in words, then the picture of the matrix."""
    largest = numbered("The largest, by pixels", map(confusion_words, rows))
    return largest + (gallery([("Confusion matrix, each row divided by its sum", picture)]) if picture else "")


def worst_images(rows):
    """The images with the lowest mIoU, by name."""
    return table("files", ["file", "mIoU"], [(row["file"], score_text(row["miou"])) for row in rows]) if rows else ""


def feature_rows(features):
    """The stages of the network: shape and spread of their maps, and what they see of one image."""
    if not features:
        return ""
    figures = ("mean", "std", "zeros")
    rows = [
        [row["stage"], " × ".join(map(str, row["shape"])), *(show(row[name]) for name in figures)]
        for row in features["stages"]
    ]
    stages = table("files", ["stage", "channels × size", *figures], rows)
    return scroll(stages) + gallery(features["pictures"])


# ---------------------------------------------------------------------------------------------------------------------
# Training


def _losses(train, validation):
    """The loss curves: the total, its terms where there is more than one, and the validation loss."""
    series = [("training", [(line["step"], line.get("loss")) for line in train])]
    terms = list(dict.fromkeys(name for line in train for name in line.get("terms") or {}))
    for name in terms if len(terms) > 1 else []:
        series.append((f"term {name}", [(line["step"], (line.get("terms") or {}).get(name)) for line in train]))
    return [*series, ("validation", [(line["step"], line.get("loss")) for line in validation])]


def _rates(train):
    """The learning-rate curves, one for each group of parameters whose rate differs from the others'."""
    groups = max((len(line.get("lr") or []) for line in train), default=0)
    curves = []
    for group in range(groups):
        points = [(line["step"], line["lr"][group]) for line in train if len(line.get("lr") or []) > group]
        if points not in [known for _, known in curves]:
            curves.append((f"group {group + 1}", points))
    return curves if len(curves) > 1 else [("all parameters", points) for _, points in curves]


def curves(log):
    """Training curves: loss, validation mIoU against the layout floor, learning rate."""
    train = [line for line in log if line.get("kind") == "train"]
    validation = [line for line in log if line.get("kind") == "validation"]
    scores = [(line["step"], line.get("miou")) for line in validation]
    floors = finite([(line["step"], line.get("layout_floor")) for line in validation])
    note = ""
    if finite(scores):
        step, best = max(finite(scores), key=lambda point: point[1])
        note = f"best {best:.3f} at step {step}" + (f"; floor {floors[-1][1]:.3f}" if floors else "")
    floor = [("layout floor", [(0, floors[-1][1]), floors[-1]])] if floors else []
    charts = (
        line_chart("Validation mIoU", [("mIoU", scores), *floor] if finite(scores) else [], "step", note)
        + line_chart("Loss", _losses(train, validation), "step")
        + line_chart("Learning rate", _rates(train), "step")
    )
    return chart_grid(charts)


# ---------------------------------------------------------------------------------------------------------------------
# The page


def page(title, config, evaluation, log, pictures, diagnosis, palette, folder, confusion=None, features=None):
    """The whole page as text; arguments as for `files.write_report`; folder: where the diagnosis's pictures lie."""
    scores = evaluation or {}
    dataset = (scores.get("protocol") or {}).get("dataset") or config.get("dataset")  # the evaluated one first
    about = " · ".join(show(part) for part in (dataset, scores.get("split"), config.get("model")) if part)
    top = headline(scores) if evaluation else "<p>Not evaluated yet: python evaluate.py --ckpt best.pth</p>"
    flags = fold(f"flags ({len(config)})", pairs(sorted(config.items())))
    labelled = scores.get("miou") is not None  # else what is said of single classes would be nothing but dashes
    sections = [
        _section("Sets", sets_section(scores)),
        _section("Classes", class_rows(scores, palette) if labelled else ""),
        _section("Other figures", figures(scores, list(scores.get("iou", {}))) if evaluation else ""),
        _section("Confusions", confusions(scores.get("confusions", []), confusion) if labelled else ""),
        _section("Anomaly scores", anomaly_section(scores.get("anomaly"), scores.get("anomaly_share"))),
        _section("Training", curves(log)),
        _section("Worst images", worst_images(scores.get("worst_images", []))),
        _section("Pictures", gallery(pictures)),
        _section("Features", feature_rows(features)),
        _section("Diagnosis", findings_section(diagnosis, folder), "findings"),
        _section("Protocol", pairs((scores.get("protocol") or {}).items()) if scores.get("protocol") else ""),
        _section("Configuration", flags if config else ""),
    ]
    return document(title, about, f"{top}{banner(diagnosis)}{''.join(sections)}")


def diagnosis_page(title, diagnosis, folder):
    """A page of the diagnosis alone, as text; folder: where its pictures lie."""
    counted = f"{len(diagnosis['findings'])} findings"
    return document(title, counted, banner(diagnosis, brief=True) + findings_section(diagnosis, folder))


def document(title, about, body):
    """A whole page around its body (HTML); title and about are plain text."""
    # The page can load nothing, whatever it holds.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>\n{STYLE}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="muted">{escape(about)}</p></header>'
        f"{body}</body></html>\n"
    )
