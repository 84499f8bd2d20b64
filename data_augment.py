"""What happens to a batch on the device: uint8 to float, one grid that moves image and target together, normalising."""

import math

import torch
import torch.nn.functional as F
from torch import nn

import flags
from data_layout import VOID
from flags import UserError

MEAN = (0.485, 0.456, 0.406)  # of ImageNet's RGB images in [0, 1], what the published weights expect
STD = (0.229, 0.224, 0.225)
FILL = tuple(round(255 * mean) for mean in MEAN)  # the colour outside an image, which normalisation turns into 0

AUGMENTATIONS = {"flip": 0.5, "scale": [0.5, 2.0], "translate": 0.1, "rotate": 10.0, "colour": 0.3, "noise": 0.05}


class Normalise(nn.Module):
    """(x - mean) / std per channel; images (N, 3, H, W) float in [0, 1]. The one place where that happens."""

    def __init__(self, mean=MEAN, std=STD):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images):
        return (images - self.mean) / self.std


def to_float(images):
    """(N, H, W, 3) uint8 -> (N, 3, H, W) float32 in [0, 1], channels_last in memory."""
    return images.permute(0, 3, 1, 2).float().div_(255)


def parse_augment(text):
    """Read --augment into {name: value}; raises UserError for an unknown name or a value out of range."""
    options = flags.parse_items(text, AUGMENTATIONS)
    limits = {"scale": (0.5, 2), "rotate": (0, 180), "colour": (0, 0.9)}
    for name, value in options.items():
        low, high = limits.get(name, (0, 1))
        ends = value if isinstance(value, list) else [value]
        if not all(low <= end <= high for end in ends) or ends != sorted(ends) or len(ends) > 2:
            raise UserError(f"{name}={value} is out of range", "--augment", f"it lies between {low} and {high}")
    return options


class Augment:
    """Vary images and targets together on the device: one sampling grid moves both.

    options: `parse_augment`'s. Images are sampled bilinearly, targets by nearest neighbour; what lies outside the image
    gets the mean colour, which no jitter changes, and void.
    """

    def __init__(self, options):
        self.options = options

    def __call__(self, images, targets, generator):
        """images (N, H, W, 3) uint8, targets (N, H, W) uint8 -> (N, 3, H, W) float32 in [0, 1], (N, H, W) uint8.

        generator: on the images' device; every draw comes from it.
        """
        raw, images = images, to_float(images)  # (N, H, W, 3), (N, 3, H, W)
        moving = self.options.keys() & {"flip", "scale", "translate", "rotate"}
        affine = self.draw_affine(images, generator) if moving else None
        if self.options.get("colour"):  # before the warp, which brings the mean colour in from outside
            images = images.contiguous()  # sums over channels are twice as fast
            jittered = jitter_colour(images, self.options["colour"], generator)
            images = torch.where(find_outside(raw, targets), images, jittered)
        if moving:
            images, targets = warp(images, targets, affine)
        if self.options.get("noise"):
            sigma = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) * self.options["noise"]
            noise = torch.randn(images.shape, generator=generator, device=images.device)
            images = (images + sigma * noise).clamp_(0, 1)
        return images, targets

    def draw_affine(self, images, generator):
        """(N, 2, 3) float32: for each place of the output, in [-1, 1]², where it is read from.

        Zooming in by s shows a window of 1/s, anywhere inside the image; zooming out puts the image anywhere inside
        the canvas. `scale` is drawn uniformly in its logarithm.
        """
        count, (height, width), device = len(images), images.shape[2:], images.device

        def uniform(low, high):
            return low + (high - low) * torch.rand(count, generator=generator, device=device)

        low, high = (self.options.get("scale", [1.0]) * 2)[:2]
        zoom = uniform(math.log(low), math.log(high)).exp()
        angle = uniform(-1.0, 1.0) * math.radians(self.options.get("rotate", 0.0))
        mirror = 1.0 - 2.0 * (uniform(0.0, 1.0) < self.options.get("flip", 0.0)).float()
        room = (1 - 1 / zoom).abs() + 2 * self.options.get("translate", 0.0)  # the canvas is 2 wide in these units
        shift_x, shift_y = uniform(-1.0, 1.0) * room, uniform(-1.0, 1.0) * room
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        aspect = height / width  # a rotation in pixels, written for axes that both run from -1 to 1
        rows = [mirror * cos, -sin * aspect, shift_x, mirror * sin / aspect, cos, shift_y]
        return torch.stack(rows, dim=1).view(count, 2, 3)


def warp(images, targets, affine):
    """Sample images (N, 3, H, W) float and targets (N, H, W) uint8 at the same places, `affine` (N, 2, 3).

    Outside lies the mean colour, and void: targets are sampled as (target - 255), so that the zeros that pad are void.
    """
    grid = F.affine_grid(affine, images.shape, align_corners=False)  # (N, H, W, 2)
    fill = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    images = F.grid_sample(images - fill, grid, mode="bilinear", align_corners=False) + fill
    labels = targets[:, None].float() - VOID  # (N, 1, H, W)
    labels = F.grid_sample(labels, grid, mode="nearest", align_corners=False) + VOID
    return images, labels[:, 0].round_().to(torch.uint8)


def find_outside(images, targets):
    """(N, 1, H, W) bool: what `Geometry.cut` added around images (N, H, W, 3) uint8; targets (N, H, W) uint8."""
    red, green, blue = (images[..., channel] == FILL[channel] for channel in range(3))
    return ((targets == VOID) & red & green & blue)[:, None]


def jitter_colour(images, strength, generator):
    """Vary brightness, contrast and saturation of images (N, 3, H, W) in [0, 1], each by a factor of 1 ± strength.

    Contrast is the distance to the image's mean grey g, saturation that to the pixel's mean m over channels:
    x1 = ((x - g) · contrast + g) · brightness, x2 = (x1 - m1) · saturation + m1; here multiplied out.
    """
    draws = torch.rand(3, len(images), 1, 1, 1, generator=generator, device=images.device)
    brightness, contrast, saturation = 1 + strength * (2 * draws - 1)
    grey = images.mean(dim=(1, 2, 3), keepdim=True)
    luma = images.mean(dim=1, keepdim=True)  # (N, 1, H, W)
    gain = brightness * contrast
    rest = brightness * (1 - contrast) * grey + gain * (1 - saturation) * luma
    return torch.addcmul(rest, images, gain * saturation).clamp_(0, 1)
