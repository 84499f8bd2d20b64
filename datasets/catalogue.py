"""The data sets by name: which forms each comes in, which of them lies in a folder, what to hold out of it.

The declarations stand in `driving` and `scenes`, of the type `spec.Spec`: where the pairs of a split lie and how a
mask's values become train ids: 0 … C-1 for the known classes, C for anomaly where the set has one, 255 for void. A set
that comes in several official forms has one Spec a form, and what lies in the data folder decides.
`folder` is anyone's own set, described by its `classes.json` (`own_folder`).
"""

from dataclasses import replace
from pathlib import Path

from cli import UserError, nearest
from datasets.driving import (
    ACDC_FORMS,
    BDD100K_FORMS,
    CAMVID_FORMS,
    CITYSCAPES,
    CITYSCAPES_LABEL_IDS,
    IDD_AW_FORMS,
    IDD_FORMS,
    MAPILLARY_FORMS,
    ROAD_ANOMALY_FORMS,
    STREETHAZARDS,
    STREETS,
)
from datasets.own_folder import FOLDER_HELP, floorplan_spec, folder_spec
from datasets.pairs import lies_in
from datasets.scenes import ADE20K_FORMS, COCOSTUFF_FORMS, MSRC_FORMS, VOC_FORMS
from datasets.spec import NORMAL, VOID, narrow

# Every set's forms, in order of preference.
SPECS = {
    "streets": (STREETS,),
    "camvid": CAMVID_FORMS,
    "streethazards": (STREETHAZARDS,),
    "msrc": MSRC_FORMS,
    "ade20k": ADE20K_FORMS,
    "cityscapes": (CITYSCAPES, CITYSCAPES_LABEL_IDS),
    "bdd100k": BDD100K_FORMS,
    "acdc": ACDC_FORMS,
    "idd": IDD_FORMS,
    "idd_aw": IDD_AW_FORMS,
    "mapillary": MAPILLARY_FORMS,
    "voc": VOC_FORMS,
    "cocostuff": COCOSTUFF_FORMS,
    "road_anomaly": ROAD_ANOMALY_FORMS,
}
IN_FOLDERS = {"folder": folder_spec, "floorplan": floorplan_spec}  # described by a classes.json
DATASETS = (*SPECS, *IN_FOLDERS)


def parse_name(text):
    """A data set's name as typed -> (set, condition): "acdc/fog" -> ("acdc", "fog"), "camvid" -> ("camvid", "")."""
    name, _, subset = text.partition("/")
    return name, subset


def check_name(text):
    """Raises UserError where a name as typed means no data set, or no condition of it; names the nearest one."""
    name, subset = parse_name(text)
    if name not in DATASETS:
        raise UserError(f"unknown data set {name!r}", "--dataset", nearest(name, DATASETS))
    subsets = SPECS[name][0].subsets if name in SPECS else {}
    if "/" in text and not subsets:
        raise UserError(f"{name} has no conditions, as {text!r} asks for", "--dataset", f"write {name}")
    if "/" in text and subset not in subsets:
        raise UserError(f"unknown condition {subset!r} of {name}", "--dataset", nearest(subset, subsets))


def build_spec(text, root):
    """The spec of a data set by name ("camvid", "acdc/fog"), in the form that lies in ROOT.

    Raises UserError for an unknown name or condition, or a file of the set's own (classes.json …) that is missing or
    wrong.
    """
    check_name(text)
    (name, subset), root = parse_name(text), Path(root)
    if name in IN_FOLDERS:
        return IN_FOLDERS[name](root)
    forms = [narrow(form, subset) for form in SPECS[name]] if subset else SPECS[name]
    return _complete(_form_there(forms, root) or _other_condition(name, subset, root) or forms[0], root)


def _form_there(forms, root):
    return next((form for form in forms if len(forms) > 1 and lies_in(root, form)), None)


def _other_condition(name, subset, root):
    """The condition in the form in which others of its set lie there, for the error that it does not; or None."""
    form = _form_there(SPECS[name], root) if subset else None
    return form and narrow(form, subset)


def _complete(spec, root):
    return spec.reader(spec, root) if spec.reader else spec


def recognise(root):
    """The spec of whatever known set lies in a folder, `folder` included. Raises UserError where none does."""
    root = Path(root)
    if not root.is_dir():
        raise UserError("no such folder", root, "check the path")
    found = next((spec for forms in SPECS.values() for spec in forms if lies_in(root, spec)), None)
    described = (root / "classes.json").is_file()
    if described and (found is None or (root / "images" / "train").is_dir()):
        return folder_spec(root)
    if found is None:
        raise UserError("no known data set", root, f"it holds none of the layouts of {', '.join(SPECS)}; {FOLDER_HELP}")
    return _complete(found, root)


def other_codings(spec):
    """The forms that code the same classes by other numbers: the set's own, and those of sets with equal classes.

    One form a coding, the set's own first. A mask in one of these codings, taken for another, may still be all classes.
    """
    own = SPECS.get(parse_name(spec.name)[0], ())
    classes = {form.classes for form in own}
    alike = [form for forms in SPECS.values() for form in forms if form.classes in classes]
    found = {}
    for form in (*own, *alike):
        if form.values and form.coding != spec.coding:
            found.setdefault(form.coding, form)
    return list(found.values())


# ---------------------------------------------------------------------------------------------------------------------
# Anomalies by agreement


def hold_out(spec, names):
    """The set with some of its classes as anomalies: void in training, positive in validation and test.

    Raises UserError for a name that is no class of the set, or where no class would be left.
    Source: the protocol of BDD-Anomaly (Hendrycks et al., 2022). Deviation: there the images that show a held-out class
    are left out of training; here only its pixels are void, so that small sets stay whole.
    """
    for name in names:
        if name not in spec.classes:
            raise UserError(f"no class {name!r} in {spec.name}", "--anomaly-classes", nearest(name, spec.classes))
    kept = [i for i, name in enumerate(spec.classes) if name not in names]
    if not kept:
        raise UserError("no class is left to learn", "--anomaly-classes", "hold fewer classes out")
    train_ids = {VOID: VOID, NORMAL: NORMAL, spec.num_classes: len(kept), **{old: new for new, old in enumerate(kept)}}
    held_out = [code for coding in (spec.values, spec.colours) for code, i in coding.items() if i not in train_ids]
    values, colours = (
        {code: train_ids.get(i, len(kept)) for code, i in coding.items()} for coding in (spec.values, spec.colours)
    )
    palette = tuple(spec.palette[i] for i in kept) if spec.palette else ()
    return replace(
        spec,
        classes=tuple(spec.classes[i] for i in kept),
        palette=palette,
        values=values,
        colours=colours,
        anomaly=spec.anomaly or bool(held_out),
        held_out=frozenset(held_out),
        own=spec.own or spec,
    )
