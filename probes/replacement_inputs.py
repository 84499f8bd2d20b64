"""What is put in the place of images or targets, to see what is left without them.

Each is `name(images, targets, generator) -> (images, targets)`: images (N, h, w, 3) uint8, targets (N, h, w) uint8
train ids, 255 void, generator a torch.Generator on their device, all draws taken from it. What comes back are new
tensors of the same shapes, dtypes and device. A segment is a class's region in one image, void's among them: what a
network could read off it is where the class stands, and whatever the function's line says is left of the content.
"""

import torch

GRID = (4, 4)  # rows and columns of patches: small enough to destroy the layout, large enough to show whole objects


# ---------------------------------------------------------------------------------------------------------------------
# Nothing of the image is left


def noise(images, targets, generator):
    """Uniform noise, independent at every pixel, instead of each image."""
    return _random_bytes(images.shape, generator), targets.clone()


def other_images(images, targets, generator):
    """The batch's images one place on: each target meets a real image that is not its own.

    Raises: ValueError for a batch of one, which has no other.
    """
    if len(images) < 2:
        raise ValueError(f"a batch of {len(images)} has no other image to take; give at least 2")
    return images.roll(1, 0), targets.clone()


def _random_bytes(shape, generator):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator, device=generator.device)


# ---------------------------------------------------------------------------------------------------------------------
# The shapes are left, the content is not


def flat_segments(images, targets, generator):
    """One colour a segment, drawn anew for each image: shapes and places are left."""
    colours = _random_bytes((len(images), 256, 3), generator)
    return _of_segment(colours, targets), targets.clone()


def noise_segments(images, targets, generator):
    """Noise in each segment, uniform between two colours drawn for it: shapes and places are left.

    Noise of one kind in all segments would be `noise`, whose segments nobody can see.
    """
    ends = _random_bytes((2, len(images), 256, 3), generator).float()
    low, span = _of_segment(ends[0], targets), _of_segment(ends[1] - ends[0], targets)  # (N, h, w, 3)
    between = torch.rand(images.shape, generator=generator, device=generator.device)
    return (low + between * span).round().to(torch.uint8), targets.clone()


def shuffled_segments(images, targets, generator):
    """Each segment's own pixels in random order: shapes, places and colours are left, texture and shading are not."""
    segment = _segment_numbers(targets).flatten().double()  # (M,), M = N h w
    draws = torch.rand(segment.shape, dtype=torch.float64, generator=generator, device=generator.device)
    source = (segment + draws).argsort()  # segment by segment, in random order within each
    place = segment.argsort(stable=True)
    pixels = images.reshape(-1, 3)  # (M, 3)
    shuffled = torch.empty_like(pixels)
    shuffled[place] = pixels[source]
    return shuffled.view(images.shape), targets.clone()


def _segment_numbers(targets):
    """(N, h, w) int64: the number of each pixel's segment, 256 n + train id."""
    first = 256 * torch.arange(len(targets), device=targets.device)
    return first[:, None, None] + targets


def _of_segment(values, targets):
    """values (N, 256, 3), one for each image and train id -> (N, h, w, 3), at each pixel its segment's."""
    return values.flatten(0, 1)[_segment_numbers(targets)]


# ---------------------------------------------------------------------------------------------------------------------
# The content is left, its place is not


def shuffled_patches(images, targets, generator):
    """Each image's patches, a grid of 4 x 4, in an order drawn for it, with their labels: the layout is lost.

    Rows and columns that the grid does not divide stay where they are, at the bottom and on the right.
    Raises: ValueError for an image smaller than the grid.
    """
    height, width = targets.shape[1:]
    rows, columns = (side // parts for side, parts in zip((height, width), GRID, strict=True))
    if not rows or not columns:
        raise ValueError(f"an image of {height}x{width} cannot be cut into {GRID[0]}x{GRID[1]} patches")
    draws = torch.rand(len(targets), GRID[0] * GRID[1], generator=generator, device=generator.device)
    order = draws.argsort(1)  # (N, 16)
    return _move_patches(images, order, rows, columns), _move_patches(targets[..., None], order, rows, columns)[..., 0]


def _move_patches(batch, order, rows, columns):
    """batch (N, h, w, K) with its patches of rows x columns pixels in another order (N, patches)."""
    moved = batch.clone()
    inner = moved[:, : rows * GRID[0], : columns * GRID[1]]
    shape = (len(batch), GRID[0], rows, GRID[1], columns, batch.shape[-1])
    patches = inner.reshape(shape).transpose(2, 3).flatten(1, 2)  # (N, 16, rows, columns, K)
    patches = patches[torch.arange(len(batch), device=batch.device)[:, None], order]
    patches = patches.unflatten(1, GRID).transpose(2, 3)  # (N, 4, rows, 4, columns, K)
    inner.copy_(patches.reshape(inner.shape))
    return moved


def mirrored(images, targets, generator):
    """Image and target mirrored left to right."""
    return images.flip(2), targets.flip(2)


def shifted(images, targets, generator):
    """Image and target moved right by a quarter of the width; what leaves comes in again on the left."""
    step = targets.shape[2] // 4
    return images.roll(step, 2), targets.roll(step, 2)


# ---------------------------------------------------------------------------------------------------------------------
# The image is left, its target is not


def permuted_ids(permutation):
    """A function that gives class i the id permutation[i], everywhere the same; other ids (void, anomaly) stay.

    Raises: ValueError unless `permutation` holds each of 0 … C - 1 once.
    """
    ids = torch.as_tensor(permutation)
    if ids.sort().values.tolist() != list(range(len(ids))):
        raise ValueError(f"{ids.tolist()} is no permutation of 0 to {len(ids) - 1}")
    table = torch.arange(256, dtype=torch.uint8)
    table[: len(ids)] = ids.to(torch.uint8)

    def permute(images, targets, generator):
        """Class ids permuted, images as they are."""
        return images.clone(), table.to(targets.device)[targets.long()]

    return permute
