"""Images and masks as they lie on disk: decoding, and mask values to train ids."""

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cli import UserError
from datasets.miscoded import label_error
from datasets.spec import UNKNOWN

# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_image(path):
    """Read a file as an RGB PIL image, its EXIF orientation not applied (but kept in `getexif()`).

    Raises UserError for a file that cannot be decoded to its end.
    """
    try:
        with Image.open(path) as image:
            exif = image.getexif()  # read now: a TIFF's lies in the open file
            if image.mode == "RGB":
                image.load()
                return image  # as decoded, where a conversion would copy it
            if image.mode.startswith("I;16"):  # convert would clip at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.mode in ("I", "F"):
                raise ValueError(f"its pixels are of mode {image.mode}, which has no range; save it as 8 or 16 bit")
            rgb = image.convert("RGB")
    except FileNotFoundError:
        raise UserError("no such file", path, "check the path") from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read image ({error})", path, "the file is damaged or no image; replace it") from None
    rgb.getexif().update(exif)
    return rgb


def read_labels(path, spec):
    """Decode a mask file into train ids.

    Returns target (H, W) uint8, UNKNOWN (254) where the value is neither a class nor void, and the mask's own values
    (H, W): numbers, float64 where one is negative, fractional or beyond 65535; or r·65536 + g·256 + b for a mask drawn
    in colours.
    Raises UserError for an unreadable file.
    """
    try:
        with Image.open(path) as mask:
            coloured = mask.mode in ("RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr") or _palette_is_declared(mask, spec)
            values = _read_colours(mask) if coloured else _read_numbers(mask)
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot read mask ({error})", path, "the file is damaged or no image; replace it") from None
    if coloured and spec.colours:
        return spec.colour_table[values], values
    if coloured:  # one number a pixel, stored three times
        if (values != (values & 255) * 0x010101).any():
            return np.full(values.shape, UNKNOWN, np.uint8), values  # colours, where the set declares none
        values = values.astype(np.uint8)
    if values.dtype == np.uint8:  # the same as below, several times as fast
        target = bytearray(values).translate(spec.value_table[:256].tobytes())
        return np.frombuffer(target, np.uint8).reshape(values.shape), values
    if values.dtype.kind != "f":
        return spec.value_table[values], values
    fits = _are_class_numbers(values)
    target = spec.value_table[np.where(fits, values, 0).astype(np.int32)]
    return np.where(fits, target, np.uint8(UNKNOWN)), values


def _read_colours(mask):
    """A PIL image's colours as numbers r·65536 + g·256 + b, (H, W) int32."""
    rgb = mask if mask.mode == "RGB" else mask.convert("RGB")
    return np.frombuffer(rgb.tobytes("raw", "BGRX"), "<i4").reshape(mask.height, mask.width)  # X is 0


def _read_numbers(mask):
    """A PIL image's numbers (H, W): of whole type, or float64 where one of them can be no class.

    Raises ValueError where one is no number at all.
    """
    values = np.asarray(mask)
    if values.dtype == bool:
        return (values.view(np.uint8) != 0).astype(np.uint8)  # PIL keeps one bit a pixel as 0 and 255
    if values.dtype.kind == "u":
        return values
    if not np.isfinite(values).all():
        raise ValueError("some of its pixels are no numbers")
    return values.astype(np.int32 if _are_class_numbers(values).all() else np.float64)


def _are_class_numbers(values):
    """Which numbers a class can have, (H, W) bool: whole ones from 0 to 65535."""
    return (values >= 0) & (values <= 65535) & (values % 1 == 0)


def _palette_is_declared(mask, spec):
    """Whether a palette image shows declared class colours only: then those count, not its arbitrary indices."""
    if mask.mode != "P" or not spec.colours:
        return False
    used = {colour for _, colour in mask.convert("RGB").getcolors(maxcolors=256)}
    return used <= spec.colours.keys()


def read_target(path, spec):
    """Read a mask as target (H, W) uint8 train ids.

    Raises UserError for values that are neither a class nor void, with their counts and the likely cause.
    """
    target, values = read_labels(path, spec)
    unknown = target == UNKNOWN
    if unknown.any():
        raise label_error(count_values(values[unknown]), count_values(values), path, spec)
    return target


def read_pair(image_path, mask_path, spec):
    """An image as RGB PIL image and its target (H, W) uint8, of the same size.

    The EXIF orientation is applied only where that makes the image's size match the mask's.
    Raises UserError for sizes that differ.
    """
    image, target = read_image(image_path), read_target(mask_path, spec)
    return match_size(image, target.shape, image_path), target


def match_size(image, shape, path):
    """The image, turned by its EXIF orientation if only that makes its size the mask's (H, W)."""
    if (image.height, image.width) == shape:
        return image
    turned = ImageOps.exif_transpose(image)
    if (turned.height, turned.width) == shape:
        return turned
    sizes = f"image {image.height}x{image.width}, mask {shape[0]}x{shape[1]}"
    raise UserError(f"image and mask differ in size ({sizes})", path, "save the mask at its image's size")


def count_values(values):
    """{mask value: pixels} of an array of whole numbers."""
    flat = values.ravel()
    starts, lengths = find_runs(flat)
    return count_runs(flat[starts], lengths)


def find_runs(flat):
    """Stretches of one value in an array (n,): where each starts and how long it is, both (runs,) int64.

    A mask has a fiftieth as many as pixels: what counts or looks for labels goes through these.
    """
    if not flat.size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return starts, np.diff(starts, append=flat.size)


def count_runs(values, lengths):
    """{value: pixels} of runs, in ascending order; values: (runs,), lengths: (runs,) int64."""
    found, places = np.unique(values, return_inverse=True)
    counts = np.bincount(places, lengths, minlength=len(found)).astype(np.int64)  # float64 counts exactly up to 2^53
    return dict(zip(found.tolist(), counts.tolist(), strict=True))
