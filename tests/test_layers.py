"""The layers: a file imports only from lower ones or its own folder, re-exports nothing, and stands where it should."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = [
    {"cli"},
    {"datasets", "networks", "losses", "metrics"},
    {"data", "models", "report"},
    {"anomaly"},
    {"engine"},
    {"probes"},
    {"train", "evaluate", "diagnose", "predict", "download"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
BESIDE = {"tests", "benchmarks", "examples", "docs"}
RUN_TIME = {"torch", "torchvision", "numpy", "PIL", *sys.stdlib_module_names}
SOURCES = [
    path.relative_to(ROOT)
    for path in sorted([*ROOT.glob("*.py"), *(p for name in LAYER for p in (ROOT / name).rglob("*.py"))])
]


def top(path):
    """The top-level name under which a source file is imported."""
    return path.parts[0].removesuffix(".py")


def imports(tree):
    """(top-level module, line) of every import, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.partition(".")[0], node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "import by the full name"
            yield node.module.partition(".")[0], node.lineno


def faults(name, tree):
    """What is wrong with a source file's imports, a line each; name: its top-level name."""
    for other, line in imports(tree):
        if other in LAYER:
            if other != name and LAYER[other] >= LAYER[name]:
                yield f"line {line}: {name} (layer {LAYER[name]}) imports {other} (layer {LAYER[other]})"
        elif other not in RUN_TIME:
            yield f"line {line}: imports {other}, none of the four packages"
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound = [(alias.asname or alias.name).partition(".")[0] for alias in node.names]
            yield from (f"line {node.lineno}: imports {b} for others to find here" for b in bound if b not in used)
        elif isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            yield f"line {node.lineno}: __all__"


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_imports_go_down_stay_within_the_four_packages_and_serve_the_file_itself(path):
    assert list(faults(top(path), ast.parse((ROOT / path).read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("data", "import engine.cache\nengine.cache", "layer 2) imports engine (layer 4)"),
        ("data", "def f():\n    from report.files import write_json\n    write_json()", "imports report (layer 2)"),
        ("report", "import scipy\nscipy.x", "none of the four"),
        ("data", "from datasets.masks import read_pair", "imports read_pair for others"),
        ("cli", "__all__ = ['run']", "__all__"),
        ("engine", "from engine.devices import barrier\nimport data\nbarrier(data)", ""),
    ],
)
def test_each_fault_is_seen(name, text, fault):
    found = list(faults(name, ast.parse(text)))
    assert len(found) == bool(fault)
    assert fault in "".join(found)


def test_the_top_level_holds_what_the_design_names():
    assert {path.stem for path in ROOT.glob("*.py")} <= LAYER.keys()
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages <= LAYER.keys() | BESIDE
    for path in ROOT.rglob("__init__.py"):
        if top(path.relative_to(ROOT)) in LAYER:
            [docstring] = ast.parse(path.read_text(encoding="utf-8")).body
            assert isinstance(docstring, ast.Expr)


def test_every_folder_of_code_is_a_package_of_ours():
    """Without __init__.py an installed package of the same name, `datasets` for one, would be found first."""
    folders = {path.parent for path in SOURCES if path.parent != Path()}
    assert all((ROOT / folder / "__init__.py").is_file() for folder in folders)
