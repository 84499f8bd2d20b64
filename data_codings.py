"""Mask values that cannot be right: what most often leads to them, and what to do about it.

Some are told by a single value that the set does not declare; others only by what a whole split lacks.
"""

from pathlib import Path

import numpy as np

from data_specs import IN_FOLDERS, VOID, other_codings
from flags import UserError


def label_error(unknown, seen, where, spec, files=None):
    """The error for mask values a set does not declare, with the likely cause.

    unknown, seen: {mask value: pixels}, the undeclared ones and all that occur in the masks that hold such.
    """
    _, cause, remedy = likely_cause(unknown, seen, where, spec)
    drawn = _in_colours(unknown, spec)
    texts = {v: value_text(v, drawn or (bool(spec.colours) and v > 255)) for v in sorted(unknown)[:4]}
    first = ", ".join(f"{text} ({unknown[v]:,} pixels)" for v, text in texts.items())
    more = f" and {len(unknown) - 4} more values" if len(unknown) > 4 else ""
    spread = f" in {files} files" if files and files > 1 else ""
    what = f"label {first}{more} outside the {spec.num_classes} classes of {spec.name}{spread}"
    return UserError(what, where, f"{cause}: {remedy}")


def value_text(value, drawn):
    """A mask value as a person would look it up: a number, or r,g,b for a mask drawn in colours."""
    return f"rgb {value >> 16},{value >> 8 & 255},{value & 255}" if drawn else str(value)


def likely_cause(unknown, seen, where, spec):
    """What most often leads to such values, and the remedy: (cause as the doctor names it, cause in words, remedy)."""
    declared = class_values(spec)
    if Path(where).suffix.lower() in (".jpg", ".jpeg"):
        words = "the mask is a JPEG, whose compression invents values along every border"
        return "jpeg_masks", words, "export masks as PNG"
    if not declared and max(unknown) < 256:
        words = f"one number a pixel, where {spec.name} codes its classes by colour"
        return "unknown_labels", words, "use the set's own masks"
    if _in_colours(unknown, spec):
        return "unknown_labels", f"a mask in colours, but {spec.name} declares none", _number_remedy(spec)
    if spec.colours and max(unknown) > 255 and len(unknown) > len(spec.colours):
        return _mixed_colours(unknown, seen, spec)
    if _are_palette_greys(unknown, seen, spec):
        words = f"the colours of {spec.name}'s palette turned to shades of grey"
        return "greyscale_masks", words, "use the set's own masks, opened without a conversion of their mode"
    known = 1 - sum(unknown.values()) / sum(seen.values())
    if len(unknown) > 16 and known > 0.5 and max(unknown) < max(spec.values):
        words = f"{len(unknown)} values between the declared ones, mixed along borders by resizing or compression"
        return "blended_masks", words, "save masks as PNG, resized by nearest neighbour only"
    if len(seen) > 64 and len(seen) > 2 * len(spec.values):
        words = f"{len(seen)} different values make a grey-scale picture, not class numbers"
        return "greyscale_masks", words, "export class numbers"
    if coding := _other_coding(seen, spec):
        return _other_coding_cause(coding, spec)
    if starts_at_one(seen, spec):
        own = spec.name in IN_FOLDERS
        remedy = 'map them with "label_map" or "values" in classes.json' if own else "subtract 1 from the masks"
        return "one_based_labels", "labels that start at 1", remedy
    if declared and _are_train_ids(unknown, seen, spec):
        words = "train ids on disk, which the set's own mapping would map a second time"
        return "mapped_twice", words, "use the set's own masks, or a folder set whose classes are these ids"
    if set(unknown) == {VOID} and len(declared) == 2 and set(seen) <= {min(declared), VOID}:
        words = f"masks of black and white, where the second class is {max(declared)}"
        return "unknown_labels", words, 'give the second class "values": [255] in classes.json'
    if set(unknown) == {VOID}:
        return "unknown_labels", "255 usually marks void", 'declare "void": [255] in classes.json'
    if _are_stretched(seen, declared):
        shown = ", ".join(map(str, sorted(seen)))
        words = f"class numbers stretched to shades of grey ({shown})"
        return "greyscale_masks", words, 'give each class its "values" in classes.json, or export class numbers'
    words = "a class the set does not declare, or another set's coding"
    return "unknown_labels", words, "declare the value, or fix the masks"


def class_values(spec):
    """The mask values that are no void, in the order of their declaration."""
    return [value for value, train_id in spec.values.items() if train_id != VOID]


def _in_colours(unknown, spec):
    """Whether undeclared values are colours, of a set that has numbers: those of `read_labels`, beyond 16 bit."""
    return not spec.colours and max(unknown) > 65535


def _number_remedy(spec):
    """What to do about a coloured mask where the set wants one number a pixel."""
    if spec.name in IN_FOLDERS:
        return 'give every class its "color" in classes.json, or save masks with one class number a pixel'
    return f"use the set's own masks of {spec.coding}" + (f", *{spec.mask_ending}.png" if spec.mask_ending else "")


def _mixed_colours(unknown, seen, spec):
    """Which mixture: compression leaves most colours within a few levels of a declared one, resizing does not."""
    values, pixels = (np.fromiter(part, np.int64, len(unknown)) for part in (unknown.keys(), unknown.values()))
    colours = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1)  # (n, 3)
    near = np.zeros(len(colours), bool)
    for colour in spec.colours:
        near |= np.abs(colours - colour).max(axis=1) <= 3
    near, rare = pixels[near].sum() / pixels.sum(), pixels.sum() < 0.5 * sum(seen.values())
    # Measured on MSRC, near: JPEG of quality 50 to 92 0.56 to 0.91, resized 0.12 to 0.44, photographs 0.01; resized
    # masks keep more than 0.83 of their pixels, JPEGs as few as 0.06.
    if near > (0.55 if rare else 0.1):
        return "jpeg_masks", "colours changed by compression, as a JPEG does", "export masks as PNG"
    if rare:
        words, remedy = (
            "colours mixed by resizing or compression",
            "save masks as PNG, resized by nearest neighbour only",
        )
        return "blended_masks", words, remedy
    return "unknown_labels", f"{len(seen)} different colours make a photograph, not a mask", "use the set's own masks"


def _are_palette_greys(unknown, seen, spec):
    """Whether all values are the brightness of a colour of the set's, several of them no numbers of it.

    A palette whose brightnesses fill more than a third of the range proves nothing.
    """
    colours = {*spec.palette, *spec.colours, (0, 0, 0), (255, 255, 255)}
    greys = {round((299 * r + 587 * g + 114 * b) / 1000) + d for r, g, b in colours for d in (-1, 0, 1)}
    return len(greys) < 86 and len(unknown) >= 2 and max(seen) < 256 and set(seen) <= greys


def starts_at_one(seen, spec):
    """Whether the lowest class is missing and every value less one would be declared; void may have kept its value.

    seen: the mask values of the files in question.
    """
    declared = class_values(spec)
    fits = all(v - 1 in spec.values or spec.values.get(v) == VOID for v in seen)
    return bool(declared) and fits and min(declared) not in seen


def _other_coding(seen, spec):
    """The other form of the set whose numbers explain all values seen, at least as well as a shift by one; or None."""
    shifted = {v for v in seen if spec.values.get(v - 1, VOID) != VOID} if starts_at_one(seen, spec) else set()
    for form in other_codings(spec):
        if all(v in form.values for v in seen) and len(_classes_in(seen, form)) >= max(2, len(shifted)):
            return form
    return None


def _classes_in(values, form):
    """The train ids that mask values stand for in a form, void and undeclared values left out."""
    return {form.values[v] for v in values if form.values.get(v, VOID) != VOID}


def _other_coding_cause(form, spec):
    """(cause, words, remedy) of masks in another form's coding than the set's."""
    remedy = f"use the set's own masks of {spec.coding}"
    if spec.mask_ending and form.mask_ending != spec.mask_ending:
        remedy += f" (*{spec.mask_ending}.png), or name these *{form.mask_ending}.png and remove the others"
    if _are_their_own_classes(form) and not _are_their_own_classes(spec):
        words = f"{form.coding} on disk, which the mapping of {spec.name}'s {spec.coding} would map a second time"
        return "mapped_twice", words, remedy
    return "other_coding", f"{form.coding} on disk, where {spec.name} expects {spec.coding}", remedy


def _are_their_own_classes(spec):
    """Whether a form's numbers are its train ids."""
    return all(spec.values.get(i) == i for i in range(spec.num_classes))


ENOUGH_CLASSES, ENOUGH_ABSENT, ENOUGH_IMAGES = 10, 5, 50


def hidden_fault(seen, images, spec):
    """Masks whose every value is declared, and wrong: (cause, words, remedy), or None.

    seen: {mask value: pixels} of a whole split of `images` masks. Judged only by what no healthy split of streets or
    scenes shows: all values fit another form's coding and stand for 10 classes of it or more, while 5 or more of the
    set's own classes, those numbered beyond that coding, have not one pixel (in Cityscapes' label ids vegetation, sky,
    person and car are among the 13, in IDD's level3 ids pole, building, vegetation and sky among the 7); or a named
    set's first class, which every one has in most of its images, in none of 50 or more, the others one number up.
    """
    if spec.held_out or spec.unmapped:
        return None
    for form in other_codings(spec):
        beyond = {i for v, i in spec.values.items() if v not in form.values} - _classes_in(form.values, spec) - {VOID}
        fits = all(v in form.values for v in seen) and len(_classes_in(seen, form)) >= ENOUGH_CLASSES
        if fits and len(beyond) >= ENOUGH_ABSENT:
            cause, words, remedy = _other_coding_cause(form, spec)
            names = ", ".join(spec.classes[i] for i in sorted(beyond)[:4])
            return cause, f"{words}: {len(beyond)} of {spec.num_classes} classes ({names} …) have no pixel", remedy
    if spec.name not in IN_FOLDERS and images >= ENOUGH_IMAGES and starts_at_one(seen, spec):
        first = spec.classes[spec.values[min(class_values(spec))]]
        return "one_based_labels", f"labels that start at 1: no pixel of {first}", "subtract 1 from the masks"
    return None


def _are_stretched(seen, declared):
    """Whether as many values as classes lie evenly from 0 up, far wider than the classes' numbers."""
    values = sorted(seen)
    far = bool(declared) and values[-1] > 3 * max(declared)
    return far and values[0] == 0 and 2 <= len(values) <= len(declared) and np.ptp(np.diff(values)) <= 1


def _are_train_ids(unknown, seen, spec):
    """Whether the masks hold 255 and train ids alone, 0 among them, where the set codes its classes otherwise."""
    train_ids = {VOID, *range(spec.num_classes + spec.anomaly)}
    fits = set(unknown) == {VOID} and 0 in seen and set(seen) <= train_ids
    return fits and not _are_their_own_classes(spec)
