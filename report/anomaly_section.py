"""The report page's section on anomaly scores: which is best, beside what chance gets, and where it goes wrong.

Takes evaluation["anomaly"] {score: figures} as evaluate.py writes it. Every figure may be missing or None; what is not
there is not shown. `chance` is the share of the judged pixels that are anomalous: the AUPR of a guess.
"""

from html import escape

from report.charts import chart_grid, floor_bar, line_chart
from report.elements import numbered, paragraph, safe, scroll
from report.tables import certified, chance_figures, figure, interval_text, percent_text, ranked, score_text

CURVES = 6  # curves in one chart: the styles that can be told apart
LISTED = 5  # classes named
RATE, RATE_TEXT = "0.01", "1 %"  # the share of false alarms that sentences speak of

# (what the figure is taken over, its name, where it stands in a score's figures)
POOLED, FOUND, MEAN = "all pixels pooled", "found at", "mean over images"
COLUMNS = (
    (POOLED, "AUPR", "aupr"),
    (POOLED, "AUROC", "auroc"),
    (POOLED, "FPR95", "fpr95"),
    (POOLED, "best F1", "best_f1"),
    (FOUND, "1 %", "found_at/0.01"),
    (FOUND, "0.1 %", "found_at/0.001"),
    (MEAN, "AUPR", "per_image/aupr"),
    (MEAN, "AUROC", "per_image/auroc"),
    (MEAN, "FPR95", "per_image/fpr95"),
    ("parts", "F1", "components/f1"),
    ("open set", "mIoU", "open_miou"),
)
THRESHOLDS = {"components": "best pixel F1 on this split", "components_at_alarm": "the alarm"}
COMPONENT_WORDS = {"f1": "F1", "siou": "sIoU", "ppv": "precision (PPV)"}
COMPONENT_COUNTS = {"components": "anomalies in the truth", "predicted": "regions above the threshold"}


def brief(value):
    """A fraction with two digits that count: 0.23, 0.0023."""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


# ---------------------------------------------------------------------------------------------------------------------
# Words


def anomaly_heads(evaluation):
    """The three figures that lead a page without mIoU: [(name, text, note)], [] where no score has an AUPR."""
    name, best = next(iter(ranked(evaluation.get("anomaly"))), ("", {}))
    if best.get("aupr") is None:
        return []
    chance, interval = evaluation.get("anomaly_share"), best.get("aupr_interval")
    between = f", 95 % interval {interval_text(interval)}" if interval else ""
    where = f"share of their pixels, where {RATE_TEXT} of the normal ones raise a false alarm"
    return [
        ("best AUPR", score_text(best["aupr"]), name + between),
        ("AUPR of chance", "–" if chance is None else brief(chance), "the share of anomalous pixels"),
        ("anomalies found", score_text(figure(best, f"found_at/{RATE}")), where),
    ]


def anomaly_reading(evaluation):
    """One plain sentence: what the best AUPR is worth beside chance, and that there is no mIoU."""
    name, best = ranked(evaluation["anomaly"])[0]
    chance, interval = evaluation.get("anomaly_share"), best.get("aupr_interval")
    text = f"{brief(best['aupr'])} by {name}"
    if chance is None:
        text += "; the share of anomalous pixels, which is what chance gets, is not known"
    elif best["aupr"] <= chance:
        text += f", where chance gets {brief(chance)}: this score gives no evidence that anomalies are seen"
    else:
        text += f", where chance gets {brief(chance)}"
        if interval and interval[0] <= chance:
            text += ", which lies inside the interval"
    return f"{text}. No pixel of this split has the label of a known class, so there is no mIoU."


def anomaly_bar(evaluation):
    """The best AUPR as a bar, the part that chance gets hatched."""
    _, best = ranked(evaluation["anomaly"])[0]
    bar = floor_bar(best["aupr"], evaluation.get("anomaly_share"), best.get("aupr_interval"), ("AUPR", "chance"))
    return f'<div class="barbox">{bar}</div>'


def worth(name, scores, chance):
    """What the best score means, in one plain sentence; "" where neither its found share nor its AUPR is known."""
    found = figure(scores, f"found_at/{RATE}")
    if found is not None:
        return (
            f"{name} finds {percent_text(found)} of the anomalous pixels when {RATE_TEXT} of the normal ones raise a "
            f"false alarm; chance would find {RATE_TEXT}."
        )
    if scores.get("aupr") is None:
        return ""
    against = "" if chance is None else f", where chance gets {brief(chance)}"
    return f"{name} has the highest AUPR, {brief(scores['aupr'])}{against}."


def alarm_words(name, scores):
    """How the alarm was set, what it does on this split, and what it does to the known classes."""
    alarm = scores.get("alarm") or {}
    if any(alarm.get(key) is None for key in ("threshold", "rate", "found", "false_alarms")):
        return ""
    rate = percent_text(alarm["rate"], exact=True)
    text = (
        f"{name} raises its alarm from {alarm['threshold']:.4g} on, chosen so that {rate} of the known "
        f"validation pixels raise it. On this split {percent_text(alarm['false_alarms'])} of the normal pixels and "
        f"{percent_text(alarm['found'])} of the anomalous ones do."
    )
    if scores.get("open_miou") is not None:
        text += (
            f" With every such pixel taken for an anomaly, the mIoU of the known classes is {scores['open_miou']:.3f}."
        )
    return text


def component_words(scores):
    """The figures over connected components, of which the table holds the F1 alone: one sentence a threshold."""
    return " ".join(filter(None, (_components(scores.get(key) or {}, which) for key, which in THRESHOLDS.items())))


def _components(parts, which):
    text = [f"{label} {parts[key]:.3f}" for key, label in COMPONENT_WORDS.items() if parts.get(key) is not None]
    text += [f"{parts[key]:,} {label}" for key, label in COMPONENT_COUNTS.items() if parts.get(key) is not None]
    where = "" if parts.get("threshold") is None else f", from a score of {parts['threshold']:.4g} on ({which})"
    return f"By connected parts{where}: {', '.join(text)}." if text else ""


def _list(head, rows, of):
    """At most LISTED classes, each with its share and its number of pixels, under a head."""
    texts = []
    for row in (rows or [])[:LISTED]:
        pixels = "" if row.get("pixels") is None else f" ({row['pixels']:,})"
        texts.append(f"{row['class']}: {percent_text(row['share'])} {of}{pixels}")
    return f"<div>{numbered(head, texts)}</div>" if texts else ""


def mistakes(scores):
    """Which known classes raise false alarms, and what the anomalies that raise none are taken for."""
    lists = _list("Known classes most often mistaken for an anomaly", scores.get("mistaken"), "of its pixels")
    lists += _list(
        "What the anomalous pixels without an alarm are taken for", scores.get("hidden"), "of the anomalous pixels"
    )
    return chart_grid(lists, "charts two")


# ---------------------------------------------------------------------------------------------------------------------
# The table


def _cell(scores, place):
    """A figure, the certified bound of its error beside it and its 95 % interval under it, where they are known."""
    value, bound = certified(scores, place)
    value += f'<span class="note"> ±\u00a0{bound}</span>' if bound else ""
    interval = figure(scores, f"{place}_interval")
    under = f'<br><span class="note">{interval_text(interval)}</span>' if interval else ""
    return f'<td class="n">{value}{under}</td>'


def _head_row(columns):
    """Two rows of heads: what the figures are taken over, and their names."""
    groups = []
    for group, _, _ in columns:
        if not groups or groups[-1][0] != group:
            groups.append([group, 0])
        groups[-1][1] += 1
    over = "".join(f'<th colspan="{many}">{group}</th>' for group, many in groups)
    names = "".join(f'<th class="n">{safe(name)}</th>' for _, name, _ in columns)
    return f"<thead><tr><th></th>{over}</tr><tr><th>score</th>{names}</tr></thead>"


def anomaly_rows(order, chance):
    """The table of all scores and, last, of chance; columns that no score fills are left out."""
    columns = [column for column in COLUMNS if any(figure(scores, column[2]) is not None for _, scores in order)]
    rows = ""
    for name, scores in order:
        rows += f"<tr><td>{escape(name)}</td>{''.join(_cell(scores, place) for _, _, place in columns)}</tr>"
    if chance is not None:
        cells = "".join(_cell(chance_figures(chance), place) for _, _, place in columns)
        rows += f'<tr class="chance"><td>chance</td>{cells}</tr>'
    return scroll(f'<table class="scores">{_head_row(columns)}{rows}</table>')


def _notes(order):
    """What the marks and heads in the table mean, those that it has."""

    def has(place):
        return any(figure(scores, place) is not None for _, scores in order)

    images = figure(order[0][1], "per_image/images")
    order_note = "sorted by the AUPR on this split, by which no score should be chosen: do so on validation data"
    found_note = "found at 1 %: share of the anomalous pixels found where 1 % of the normal ones raise a false alarm"
    mean_note = f"mean over the {'' if images is None else f'{images:,} '}images that hold both kinds of pixel"
    notes = [
        (len(order) > 1, order_note),
        (has("aupr_error"), "±: certified bound on the difference from the exact value"),
        (has("aupr_interval"), "small figures below: 95 % interval, bootstrap over images"),
        (has("found_at"), found_note),
        (has("per_image"), mean_note),
        (has("components/f1"), "parts: connected components"),
        (has("open_miou"), "open set: mIoU of the known classes with every alarm taken for an anomaly"),
    ]
    text = "; ".join(note for there, note in notes if there)
    return paragraph(text[0].upper() + text[1:] + ".", "note") if text else ""


# ---------------------------------------------------------------------------------------------------------------------
# Charts


def _curve(scores, x, y):
    """The points of one curve, those whose both coordinates are numbers."""
    curves = scores["curves"]
    return [pair for pair in zip(curves[x], curves[y], strict=True) if None not in pair]


def _alarm_dots(drawn, chance):
    """Where each score's alarm lies: {score: (recall, precision)} and {score: (false alarms, recall)}."""
    precision, roc = {}, {}
    for name, scores in drawn:
        alarm = scores.get("alarm") or {}
        found, false = alarm.get("found"), alarm.get("false_alarms")
        if found is None or false is None:
            continue
        roc[name] = (false, found)
        if chance and found:  # precision follows from both rates and the share of anomalous pixels
            precision[name] = (found, found * chance / (found * chance + false * (1 - chance)))
    return precision, roc


def curve_charts(order, chance):
    """Precision over recall and the ROC curve of the best scores, the alarms as dots, chance in grey."""
    able = [(name, scores) for name, scores in order if scores.get("curves")]
    drawn, left_out = able[:CURVES], [name for name, _ in able[CURVES:]]
    over_recall, roc = _alarm_dots(drawn, chance)
    charts = line_chart(
        "Precision over recall",
        [(name, _curve(scores, "tpr", "precision")) for name, scores in drawn],
        "recall: share of the anomalous pixels found",
        span=(0, 1),
        base=[] if chance is None else [("chance", [(0, chance), (1, chance)])],
        dots=over_recall,
    ) + line_chart(
        "Recall over false alarms (ROC)",
        [(name, _curve(scores, "fpr", "tpr")) for name, scores in drawn],
        "share of the normal pixels that raise a false alarm",
        span=(0, 1),
        base=[("chance", [(0, 0), (1, 1)])],
        dots=roc,
    )
    text = "Dots: the alarms, set on known validation pixels." if roc else ""
    if left_out:
        text += f" Left out, with a lower AUPR: {', '.join(left_out)}."
    return charts, paragraph(text.strip(), "note")


def density_chart(name, scores):
    """How the normal and the anomalous pixels spread over a score's values, the alarm's threshold in grey."""
    density = scores.get("density") or {}
    if not density.get("edges"):
        return ""
    edges, threshold = density["edges"], (scores.get("alarm") or {}).get("threshold")
    centres = [(low + high) / 2 for low, high in zip(edges, edges[1:], strict=False)]
    kinds = {"normal pixels": density.get("normal") or [], "anomalous pixels": density.get("anomaly") or []}
    series = [(kind, list(zip(centres, shares, strict=False))) for kind, shares in kinds.items()]
    base, ends = [], [edges[0], edges[-1]]
    if threshold is not None:
        peak = max(max(shares, default=0) for shares in kinds.values())
        base, ends = [(f"alarm from {threshold:.4g} on", [(threshold, 0), (threshold, peak)])], [*ends, threshold]
    title = f"{name}: normal and anomalous pixels"
    note = f"Shares in {len(centres)} bins; the first and the last hold all beyond them."
    return line_chart(title, series, "score, larger is more anomalous", note, span=(min(ends), max(ends)), base=base)


# ---------------------------------------------------------------------------------------------------------------------
# The section


def anomaly_section(anomaly, chance=None):
    """The whole section as HTML, "" where there is no score."""
    order = ranked(anomaly)
    if not order:
        return ""
    name, best = order[0]
    curves, note = curve_charts(order, chance)
    densities = (density_chart(shown, anomaly.get(shown, {})) for shown in dict.fromkeys((name, "maxlogit")))
    return (
        paragraph(worth(name, best, chance), "reading")
        + anomaly_rows(order, chance)
        + _notes(order)
        + chart_grid(curves, "charts two")
        + note
        + chart_grid("".join(densities), "charts two")
        + paragraph(alarm_words(name, best))
        + mistakes(best)
        + paragraph(component_words(best))
    )
