"""A tiny data set in the folder layout."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_folder_set(root, counts=(("train", 8), ("val", 3), ("test", 3)), size=(40, 56), classes=3, seed=0):
    """A folder data set whose classes differ in colour: vertical bands that move from image to image."""
    rng = np.random.RandomState(seed)
    colours = [[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40]][:classes]
    root = Path(root)
    for split, count in counts:
        for kind in ("images", "masks"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            target = (
                ((np.arange(size[1])[None] + rng.randint(0, 30)) // 14 % classes).repeat(size[0], 0).astype(np.uint8)
            )
            image = np.asarray(colours, np.int64)[target] + rng.randint(-30, 30, (*size, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / split / f"{i:03}.png")
            Image.fromarray(target).save(root / "masks" / split / f"{i:03}.png")
    names = ["red", "green", "blue", "yellow"][:classes]
    entries = [{"name": n, "color": c} for n, c in zip(names, colours, strict=True)]
    (root / "classes.json").write_text(json.dumps({"classes": entries, "void": [255]}))
    return root
