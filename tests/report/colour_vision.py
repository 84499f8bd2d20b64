"""References: the difference of two colours (CIEDE2000), and how they look with a colour blindness."""

import itertools

import numpy as np

# Linear RGB to linear RGB. Sources: Machado et al. 2009, severity 1.0; Viénot et al. 1999; Brettel et al. 1997 (two
# half planes, parted by BRETTEL_PLANE).
SIGHTS = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "protan, Viénot": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "deutan, Viénot": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


BRETTEL_TRITAN = [
    [[1.01277, 0.13548, -0.14826], [-0.01243, 0.86812, 0.14431], [0.07589, 0.80500, 0.11911]],
    [[0.93678, 0.18979, -0.12657], [0.06154, 0.81526, 0.12320], [-0.37562, 1.12767, 0.24796]],
]


BRETTEL_PLANE = [0.03960, -0.02831, -0.01129]


def ciede2000(first, second):
    """Colour difference of CIELAB colours (…, 3)."""
    L1, a1, b1 = np.moveaxis(np.asarray(first, float), -1, 0)
    L2, a2, b2 = np.moveaxis(np.asarray(second, float), -1, 0)
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    G = 0.5 * (1 - np.sqrt(mean**7 / (mean**7 + 25.0**7)))
    C1, C2 = np.hypot((1 + G) * a1, b1), np.hypot((1 + G) * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, (1 + G) * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    grey = C1 * C2 == 0
    dh = np.where(grey, 0, (h2 - h1 + 180) % 360 - 180)
    turn = np.where(h1 + h2 < 360, 360, -360) * (np.abs(h1 - h2) > 180)
    L, C, h = (L1 + L2) / 2, (C1 + C2) / 2, np.where(grey, h1 + h2, (h1 + h2 + turn) / 2)
    cos = lambda degrees: np.cos(np.radians(degrees))  # noqa: E731
    T = 1 - 0.17 * cos(h - 30) + 0.24 * cos(2 * h) + 0.32 * cos(3 * h + 6) - 0.20 * cos(4 * h - 63)
    SL, SC, SH = 1 + 0.015 * (L - 50) ** 2 / np.sqrt(20 + (L - 50) ** 2), 1 + 0.045 * C, 1 + 0.015 * C * T
    dL, dC, dH = (L2 - L1) / SL, (C2 - C1) / SC, 2 * np.sqrt(C1 * C2) * np.sin(np.radians(dh / 2)) / SH
    RC = 2 * np.sqrt(C**7 / (C**7 + 25.0**7))
    return np.sqrt(dL**2 + dC**2 + dH**2 - np.sin(np.radians(60 * np.exp(-(((h - 275) / 25) ** 2)))) * RC * dC * dH)


def cielab(linear):
    """CIELAB (D65) of linear RGB (…, 3)."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = linear @ np.transpose(to_xyz) / [0.95047, 1, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)


def seen(colours):
    """{kind of sight: CIELAB (N, 3)} of colours in 0..255."""
    srgb = np.asarray(colours, float) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    looks = {name: linear @ np.transpose(matrix) for name, matrix in SIGHTS.items()}
    half = (linear @ BRETTEL_PLANE >= 0)[:, None]
    looks["tritan, Brettel"] = np.where(half, *(linear @ np.transpose(matrix) for matrix in BRETTEL_TRITAN))
    return {name: cielab(np.clip(look, 0, 1)) for name, look in looks.items()}


def smallest_difference(colours):
    """Over all pairs and all kinds of sight."""
    pairs = np.array(list(itertools.combinations(range(len(colours)), 2)))
    return min(ciede2000(lab[pairs[:, 0]], lab[pairs[:, 1]]).min() for lab in seen(colours).values())
