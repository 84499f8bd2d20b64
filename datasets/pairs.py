"""The images and masks of a split, found on disk: each image with its mask, sorted by the image's path."""

import hashlib
from pathlib import Path

from cli import UserError, warn
from datasets.spec import by_condition

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm")


def lies_in(root, spec):
    """Whether the first split of this form is there, under any of its conditions: folders, list, masks of its ending,
    and the file its reader asks for."""
    return any(_part_lies_in(Path(root), part) for part in by_condition(spec))


def _part_lies_in(root, spec):
    split, parts = next(iter(spec.splits.items()))
    images, masks = (root / part for part in parts)
    listed = not spec.lists or (root / spec.lists[split]).is_file()
    asked = not spec.asks or (root / spec.top / spec.asks).is_file()
    ending = spec.mask_ending.rpartition("/")[2]
    return images.is_dir() and masks.is_dir() and listed and asked and any(masks.rglob(f"*{ending}.*"))


def cut_of(stem, cut):
    """The split a training image goes to where val or test have no folder of their own.

    The rule: the first 8 hex digits of the SHA-256 of the file's name without ending, as a fraction of 2^32; below 0.15
    is val, below 0.30 is test, where that split has to be cut, and the rest is train.
    """
    share = _share_of(stem)
    split = "val" if share < 0.15 else "test" if share < 0.30 else "train"
    return split if split in cut else "train"


def _share_of(stem):
    return int(hashlib.sha256(stem.encode()).hexdigest()[:8], 16) / 2**32


def layout_text(spec):
    """The folders, lists and files a set is expected to have, for an error message."""
    texts = [f"{images}/ with {masks}/" for images, masks in spec.splits.values()]
    if spec.subsets:
        named = "{" + ",".join(spec.subsets.values()) + "}"
        texts = [text.replace("{subset}", named) for text in texts]
    return ", ".join(dict.fromkeys((*texts, *spec.lists.values(), *filter(None, [spec.asks]))))


def find_images(folder, pattern="**/*"):
    """All images below a folder, sorted by path; pattern "*": in the folder itself only."""
    return sorted(p for p in folder.glob(pattern) if p.suffix.lower() in IMAGE_ENDINGS and not p.name.startswith("."))


def find_pairs(spec, root, split):
    """The (image, mask) paths of a split, sorted by the image's path; a mask has its image's name with any file type.

    Raises UserError for a missing folder, an empty one, an unknown split, two images or masks of one name, images
    without a mask, or a list that is missing, names what is not there or shares a name with another split's. Masks
    without an image are named in a warning.
    """
    if not spec.subsets:
        return _pairs_of_part(spec, Path(root), split)
    _check_conditions(spec, Path(root), split)
    return sorted(pair for part in by_condition(spec) for pair in _pairs_of_part(part, Path(root), split))


def _check_conditions(spec, root, split):
    """Raises UserError where a condition of the set is missing: its figures would be those of another set."""
    there = [part.name for part in by_condition(spec) if _split_is_there(part, root, split)]
    missing = [part.name for part in by_condition(spec) if part.name not in there]
    if there and missing:
        remedy = f"add it, or name what is there, as --dataset {there[0]} (expected: {layout_text(spec)})"
        raise UserError(f"no split {split!r} of {', '.join(missing)}", root, remedy)
    if missing and split in (*spec.splits, *spec.cut):
        what = f"no folder of split {split!r}" if root.is_dir() else f"no folder {root}"
        raise UserError(what, root, f"{spec.name} expects {layout_text(spec)}")


def _split_is_there(spec, root, split):
    parts = spec.splits["train" if split in spec.cut else split] if split in (*spec.splits, *spec.cut) else ()
    return all((root / part).is_dir() for part in parts)


def _pairs_of_part(spec, root, split):
    image_folder, mask_folder = _folders(spec, root, split)
    images = _by_name(image_folder, spec.image_ending, "*" if spec.flat else "**/*")
    masks = _by_name(mask_folder, spec.mask_ending)
    names = _listed(spec, root, split, images) if spec.lists else sorted(images)
    lonely = [name for name in names if name not in masks]
    if lonely:
        raise UserError(
            f"{len(lonely)} of {len(names)} images have no mask, the first {images[lonely[0]].name}",
            mask_folder,
            f"give every image a mask of the same name{spec.mask_ending and ' + ' + spec.mask_ending}, or remove it",
        )
    if not spec.lists and masks.keys() - images.keys():
        warn(f"{len(masks.keys() - images.keys())} masks in {mask_folder} have no image; they are not used")
    if names and spec.cut and (split in spec.cut or split == "train"):
        names = _cut(spec, split, names, image_folder)
    if not names:
        endings = ", ".join(spec.image_ending + ending for ending in IMAGE_ENDINGS)
        raise UserError(f"no image for split {split!r}", image_folder, f"expected files that end in {endings}")
    return [(images[name], masks[name]) for name in names]


def _folders(spec, root, split):
    """The image and the mask folder a split is read from, both there."""
    if split not in spec.splits and split not in spec.cut:
        raise UserError(f"no split {split!r} in {spec.name}", "--split", f"known: {', '.join(spec.splits)}")
    parts = spec.splits["train" if split in spec.cut else split]
    for part in (".", *parts):
        if not (root / part).is_dir():
            name = root if part == "." else part
            raise UserError(f"no folder {name}", root / part, f"{spec.name} expects {layout_text(spec)}")
    if spec.asks and not (root / spec.top / spec.asks).is_file():
        raise UserError(f"no {spec.asks}", root / spec.top, f"{spec.name} expects {layout_text(spec)}")
    return [root / part for part in parts]


def _by_name(folder, ending, pattern="**/*"):
    """{name: path} of the images below a folder whose names end in `ending`, which the names here leave out."""
    found = {}
    for path in find_images(folder, pattern):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if not stem.endswith(ending):
            continue
        name = stem.removesuffix(ending)
        if name in found:
            raise UserError(f"two files named {stem}", folder, f"keep one of {found[name].name} and {path.name}")
        found[name] = path
    return found


def _cut(spec, split, names, folder):
    """The names that the hash rule gives to a split."""
    stems = [Path(name).parent.name if spec.cut_by == "folder" else Path(name).name for name in names]
    places = {stem: cut_of(stem, spec.cut) for stem in set(stems)}
    if spec.cut_by == "folder" and len(places) > 1 and "val" not in places.values():
        places[min(places, key=_share_of)] = "val"  # a set of a few drives: the one the rule comes nearest to
    chosen = [name for name, stem in zip(names, stems, strict=True) if places[stem] == split]
    if not chosen:
        what = f"none of the {len(names)} images falls into split {split!r} where splits are cut by the files' names"
        own = "make images/val/ and masks/val/ (or test) yourself"
        raise UserError(what, folder, own if spec.name in ("folder", "floorplan") else f"is {spec.name} complete?")
    return chosen


def _listed(spec, root, split, images):
    """A split's names from its list, sorted, each of them among the images and in no other split's list."""
    own = "train" if split in spec.cut else split
    names, file = _read_list(root, spec, own), root / spec.lists[own]
    missing = sorted(names - images.keys())
    if missing:
        what = f"{len(missing)} of {len(names)} names have no image, the first {missing[0]}"
        raise UserError(what, file, "add the images, or take the names out")
    for other in spec.lists:
        shared = sorted(names & _read_list(root, spec, other)) if other != own else []
        if shared:
            what = f"{len(shared)} names are in {own} and in {other} too, the first {shared[0]}"
            raise UserError(what, file, "give every image to one split: what was trained on cannot be measured on")
    return sorted(names)


def _read_list(root, spec, split):
    """The set of names in a split's list, their file types left out."""
    path = root / spec.lists[split]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        what = f"cannot read the list of split {split!r} ({error.__class__.__name__})"
        raise UserError(what, path, f"{spec.name} expects {layout_text(spec)}") from None
    names = (Path(line.strip()) for line in lines if line.strip())
    return {(n.with_suffix("") if n.suffix.lower() in IMAGE_ENDINGS else n).as_posix() for n in names}
