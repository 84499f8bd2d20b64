"""The report page: one HTML file without script, network or font, readable on a phone, in the dark and on paper.

The score always stands beside the layout floor, with one sentence that says what the two mean together. Everything
that comes from outside (class names, captions, flags) is escaped. Figures are fractions; a sentence says percent.
"""

import base64
import io
from html import escape
from pathlib import Path

from PIL import Image

from report.anomaly_section import anomaly_bar, anomaly_heads, anomaly_reading, anomaly_section
from report.charts import finite, floor_bar, line_chart, percent_text, score_text
from report.exhibits import group_faults, skip_reasons
from report.tables import sets_section

PICTURE_SIDE, PICTURE_BYTES = 1600, 150_000  # beyond either, a picture is embedded as a smaller JPEG

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1a1c21;--muted:#5f6470;--line:#d9dce2;--card:#f5f6f8;--gain:#2f6fdb;
--floor:#9aa1ad;--c0:#2f6fdb;--c1:#c2410c;--c2:#0f8a6c;--c3:#9333c8;--c4:#8a6d00;--c5:#5f6470;
--pass:#0f6b4f;--warn:#8a5a00;--fail:#b3123f;--skip:#5f6470}
@media (prefers-color-scheme:dark){:root{--paper:#14161a;--ink:#e8eaee;--muted:#a2a8b4;--line:#353a44;--card:#1e2127;
--gain:#6ea2ff;--floor:#6b7280;--c0:#6ea2ff;--c1:#ff9a62;--c2:#4fd1ab;--c3:#d3a0ff;--c4:#e3c34a;--c5:#a2a8b4;
--pass:#4fd1ab;--warn:#f0b84a;--fail:#ff7d9c;--skip:#a2a8b4}}
*{box-sizing:border-box}
body{margin:0 auto;padding:20px 16px 60px;max-width:1120px;background:var(--paper);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
print-color-adjust:exact;-webkit-print-color-adjust:exact;overflow-wrap:break-word}
h1{font-size:1.6rem;line-height:1.2;margin:.2em 0}h2{font-size:1.2rem;margin:2.2em 0 .6em}p{margin:.5em 0}
.muted,.note{color:var(--muted)}.note{font-size:.85rem;margin:.2em 0}
.heads{display:grid;grid-template-columns:repeat(3,1fr);gap:clamp(6px,1vw,12px);margin:18px 0 12px}
.head{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:8px clamp(8px,1.4vw,16px)}
.head b{display:block;font-size:clamp(1.5rem,4vw,2.2rem);line-height:1.2;font-variant-numeric:tabular-nums}
.head .note{display:block;line-height:1.35}
.reading{font-size:1.1rem;max-width:60em}
.bar{display:block;overflow:visible}.barbox{padding:0 14px}
svg text{fill:var(--ink);font:13px system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif}
.chart svg text{font-size:12px}svg .tick,svg .name{fill:var(--muted)}
.track{fill:var(--line)}.gain{fill:var(--gain)}.floor{fill:var(--floor)}.hatch{stroke:var(--paper);stroke-width:3;opacity:.55}
.mark,.axis{stroke:var(--ink);stroke-width:1}.whisker{stroke:var(--ink);stroke-width:2}.grid{stroke:var(--line)}
.curve{fill:none;stroke-width:2}.curve.s1{stroke-dasharray:7 3}.curve.s2{stroke-dasharray:2 3}
.curve.s3{stroke-dasharray:10 3 2 3}.curve.s4{stroke-dasharray:4 4}.curve.s5{stroke-dasharray:1 2}
.s0{stroke:var(--c0)}.s1{stroke:var(--c1)}.s2{stroke:var(--c2)}.s3{stroke:var(--c3)}.s4{stroke:var(--c4)}.s5{stroke:var(--c5)}
.dot.s0{fill:var(--c0)}.dot.s1{fill:var(--c1)}.dot.s2{fill:var(--c2)}.dot.s3{fill:var(--c3)}.dot.s4{fill:var(--c4)}
.dot.s5{fill:var(--c5)}
.curve.base{stroke:var(--muted);stroke-width:1.5}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(320px,100%),1fr));gap:20px}
.charts.two{grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr));margin-top:16px}
figure{margin:0 0 24px}figcaption{font-weight:600;margin-bottom:4px}.chart svg{width:100%;height:auto;display:block}
.keys{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:.85rem}.key svg{vertical-align:middle}
.chart .key svg{width:26px;display:inline}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:600;color:var(--muted);font-size:.85rem}
th,td{padding:5px 12px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
td.n,th.n{text-align:right}td.n{white-space:nowrap}
.classes{max-width:860px}.classes td{vertical-align:middle}.classes .iou{width:48%}
.classes td:first-child{padding-left:24px;overflow-wrap:anywhere;min-width:8em}
.classes .iou div{height:12px;background:var(--gain);border-radius:2px;min-width:1px}
.chip{display:inline-block;width:14px;height:14px;border:1px solid var(--muted);border-radius:3px;margin:0 9px 0 -24px;
vertical-align:-2px}
.scores{font-size:.82rem}.scores th,.scroll .scores td.n{white-space:nowrap}.scores th,.scores td{padding:4px 8px 4px 0}
.scores .note{font-size:.75rem}.scores [colspan]{border-left:2px solid var(--line);padding-left:8px}
.scores td:first-child,.scores th:first-child{position:sticky;left:0;background:var(--paper)}
.chance td{color:var(--muted)}
.files{max-width:860px;margin-bottom:20px}.files td:first-child{overflow-wrap:anywhere}ol{margin:.5em 0 1.2em}
.pairs{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(300px,100%),1fr));gap:0 32px}
.pairs div{display:flex;justify-content:space-between;gap:16px;border-bottom:1px solid var(--line);padding:4px 0}
.pairs dt{color:var(--muted)}.pairs dd{margin:0;text-align:right}dl{margin:0}
.verdict{display:inline-block;font-weight:700;border:2px solid;border-radius:6px;padding:0 8px;white-space:nowrap}
.pass{color:var(--pass)}.warn{color:var(--warn)}.fail{color:var(--fail)}.skip{color:var(--skip)}
.banner{border-left:5px solid;padding:6px 14px;background:var(--card);margin:16px 0}
.banner .text{color:var(--ink)}a{color:var(--gain)}
.finding{display:grid;grid-template-columns:88px 1fr;gap:4px 14px;border-top:1px solid var(--line);padding:12px 0}
.finding p{margin:.2em 0}.finding>div{min-width:0}.finding figure{margin:12px 0}
.finding figcaption,.quiet figcaption{font-weight:400;font-size:.9rem}p.group{margin-top:.8em}
h3{font-size:1rem;margin:1.6em 0 .3em}
.explained{border-left:3px solid var(--line);padding-left:14px;margin:10px 0}.explained>summary{font-weight:600}
.quiet{border-top:1px solid var(--line);padding:10px 0}.quiet>p,.quiet>details{margin:.4em 0 .4em 22px;font-size:.92rem}
.numbers{width:auto;font-size:.85rem}.numbers th,.numbers td{padding:3px 18px 3px 0}
.listed{font-size:.85rem;overflow-wrap:anywhere}
summary{cursor:pointer}
.scroll{overflow-x:auto}
.scroll img{display:block;width:100%;height:auto;border:1px solid var(--line)}
@media (max-width:700px){.scroll img.wide{width:1000px;max-width:none}
.finding{grid-template-columns:1fr}.classes .iou{width:38%}th,td{padding-right:8px}
.scroll table{font-size:.85rem}.scroll td.n{white-space:normal}
.scores td:first-child{min-width:104px;max-width:104px;overflow-wrap:anywhere}}
@media print{:root{--paper:#fff;--ink:#000;--card:#f5f6f8;--muted:#444;--line:#bbb}body{max-width:none;font-size:11pt}
details::details-content{content-visibility:visible;height:auto}
.scroll{overflow:visible}.scores,.scores th,.scores .note{font-size:6.5pt}.scores th,.scores td{padding:2px 3px 2px 0}
.scores [colspan]{padding-left:3px}.scores td:first-child,.scores th:first-child{position:static}
.charts.two{grid-template-columns:1fr 1fr}
figure,.finding,tr,.head{break-inside:avoid}h2{break-after:avoid}}
"""


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


def _words(name):
    return escape(str(name).replace("_", " "))


def _pairs(items):
    """Names and values side by side, in as many columns as fit."""
    rows = "".join(f"<div><dt>{_words(name)}</dt><dd>{escape(show(value))}</dd></div>" for name, value in items)
    return f'<dl class="pairs">{rows}</dl>'


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
        return _heads(heads) + f'<p class="reading">{escape(anomaly_reading(evaluation))}</p>' + anomaly_bar(evaluation)
    interval = evaluation.get("miou_interval")
    between = f"95 % interval {interval[0]:.3f} to {interval[1]:.3f}" if interval else "no interval"
    whose = "" if floors[1] is None else f"; of the training layout {score_text(floors[0])}, its own {floors[1]:.3f}"
    heads = [
        ("mIoU", score_text(miou), between),
        ("layout floor", score_text(floor), f"mIoU of a predictor that never opens the image{whose}"),
        ("semantic gain", score_text(evaluation.get("semantic_gain")), "(mIoU − floor) / (1 − floor)"),
    ]
    bar = "" if miou is None else f'<div class="barbox">{floor_bar(miou, floor, interval)}</div>'
    return f'{_heads(heads)}<p class="reading">{escape(reading(miou, floor, interval))}</p>{bar}'


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
    return _pairs(items) if items else ""


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
    table = (
        f'<table class="classes"><tr><th>class</th><th class="n">IoU</th><th></th>{head}</tr>{"".join(rows)}</table>'
    )
    return table + (absent if None in evaluation["iou"].values() else "")


def confusion_words(row):
    """One entry of evaluation["confusions"] as a sentence without its full stop."""
    return (
        f"{percent_text(row['share_of_all'])} of all pixels: {row['target']} taken for {row['prediction']} "
        f"({percent_text(row['share_of_target'])} of {row['target']})"
    )


def confusions(rows, picture):
    """What is taken for what: the largest confusions in words, then the picture of the matrix."""
    sentences = [confusion_words(row).replace(" %", "\u00a0%") for row in rows]  # no line begins with the sign
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    words = f"<p>The largest, by pixels:</p><ol>{items}</ol>" if items else ""
    return words + (gallery([("Confusion matrix, each row divided by its sum", picture)]) if picture else "")


def worst_images(rows):
    """The images with the lowest mIoU, by name."""
    cells = "".join(
        f'<tr><td>{escape(row["file"])}</td><td class="n">{score_text(row["miou"])}</td></tr>' for row in rows
    )
    return f'<table class="files"><tr><th>file</th><th class="n">mIoU</th></tr>{cells}</table>' if rows else ""


def feature_rows(features):
    """The stages of the network: shape and spread of their maps, and what they see of one image."""
    if not features:
        return ""
    rows = ""
    for row in features["stages"]:
        cells = [" × ".join(map(str, row["shape"])), *(show(row[name]) for name in ("mean", "std", "zeros"))]
        rows += (
            f"<tr><td>{escape(row['stage'])}</td>" + "".join(f'<td class="n">{cell}</td>' for cell in cells) + "</tr>"
        )
    heads = "".join(f'<th class="n">{head}</th>' for head in ("channels × size", "mean", "std", "zeros"))
    table = f'<div class="scroll"><table class="files"><tr><th>stage</th>{heads}</tr>{rows}</table></div>'
    return table + gallery(features["pictures"])


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
    return f'<div class="charts">{charts}</div>' if charts else ""


# ---------------------------------------------------------------------------------------------------------------------
# Pictures, findings


def embed(path):
    """A picture file as a data address: (address, width); a big one smaller and as JPEG."""
    data = Path(path).read_bytes()
    image = Image.open(io.BytesIO(data))
    kind = image.format.lower()
    if max(image.size) > PICTURE_SIDE or len(data) > PICTURE_BYTES:
        image = image.convert("RGB")
        image.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=85, subsampling=0)  # thin lines keep their colour
        data, kind = buffer.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}", image.width


def gallery(pictures):
    """The pictures under their captions; one that cannot be read is named instead of stopping the report."""
    parts = []
    for caption, path in pictures:
        try:
            address, width = embed(path)
            how = 'class="wide"' if width > 900 else f'style="max-width:{max(width, 480)}px"'  # a small one stays small
            shown = f'<div class="scroll"><img {how} src="{address}" alt="{escape(caption)}"></div>'
        except OSError:
            shown = f'<p class="note">{escape(Path(path).name)} cannot be read</p>'
        parts.append(f"<figure><figcaption>{escape(caption)}</figcaption>{shown}</figure>")
    return "".join(parts)


VERDICTS = {"pass": "✓ pass", "warn": "! warn", "fail": "✕ fail", "skip": "· skip"}


def _kind(verdict):
    """The style of a verdict."""
    return verdict if verdict in VERDICTS else "skip"


def _verdict(verdict):
    return f'<span class="verdict {_kind(verdict)}">{VERDICTS.get(verdict, escape(str(verdict)))}</span>'


def _rows(value):
    """Evidence that is a table as its rows [{column: value}], else []: a list of dicts, or a dict of dicts."""
    if isinstance(value, dict) and value and all(isinstance(part, dict) for part in value.values()):
        inner = dict.fromkeys(name for part in value.values() for name in part)
        if len(inner) > len(value):  # the longer side runs down
            return [{"": name, **{key: part.get(name) for key, part in value.items()}} for name in inner]
        return [{"": key, **part} for key, part in value.items()]
    return value if isinstance(value, list) and value and all(isinstance(part, dict) for part in value) else []


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _table(rows):
    """Rows under the names of their columns, numbers to the right."""
    columns = dict.fromkeys(name for row in rows for name in row)
    style = {name: ' class="n"' if any(_is_number(row.get(name)) for row in rows) else "" for name in columns}
    head = "".join(f"<th{style[name]}>{_words(name)}</th>" for name in columns)
    body = ""
    for row in rows:
        cells = (f"<td{style[name]}>{escape(show(row.get(name)))}</td>" for name in columns)
        body += f"<tr>{''.join(cells)}</tr>"
    return f'<div class="scroll"><table class="numbers"><tr>{head}</tr>{body}</table></div>'


def numbers(evidence):
    """A finding's evidence: single values side by side, tables as tables, lists and groups of values under a name."""
    plain, parts = [], []
    for name, value in evidence.items():
        title = f'<p class="muted group">{_words(name)}</p>'
        if name == "pictures":
            continue
        if rows := _rows(value):
            parts.append(title + _table(rows))
        elif isinstance(value, dict) and value:
            parts.append(title + _pairs(value.items()))
        elif isinstance(value, (list, tuple)) and value:
            parts.append(f'{title}<p class="listed">{escape(show(value))}</p>')
        else:
            plain.append((name, value))
    return (_pairs(plain) if plain else "") + "".join(parts)


def _evidence(one, folder, opened=False):
    """A finding's pictures, and its numbers behind a fold."""
    evidence = one.get("evidence") or {}
    pictures = [(picture["caption"], Path(folder) / picture["file"]) for picture in evidence.get("pictures", [])]
    figures = numbers(evidence)
    fold = f"<details{' open' * opened}><summary>numbers</summary>{figures}</details>" if figures else ""
    return gallery(pictures) + fold


def finding(one, folder, explained=()):
    """A fault: verdict, cause, why, measured against what, what to do, evidence, and the faults that it explains.

    folder: where the files of evidence["pictures"] lie.
    """
    name = _words(one["cause"]) if one.get("cause") else escape(one["probe"])
    probe = f' <span class="note">{escape(one["probe"])}</span>' if one.get("cause") else ""
    lines = [f"<p><b>{name}</b>{probe}</p><p>{escape(show(one['why']))}</p>"]
    if one.get("value") is not None:
        against = f", reference {escape(show(one['reference']))}" if one.get("reference") is not None else ""
        lines.append(f'<p class="muted">measured {escape(show(one["value"]))}{against}</p>')
    if one.get("remedy"):
        lines.append(f'<p class="remedy"><b>What to do:</b> {escape(show(one["remedy"]))}</p>')
    lines.append(_evidence(one, folder, opened=bool(explained)))
    if explained:
        causes = ", ".join(_words(other.get("cause") or other["probe"]) for other in explained)
        parts = "".join(finding(other, folder) for other in explained)
        summary = f"<summary>explained by this: {causes}</summary>"
        lines.append(f'<details class="explained">{summary}{parts}</details>')
    return f'<div class="finding"><div>{_verdict(one.get("verdict"))}</div><div>{"".join(lines)}</div></div>'


def _passes(findings, folder):
    """The probes that found nothing, behind a fold: a line each, with the numbers behind another."""
    passed = [one for one in findings if one["verdict"] == "pass"]
    if not passed:
        return ""
    lines = ""
    for one in passed:
        text = f"<b>{escape(one['probe'])}</b> {escape(show(one['why']))}"
        evidence = _evidence(one, folder)
        lines += f"<details><summary>{text}</summary>{evidence}</details>" if evidence else f"<p>{text}</p>"
    plural = "1 probe" if len(passed) == 1 else f"{len(passed)} probes"
    return (
        f'<details class="quiet"><summary>{_verdict("pass")} {plural} found nothing: '
        f"{escape(', '.join(one['probe'] for one in passed))}</summary>{lines}</details>"
    )


def _skips(findings):
    """The probes that could not run, by reason, behind a fold."""
    reasons = skip_reasons(findings)
    if not reasons:
        return ""
    lines = "".join(f"<p><b>{escape(', '.join(names))}</b> {escape(why)}</p>" for why, names in reasons.items())
    names = escape(", ".join(name for names in reasons.values() for name in names))
    return f'<details class="quiet"><summary>{_verdict("skip")} not run: {names}</summary>{lines}</details>'


def findings(diagnosis, folder):
    """All findings: root cause first with what it explains, further faults, warnings, what passed, what was skipped."""
    if not diagnosis or not diagnosis.get("findings"):
        return ""
    groups, parts, told = group_faults(diagnosis["findings"]), "", None
    for number, (one, explained) in enumerate(groups):
        title = "Warnings" if one["verdict"] == "warn" else "Further faults" if number else "Root cause"
        parts += (f"<h3>{title}</h3>" if title != told else "") + finding(one, folder, explained)
        told = title
    return parts + _passes(diagnosis["findings"], folder) + _skips(diagnosis["findings"])


def banner(diagnosis, brief=False):
    """The diagnosis in one line, under the score. brief: without what the section below it says in full."""
    if not diagnosis:
        return '<p class="note">Not diagnosed: python diagnose.py --ckpt best.pth names what is wrong, if anything.</p>'
    rows = diagnosis.get("findings", [])
    root = next((one for one in rows if one["verdict"] == "fail"), None)
    counts = {verdict: sum(one["verdict"] == verdict for one in rows) for verdict in ("fail", "warn", "pass", "skip")}
    tally = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    text = f"most likely cause: <b>{_words(root.get('cause') or root['probe'])}</b>." if root else "no fault found."
    if root and not brief:
        text += f" {escape(root['why'].rstrip('.'))}."
        text += f" <b>What to do:</b> {escape(root['remedy'].rstrip('.'))}." if root.get("remedy") else ""
    link = "" if brief or not rows else ' <a href="#findings">all probes</a>'
    text = f'<span class="text">Diagnosis: {text} <span class="note">{tally}</span>{link}</span>'
    return f'<div class="banner {_kind(diagnosis.get("verdict"))}">{_verdict(diagnosis.get("verdict"))} {text}</div>'


# ---------------------------------------------------------------------------------------------------------------------
# The page


def page(title, config, evaluation, log, pictures, diagnosis, palette, folder, confusion=None, features=None):
    """The whole page as text; see `report.write_report` for the arguments; folder: of the diagnosis' pictures."""
    scores = evaluation or {}
    dataset = (scores.get("protocol") or {}).get("dataset") or config.get("dataset")  # the evaluated one first
    about = " · ".join(show(part) for part in (dataset, scores.get("split"), config.get("model")) if part)
    top = headline(scores) if evaluation else "<p>Not evaluated yet: python evaluate.py --ckpt best.pth</p>"
    flags = f"<details><summary>flags ({len(config)})</summary>{_pairs(sorted(config.items()))}</details>"
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
        _section("Diagnosis", findings(diagnosis, folder), "findings"),
        _section("Protocol", _pairs((scores.get("protocol") or {}).items()) if scores.get("protocol") else ""),
        _section("Configuration", flags if config else ""),
    ]
    return document(title, about, f"{top}{banner(diagnosis)}{''.join(sections)}")


def diagnosis_page(title, diagnosis, folder):
    """A page of the diagnosis alone, as text; folder: where its pictures lie."""
    counted = f"{len(diagnosis['findings'])} findings"
    return document(title, counted, banner(diagnosis, brief=True) + findings(diagnosis, folder))


def document(title, about, body):
    """A whole page around its body (HTML); title and about are plain text."""
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the page can load nothing, whatever it holds
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="muted">{escape(about)}</p></header>'
        f"{body}</body></html>\n"
    )
