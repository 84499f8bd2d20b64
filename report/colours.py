"""Colours: of classes, void and anomalies, and the ramp of heat maps, each distinct for every kind of sight."""

import numpy as np
from PIL import Image

VOID_COLOUR = (0, 0, 0)
ANOMALY_COLOUR = (255, 72, 0)
NORMAL = 253  # train id: not an anomaly, but of no known class (beside 0 … C-1, C for anomaly, and 255 for void)
NORMAL_COLOUR = (185, 185, 185)  # of all greys the farthest from these palettes and Cityscapes': CIEDE2000 at least 8
ALARM_COLOUR = (0, 229, 255)  # outlines on heat maps: CIEDE2000 at least 28 from any colour of the ramp
ERROR_COLOUR = (220, 0, 90)  # on a grey picture: no other pixel of the errors tile has a hue
UNKNOWN_COLOUR = (128, 128, 128)  # a score that is not finite

# Smallest CIEDE2000 over all pairs, black and the anomaly's orange-red included: 14.6, taken over normal sight,
# protanopia and deuteranopia (Machado 2009, Viénot 1999) and tritanopia (Machado 2009, Brettel 1997). Found by
# annealing over the RGB cube; ordered so that the first n are always far apart.
DISTINCT = [
    (150, 30, 255),
    (150, 240, 225),
    (105, 45, 105),
    (45, 165, 135),
    (255, 210, 30),
    (165, 15, 0),
    (180, 135, 240),
    (30, 105, 75),
    (150, 90, 135),
]

# Lightness rises evenly and hue turns from blue over red to yellow, so that order survives grey print and colour
# blindness. Eleven points spaced evenly in OKLCH; colours between them are interpolated.
HEAT_RAMP = [
    (11, 9, 34),
    (34, 18, 72),
    (65, 23, 110),
    (106, 34, 123),
    (156, 42, 112),
    (195, 66, 86),
    (223, 97, 77),
    (246, 131, 68),
    (253, 172, 89),
    (255, 212, 128),
    (255, 248, 188),
]

# Linear RGB as seen without one kind of cone. Source: Machado, Oliveira and Fernandes 2009, severity 1.0.
_PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
_DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
_TRITANOPIA = [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
# Linear RGB to OKLab. Source: Ottosson 2020.
_RGB_TO_LMS = [
    [0.41222147, 0.53633254, 0.05144599],
    [0.2119035, 0.68069955, 0.10739696],
    [0.08830246, 0.28171884, 0.6299787],
]
_LMS_TO_LAB = [
    [0.21045426, 0.7936178, -0.00407205],
    [1.977998, -2.4285922, 0.45059371],
    [0.02590404, 0.78277177, -0.80867577],
]


def _appearance(colours):
    """OKLab of (M, 3) colours in 0..255 for normal sight and three colour blindnesses: (4, M, 3).

    The colour-blind coordinates count 1.5 times: they have a dimension less, and would lose to the normal ones.
    """
    srgb = np.asarray(colours, dtype=np.float64) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = [linear] + [np.clip(linear @ np.transpose(m), 0, 1) for m in (_PROTANOPIA, _DEUTERANOPIA, _TRITANOPIA)]
    lab = np.cbrt(np.stack(seen) @ np.transpose(_RGB_TO_LMS)) @ np.transpose(_LMS_TO_LAB)  # (4, M, 3)
    return lab * np.array([1, 1.5, 1.5, 1.5])[:, None, None]


def distinct_palette(n):
    """n colours that stay distinct for the common kinds of colour blindness: [(r, g, b)] in 0..255, always the same.

    Up to nine colours any two differ by at least 14 in CIEDE2000 for every kind of sight (and from black, void, and
    orange-red, anomaly). Each further one is the colour of an RGB grid in steps of 15, neither near black nor near
    white, that is farthest from all before it: smallest CIEDE2000 10 for 11, 8 for 13 and 7 for 19 colours.
    """
    chosen = list(DISTINCT[:n])
    if n <= len(DISTINCT):
        return chosen
    steps = np.arange(0, 256, 15)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)  # (5832, 3)
    lightness = _appearance(grid)[0, :, 0]
    grid = grid[(lightness > 0.35) & (lightness < 0.97)]
    seen = _appearance(grid)
    distance = np.full(len(grid), np.inf)
    taken = _appearance([*DISTINCT, VOID_COLOUR, ANOMALY_COLOUR])
    for index in range(taken.shape[1]):
        distance = np.minimum(distance, np.linalg.norm(seen - taken[:, index, None], axis=2).min(0))
    while len(chosen) < n:
        farthest = int(distance.round(6).argmax())  # rounded: the last bits differ between machines
        chosen.append(tuple(int(value) for value in grid[farthest]))
        distance = np.minimum(distance, np.linalg.norm(seen - seen[:, farthest, None], axis=2).min(0))
    return chosen


def colour_table(palette):
    """The colour of every id 0..255: the palette, then the anomaly's, then void's, grey at NORMAL; (256, 3) uint8."""
    table = np.tile(np.array(VOID_COLOUR, dtype=np.uint8), (256, 1))
    table[NORMAL] = NORMAL_COLOUR  # before the palette: where classes reach this id, there is no NORMAL
    colours = [*palette, ANOMALY_COLOUR][:255]
    table[: len(colours)] = np.asarray(colours, dtype=np.uint8)
    return table


def colour_mask(target, palette):
    """Class ids as a picture.

    target: (H, W) uint8 ids. Ids below len(palette) take its colours, len(palette) (anomaly) is orange-red, NORMAL
    grey, everything else (void) black. Returns an RGB image of the same size.
    """
    return Image.fromarray(colour_table(palette)[np.asarray(target)])
