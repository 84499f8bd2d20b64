"""The losses against torch's own cross-entropy, and class weights against hand-worked cases."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import flags
import losses
from flags import UserError

VOID = 255


def example(num_classes=7, void_share=0.3, seed=0):
    """Random logits (2, C, 9, 11) and targets with void, written as 255 and as the first value that is no class."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, num_classes, 9, 11, generator=generator) * 3
    targets = torch.randint(0, num_classes, (2, 9, 11), generator=generator, dtype=torch.uint8)
    void = torch.rand(2, 9, 11, generator=generator) < void_share
    targets[void] = VOID
    targets[0, 0, 0] = num_classes
    return logits, targets


def torch_cross_entropy(logits, targets, weights=None, smoothing=0.0):
    known = torch.where(targets < logits.shape[1], targets.long(), -100)
    return F.cross_entropy(logits, known, weight=weights, label_smoothing=smoothing)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("void_share", [0.0, 0.6])
def test_value_and_gradient_are_torchs(smoothing, weighted, void_share):
    logits, targets = example(void_share=void_share)
    weights = torch.tensor([0.2, 3.0, 1.0, 0.01, 7.0, 0.5, 1.5]) if weighted else None
    ours, theirs = (logits.clone().requires_grad_() for _ in range(2))
    total, weight = losses.cross_entropy(ours, targets, weights, smoothing)
    loss, reference = total / weight, torch_cross_entropy(theirs, targets, weights, smoothing)
    loss.backward()
    reference.backward()
    torch.testing.assert_close(loss, reference)
    torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_class_of_weight_zero_is_void(smoothing):
    logits, targets = example()
    weights = torch.tensor([1.0, 0.0, 2.0, 0.5, 0.0, 1.0, 1.0])
    total, weight = losses.cross_entropy(logits, targets, weights, smoothing)
    dropped = torch.where((targets == 1) | (targets == 4), VOID, targets)
    torch.testing.assert_close(total / weight, torch_cross_entropy(logits, dropped, weights, smoothing))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("case", ["all void", "classes of weight zero only"])
def test_nothing_to_learn_from_is_zero_not_nan(smoothing, case):
    logits, targets = example()
    weights = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    targets.fill_(VOID if case == "all void" else 0)
    logits.requires_grad_()
    total, weight = losses.cross_entropy(logits, targets, weights, smoothing)
    (total / weight.clamp(min=1e-6)).backward()
    assert total.item() == 0
    assert weight.item() == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_void_pixels_get_no_gradient_and_all_others_do(smoothing):
    logits, targets = example()
    logits.requires_grad_()
    losses.cross_entropy(logits, targets, smoothing=smoothing)[0].backward()
    moved = (logits.grad != 0).any(1)
    assert torch.equal(moved, targets < logits.shape[1])


def test_sums_of_parts_are_the_sum_of_the_whole():
    logits, targets = example()
    weights = torch.rand(7)
    whole = torch.stack(losses.cross_entropy(logits, targets, weights, 0.1))
    parts = [torch.stack(losses.cross_entropy(logits[i : i + 1], targets[i : i + 1], weights, 0.1)) for i in range(2)]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_bfloat16_logits_are_summed_in_float32(memory_format):
    logits, targets = example()
    logits = logits.bfloat16().contiguous(memory_format=memory_format)
    total, weight = losses.cross_entropy(logits, targets)
    assert total.dtype == weight.dtype == torch.float32
    torch.testing.assert_close(total / weight, torch_cross_entropy(logits.float(), targets))


def test_extreme_logits_stay_finite():
    logits = torch.tensor([1e4, -1e4, 0.0]).view(1, 3, 1, 1).requires_grad_()
    total, _ = losses.cross_entropy(logits, torch.ones(1, 1, 1, dtype=torch.uint8), smoothing=0.1)
    total.backward()
    assert math.isfinite(total.item())
    assert logits.grad.isfinite().all()


class TwoOutputs(nn.Module):
    """Logits from a 1×1 convolution, and an auxiliary output in training mode; keeps the images that it saw."""

    def __init__(self, num_classes):
        super().__init__()
        self.out, self.aux = nn.Conv2d(3, num_classes, 1), nn.Conv2d(3, num_classes, 1)

    def forward(self, images):
        self.seen = images
        return {"out": self.out(images), **({"aux": self.aux(images)} if self.training else {})}


def test_criterion_normalises_calls_the_model_and_names_its_terms():
    images, (_, targets) = torch.rand(2, 3, 9, 11), example()
    model = TwoOutputs(7)
    criterion = losses.Criterion(
        losses.parse_loss("ce=2"), 7, lambda x: 2 * x - 1, torch.rand(7), 0.1, aux_weights={"aux": 0.4}
    )
    terms = criterion(model, images, targets)
    assert list(terms) == ["ce", "aux"]
    assert torch.equal(model.seen, 2 * images - 1)
    assert [term.scale for term in terms.values()] == pytest.approx([2.0, 0.8])
    for term, head in zip(terms.values(), (model.out, model.aux), strict=True):
        reference = torch_cross_entropy(head(2 * images - 1), targets, criterion.class_weights, 0.1)
        torch.testing.assert_close(term.total / term.weight, reference)
    assert list(criterion(model.eval(), images, targets)) == ["ce"]
    assert list(criterion.state_dict()) == ["class_weights"]


def test_criterion_refuses_what_cannot_be_meant():
    with pytest.raises(UserError, match="smoothing"):
        losses.Criterion({"ce": 1.0}, 7, nn.Identity(), label_smoothing=1.0)
    with pytest.raises(ValueError, match=r"\(6,\) for 7 classes"):
        losses.Criterion({"ce": 1.0}, 7, nn.Identity(), class_weights=torch.ones(6))


def test_flags_have_defaults_that_are_accepted():
    parser = flags.Parser("test")
    losses.add_loss_flags(parser)
    args = parser.parse_args([])
    assert losses.parse_loss(args.loss) == {"ce": 1.0}
    assert losses.class_weights(args.class_weights, torch.tensor([1, 2]), ["a", "b"]) is None
    assert args.label_smoothing == 0


@pytest.mark.parametrize("text", ["none", "", "ce=0", "ce=-1", "ce=inf", "ce=nan", "dice=1", "ce=much"])
def test_parse_loss_refuses(text):
    with pytest.raises(UserError):
        losses.parse_loss(text)


# --- class weights


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


@pytest.mark.parametrize("kind", ["inverse", "sqrt"])
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
    with pytest.raises(UserError, match="none, inverse, sqrt"):
        losses.class_weights("invers", torch.tensor([1, 1]), ["sky", "road"])
