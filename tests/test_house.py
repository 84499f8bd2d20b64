"""The floors of the house: a module imports only from lower ones, and nothing beyond the four packages."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {"train", "evaluate", "diagnose", "predict", "download"}
FLOORS = {"flags": -1, "models": 0, "data": 0, "synthetic": 0, "losses": 0, "metrics": 0, "anomaly": 0, "report": 0}
FLOORS |= {"checkpoint": 1, "engine": 2, "probes": 3, **dict.fromkeys(SCRIPTS, 4)}
RUN_TIME = {"torch", "torchvision", "numpy", "PIL", *sys.stdlib_module_names}
MODULES = {path.stem: path for path in ROOT.glob("*.py")}


def room(name):
    """A part (`data_specs`) lives in its front's room (`data`)."""
    return name if name in FLOORS else name.partition("_")[0]


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_imports_go_down_and_stay_within_the_four_packages():
    for name, path in MODULES.items():
        for other in imports(path):
            if other in MODULES:
                same_room = room(other) == room(name)
                assert same_room or FLOORS[room(other)] < FLOORS[room(name)], f"{name} imports {other}"
            else:
                assert other in RUN_TIME, f"{name} imports {other}"
