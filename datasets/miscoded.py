"""Mask values that cannot be right: what most often leads to them, and what to do about it.

Some are told by a single value that the set does not declare; others only by what a whole split lacks.
"""

from pathlib import Path

import numpy as np

from cli import UserError
from datasets.catalogue import SPECS, other_codings, parse_name
from datasets.spec import VOID


def label_error(unknown, seen, where, spec, files=None):
    """The error for mask values a set does not declare, with the likely cause.

    unknown, seen: {mask value: pixels}, the undeclared ones and all that occur in the masks that hold such. A set that
    is seen in a label space, or with classes held out, is judged by its own coding, here and below.
    """
    spec = spec.own or spec
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
    if drawn and isinstance(value, int):
        return f"rgb {value >> 16},{value >> 8 & 255},{value & 255}"
    return str(int(value)) if value == int(value) else f"{value:g}"


def likely_cause(unknown, seen, where, spec):
    """What most often leads to such values, and the remedy: (cause as diagnose names it, cause in words, remedy)."""
    spec = spec.own or spec
    declared = class_values(spec)
    if Path(where).suffix.lower() in (".jpg", ".jpeg"):
        words = "the mask is a JPEG, whose compression invents values along every border"
        return "jpeg_masks", words, "export masks as PNG"
    if not all(_can_be_class(value) for value in unknown):
        words = "class numbers are whole, from 0 to 65535, and such a value is none"
        return "unknown_labels", words, "save masks with one class number a pixel"
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
    if found := _void_in_another_place(unknown, seen, spec):
        return found
    if coding := _other_coding(seen, spec):
        return _other_coding_cause(coding, spec)
    if starts_at_one(seen, spec):
        remedy = 'map them with "label_map" or "values" in classes.json'
        remedy = remedy if _is_described(spec) else "subtract 1 from the masks"
        return "one_based_labels", "labels that start at 1", remedy
    if declared and _are_train_ids(unknown, seen, spec):
        words = "train ids on disk, which the set's own mapping would map a second time"
        return "mapped_twice", words, "use the set's own masks, or a folder set whose classes are these ids"
    if set(unknown) == {VOID} and len(declared) == 2 and set(seen) <= {min(declared), VOID}:
        words = f"masks of black and white, where the second class is {max(declared)}"
        return "unknown_labels", words, 'give the second class "values": [255] in classes.json'
    if set(unknown) == {VOID}:
        return _undeclared_255(spec)
    if _are_stretched(seen, declared):
        shown = ", ".join(map(str, sorted(seen)))
        words = f"class numbers stretched to shades of grey ({shown})"
        return "greyscale_masks", words, 'give each class its "values" in classes.json, or export class numbers'
    words = "a class the set does not declare, or another set's coding"
    return "unknown_labels", words, "declare the value, or fix the masks"


def class_values(spec):
    """The mask values that are no void, in the order of their declaration."""
    return [value for value, train_id in spec.values.items() if train_id != VOID]


def _is_described(spec):
    """Whether the classes are the user's own, from a file beside the masks, rather than those of a set by name."""
    return spec.classes not in {form.classes for form in SPECS.get(parse_name(spec.name)[0], ())}


def _can_be_class(value):
    """Whether a mask value is a colour or a number a class can have: others come as floats (`masks.read_labels`)."""
    return isinstance(value, int) or (0 <= value <= 65535 and value == int(value))


def _in_colours(unknown, spec):
    """Whether undeclared values are colours, of a set that has numbers: those of `read_labels`, beyond 16 bit."""
    return not spec.colours and max(unknown) > 65535


def _number_remedy(spec):
    """What to do about a coloured mask where the set wants one number a pixel."""
    if _is_described(spec):
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
    spec = spec.own or spec
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


def _undeclared_255(spec):
    """(cause, words, remedy) of masks that are right but for 255, which the set does not declare."""
    if _is_described(spec):
        return "unknown_labels", "255 usually marks void", 'declare "void": [255] in classes.json'
    voids = [value for value, train_id in spec.values.items() if train_id == VOID]
    where = f"{spec.name}'s own void is {min(voids)}" if voids else f"{spec.name} has no void"
    words = f"255 for void, where {where}, as in masks of another export"
    return "unknown_labels", words, "use the set's own masks" + (f", or write void as {min(voids)}" if voids else "")


def _void_in_another_place(unknown, seen, spec):
    """(cause, words, remedy) of all classes and a void beside them that has not the set's number, or None.

    Two codings hold the same numbers, 0 to the number of classes: void first, or void last. Where the first class is
    the road, which no second class comes near, the pixels of 0 and 1 tell which. Other codings leave numbers out.
    """
    declared = class_values(spec)
    last, first = max(declared, default=0) + 1, ALWAYS_SEEN.get(parse_name(spec.name)[0])
    if set(unknown) != {last} or 0 not in seen or max(seen) > last or _is_described(spec):
        return None
    if spec.name == "cocostuff":
        return "one_based_labels", "COCO's own ids, from 1 up, with 0 for unlabeled", COCO_REMEDY
    if first != "road" or min(declared) != 0 or len(seen) < 0.8 * last:
        return None
    if seen.get(1, 0) > 2 * seen[0]:
        return "one_based_labels", "labels that start at 1, with 0 for void", "subtract 1, and write void as 255"
    if seen[0] > 2 * seen.get(1, 0):
        return "unknown_labels", f"{last} after the last class, as void in some exports", "write void as 255"
    words = f"{last} after the last class: void there, or labels that start at 1, with 0 for void"
    return "unknown_labels", words, "write void as 255, and the classes from 0 up"


# ---------------------------------------------------------------------------------------------------------------------
# Every value declared, and wrong

ENOUGH_CLASSES, ENOUGH_ABSENT, ENOUGH_IMAGES = 10, 5, 50
# First classes that hardly an image of the set is without; StreetHazards' "unlabeled" is the sky.
ALWAYS_SEEN = {
    "camvid": "sky", "cityscapes": "road", "bdd100k": "road", "acdc": "road", "idd": "road", "idd_aw": "road",
    "voc": "background", "streets": "unlabeled", "streethazards": "unlabeled",
}  # fmt: skip
# Things that COCO-Stuff's list names and its masks never hold.
NEVER_LABELLED = (
    "street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender", "hair brush",
)  # fmt: skip
COCO_REMEDY = "subtract 1 (0, unlabeled, becomes 255)"
STREETS_VOID, STREETS_IMAGES = 0.05, 20


def hidden_fault(seen, images, spec, split="train"):
    """Masks whose every value is declared, and wrong: (cause, words, remedy), or None.

    seen: {mask value: pixels} of a whole split of `images` masks; split: its name. A set that is seen in a label space,
    or with classes held out, is judged by its own coding. Judged only by what no healthy split shows:

    - all values fit another form's coding and stand for 10 classes of it or more, while 5 or more of the set's own
      classes, those numbered beyond that coding, have not one pixel (in Cityscapes' label ids vegetation, sky, person
      and car are among the 13, in IDD's level3 ids pole, building, vegetation and sky among the 7);
    - the others one number up, a set's first class, which it has in nearly every image, is in none of 50 or more;
    - things that COCO-Stuff never labels;
    - streets whose void, which they hardly have, is large, all classes there but for the last;
    - two classes by number, and masks of nothing but the first and 255.
    """
    spec = spec.own or spec
    return (
        _fits_other_coding(seen, spec)
        or _lacks_first_class(seen, images, spec)
        or _shows_never_labelled(seen, spec)
        or _streets_reduced(seen, images, spec, split)
        or _white_is_void(seen, spec)
    )


def _fits_other_coding(seen, spec):
    for form in other_codings(spec):
        beyond = {i for v, i in spec.values.items() if v not in form.values} - _classes_in(form.values, spec) - {VOID}
        fits = all(v in form.values for v in seen) and len(_classes_in(seen, form)) >= ENOUGH_CLASSES
        if fits and len(beyond) >= ENOUGH_ABSENT:
            cause, words, remedy = _other_coding_cause(form, spec)
            names = ", ".join(spec.classes[i] for i in sorted(beyond)[:4])
            return cause, f"{words}: {len(beyond)} of {spec.num_classes} classes ({names} …) have no pixel", remedy
    return None


def first_class_is_common(spec):
    """Whether hardly an image of a set is without its first class, so that a split without it is odd."""
    return bool(spec.classes) and ALWAYS_SEEN.get(parse_name(spec.name)[0]) == spec.classes[0]


def _lacks_first_class(seen, images, spec):
    judged = images >= ENOUGH_IMAGES and first_class_is_common(spec) and spec.values.get(0) == 0
    if not judged or _is_described(spec) or not starts_at_one(seen, spec):
        return None
    return "one_based_labels", f"labels that start at 1: no pixel of {spec.classes[0]}", "subtract 1 from the masks"


def _shows_never_labelled(seen, spec):
    """COCO's ids in COCO-Stuff's masks, whose numbers are one lower: some of the eleven names turn up.

    There void is 0, or still 255 and then 0 is nothing.
    """
    if spec.name != "cocostuff" or _is_described(spec) or {0, VOID} <= seen.keys():
        return None
    shown = [name for name in NEVER_LABELLED if spec.classes.index(name) in seen]
    if len(shown) < 3:
        return None
    words = f"COCO's own ids, one too high: {', '.join(shown[:3])} are labelled, which the set's own masks never hold"
    return "one_based_labels", words, COCO_REMEDY


def _streets_reduced(seen, images, spec, split):
    """StreetHazards' masks less one: the sky has become void, and no value is left for the last class of the split."""
    last = spec.num_classes + (split == "test")  # the anomaly is in the test split alone
    if spec.name not in ("streets", "streethazards") or images < STREETS_IMAGES or set(seen) != set(range(last)):
        return None
    void = seen[0] / sum(seen.values())
    if void < STREETS_VOID:
        return None
    name = "anomaly" if split == "test" else spec.classes[-1]
    words = f"masks already reduced by one, which would be mapped a second time: 0 on {void:.0%}, no pixel of {name}"
    return "mapped_twice", words, "use the set's own masks, or add 1"


def _white_is_void(seen, spec):
    declared = class_values(spec)
    suspected = len(declared) == 2 and spec.values.get(VOID) == VOID and set(seen) == {min(declared), VOID}
    if not suspected or not _is_described(spec):
        return None
    words = f"masks of black and white, where the second class is {max(declared)} and white, 255, is void"
    return "unknown_labels", words, 'give the second class "values": [255] and write "void": [] in classes.json'


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
