"""What single files tell: unreadable ones, label values, borders of masks, odd images.

`audits`: {split: Audit} and `surveys`: {split: Survey}, in the splits' order, train among them.
"""

import numpy as np
from PIL import Image

from cli import UserError
from datasets.catalogue import SPECS
from datasets.masks import read_image, read_labels
from datasets.miscoded import first_class_is_common
from datasets.spec import VOID
from probes.finding import Exhibit, Finding, Tile
from probes.limits import LIMITS

LISTED = 20  # file names in a finding's evidence

# ---------------------------------------------------------------------------------------------------------------------
# Files and label values


def audit_files(subject):
    """Are all files readable, of one size with their mask, and all mask values declared?"""
    return [judge_files(subject.audits)]


def judge_files(audits):
    """The Finding of `audit_files` on {split: Audit}."""
    for audit in audits.values():
        fault = audit.fault()
        if fault:
            return _faulty_files(audit, *fault)
    counted = ", ".join(f"{len(a.split)} {name}" for name, a in audits.items())
    rotated = sum(len(a.rotated) for a in audits.values())
    return Finding(
        "data.files",
        "pass",
        f"all of {counted} read, sizes match, every mask value is declared",
        value=0.0,
        reference=0.0,
        evidence={"exif_orientation": rotated, "void_share": void_shares(audits)},
    )


def _faulty_files(audit, cause, error):
    """The finding for a split's first fault: its cause and remedy, and what the faulty masks hold."""
    files = list(audit.broken or audit.unknown)
    what, _, remedy = str(error).rpartition("; ")
    evidence = {"files": files[:LISTED], "values": {str(v): n for v, n in audit.values.most_common(20)}}
    why, exhibits = f"{audit.split.name}: {what}", []
    if audit.unknown and not audit.broken:
        known = 1 - sum(audit.unknown_values.values()) / sum(audit.faulty_values.values())
        kinds = "colours" if any(v > 65535 and isinstance(v, int) for v in audit.faulty_values) else "values"
        holds = f"{len(files)} of {len(audit.split)} masks hold {len(audit.faulty_values)} {kinds}"
        why = f"{audit.split.name}: {holds}, {known:.0%} of their pixels are declared classes or void; {what}"
        evidence |= {"declared_share": known, "distinct_values": len(audit.faulty_values)}
        exhibits = [_undeclared_exhibit(audit)]
    return Finding(
        "data.files",
        "fail",
        why,
        cause=cause,
        value=float(len(files)),
        reference=0.0,
        remedy=remedy,
        evidence=evidence,
        exhibits=exhibits,
    )


def _undeclared_exhibit(audit):
    """The first faulty pair: image, the mask's own values as a picture, and what is read from them."""
    first = next(iter(audit.unknown))
    index = next(i for i, (_, mask) in enumerate(audit.split.pairs) if str(mask) == first)
    image_path = audit.split.pairs[index][0]
    target, values = read_labels(first, audit.split.spec_of(index))
    tiles = [
        Tile("image", image=np.asarray(read_image(image_path))),
        Tile("the mask's values", image=_draw_values(values, first)),
        Tile("what they mean here", mask=target),
    ]
    return Exhibit(f"{image_path.name} and its mask", tiles)


def _draw_values(values, path):
    """A mask's own values (H, W) as a picture (H, W, 3) uint8: its colours, or grey with the largest value white."""
    if values.max() > 65535 and values.dtype.kind != "f":
        with Image.open(path) as mask:
            return np.asarray(mask.convert("RGB"))
    grey = (values.clip(0).astype(np.float32) * (255 / max(1, int(values.max())))).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def mask_values(subject):
    """Are declared values the right ones: neither clamped into the classes, nor mapped twice, nor counted from 1?

    Raises UserError for several sets.
    """
    if subject.spec.parts:
        raise UserError("several sets, each with a coding of its own", remedy="examine one: --data --dataset NAME")
    audits, surveys = subject.audits, subject.surveys
    finding = _clamped(surveys) or mapped_twice(audits) or _one_based(audits)
    if finding := finding or _nothing_between(surveys) or _highest_alone(surveys):
        return [finding]
    lone = max((float(_lone_share(s).max(initial=0.0)) for s in surveys.values()), default=0.0)
    why = f"masks hold areas of class numbers: at most {lone:.1%} of a mask's pixels below its highest value lie alone"
    return [Finding("data.mask_values", "pass", why, value=lone, reference=LIMITS["lone_pixels"].value)]


def _lone_share(survey):
    """(N,) share of the pixels below a mask's highest value that are alone; 0 where there are too few to tell."""
    return np.where(survey.below_top >= 20, survey.lone / np.maximum(1, survey.below_top), 0.0)


def _full(survey):
    """(N,) bool: masks of numbers whose highest value fills most of them; colours have no order."""
    return (survey.top > LIMITS["clamped_top"].value) & bool(survey.split.spec.values)


def _borders_only(survey):
    """(N,) bool: several classes lie between the lowest and the highest one, all of them thin.

    So ends a grey picture of areas when clamped: its lowest class, its highest, and what their border passes through.
    """
    between = ~_ends(survey)
    thin, pixels = survey.thin[:, between].sum(axis=1), survey.counts[:, between].sum(axis=1)
    return ((survey.counts[:, between] > 0).sum(axis=1) >= 3) & (thin > LIMITS["borders_only"].value * pixels)


def _ends(survey):
    """(C,) bool: the classes with the lowest and the highest value; none where classes are coloured."""
    ends, values = np.zeros(survey.counts.shape[1], bool), _class_values(survey.split.spec)
    if values:
        ends[[survey.split.spec.values[value] for value in (min(values), max(values))]] = True
    return ends


def _clamped(surveys):
    """Pictures cut off at the highest class: that class nearly everywhere, and no area of the classes below."""
    alone = LIMITS["lone_pixels"].value
    faulty = {name: _full(s) & ((_lone_share(s) > alone) | _borders_only(s)) for name, s in surveys.items()}
    rows, verdict = _flag(faulty)
    if verdict == "pass":
        return None
    share = float(np.concatenate([surveys[name].top[found] for name, found in rows.items()]).mean())
    return Finding(
        "data.mask_values",
        verdict,
        f"masks look like pictures whose values were clamped into the classes: in {_counted(surveys, rows)} the "
        f"highest value fills {share:.0%}, and those between are speckles or borders, never an area",
        cause="clamped_masks",
        remedy="export class numbers; never clip or clamp a mask",
        evidence={"files": _names(surveys, rows), "highest_value_share": share},
        **_share_and_first(surveys, rows),
    )


def _nothing_between(surveys):
    """No class of a whole split but the one with the highest value, and at most the lowest: clamped without a trace.

    Where the highest fills nearly everything and others occur, it is suspicious, no more.
    """
    for name, survey in surveys.items():
        if not len(survey) or survey.counts.shape[1] < 4 or not survey.split.spec.values:
            continue
        alone, top = not survey.counts[:, ~_ends(survey)].any(), float(survey.top.mean())
        if top < LIMITS["clamped_top" if alone else "all_top"].value:
            continue
        others = "and no class between it and the lowest occurs" if alone else "as if values were clamped"
        return Finding(
            "data.mask_values",
            "fail" if alone and len(survey) >= 20 else "warn",
            f"the highest mask value fills {top:.1%} of {name}, {others}",
            cause="clamped_masks",
            value=top,
            reference=LIMITS["all_top"].value,
            remedy="look at a mask: if it is a picture, export class numbers; never clip or clamp a mask",
            evidence={"highest_value_share": top},
            exhibits=[_flagged_exhibit(surveys, {name: [0]})],
        )
    return None


def _highest_alone(surveys):
    """Some masks hold the highest class and no other, where most hold several: clamped without a trace, perhaps."""
    faulty = {}
    for name, survey in surveys.items():
        if len(survey) and survey.counts.shape[1] >= 4 and survey.split.spec.values:
            values = _class_values(survey.split.spec)
            highest = survey.split.spec.values[max(values)]
            alone = (survey.counts[:, highest] > 0) & ((survey.counts > 0).sum(axis=1) == 1)
            faulty[name] = alone & (np.median((survey.counts > 0).sum(axis=1)) > 2)
    rows, verdict = _flag(faulty)
    if verdict == "pass":
        return None
    return Finding(
        "data.mask_values",
        "warn",
        f"{_counted(surveys, rows)} hold the class of the highest number and no other, where most masks hold several: "
        "as if their values were clamped",
        cause="clamped_masks",
        remedy="look at these masks: if they should show more than one class, export class numbers anew, never clamped",
        evidence={"files": _names(surveys, rows)},
        **_share_and_first(surveys, rows),
    )


def mapped_twice(audits):
    """Does a split hold just those classes that are left when train ids are mapped to train ids once more?"""
    spec, limit = audits["train"].split.spec, LIMITS["missing_if_mapped"].value
    forms = [form for forms in SPECS.values() for form in forms if form.classes == spec.classes]
    for name, audit in audits.items():
        for form in (spec, *forms):
            if not _fits_mapping(audit, form):
                continue
            others = [other for other in audits.values() if other is not audit and not _fits_mapping(other, form)]
            missing, void = len(audit.absent), void_shares(audits)
            sure = missing >= limit or any(_shares_fit_mapping(audit, other, form) for other in others)
            return Finding(
                "data.mask_values",
                "fail" if sure else "warn",
                f"{name} holds just those {spec.num_classes - missing} of {spec.num_classes} classes that a second "
                f"mapping to train ids leaves, and {void[name]:.0%} void" + ("" if sure else "; this may be chance"),
                cause="mapped_twice",
                value=float(missing),
                reference=limit,
                remedy="use the set's own masks, or declare the values they hold; map them once",
                evidence={"absent": audit.absent, "void_share": void},
            )
    return None


def _fits_mapping(audit, form):
    """Whether the classes that occur are what this form's mapping leaves of all, fewer than all, and the rest void."""
    classes = range(form.num_classes)
    left = {form.values[i] for i in classes if form.values.get(i) in classes}
    void = audit.void / max(1, audit.pixels)
    present = set(np.flatnonzero(audit.counts).tolist())
    return present == left and 0 < len(left) < form.num_classes and void >= LIMITS["void_if_mapped"].value


def _shares_fit_mapping(audit, other, form):
    """Whether a split's classes have the shares that another's would have when mapped, much rather than its own."""
    mapped = np.zeros(len(other.counts))
    for i, count in enumerate(other.counts):
        if form.values.get(i, VOID) < len(mapped):
            mapped[form.values[i]] += count
    own, mapped, plain = (c / max(1, c.sum()) for c in (audit.counts, mapped, other.counts))
    enough = min(len(audit.split), len(other.split)) >= 20
    return bool(enough and np.abs(own - mapped).sum() < 0.5 * np.abs(own - plain).sum())


def _class_values(spec):
    return [value for value, train_id in spec.values.items() if train_id < spec.num_classes]


def _starts_at_one(audit):
    """Whether a split lacks the lowest class, and holds the value after the highest one, which is no class."""
    spec = audit.split.spec
    declared = _class_values(spec.own or spec)
    return bool(declared) and min(declared) not in audit.values and max(declared) + 1 in audit.values


def _one_based(audits):
    """Numbers that start one too high, though every one of them is declared."""
    faulty = {name: len(audit.split) for name, audit in audits.items() if _starts_at_one(audit)}
    if not faulty:
        return None
    spec, images = audits["train"].split.spec, max(faulty.values())
    spec = spec.own or spec
    # In some sets the first class is in nearly every image; in others, and in anyone's own, it may hardly occur.
    sure = first_class_is_common(spec) and images >= 20
    lowest = min(_class_values(spec))
    return Finding(
        "data.mask_values",
        "fail" if sure else "warn",
        f"value {lowest} ({spec.classes[spec.values[lowest]]}) occurs in no mask of {' and '.join(faulty)}, the value "
        "after the last class does: numbers that start one too high" + ("" if sure else ", if that class should occur"),
        cause="one_based_labels",
        value=float(images),
        reference=20.0,
        remedy="subtract 1 from the masks, or declare the values they have",
        evidence={"splits": list(faulty), "values": sorted(set().union(*(a.values for a in audits.values())))[:300]},
    )


# ---------------------------------------------------------------------------------------------------------------------
# Masks along their borders


def mask_borders(subject):
    """Were masks resized with blending or stored as JPEG, though every value is declared?

    Both leave thin runs of a third class where two meet, whose number lies between theirs.
    """
    surveys, limit = subject.surveys, LIMITS["mixed_borders"].value
    outlines = _outline_classes(surveys)
    pictures = _clamped(surveys) is not None  # a clamped picture has borders of its own, which say nothing
    aside = {name: (_full(s) | _borders_only(s)) & pictures for name, s in surveys.items()}
    shares = {name: _mixed_share(s, outlines) * ~aside[name] for name, s in surveys.items()}
    rows, verdict = _flag({name: share > limit for name, share in shares.items()})
    largest = max((float(share.max(initial=0.0)) for share in shares.values()), default=0.0)
    if verdict == "pass":
        why = f"at most {largest:.0%} of a mask's borders is a thin class between two others"
        return [Finding("data.mask_borders", "pass", why, value=largest, reference=limit)]
    phases = sum(surveys[name].phases[found].sum(axis=0) for name, found in rows.items())
    blocks = float(phases[0] / max(1, phases[len(phases) // 2]))  # a JPEG's blocks end on every 8th line
    made = "resized with blending or compressed as JPEG"
    if sum(map(len, rows.values())) >= 10:  # one mask's straight edges may lie on those lines by chance
        made = "compressed as JPEG" if blocks > LIMITS["mask_blocks"].value else "resized with blending"
    stored = {surveys[name].mask(row).suffix.lower() for name, found in rows.items() for row in found}
    return [
        Finding(
            "data.mask_borders",
            verdict,
            f"{_counted(surveys, rows)} were {made}: up to "
            f"{largest:.0%} of their borders is a thin third class, numbered between the two that meet",
            cause="jpeg_masks" if stored & {".jpg", ".jpeg"} else "blended_masks",
            value=largest,
            reference=limit,
            remedy="resize masks by nearest neighbour only and save them as PNG; start from the original ones",
            evidence={"files": _names(surveys, rows), "share": _largest_share(surveys, rows), "blocks": blocks},
            exhibits=[_flagged_exhibit(surveys, rows)],
        )
    ]


def _outline_classes(surveys):
    """(C,) bool: classes that are thin wherever they occur, such as one for the outlines of cells: drawn, not mixed."""
    thin, pixels = (sum(getattr(s, part).sum(axis=0) for s in surveys.values()) for part in ("thin", "counts"))
    return thin > LIMITS["outline_class"].value * pixels


def _mixed_share(survey, outlines):
    """(N,) thin pixels a border pixel; 0 where a mask has too little border to tell."""
    mixed = survey.thin[:, ~outlines].sum(axis=1)
    return np.where(survey.borders >= 200, mixed / np.maximum(1, survey.borders), 0.0)


# ---------------------------------------------------------------------------------------------------------------------
# Odd images

ODD = {"noise_images": "noise (neighbouring pixels have nothing in common)", "constant_images": "of one colour"}


def odd_images(subject):
    """Are there images that are noise, or of one colour though their mask shows several classes?"""
    surveys, limit = subject.surveys, LIMITS["noise_image"].value
    constant = {name: s.constant & ((s.counts > 0).sum(axis=1) > 1) for name, s in surveys.items()}
    noise = {name: ~s.constant & (np.abs(s.neighbours) < limit) for name, s in surveys.items()}
    found = {"constant_images": _flag(constant), "noise_images": _flag(noise)}
    cause = min(found, key=lambda c: ("fail", "warn", "pass").index(found[c][1]))
    rows, verdict = found[cause]
    if verdict == "pass":
        lowest = min((float(s.neighbours[~s.constant].min(initial=1.0)) for s in surveys.values()), default=1.0)
        why = f"no image is noise or of one colour; neighbouring pixels are correlated by {lowest:.2f} or more"
        return [Finding("data.images", "pass", why, value=lowest, reference=limit)]
    return [
        Finding(
            "data.images",
            verdict,
            "; ".join(f"{_counted(surveys, r)} are {ODD[c]}" for c, (r, v) in found.items() if v != "pass"),
            cause=cause,
            remedy="replace these images by the originals, or take the pairs out",
            evidence={c: _names(surveys, r) for c, (r, _) in found.items()},
            **_share_and_first(surveys, rows),
        )
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The files of a fault


def _flag(faulty):
    """{split: (N,) bool} -> {split: rows}, and fail where they are enough of a split, warn where there are some."""
    rows = {name: np.flatnonzero(flags) for name, flags in faulty.items()}
    if any(len(found) >= max(2, LIMITS["faulty_files"].value * len(faulty[name])) for name, found in rows.items()):
        return rows, "fail"
    return rows, "warn" if any(map(len, rows.values())) else "pass"


def _largest_share(surveys, rows):
    return max(len(found) / max(1, len(surveys[name])) for name, found in rows.items())


def _counted(surveys, rows):
    return ", ".join(f"{len(found)} of {len(surveys[name])} {name} files" for name, found in rows.items() if len(found))


def _names(surveys, rows):
    return [surveys[name].files[row] for name, found in rows.items() for row in found][:LISTED]


def _share_and_first(surveys, rows):
    """What a finding about flagged files is judged by, and its exhibit."""
    value, reference = _largest_share(surveys, rows), LIMITS["faulty_files"].value
    return {"value": value, "reference": reference, "exhibits": [_flagged_exhibit(surveys, rows)]}


def _flagged_exhibit(surveys, rows):
    """The first flagged pair: its image and its mask."""
    name, row = next((name, found[0]) for name, found in rows.items() if len(found))
    survey = surveys[name]
    mask = read_labels(survey.mask(row), survey.split.spec_of(survey.indices[row]))[0]
    tiles = [Tile("image", image=survey.picture(row)), Tile("mask", mask=mask)]
    return Exhibit(f"{name}: {survey.files[row]}", tiles)


def void_shares(audits):
    """{split: share of the pixels read that are void}."""
    return {name: audit.void / max(1, audit.pixels) for name, audit in audits.items()}
