"""Class weights against hand-worked cases, and the file that may hold them."""

import json

import pytest
import torch

import losses
from cli import UserError


def test_inverse_and_sqrt_by_hand():
    counts = torch.tensor([100, 300, 400])  # total / (C · n_c) = 8/3, 8/9, 2/3
    inverse = losses.class_weights("inverse", counts, "abc")
    torch.testing.assert_close(inverse, torch.tensor([12.0, 4.0, 3.0]) * 3 / 19)
    sqrt = losses.class_weights("sqrt", counts, "abc")
    torch.testing.assert_close(sqrt / sqrt[0], torch.tensor([1.0, 3**-0.5, 0.5]))
    assert sqrt.sum().item() == pytest.approx(3)
    assert sqrt.dtype == inverse.dtype == torch.float32


def test_ratios_are_capped_before_scaling():
    counts = torch.tensor([1, 10**9])
    ratios = torch.tensor([100.0, (1 + 1e9) / 2e9])
    torch.testing.assert_close(losses.class_weights("inverse", counts, "ab"), ratios * 2 / ratios.sum())
    ratios = torch.tensor([100.0, ((1 + 1e9) / 2e9) ** 0.5])
    torch.testing.assert_close(losses.class_weights("sqrt", counts, "ab"), ratios * 2 / ratios.sum())


def test_median_by_hand_is_inverse_but_for_the_cap():
    counts = torch.tensor([100, 0, 300, 400, 600])  # median of those present 350
    ratios = torch.tensor([3.5, 0.0, 350 / 300, 0.875, 350 / 600])
    weights = losses.class_weights("median", counts, "abcde")
    torch.testing.assert_close(weights, ratios * 5 / ratios.sum())
    torch.testing.assert_close(weights, losses.class_weights("inverse", counts, "abcde"))
    counts = torch.tensor([1, 10**3, 10**6])
    ratios = torch.tensor([100.0, 1.0, 1e-3])
    torch.testing.assert_close(losses.class_weights("median", counts, "abc"), ratios * 3 / ratios.sum())


def test_median_frequency_counts_the_images_that_hold_a_class():
    """Class b fills half of the only image that holds it: f = (90 + 50 over 200, 50 of 100, 10 of 100)."""
    counts = torch.tensor([[50, 50, 0], [90, 0, 10]])
    ratios = 0.5 / torch.tensor([140 / 200, 50 / 100, 10 / 100])
    torch.testing.assert_close(losses.class_weights("median", counts, "abc"), ratios * 3 / ratios.sum())


def test_effective_by_hand():
    counts = torch.tensor([1024, 3072, 2048 * 10**6])  # 1, 3 and 2 million blocks
    numbers = [sum(0.9999**i for i in range(n)) for n in (1, 3)] + [1e4]
    ratios = torch.tensor([1e4 / n for n in numbers]).clamp(max=100)
    torch.testing.assert_close(losses.class_weights("effective", counts, "abc"), ratios * 3 / ratios.sum())
    counts = torch.tensor([1024 * 5, 1024 * 10])
    ratios = torch.tensor([1 / sum(0.9999**i for i in range(n)) for n in (5, 10)])
    torch.testing.assert_close(losses.class_weights("effective", counts, "ab"), ratios * 2 / ratios.sum())


def test_effective_is_inverse_for_few_pixels_and_none_for_very_many():
    few, many = torch.tensor([10**5, 10**6]), torch.tensor([10**9, 10**10])
    inverse, effective = (losses.class_weights(kind, few, "ab") for kind in ("inverse", "effective"))
    torch.testing.assert_close(effective, inverse, rtol=0.06, atol=0)
    torch.testing.assert_close(losses.class_weights("effective", many, "ab"), torch.ones(2))


@pytest.mark.parametrize("kind", ["inverse", "sqrt", "median", "effective"])
def test_absent_classes_weigh_nothing_and_are_named(kind, capsys):
    weights = losses.class_weights(kind, torch.tensor([5, 0, 5, 0]), ["sky", "car", "road", "pole"])
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.0, 2.0, 0.0]))
    warning = capsys.readouterr().err
    assert "car, pole" in warning
    assert "sky" not in warning


def test_no_pixel_at_all_is_refused():
    with pytest.raises(UserError, match="no labelled pixel"):
        losses.class_weights("inverse", torch.zeros(3, dtype=torch.int64), "abc")


def test_file_is_read_by_class_name(tmp_path):
    path = tmp_path / "weights.json"
    path.write_text(json.dumps({"road": 2, "sky": 0.5, "car": 0}))
    weights = losses.class_weights(str(path), torch.tensor([1, 1, 1]), ["sky", "road", "car"])
    assert weights.tolist() == [0.5, 2.0, 0.0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"sky": 1, "raod": 1}', "'raod'.*did you mean 'road'"),
        ('{"sky": 1}', "no weight for road"),
        ('{"sky": 1, "road": -1}', "-1.*'road'"),
        ('{"sky": 1, "road": NaN}', "nan.*'road'"),
        ('{"sky": 1, "road": Infinity}', "inf.*'road'"),
        ('{"sky": 1, "road": "2"}', "'2'.*'road'"),
        ('{"sky": 1, "road": true}', "True.*'road'"),
        ('{"sky": 0, "road": 0}', "every class has weight 0"),
        ("[1, 1]", "list instead"),
        ("{sky: 1}", "cannot read"),
    ],
)
def test_file_that_cannot_be_meant_is_refused(tmp_path, content, words):
    path = tmp_path / "weights.json"
    path.write_text(content)
    with pytest.raises(UserError, match=words) as caught:
        losses.class_weights(str(path), torch.tensor([1, 1]), ["sky", "road"])
    assert str(path) in str(caught.value)


def test_unknown_kind_names_the_known_ones():
    with pytest.raises(UserError, match="none, inverse, sqrt, median, effective"):
        losses.class_weights("invers", torch.tensor([1, 1]), ["sky", "road"])
