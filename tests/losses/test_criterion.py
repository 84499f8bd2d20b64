"""The criterion as a whole: what it calls, adds up, leaves out and survives."""

import pytest
import torch
from torch import nn

import losses
from cli import UserError
from tests.losses.examples import VOID, example, torch_cross_entropy

ALL = ",".join(losses.TERMS)
AUX = {"aux": 0.4, "properties": 0.2}
WEIGHTED = torch.tensor([0.0, 1.0, 2.0, 0.5, 1.0, 3.0, 1.0])


class Model(nn.Module):
    """Logits and features from 1×1 convolutions, auxiliary outputs in training mode; keeps the images it saw."""

    def __init__(self, num_classes=7):
        super().__init__()
        self.out, self.aux = nn.Conv2d(3, num_classes, 1), nn.Conv2d(3, num_classes, 1)
        self.features, self.properties = nn.Conv2d(3, 5, 2, stride=2), nn.Linear(3, 6)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        outputs = {"out": self.out(images).float(), "features": self.features(images)}
        if self.training:
            outputs |= {"aux": self.aux(images).float(), "properties": self.properties(images.mean((2, 3)))}
        return outputs


def make(loss="ce=1", class_weights=None, smoothing=0.0, aux_weights=None):
    return losses.Criterion(losses.parse_loss(loss), 7, lambda x: 2 * x - 1, class_weights, smoothing, aux_weights)


def batch():
    """Images in [0, 1], and targets of the same size with void, large enough for anchors."""
    _, targets = example(scale=4)
    return torch.rand(2, 3, *targets.shape[1:], generator=torch.Generator().manual_seed(3)), targets


def step_loss(criterion, model, images, targets):
    totals, weights = criterion(model, images, targets), criterion.weights(targets)
    return {name: total / weights[name].clamp(min=1e-6) for name, total in totals.items()}


def test_criterion_normalises_calls_the_model_and_names_its_terms():
    images, targets = batch()
    model, criterion = Model(), make("ce=2", torch.rand(7) + 0.1, 0.1, {"aux": 0.4})
    terms = step_loss(criterion, model, images, targets)
    assert list(terms) == list(criterion.weights(targets)) == ["ce", "aux"]
    assert len(model.seen) == 1
    assert torch.equal(model.seen[0], 2 * images - 1)
    for (name, scale), head in zip((("ce", 2.0), ("aux", 0.8)), (model.out, model.aux), strict=True):
        reference = torch_cross_entropy(head(2 * images - 1), targets, criterion.class_weights, 0.1)
        torch.testing.assert_close(terms[name], scale * reference)
    assert list(criterion(model.eval(), images, targets)) == ["ce"]
    assert list(criterion.state_dict()) == ["class_weights"]


def test_auxiliary_outputs_without_a_cross_entropy():
    images, targets = batch()
    model, criterion = Model(), make("dice=3", aux_weights=AUX)
    terms = step_loss(criterion, model, images, targets)
    torch.testing.assert_close(terms["aux"], 0.4 * torch_cross_entropy(model.aux(2 * images - 1), targets))
    error = model.properties((2 * images - 1).mean((2, 3))) - losses.image_properties(images)
    torch.testing.assert_close(terms["properties"], 0.2 * error.square().sum(1).mean())


def test_each_term_is_its_function_times_its_weight():
    images, targets = batch()
    model = Model()
    outputs = model(2 * images - 1)
    logits = outputs["out"]
    loss = "focal=2:1,ohem=3:0.6,dice=4,lovasz=5,contrastive=6:0.5,spatial=7"
    totals, weights = make(loss)(model, images, targets), make(loss).weights(targets)
    expected = {
        "focal": (2 * losses.focal(logits, targets, 1.0), losses.sum_of_weights(targets, 7)),
        "ohem": (3 * losses.ohem(logits, targets, 0.6), 2),
        "dice": (4 * losses.dice(logits, targets), 2),
        "lovasz": (5 * losses.lovasz(logits, targets), 2),
        "contrastive": (6 * losses.contrastive(outputs["features"], targets, 7, 0.5), None),
        "spatial": (7 * losses.spatial(logits, images, targets), losses.spatial_places(targets, 7)),
    }
    assert list(totals) == list(weights) == list(expected)
    for name, (total, weight) in expected.items():
        torch.testing.assert_close(totals[name], total)
        assert weights[name] == (losses.contrastive_anchors(targets, 7) if weight is None else weight)


def test_noise_is_drawn_once_in_normalised_units_and_repeats_with_the_seed():
    images, targets = batch()
    model, criterion = Model(), make("noisy=1:0.3,consistency=2")
    values = []
    for _ in range(2):
        torch.manual_seed(5)
        values.append(step_loss(criterion, model, images, targets))
    clean, noisy = model.seen[:2]
    assert len(model.seen) == 4
    assert torch.equal(noisy, model.seen[3])
    assert (noisy - clean).std().item() == pytest.approx(0.3, rel=0.05)
    assert values[0] == values[1]
    torch.testing.assert_close(values[0]["noisy"], torch_cross_entropy(model.out(noisy), targets))
    valid = (targets < 7).sum()
    expected = losses.consistency(model.out(clean), model.out(noisy), targets) / valid
    torch.testing.assert_close(values[0]["consistency"], 2 * expected)


@pytest.mark.parametrize("class_weights", [None, WEIGHTED])
def test_totals_and_weights_of_two_halves_add_up(class_weights):
    images, targets = batch()
    targets[1, :9] = VOID  # unlike halves
    drawing = {"noisy", "consistency", "contrastive"}  # at random
    criterion = make(",".join(name for name in losses.TERMS if name not in drawing), class_weights, 0.1, AUX)
    model = Model()
    halves = [slice(0, 1), slice(1, 2)]
    for whole, parts in (
        (criterion(model, images, targets), [criterion(model, images[h], targets[h]) for h in halves]),
        (criterion.weights(targets), [criterion.weights(targets[h]) for h in halves]),
    ):
        for name, value in whole.items():
            torch.testing.assert_close(value, parts[0][name] + parts[1][name])


@pytest.mark.parametrize("term", losses.TERMS)
@pytest.mark.parametrize("case", ["all void", "classes of weight zero only"])
def test_nothing_to_learn_from_is_zero_not_nan(term, case):
    images, targets = batch()
    targets.fill_(VOID if case == "all void" else 0)
    model, criterion = Model(), make(term, WEIGHTED, 0.1, {"aux": 0.4})
    terms = step_loss(criterion, model, images, targets)
    assert all(weight == 0 for weight in criterion.weights(targets).values())
    sum(terms.values()).backward()
    assert all(value.item() == 0 for value in terms.values())
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


class Free(nn.Module):
    """A model whose outputs are the parameters themselves, so that each pixel's gradient can be read."""

    def __init__(self, size):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.logits = nn.Parameter(torch.randn(2, 7, *size, generator=generator))
        self.map = nn.Parameter(torch.randn(2, 5, *size, generator=generator))

    def forward(self, images):
        return {"out": self.logits * images.mean((1, 2, 3)).view(-1, 1, 1, 1), "features": self.map}


@pytest.mark.parametrize("term", losses.TERMS)
def test_void_pixels_and_dropped_classes_get_no_gradient(term):
    images, targets = batch()
    model = Free(targets.shape[1:])
    sum(step_loss(make(term, WEIGHTED, 0.1 if term == "ce" else 0.0), model, images, targets).values()).backward()
    gradient = model.map.grad if term == "contrastive" else model.logits.grad
    assert gradient.isfinite().all()
    moved = (gradient != 0).any(1)
    taught = targets == 7 if losses.TERMS[term].pasted else (targets < 7) & (targets != 0)
    assert not moved[~taught].any()
    if term not in ("ohem", "contrastive", "spatial"):  # these choose among the labelled pixels
        assert moved[taught].all()
    assert moved.any()


@pytest.mark.parametrize("term", losses.TERMS)
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_values_and_gradients_are_finite_whatever_the_logits(term, scale):
    images, targets = batch()
    model = Free(targets.shape[1:])
    model.logits.data *= scale
    model.map.data *= scale
    targets[targets == 3] = 2  # a class is absent
    terms = step_loss(make(term, WEIGHTED, 0.1), model, images, targets)
    sum(terms.values()).backward()
    assert all(value.isfinite() and value >= 0 for value in terms.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_all_terms_together_in_bfloat16_autocast(memory_format):
    images, targets = batch()
    images = images.contiguous(memory_format=memory_format)
    model, criterion = Model(), make(ALL, WEIGHTED, 0.1, AUX)
    with torch.autocast("cpu", torch.bfloat16):
        terms = step_loss(criterion, model, images, targets)
    assert list(terms) == [*losses.TERMS, *AUX]
    assert all(value.dtype == torch.float32 and value.isfinite() for value in terms.values())
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("term", [name for name, term in losses.TERMS.items() if not term.noise])
def test_bfloat16_outputs_are_summed_in_float32(term):
    images, targets = batch()
    model = Free(targets.shape[1:])
    values = {}
    for cast in (False, True):  # the same rounded numbers, as bf16 and as float32
        torch.manual_seed(0)
        outputs = {name: value.bfloat16() for name, value in model(images).items()}
        outputs = {name: value if cast else value.float() for name, value in outputs.items()}
        values[cast] = make(term)(lambda _, outputs=outputs: outputs, images, targets)[term]
    assert values[True].dtype == torch.float32
    torch.testing.assert_close(values[True], values[False])


def test_criterion_refuses_what_cannot_be_meant():
    with pytest.raises(UserError, match="smoothing"):
        losses.Criterion({"ce": [1.0]}, 7, nn.Identity(), label_smoothing=1.0)
    with pytest.raises(ValueError, match=r"\(6,\) for 7 classes"):
        losses.Criterion({"ce": [1.0]}, 7, nn.Identity(), class_weights=torch.ones(6))
    with pytest.raises(ValueError, match="unknown term 'mse'"):
        losses.Criterion({"mse": [1.0]}, 7, nn.Identity())
