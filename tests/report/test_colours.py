"""Colours are held against CIEDE2000 and simulated colour blindness."""

import numpy as np
import pytest

from report.colours import (
    ALARM_COLOUR,
    ANOMALY_COLOUR,
    NORMAL_COLOUR,
    UNKNOWN_COLOUR,
    VOID_COLOUR,
    colour_mask,
    distinct_palette,
)
from report.pictures import heat_map
from tests.report.colour_vision import ciede2000, seen, smallest_difference
from tests.report.examples import PALETTE

# (L, a, b), (L, a, b), difference. Source: Sharma, Wu and Dalal 2005, table 1; the pairs that reveal wrong hue means.
SHARMA = [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0000),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.4900, -0.0010), (50, -2.4900, 0.0010), 7.1792),
    ((50, 2.4900, -0.0010), (50, -2.4900, 0.0011), 7.2195),
    ((50, -0.0010, 2.4900), (50, 0.0010, -2.4900), 4.8045),
    ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((50, 2.5, 0), (61, -5, 29), 22.8977),
    ((50, 2.5, 0), (56, -27, -3), 31.9030),
    ((50, 2.5, 0), (50, 3.2592, 0.3350), 1.0000),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((61.2901, 3.7196, -5.3901), (61.4292, 2.2480, -4.9620), 1.8731),
    ((22.7233, 20.0904, -46.6940), (23.0331, 14.9730, -42.5619), 2.0373),
    ((90.9257, -0.5406, -0.9208), (88.6381, -0.8985, -0.7239), 1.5381),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]


@pytest.mark.parametrize(("first", "second", "difference"), SHARMA)
def test_reference_agrees_with_published_ciede2000(first, second, difference):
    assert ciede2000(first, second) == pytest.approx(difference, abs=5e-5)


@pytest.mark.parametrize("n", range(1, 10))
def test_palette_is_distinct_for_every_kind_of_sight(n):
    palette = distinct_palette(n)
    assert len(palette) == n
    assert smallest_difference([*palette, VOID_COLOUR, ANOMALY_COLOUR]) >= 14


@pytest.mark.parametrize(("n", "least"), [(11, 10), (13, 8), (19, 6.8), (30, 5)])
def test_larger_palettes_stay_as_distinct_as_documented(n, least):
    assert smallest_difference([*distinct_palette(n), VOID_COLOUR, ANOMALY_COLOUR]) >= least


def test_palette_is_stable_and_never_repeats_a_colour():
    palette = distinct_palette(255)
    assert len(set(palette)) == 255
    assert all(distinct_palette(n) == palette[:n] for n in (0, 5, 9, 10, 40))
    assert not {VOID_COLOUR, ANOMALY_COLOUR} & set(palette)
    with pytest.raises(ValueError, match="256 classes"):
        distinct_palette(256)


def test_heat_ramp_keeps_its_order_for_every_kind_of_sight():
    ramp = np.asarray(heat_map(np.linspace(0, 1, 256)[None].repeat(4, 0)))[0]
    coarse = ramp[::5]  # rounding to 8 bits may make two neighbours equal
    for name, lab in seen(coarse).items():
        assert (np.diff(lab[:, 0]) > 0.3).all(), name
    steps = ciede2000(*(seen(coarse)["normal"][part] for part in (slice(None, -1), slice(1, None))))
    assert steps.max() < 4 * steps.min()  # no jump that would look like an edge


def test_colour_mask_shows_each_id_in_its_colour():
    target = np.array([[0, 1, 2], [3, 4, 255]], dtype=np.uint8)
    colours = np.asarray(colour_mask(target, PALETTE))
    expected = [[*PALETTE], [ANOMALY_COLOUR, (0, 0, 0), (0, 0, 0)]]
    assert colours.tolist() == np.array(expected).tolist()


def test_void_stays_black_beside_the_largest_palette():
    palette = distinct_palette(255)
    assert colour_mask(np.array([[255, 254]], dtype=np.uint8), palette).getpixel((0, 0)) == (0, 0, 0)
    assert colour_mask(np.array([[253]], dtype=np.uint8), palette).getpixel((0, 0)) == palette[253]


def test_grey_of_normal_pixels_and_outline_of_alarms_stand_out():
    others = [*distinct_palette(9), VOID_COLOUR, ANOMALY_COLOUR]
    grey, known = seen([NORMAL_COLOUR]), seen(others)
    assert min(ciede2000(grey[sight], known[sight]).min() for sight in grey) >= 8
    ramp = np.asarray(heat_map(np.linspace(0, 1, 256)[None]))[0]
    outline, heat = seen([ALARM_COLOUR]), seen([*ramp, UNKNOWN_COLOUR])
    assert min(ciede2000(outline[sight], heat[sight]).min() for sight in outline) >= 25
