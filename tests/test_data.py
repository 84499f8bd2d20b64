"""Geometry, sample requests, batches and augmentation."""

import numpy as np
import pytest
import torch
from PIL import Image

import data
from cli import UserError
from datasets.spec import VOID
from engine.sampling import SampleRequest, draw_requests, share_batches
from networks.blocks import MEAN, Normalise
from tests.datasets.miniatures import open_folder, rewrite

# ---- geometry


def test_images_too_large_for_their_logits_are_counted():
    geometry = data.Geometry([1, 1], crop=[512, 512], most_pixels=1_000_000)
    assert geometry.count_reduced({(3000, 4000): 3, (500, 500): 2}) == 3
    assert data.Geometry([1, 1], [512, 512], 512, 1_000_000).count_reduced({(3000, 4000): 3}) == 0
    assert data.Geometry([512, 512]).count_reduced({(3000, 4000): 3}) == 0


def test_stretching_keeps_image_and_target_in_place(folder_set):
    image, target = open_folder(folder_set).read(0)
    small, labels = data.Geometry([20, 28]).cut(image, target, SampleRequest(0, 0.0, 0.0))
    assert small.shape == (20, 28, 3)
    nearest = target[(2 * np.arange(20) + 1)[:, None], 2 * np.arange(28) + 1]  # pixel centres
    assert np.array_equal(labels.numpy(), nearest)


def test_crop_cuts_the_same_box_and_pads_with_void(folder_set):
    image, target = open_folder(folder_set).read(0)  # 40 x 56
    geometry = data.Geometry([1, 1], crop=[16, 24])
    crop, labels = geometry.cut(image, target, SampleRequest(0, 0.5, 0.25))
    top, left = int(0.5 * 25), int(0.25 * 33)
    assert np.array_equal(crop.numpy(), np.array(image)[top : top + 16, left : left + 24])
    assert np.array_equal(labels.numpy(), target[top : top + 16, left : left + 24])
    crop, labels = data.Geometry([1, 1], crop=[48, 64]).cut(image, target, SampleRequest(0, 0.9, 0.9))
    assert np.array_equal(labels.numpy()[:40, :56], target)
    assert (labels[40:] == VOID).all()
    assert (labels[:, 56:] == VOID).all()


def test_a_large_photo_enters_the_network_reduced():
    geometry = data.Geometry([1, 1], crop=[64, 64], most_pixels=1_000_000)
    height, width = geometry.network_size(3000, 4000)
    assert height * width == pytest.approx(1_000_000, rel=0.01)
    assert abs(width / height - 4 / 3) < 0.01
    assert geometry.network_size(300, 400) == (300, 400)
    assert data.Geometry([1, 1], crop=[64, 64], short_side=150).network_size(300, 400) == (150, 200)


# ---- requests and batches


@pytest.mark.parametrize(("images", "sizes"), [(8, [4, 4]), (9, [4, 5]), (10, [4, 4, 2]), (1, [1]), (3, [3])])
def test_every_image_once_and_no_last_batch_of_one(images, sizes):
    batches = draw_requests(images, 4, torch.Generator().manual_seed(1))
    assert [len(b) for b in batches] == sizes
    assert sorted(t.index for b in batches for t in b) == list(range(images))


def test_batches_do_not_depend_on_workers(folder_set):
    split, geometry = open_folder(folder_set), data.Geometry([1, 1], crop=[16, 16])
    batches = draw_requests(len(split), 4, torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    alone = list(data.training_batches(split, geometry, batches, 0))
    shared = list(data.training_batches(split, geometry, batches, 2))
    assert torch.equal(state, torch.get_rng_state())  # reading draws from nobody's generator
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_shares_of_several_processes_make_the_whole():
    batches = draw_requests(10, 4, torch.Generator().manual_seed(1))
    shares = [share_batches(batches, rank, 2) for rank in (0, 1)]
    assert [len(s) for s in shares[0]] == [2, 2]  # the last batch of 2 would leave each process one image
    for step, (a, b) in enumerate(zip(*shares, strict=True)):
        assert sorted(a + b) == sorted(batches[step])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_workers_error_stays_one_line(folder_set, workers):
    split = open_folder(folder_set)
    rewrite(split.pairs[2][1], lambda mask: mask + 50)
    with pytest.raises(UserError) as caught:
        list(data.evaluation_batches(split, data.Geometry([16, 16]), 2, workers))
    assert str(caught.value).startswith("label 50")
    assert "\n" not in str(caught.value)


# ---- augmentation


def scene(n=4, height=24, width=36):
    """Images whose red channel is the target: whatever moves one must move the other."""
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(0, 5, (n, height // 6, width // 6), generator=generator, dtype=torch.uint8)
    targets = targets.repeat_interleave(6, 1).repeat_interleave(6, 2)
    images = torch.stack([targets * 50, targets, targets], -1)
    return images, targets


@pytest.mark.parametrize("text", ["flip=1", "scale=0.5:2", "translate=0.3", "rotate=30", "flip,scale,translate,rotate"])
def test_image_and_target_move_together(text):
    images, targets = scene(16)
    moved, labels = data.Augment(data.parse_augment(text))(images, targets, torch.Generator().manual_seed(0))
    known = labels != VOID
    seen = moved[:, 0] * 255 / 50
    flat = (seen - seen.round()).abs() < 1e-3  # away from borders, where bilinear sampling mixes two labels
    clear = known & flat
    assert clear.float().mean() > 0.3
    wrong = seen.round()[clear] != labels[clear]
    assert wrong.float().mean() < 0.02  # a mixture can fall on another label's number
    assert not torch.equal(labels, targets)


def test_flip_twice_is_nothing_and_flip_is_a_mirror():
    images, targets = scene()
    always = data.Augment({"flip": 1.0})
    moved, labels = always(images, targets, torch.Generator())
    assert torch.equal(labels, targets.flip(2))
    assert torch.allclose(moved, data.to_float(images).flip(3), atol=1e-5)
    back, again = always((moved.permute(0, 2, 3, 1) * 255).round().to(torch.uint8), labels, torch.Generator())
    assert torch.equal(again, targets)
    assert torch.allclose(back, data.to_float(images), atol=1e-5)


def test_outside_is_void_never_class_0():
    images, targets = scene()
    _, labels = data.Augment({"scale": [0.5]})(images, targets + 1, torch.Generator().manual_seed(0))
    assert (labels == VOID).float().mean() == pytest.approx(0.75, abs=0.02)
    assert (labels != 0).all()


def test_rotation_is_rigid_in_pixels():
    """A quarter turn of a square part moves it exactly: torch.rot90 as reference, on a canvas that is not square."""
    image = torch.zeros(1, 1, 24, 36)
    image[0, 0, 4:20, 10:26] = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    augment = data.Augment({"rotate": 90.0})
    real = torch.rand
    try:
        torch.rand = lambda *size, **_: torch.ones(*size)  # every draw at its upper end: 90 degrees
        affine = augment.draw_affine(image, None)
    finally:
        torch.rand = real
    grid = torch.nn.functional.affine_grid(affine, image.shape, align_corners=False)
    turned = torch.nn.functional.grid_sample(image, grid, align_corners=False)
    assert torch.allclose(turned[0, 0, 4:20, 10:26], torch.rot90(image[0, 0, 4:20, 10:26], 1), atol=1e-4)


def test_augmentation_draws_from_its_generator_alone():
    images, targets = scene()
    augment = data.Augment(data.parse_augment("flip,scale,rotate,colour,noise"))
    state = torch.get_rng_state()
    first = augment(images, targets, torch.Generator().manual_seed(5))
    second = augment(images, targets, torch.Generator().manual_seed(5))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first[0], second[0])
    assert first[0].min() >= 0
    assert first[0].max() <= 1


def test_colour_jitter_leaves_the_target_alone_and_none_changes_nothing():
    images, targets = scene()
    moved, labels = data.Augment({"colour": 0.3})(images, targets, torch.Generator().manual_seed(0))
    assert torch.equal(labels, targets)
    assert not torch.allclose(moved, data.to_float(images))
    same, labels = data.Augment(data.parse_augment("none"))(images, targets, torch.Generator())
    assert torch.equal(same, data.to_float(images))


def test_no_jitter_touches_what_lies_outside_the_image():
    """Neither what zooming out brings in, nor what a crop larger than the image adds."""
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    images, targets = scene()
    generator = torch.Generator().manual_seed(0)
    moved, labels = data.Augment({"scale": [0.5], "colour": 0.5})(images, targets, generator)
    kept = (moved - mean).abs().amax(1) < 1e-5
    assert (kept & (labels == VOID)).float().mean() > 0.6  # 0.75 of the canvas, less a rim where colours mix
    crop = data.Geometry([1, 1], crop=[30, 50])
    image, target = crop.cut(Image.fromarray(images[0].numpy()), targets[0].numpy(), SampleRequest(0, 0.0, 0.0))
    moved, labels = data.Augment({"colour": 0.5})(image[None], target[None], generator)
    assert torch.equal(moved[0, :, 24:], data.to_float(image[None])[0, :, 24:])
    assert torch.equal(moved[0, :, :, 36:], data.to_float(image[None])[0, :, :, 36:])
    assert not torch.allclose(moved[0, :, :24, :36], data.to_float(image[None])[0, :, :24, :36])
    assert (labels[0, 24:] == VOID).all()


def test_colour_jitter_is_brightness_contrast_and_saturation_in_turn():
    """Against the three steps written one after the other."""
    images = 0.3 + 0.4 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # nothing is clamped
    draws = torch.rand(3, 2, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    brightness, contrast, saturation = 1 + 0.2 * (2 * draws - 1)
    grey = images.mean(dim=(1, 2, 3), keepdim=True)
    expected = ((images - grey) * contrast + grey) * brightness
    luma = expected.mean(dim=1, keepdim=True)
    expected = (expected - luma) * saturation + luma
    assert torch.allclose(data.jitter_colour(images, 0.2, torch.Generator().manual_seed(1)), expected, atol=1e-6)


@pytest.mark.parametrize("text", ["flip=2", "scale=0.1:2", "scale=2:0.5", "scale=0.5:1:2", "rotate=-3", "blur=1"])
def test_wrong_augmentations_are_refused(text):
    with pytest.raises(UserError):
        data.parse_augment(text)


def test_normalise_undoes_itself_with_imagenets_numbers():
    images = torch.rand(2, 3, 4, 4)
    normal = Normalise()(images)
    assert torch.allclose(normal[:, 1] * 0.224 + 0.456, images[:, 1], atol=1e-6)
