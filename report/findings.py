"""What diagnosing found: faults in order, as a table for the terminal and as a section of the page.

Findings are taken as a diagnosis's JSON holds them.
"""

import shutil
import textwrap
from html import escape
from pathlib import Path

from report.elements import escape_words, fold, gallery, pairs, scroll, table
from report.tables import show, words

# ---------------------------------------------------------------------------------------------------------------------
# Findings in order


def _with_verdict(findings, verdict):
    return [one for one in findings if one["verdict"] == verdict]


def group_faults(findings):
    """[(fault, [faults that it explains])], in the order of the findings: the root cause first.

    Faults are failures and warnings. One is explained by the probe it names in "explained_by" where a finding of that
    probe stands before it; what stands alone, or names nothing that is there, is a group of its own.
    """
    groups, group_of = [], {}
    for one in findings:
        if one["verdict"] not in ("fail", "warn"):
            continue
        group = group_of.get(one.get("explained_by"))
        if group is None:
            group = (one, [])
            groups.append(group)
        else:
            group[1].append(one)
        group_of.setdefault(one["probe"], group)
    return groups


def skip_reasons(findings):
    """{reason: [probes that were skipped for it]}."""
    reasons = {}
    for one in _with_verdict(findings, "skip"):
        reasons.setdefault(one["why"], []).append(one["probe"])
    return reasons


# ---------------------------------------------------------------------------------------------------------------------
# The terminal

FEW = 10  # passes that are told in full where nothing failed


def diagnosis_table(diagnosis, width=None):
    """A diagnosis for the terminal: root cause and what it explains, further faults, warnings, what passed, skipped.

    width: columns; None: the terminal's, between 60 and 100.
    """
    width = width or min(100, max(60, shutil.get_terminal_size().columns))
    findings, blocks = diagnosis["findings"], []
    passed, failed = (_with_verdict(findings, verdict) for verdict in ("pass", "fail"))
    for one, explained in group_faults(findings):
        label = "WARNING" if one["verdict"] == "warn" else "FAULT" if blocks else "ROOT CAUSE"
        lines = [_sentence(one), f"remedy: {one['remedy']}" if one.get("remedy") else ""]
        blocks.append((label, [*lines, *(f"explains {_sentence(other)}" for other in explained)]))
    if all(one["verdict"] == "skip" for one in findings):
        blocks.insert(0, ("NOT JUDGED", ["every probe was skipped: nothing is known"]))
    elif not failed:
        blocks.insert(0, ("NO FAULT", ["no probe found a fault"]))
    names = ", ".join(one["probe"] for one in passed)
    few = len(passed) <= FEW and not failed  # what was asked for is shown
    blocks.append(("PASSED", [*map(_sentence, passed)] if few else [f"{len(passed)}: {names}" if passed else ""]))
    blocks.append(("SKIPPED", [f"{', '.join(names)}: {why}" for why, names in skip_reasons(findings).items()]))
    return "\n".join(line for label, texts in blocks for line in _block(label, texts, width))


def _sentence(one):
    """A fault in a line: cause, probe, and why."""
    probe = one["probe"]
    return f"{words(one['cause'])} ({probe}): {one['why']}" if one.get("cause") else f"{probe}: {one['why']}"


def _block(label, texts, width):
    """Texts wrapped to the width beside their label, each with a hanging indent."""
    lines = []
    for text in filter(None, texts):
        start = f"{'' if lines else label:<12}"
        lines += textwrap.wrap(text, width, initial_indent=start, subsequent_indent=" " * 14, break_on_hyphens=False)
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# The page

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
    """Rows [{column: value}] under the names of their columns, numbers to the right."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numeric = [any(_is_number(row.get(name)) for row in rows) for name in columns]
    cells = [[show(row.get(name)) for name in columns] for row in rows]
    return scroll(table("numbers", [words(name) for name in columns], cells, numeric))


def numbers(evidence):
    """A finding's evidence: single values side by side, tables as tables, lists and groups of values under a name."""
    plain, parts = [], []
    for name, value in evidence.items():
        title = f'<p class="muted group">{escape_words(name)}</p>'
        if name == "pictures":
            continue
        if rows := _rows(value):
            parts.append(title + _table(rows))
        elif isinstance(value, dict) and value:
            parts.append(title + pairs(value.items()))
        elif isinstance(value, (list, tuple)) and value:
            parts.append(f'{title}<p class="listed">{escape(show(value))}</p>')
        else:
            plain.append((name, value))
    return (pairs(plain) if plain else "") + "".join(parts)


def _evidence(one, folder, opened=False):
    """A finding's pictures, and its numbers behind a fold."""
    evidence = one.get("evidence") or {}
    pictures = [(picture["caption"], Path(folder) / picture["file"]) for picture in evidence.get("pictures", [])]
    figures = numbers(evidence)
    return gallery(pictures) + (fold("numbers", figures, opened=opened) if figures else "")


def finding(one, folder, explained=()):
    """A fault: verdict, cause, why, measured against what, what to do, evidence, and the faults that it explains.

    folder: where the files of evidence["pictures"] lie.
    """
    name = escape_words(one["cause"]) if one.get("cause") else escape(one["probe"])
    probe = f' <span class="note">{escape(one["probe"])}</span>' if one.get("cause") else ""
    lines = [f"<p><b>{name}</b>{probe}</p><p>{escape(show(one['why']))}</p>"]
    if one.get("value") is not None:
        against = f", reference {escape(show(one['reference']))}" if one.get("reference") is not None else ""
        lines.append(f'<p class="muted">measured {escape(show(one["value"]))}{against}</p>')
    if one.get("remedy"):
        lines.append(f'<p class="remedy"><b>What to do:</b> {escape(show(one["remedy"]))}</p>')
    lines.append(_evidence(one, folder, opened=bool(explained)))
    if explained:
        causes = ", ".join(escape_words(other.get("cause") or other["probe"]) for other in explained)
        parts = "".join(finding(other, folder) for other in explained)
        lines.append(fold(f"explained by this: {causes}", parts, "explained"))
    return f'<div class="finding"><div>{_verdict(one.get("verdict"))}</div><div>{"".join(lines)}</div></div>'


def _passes(findings, folder):
    """The probes that found nothing, behind a fold: a line each, with the numbers behind another."""
    passed = _with_verdict(findings, "pass")
    if not passed:
        return ""
    lines = ""
    for one in passed:
        text = f"<b>{escape(one['probe'])}</b> {escape(show(one['why']))}"
        evidence = _evidence(one, folder)
        lines += fold(text, evidence) if evidence else f"<p>{text}</p>"
    plural = "1 probe" if len(passed) == 1 else f"{len(passed)} probes"
    names = escape(", ".join(one["probe"] for one in passed))
    return fold(f"{_verdict('pass')} {plural} found nothing: {names}", lines, "quiet")


def _skips(findings):
    """The probes that could not run, by reason, behind a fold."""
    reasons = skip_reasons(findings)
    if not reasons:
        return ""
    lines = "".join(f"<p><b>{escape(', '.join(names))}</b> {escape(why)}</p>" for why, names in reasons.items())
    names = escape(", ".join(name for names in reasons.values() for name in names))
    return fold(f"{_verdict('skip')} not run: {names}", lines, "quiet")


def findings_section(diagnosis, folder):
    """All findings: root cause first with what it explains, further faults, warnings, what passed, what was skipped.

    diagnosis: diagnose's JSON or None; folder: where the files of evidence["pictures"] lie.
    """
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
    counts = {verdict: len(_with_verdict(rows, verdict)) for verdict in ("fail", "warn", "pass", "skip")}
    tally = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    text = (
        f"most likely cause: <b>{escape_words(root.get('cause') or root['probe'])}</b>." if root else "no fault found."
    )
    if root and not brief:
        text += f" {escape(root['why'].rstrip('.'))}."
        text += f" <b>What to do:</b> {escape(root['remedy'].rstrip('.'))}." if root.get("remedy") else ""
    link = "" if brief or not rows else ' <a href="#findings">all probes</a>'
    text = f'<span class="text">Diagnosis: {text} <span class="note">{tally}</span>{link}</span>'
    return f'<div class="banner {_kind(diagnosis.get("verdict"))}">{_verdict(diagnosis.get("verdict"))} {text}</div>'
