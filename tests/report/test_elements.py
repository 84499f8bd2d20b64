"""Pictures embedded in the page."""

import base64
import io

import numpy as np
from PIL import Image

from report.elements import embed
from tests.report.examples import Page, write


def test_embedded_pictures_are_whole_and_big_ones_shrink(tmp_path):
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    big = Image.fromarray(rng.integers(0, 256, (90, 140, 3), dtype=np.uint8)).resize((2800, 1800))
    small.save(tmp_path / "small.png")
    big.save(tmp_path / "big.png")
    page = Page(write(tmp_path, pictures=[("s", tmp_path / "small.png"), ("b", tmp_path / "big.png")]))
    first, second = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    decoded = Image.open(io.BytesIO(base64.b64decode(first.removeprefix("data:image/png;base64,"))))
    assert (np.asarray(decoded) == np.asarray(small)).all()
    assert second.startswith("data:image/jpeg;base64,")
    shrunk = Image.open(io.BytesIO(base64.b64decode(second.partition(",")[2])))
    assert shrunk.size == (1600, 1029)
    assert len(second) < (tmp_path / "big.png").stat().st_size / 2


def test_a_jpeg_is_embedded_as_what_it_is(tmp_path):
    Image.new("RGB", (30, 20), "red").save(tmp_path / "a.jpg")
    address, width = embed(tmp_path / "a.jpg")
    assert address.startswith("data:image/jpeg;base64,")
    assert width == 30
