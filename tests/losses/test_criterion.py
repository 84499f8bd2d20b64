"""The criterion as a whole, how --loss is read, and class weights against hand-worked cases."""

import json

import pytest
import torch
from torch import nn

import cli
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


def batch(scale=4):
    """Images in [0, 1], and targets of the same size with void, large enough for anchors."""
    _, targets = example()
    targets = targets.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return torch.rand(2, 3, *targets.shape[1:], generator=torch.Generator().manual_seed(3)), targets


def step_loss(criterion, model, images, targets):
    totals, weights = criterion(model, images, targets), criterion.weights(targets)
    return {name: total / weights[name].clamp(min=1e-6) for name, total in totals.items()}


# --- the criterion


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
    criterion = make("ce,focal,ohem,dice,lovasz,spatial", class_weights, 0.1, AUX)
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
    taught = targets == 7 if term in losses.OUTLIER_TERMS else (targets < 7) & (targets != 0)
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
    terms = step_loss(make(term, WEIGHTED), model, images, targets)
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


@pytest.mark.parametrize("term", [term for term in losses.TERMS if term not in ("noisy", "consistency")])
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
    images, targets = batch()
    with pytest.raises(ValueError, match="unknown term 'mse'"):
        losses.Criterion({"mse": [1.0]}, 7, nn.Identity())(Model(), images, targets)


# --- --loss


def parser():
    parser = cli.Parser("test")
    losses.add_loss_flags(parser)
    return parser


def test_flags_have_defaults_that_are_accepted():
    args = parser().parse_args([])
    assert losses.parse_loss(args.loss) == {"ce": [1.0]}
    assert losses.class_weights(args.class_weights, torch.tensor([1, 2]), ["a", "b"]) is None
    assert args.label_smoothing == 0


def test_help_lists_each_term_on_a_line_with_weight_and_range():
    lines = parser().format_help().splitlines()
    for name, term in losses.TERMS.items():
        written = f"{name}={':'.join(f'{value:g}' for value in term.defaults())}"
        (line,) = [line for line in lines if line.split() and line.split()[0] == written]
        assert term.purpose in line
        assert len(line) < 125
        if term.parameter:
            own, default, low, high = term.parameter
            assert low <= default <= high
            assert f"({own} {low:g} to {high:g})" in line


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("ce=1,focal=1:2,dice=0.5", {"ce": [1.0], "focal": [1.0, 2.0], "dice": [0.5]}),
        ("focal=1", {"focal": [1.0, 2.0]}),
        ("focal=1:0", {"focal": [1.0, 0.0]}),
        ("focal, spatial", {"focal": [1.0, 2.0], "spatial": [0.1]}),
        ("noisy,consistency", {"noisy": [0.1, 0.1], "consistency": [0.05, 0.1]}),
        ("noisy=1:0.2,consistency=2", {"noisy": [1.0, 0.2], "consistency": [2.0, 0.2]}),
        ("noisy,consistency=2:0.2", {"noisy": [0.1, 0.2], "consistency": [2.0, 0.2]}),
        ("noisy=1:0.2,consistency=2:0.2", {"noisy": [1.0, 0.2], "consistency": [2.0, 0.2]}),
        ("consistency=2:0.2", {"consistency": [2.0, 0.2]}),
    ],
)
def test_parse_loss_reads(text, terms):
    assert losses.parse_loss(text) == terms


def test_parse_loss_gives_each_caller_its_own_lists():
    losses.parse_loss("noisy,consistency")["noisy"][1] = 9.0
    assert losses.TERMS["noisy"].defaults() == [0.1, 0.1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("none", "no term"),
        ("", "no term"),
        ("ce=0", "weight 0 of term 'ce'.*above 0"),
        ("ce=-1", "above 0"),
        ("ce=inf", "above 0"),
        ("ce=nan", "above 0"),
        ("ce=much", "'much'"),
        ("focal=", "cannot be read"),
        ("ce=1,ce=2", "given twice"),
        ("focall=1", "did you mean 'focal'"),
        ("ce=1:2", "2 numbers for term 'ce'.*write ce=weight$"),
        ("focal=1:2:3", "3 numbers for term 'focal'.*gamma from 0 to 10"),
        ("focal=1:-1", "gamma -1 of term 'focal'.*from 0 to 10"),
        ("focal=1:nan", "gamma nan.*from 0 to 10"),
        ("ohem=1:1.1", "threshold 1.1.*from 0 to 1"),
        ("noisy=1:11", "sigma 11 .*from 0 to 10"),
        ("contrastive=1:0", "temperature 0 .*from 0.01 to 10"),
        ("noisy=1:0.1,consistency=1:0.2", "sigma 0.1 and 0.2"),
    ],
)
def test_parse_loss_refuses(text, words):
    with pytest.raises(UserError, match=words):
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
