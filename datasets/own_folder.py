"""`folder`: anyone's own set, described by its classes.json; and the label maps that labelling tools write."""

import json
from dataclasses import replace
from pathlib import Path

from cli import UserError
from datasets.spec import VOID, Spec

FOLDER_HELP = (
    "a folder set holds images/{train,val,test}/, masks/{train,val,test}/ (same names, PNG) and classes.json: "
    '{"classes": [{"name": "floor", "color": [80, 50, 50]}, …], "void": [255]}'
)
FLOORPLAN_CLASSES = Path(__file__).resolve().parent.parent / "examples" / "floorplan" / "classes.json"


def folder_spec(root):
    """A set with images/SPLIT, masks/SPLIT and ROOT/classes.json; a val or test that is missing is cut from train.

    Raises UserError for a missing or malformed classes.json, a repeated name, value or colour.
    """
    return _in_folders("folder", Path(root), Path(root) / "classes.json")


def floorplan_spec(root):
    """A folder set of floor plans; without a classes.json of its own, the 34 classes of examples/floorplan."""
    own = Path(root) / "classes.json"
    return _in_folders("floorplan", Path(root), own if own.is_file() else FLOORPLAN_CLASSES)


def _in_folders(name, root, path):
    present = [split for split in ("train", "val", "test") if (root / "images" / split).is_dir()]
    splits = {split: (f"images/{split}", f"masks/{split}") for split in ("train", *present)}
    cut = tuple(split for split in ("val", "test") if split not in present)
    blank = Spec(name=name, classes=(), palette=(), values={}, splits=splits, colours={}, cut=cut)
    return with_classes_json(blank, path)


def with_classes_json(spec, path):
    """A set with the classes and the coding that a classes.json declares.

    "classes": a list of names, or of {"name", "color": [r, g, b], "values": [mask values]}; a class without values is
    its place in the list. "void": mask values, or colours, no metric counts. "label_map": {"mask value": "class name"
    or null for void}, which overrides the rest. Colours also code masks that are drawn in RGB.
    Raises UserError for a missing or malformed file, a repeated name, value or colour.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        entries = _class_entries(content)
        names = tuple(str(entry["name"]) for entry in entries)
        colours = {_colour(e["color"]): i for i, e in enumerate(entries) if "color" in e}
        values, void_colours = _folder_values(content, entries, names)
    except FileNotFoundError:
        raise UserError("no classes.json", path, FOLDER_HELP) from None
    except (OSError, ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"classes.json cannot be used ({error!r})", path, FOLDER_HELP) from None
    coloured = sum("color" in entry for entry in entries)
    if void_colours.keys() & colours.keys():
        raise UserError("a colour is both void and a class", path, FOLDER_HELP)
    if not 1 <= len(names) <= 252 or len(set(names)) < len(names) or len(colours) < coloured:
        raise UserError(f"{len(names)} classes, with a name or colour that repeats, or too many", path, FOLDER_HELP)
    palette = tuple(_colour(e["color"]) for e in entries) if coloured == len(names) else ()
    own = {**colours, **void_colours} if coloured == len(names) else {}
    return replace(spec, classes=names, palette=palette, values=values, colours=own)


def _class_entries(content):
    """classes.json's classes as a list of dicts. Raises ValueError where they are none."""
    if not isinstance(content["classes"], list):
        raise ValueError(f'"classes" is no list but {content["classes"]!r}')
    return [{"name": e} if isinstance(e, str) else dict(e) for e in content["classes"]]


def _mask_value(entry):
    """A mask value of classes.json as int. Raises ValueError for a fraction, OverflowError for infinity."""
    if int(entry) != float(entry):
        raise ValueError(f"mask value {entry} is no whole number")
    return int(entry)


def _colour(entry):
    red, green, blue = map(int, entry)
    if not all(0 <= part < 256 for part in (red, green, blue)):
        raise ValueError(f"colour {entry} is not [r, g, b] of 0 to 255")
    return red, green, blue


def _folder_values(content, entries, names):
    """classes.json's mask values -> train ids, and its void colours."""
    values = {}
    for i, entry in enumerate(entries):
        for value in entry.get("values", [i]):
            if values.setdefault(_mask_value(value), i) != i:
                raise ValueError(f"mask value {value} belongs to two classes")
    void_colours = {}
    for void in content.get("void", [VOID]):
        if isinstance(void, list):
            void_colours[_colour(void)] = VOID
        elif values.setdefault(_mask_value(void), VOID) != VOID:
            raise ValueError(
                f"mask value {void} is void and class {names[values[int(void)]]}; give classes their values"
            )
    for value, name in content.get("label_map", {}).items():
        if name is not None and name not in names:
            raise ValueError(f"label_map gives {value} to {name!r}, which is no class")
        values[int(value)] = VOID if name is None else names.index(name)
    if not all(0 <= value < 65536 for value in values):
        raise ValueError("mask values lie between 0 and 65535")
    return values, void_colours


# ---------------------------------------------------------------------------------------------------------------------
# labelmap.txt

LABELMAP_HELP = "a line a class: NAME:RED,GREEN,BLUE:: in the order of the masks' numbers, comments after #"
VOID_NAMES = {"ignored", "void"}  # how labelling tools name what no class is


def with_labelmap(spec, path):
    """A set with the classes of a labelmap.txt, as CVAT and Datumaro export it: NAME:R,G,B:parts:actions a line.

    A class's number is its place; lines named "ignored" or "void" are void, and so is 255.
    Raises UserError for a line that is none, a repeated name or colour, or no class at all.
    """
    entries = _labelmap_entries(path)
    kept = [(name, colour) for name, colour in entries if name not in VOID_NAMES]
    names, palette = (tuple(part) for part in zip(*kept, strict=True)) if kept else ((), ())
    if not kept or len(kept) > 252 or len(set(names)) < len(names) or len(set(palette)) < len(palette):
        raise UserError(f"{len(kept)} classes, with a name or colour that repeats, or too many", path, LABELMAP_HELP)
    train_ids = {name: i for i, name in enumerate(names)}
    values = {i: train_ids.get(name, VOID) for i, (name, _) in enumerate(entries)}
    colours = {colour: train_ids.get(name, VOID) for name, colour in entries}
    return replace(spec, classes=names, palette=palette, values={**values, VOID: VOID}, colours=colours)


def _labelmap_entries(path):
    """[(name, (r, g, b))] of the lines that are no comments."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
        rows = [line.split(":") for line in lines if line and not line.startswith("#")]
        return [(row[0].strip(), _colour(row[1].split(","))) for row in rows]
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"labelmap.txt cannot be used ({error!r})", path, LABELMAP_HELP) from None
