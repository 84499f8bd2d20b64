"""A written set of scenes, and its splits for a test to spoil."""

import shutil

import numpy as np
import pytest
from PIL import Image

import data
from tests.probes.examples import SCENE_CLASSES, SCENES, draw_scene


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A folder of 20 train, 10 val and 10 test scenes; the last class number is void."""
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.RandomState(0)
    for name, count in (("train", 20), ("val", 10), ("test", 10)):
        (root / name / "masks").mkdir(parents=True)
        for i in range(count):
            image, target = draw_scene(rng)
            target[:6, :6] = SCENE_CLASSES
            Image.fromarray(image).save(root / name / f"{i:02}.png")
            Image.fromarray(target).save(root / name / "masks" / f"{i:02}.png")
    return root


@pytest.fixture
def splits(scenes, tmp_path):
    """{name: Split} of a copy of the scenes, for a test to spoil."""
    root = shutil.copytree(scenes, tmp_path / "set")
    found = {}
    for name in ("train", "val", "test"):
        pairs = [(path, path.parent / "masks" / path.name) for path in sorted((root / name).glob("*.png"))]
        found[name] = data.Split(name, SCENES, root, pairs)
    return found
