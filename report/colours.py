"""Colours: of classes, void and anomalies, and the ramp of heat maps, each distinct for every kind of sight."""

import numpy as np
from PIL import Image

from datasets.spec import NORMAL

VOID_COLOUR = (0, 0, 0)
ANOMALY_COLOUR = (255, 72, 0)
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

# The colours after those, six hexadecimal digits each. Each is that colour of an RGB grid in steps of 15 (with an OKLab
# lightness of 0.35 to 0.97) which lies farthest from black, orange-red and all before it: Euclidean distance in OKLab
# (Ottosson 2020), the smallest over normal sight and the three colour blindnesses of Machado, Oliveira and Fernandes
# 2009 (severity 1.0). These three count 1.5 times: they have a dimension less, and would lose to the normal one.
FURTHER = (
    "3c00b4a5c37887c3ffff69b4c30fc3f0ffa5f0a50fc31e5a691e1e5a9600962d96c35ab4d2b4b40000e1c35aff3c69d2c3e19687a55a"
    "5a0087d2ffff5ab4d200e1e187875aa54b1e87004b3c3c3cfff0007878e100d23c5a4b1ea5a5ff694b785a6969f05a87b4ff7869ffc3"
    "780fc3f087e13c87ff785ab49687d2c3a58778a5a5d22d9669e169690069b4d2ff4b3ce1963c3cf0e1ffffb4d2d296008700967878a5"
    "c3782da5693c96f05ae1875ab4d2a5f000f0007887877869694ba51e3ca54b3c87f02da500d2b4e15ac3e100d2ffb45a783c5ab4ffe1"
    "b4f0874b9687d2f0a5b45a00964b5a5a3c2dc3b4d2e1d2c34b8778783cb43c5a3ca50f78870f78b4d20f781e5aff964b781e0078b478"
    "d287c3871ed2879678a5a59678693c96b4f0783c871e78d2e169e1e1c387c33cc33c0f96e1b496c3694bb48769b42d96a5e1f0a5d2d2"
    "6969c3b4963c1e4b4b2d5a690000c3b469784bd2f04b1e785a1e5a960f1ea5b469a54be12d4b78d2a5a51e4ba569d25ab40f1ed27896"
    "d2ff5aa54b69781e87e1ffd24b3c5ae14b698796ff780ff0e11ea5c35ae14b87d2b4a5c35a0fd2a55a9687c300ffd2b44b00a5873c69"
    "5af01e784b2d875a78b478b4692db45a2d2d963ce1d2d278d2004b2df0b4e178a5f0783cffff00e196d2ff4bf04bffffa578c3695a87"
    "a5e1a53c695a96b4969696b48778b496c3e1961ec3c35a4be1694ba5a5e1ffe196d2c3c37896e1d278ff1e00f0b4e1d2c39669693c3c"
    "8769785aa596ffa587d2f0f07869f000b40fd2695ae1c3e1e187d2b43cb4ff96f01ea5c33c4b3cc3ffb4f01e00e1a5c35ac3a51e965a"
    "968778690f4b0078a5a52d2de1e16987a5b4c396f02d3c78f0f0d2d278c396695ac3c3a5c32d006987a52d5aa5691e69b44b2dd200f0"
    "3c69b469c34b3c3c96d2967800872d872d69871e003ce14b690fb4ffc3b4f0e1d2d25a967869d2b45a87fff096969687c3c3ff7887f0"
    "e1e1f0c32d871e4b00b4e1ffc3fff06996a578d296875afff0698787c3c38778ffb4b478"
)

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


def distinct_palette(n):
    """n colours that stay distinct for the common kinds of colour blindness: [(r, g, b)] in 0..255, always the same.

    Up to nine colours any two differ by at least 14 in CIEDE2000 for every kind of sight (and from black, void, and
    orange-red, anomaly); smallest CIEDE2000 10 for 11, 8 for 13 and 7 for 19 colours.
    Raises ValueError for n > 255, more classes than an 8-bit mask tells apart.
    """
    if n > 255:
        raise ValueError(f"{n} classes; a mask of 8 bits tells at most 255 apart")
    return [*DISTINCT, *zip(*[iter(bytes.fromhex(FURTHER))] * 3, strict=True)][:n]


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
