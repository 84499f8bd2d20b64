"""What is put in an image's place keeps what its line promises, and loses the rest."""

import pytest
import torch

from probes.replacement_inputs import (
    flat_segments,
    mirrored,
    noise,
    noise_segments,
    other_images,
    permuted_ids,
    shifted,
    shuffled_patches,
    shuffled_segments,
)

IMAGE_INPUTS = (
    noise,
    other_images,
    flat_segments,
    shuffled_segments,
    noise_segments,
)
MOVES = (shuffled_patches, mirrored, shifted)
TARGET_INPUTS = (permuted_ids([2, 0, 1]),)
ALL = (*IMAGE_INPUTS, *MOVES, *TARGET_INPUTS)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(count=3, height=18, width=23, seed=0):
    """Images and targets of three classes and void, of sides that no grid divides."""
    generator = draw(seed)
    images = torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)
    targets = torch.randint(0, 4, (count, height, width), dtype=torch.uint8, generator=generator)
    targets[targets == 3] = 255
    return images, targets


def pixels(image, where):
    """The pixels of an image (h, w, 3) under a mask, sorted, as comparable numbers."""
    image = image.long()
    return (image[..., 0] << 16 | image[..., 1] << 8 | image[..., 2])[where].sort().values


@pytest.mark.parametrize("change", ALL, ids=lambda change: change.__name__)
def test_the_contract_of_every_function(change):
    images, targets = batch()
    before = images.clone(), targets.clone()
    first, again, other = (change(images, targets, draw(seed)) for seed in (1, 1, 2))
    assert torch.equal(images, before[0])
    assert torch.equal(targets, before[1])
    for new, old in zip(first, before, strict=True):
        assert new.shape == old.shape
        assert new.dtype == torch.uint8
    assert {part.data_ptr() for part in first}.isdisjoint({images.data_ptr(), targets.data_ptr()})
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    drawn = change in (*IMAGE_INPUTS, shuffled_patches) and change is not other_images
    assert torch.equal(first[0], other[0]) != drawn
    assert torch.equal((first[1] == 255).flatten(1).sum(1), (targets == 255).flatten(1).sum(1))


@pytest.mark.parametrize("change", IMAGE_INPUTS, ids=lambda change: change.__name__)
def test_what_replaces_the_image_leaves_the_target(change):
    images, targets = batch()
    assert torch.equal(change(images, targets, draw())[1], targets)


def test_noise_is_uniform_and_independent():
    images, _ = noise(*batch(4, 64, 64), draw())
    counts = torch.bincount(images.flatten().long(), minlength=256).double()
    expected = images.numel() / 256
    assert float(((counts - expected) ** 2 / expected).sum()) < 350  # chi squared of 255 degrees: 350 once in 20,000
    values = images.double() - 127.5
    assert abs(float((values[:, :, 1:] * values[:, :, :-1]).mean()) / float(values.square().mean())) < 0.02


def test_others_are_the_neighbours_in_the_batch():
    images, targets = batch()
    moved, _ = other_images(images, targets, None)
    assert all(torch.equal(moved[i], images[i - 1]) for i in range(3))
    with pytest.raises(ValueError, match="at least 2"):
        other_images(images[:1], targets[:1], None)


def test_flat_segments_have_one_colour_each_and_another_in_each_image():
    targets = batch()[1][:1].repeat(3, 1, 1)
    images, _ = flat_segments(batch()[0], targets, draw())
    colours = [pixels(image, target == c).unique() for image, target in zip(images, targets, strict=True)
               for c in (0, 1, 2, 255)]  # fmt: skip
    assert all(len(colour) == 1 for colour in colours)
    assert len({int(colour) for colour in colours}) == 12


def test_shuffled_segments_keep_the_pixels_of_each_segment():
    images, targets = batch()
    shuffled, _ = shuffled_segments(images, targets, draw())
    for old, new, target in zip(images, shuffled, targets, strict=True):
        for c in (0, 1, 2, 255):
            assert torch.equal(pixels(old, target == c), pixels(new, target == c))
    assert (shuffled == images).all(-1).float().mean() < 0.1


def test_every_order_inside_a_segment_is_as_likely():
    images = torch.arange(3, dtype=torch.uint8).view(1, 1, 3, 1).repeat(1200, 1, 1, 3)
    shuffled, _ = shuffled_segments(images, torch.zeros(1200, 1, 3, dtype=torch.uint8), draw())
    orders = torch.bincount((shuffled[:, 0, :, 0].long() * torch.tensor([9, 3, 1])).sum(1))
    orders = orders[orders > 0]
    assert len(orders) == 6
    assert 140 < int(orders.min()) <= int(orders.max()) < 260  # 200 expected, spread 13


def test_noise_segments_vary_inside_and_differ_between():
    targets = torch.zeros(2, 32, 32, dtype=torch.uint8)
    targets[:, :, 16:] = 1
    images, _ = noise_segments(torch.zeros(2, 32, 32, 3, dtype=torch.uint8), targets, draw(3))
    left, right = images[:, :, :16].double().flatten(1, 2), images[:, :, 16:].double().flatten(1, 2)
    assert (left.std(1) > 5).any()
    assert ((left.mean(1) - right.mean(1)).abs().amax(1) > 20).all()


@pytest.mark.parametrize("change", MOVES, ids=lambda change: change.__name__)
def test_labels_move_with_their_pixels(change):
    targets = batch()[1]
    painted = targets[..., None].repeat(1, 1, 1, 3)  # each pixel shows its own label
    images, moved = change(painted, targets, draw())
    assert torch.equal(images[..., 0], moved)
    assert not torch.equal(moved, targets)
    assert torch.equal(moved.flatten(1).sort(1).values, targets.flatten(1).sort(1).values)


def test_patches_move_whole_each_image_in_an_order_of_its_own():
    numbers = torch.arange(16, dtype=torch.uint8).view(1, 4, 1, 4, 1).repeat(8, 1, 5, 1, 6).reshape(8, 20, 24)
    inside = torch.arange(30, dtype=torch.uint8).view(5, 6).repeat(4, 4).expand(8, 20, 24)
    images = torch.stack([numbers, inside, inside], -1)
    images, moved = shuffled_patches(images, numbers, draw())
    assert torch.equal(images[..., 1], inside)  # nothing changes inside a patch
    orders = moved[:, ::5, ::6].flatten(1)
    assert torch.equal(moved, orders.view(8, 4, 1, 4, 1).repeat(1, 1, 5, 1, 6).reshape(8, 20, 24))
    assert all(sorted(order.tolist()) == list(range(16)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 8
    with pytest.raises(ValueError, match="3x9"):
        shuffled_patches(*batch(2, 3, 9), draw())


def test_mirrored_twice_and_shifted_four_times_are_the_image_again():
    images, targets = batch(2, 8, 12)
    for change, times in ((mirrored, 2), (shifted, 4)):
        pair = images, targets
        for _ in range(times):
            pair = change(*pair, None)
        assert torch.equal(pair[0], images)
        assert torch.equal(pair[1], targets)
    assert torch.equal(shifted(images, targets, None)[1][:, :, 3:], targets[:, :, :-3])


def test_permuted_ids_rename_the_classes_and_nothing_else():
    images, targets = batch()
    same, renamed = permuted_ids([2, 0, 1])(images, targets, None)
    assert torch.equal(same, images)
    for old, new in ((0, 2), (1, 0), (2, 1), (255, 255)):
        assert torch.equal(renamed == new, targets == old)
    for wrong in ([0, 0, 1], [1, 2, 3]):
        with pytest.raises(ValueError, match="no permutation"):
            permuted_ids(wrong)
