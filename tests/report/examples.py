"""Examples that several tests of the report share: an evaluation, a diagnosis, a log; a strict parser of the page."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np

from probes.finding import Exhibit, Finding, Tile, conclude, rank
from report.files import save_exhibits, write_report

CLASSES = ["road", "tree", "sky"]
PALETTE = [(128, 64, 128), (0, 200, 10), (70, 70, 250)]
HOSTILE = ['<script>alert("x")</script>', "salt & 'pepper'", 'a"><img src=http-x onerror=y>']
STAGES = [
    {"stage": "backbone 1", "shape": [24, 40, 56], "mean": 0.12345, "std": 1.5, "zeros": 0.0},
    {"stage": "pyramid <1>", "shape": [96, 5, 7], "mean": None, "std": None, "zeros": 0.51},
]
EVALUATION = {
    "split": "test",
    "images": 233,
    "pixels": 40262400,
    "miou": 0.6123,
    "miou_interval": [0.588, 0.634],
    "layout_floor": 0.2204,
    "semantic_gain": 0.5027,
    "iou": {HOSTILE[0]: 0.91, HOSTILE[1]: None, HOSTILE[2]: 0.31},
    "active_classes": 2,
    "spurious_classes": [2],
    "ece": 0.0312,
    "anomaly": {
        "max<logit>": {
            "aupr": 0.312361,
            "aupr_error": 0.000041,
            "auroc": 0.9,
            "auroc_error": 0.0,
            "fpr95": None,
            "per_image": {"aupr": 0.28, "auroc": 0.91, "fpr95": 0.31, "images": 112},
            "components": {},
        }
    },
    "protocol": {"canvas": "240x320", "flip": False},
}
DIAGNOSIS = {
    "root_cause": "shuffled_masks",
    "verdict": "fail",
    "findings": [
        {
            "probe": "pairing",
            "verdict": "fail",
            "cause": "shuffled_masks",
            "value": 0.584,
            "reference": 0.756,
            "why": "borders <do> not match",
            "remedy": "match by name",
            "evidence": {"files": ["<a>.png"]},
            "consequences": ["low_miou"],
            "seconds": 3,
        },
        {"probe": "gradient_flow", "verdict": "pass", "cause": None, "value": None, "reference": None, "why": "all"},
        {"probe": "classes", "verdict": "warn", "cause": "rare", "value": {"sky": 0.1}, "reference": [1, 2], "why": ""},
        {"probe": "noise_test", "verdict": "skip", "cause": None, "value": None, "reference": None, "why": "trains"},
    ],
}
LOG = [
    {"kind": "train", "step": 10, "epoch": 0, "loss": 2.0, "terms": {"ce": 1.5, "aux": 0.5}, "lr": [1e-4, 1e-3]},
    {
        "kind": "train",
        "step": 20,
        "epoch": 0,
        "loss": float("nan"),
        "terms": {"ce": 1.0, "aux": 0.5},
        "lr": [1e-4, 1e-3],
    },
    {"kind": "validation", "step": 20, "epoch": 0, "miou": 0.3, "layout_floor": 0.22, "loss": 1.1},
    {"kind": "train", "step": 30, "epoch": 1, "loss": 1.0, "terms": {"ce": 0.8, "aux": 0.2}, "lr": [5e-5, 5e-4]},
    {"kind": "validation", "step": 40, "epoch": 1, "miou": 0.5, "layout_floor": 0.22, "loss": None},
]
CHANCE = 0.02


def figures(aupr, **changes):
    """One score's figures, every key filled, each number its own."""
    steps = [i / 50 for i in range(51)]
    return {
        "aupr": aupr,
        "aupr_error": 2e-5,
        "aupr_interval": [aupr * 0.9, aupr * 1.1],
        "auroc": 0.5 + aupr / 2,
        "auroc_error": 3e-7,
        "auroc_interval": [0.41, 0.92],
        "fpr95": 0.9 - aupr,
        "fpr95_interval": [0.31, 0.62],
        "best_f1": aupr + 0.0301,
        "best_f1_threshold": 1.5,
        "found_at": {"0.01": aupr + 0.0102, "0.001": aupr / 7},
        "alarm": {"threshold": 3.25, "rate": 0.01, "found": 0.28, "false_alarms": 0.034},
        "open_miou": 0.4321,
        "mistaken": [
            {"class": f"{name} {i}", "share": 0.2 - i / 50, "pixels": 12345} for i, name in enumerate(HOSTILE * 2)
        ],
        "hidden": [{"class": HOSTILE[0], "share": 0.4, "pixels": 678}],
        "per_image": {"aupr": aupr * 0.95, "auroc": 0.8123, "fpr95": 0.4567, "images": 1060},
        "components": {"f1": 0.2101, "siou": 0.33, "ppv": 0.41, "threshold": 2.9, "components": 212, "predicted": 1431},
        "components_at_alarm": {"f1": 0.19, "siou": None, "threshold": 3.25, "predicted": 7},
        "curves": {
            "fpr": steps,
            "tpr": [math.sqrt(step) for step in steps],
            "precision": [None, *(1 - step for step in steps[1:])],
            "threshold": steps[::-1],
        },
        "density": {
            "edges": [i / 10 - 3 for i in range(61)],
            "normal": [1 / 60] * 60,
            "anomaly": [0.5 if i in (40, 41) else 0.0 for i in range(60)],
        },
        **changes,
    }  # fmt: skip


ANOMALY = {"maxlogit": figures(0.123), HOSTILE[0]: figures(0.3456), "msp": figures(0.0214, components=None)}
FULL = {**EVALUATION, "anomaly": ANOMALY, "anomaly_share": CHANCE}
UNLABELLED = {
    **FULL, "miou": None, "miou_interval": None, "layout_floor": None, "semantic_gain": None, "pixel_accuracy": None,
    "classes_averaged": 0, "active_classes": 0, "spurious_classes": [0, 1], "iou": dict.fromkeys(EVALUATION["iou"]),
}  # fmt: skip


def photo(height=60, width=80, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def mask(height=60, width=80):
    ids = np.zeros((height, width), np.uint8)
    ids[:, width // 2 :] = 1
    ids[: height // 4] = 255
    return ids


def diagnosis(tmp_path=None):
    """A diagnosis as diagnose.py makes it: a root cause, two consequences, a further fault, a warning and the rest."""
    exhibit = Exhibit(f"the pair {HOSTILE[0]}", [Tile("a", photo(), mask())])
    findings = [
        Finding("shortcut.layout_reliance", "fail", "mIoU 0.212, floor 0.220", "below_layout_floor", 0.212, 0.22),
        Finding("data.duplicates", "warn", "12 of 101 are near", "repeated_across_splits",
                remedy=f"split by {HOSTILE[0]}"),
        Finding("data.label_agreement", "fail", f"masks of {HOSTILE[0]} fit others", "shuffled_masks", 0.58, 0.76,
                "match by name", {"files": [HOSTILE[2], "b.png"], "share": 0.5}, 2.0, [exhibit]),
        Finding("model.preprocessing", "fail", "once gives 0.60", "normalised_twice", remedy="normalise once.",
                evidence={"miou": [{"input": "once", "order": "RGB", "miou": 0.6}, {"input": HOSTILE[0], "miou": 0.1}],
                          "shares": {"train": {"sky": 0.1, "car": 0.2, "tree": 0.7}, "val": {"sky": 0.3}}}),
        Finding("model.collapse", "fail", "96.1% are road", "collapse", evidence={"classes": {"sky": 1, "car": True}}),
        Finding("data.files", "pass", "all read", evidence={"void": 0.02}),
        Finding("data.layout_floor", "pass", f"the floor {HOSTILE[0]}"),
        Finding("log.loss", "skip", "no log"),
        Finding("log.fit", "skip", "no log"),
        Finding("training.noise_test", "skip", f"trains {HOSTILE[0]}"),
    ]  # fmt: skip
    ranked = rank(findings)
    if tmp_path:
        drawn = save_exhibits(tmp_path, ranked, CLASSES, PALETTE)
        for finding, pictures in zip(ranked, drawn, strict=True):
            finding.evidence |= {"pictures": pictures} if pictures else {}
    return json.loads(json.dumps(conclude(ranked), allow_nan=False))


class Page(HTMLParser):
    """Parses strictly: every tag that opens closes in order; collects text, attributes and tags."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def write(tmp_path, **changes):
    parts = {
        "title": "run <1> & co",
        "config": {"dataset": "camvid", "note": "</details><script>", "lr": 0.001},
        "evaluation": EVALUATION,
        "log": LOG,
        "pictures": [],
        "diagnosis": DIAGNOSIS,
        "palette": PALETTE,
    }
    write_report(tmp_path / "report.html", **{**parts, **changes})
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def points_of(chart):
    """[(class, [(x, y)])] of the curves in a chart."""
    found = re.findall(r'<polyline class="curve (s\d)" points="([^"]+)"', chart)
    return [(style, [tuple(map(float, pair.split(","))) for pair in text.split()]) for style, text in found]


def contains(picture, tile):
    """Whether the tile stands in the picture pixel for pixel."""
    picture, tile = np.asarray(picture), np.asarray(tile)
    height, width = tile.shape[:2]
    room = picture[: picture.shape[0] - height + 1, : picture.shape[1] - width + 1]
    corners = np.argwhere((room == tile[0, 0]).all(-1))
    return any((picture[y : y + height, x : x + width] == tile).all() for y, x in corners)


def colours_of(picture):
    return {colour for _, colour in picture.getcolors(1 << 24)}
