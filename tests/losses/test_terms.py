"""The table of loss terms, and how --loss is read and checked."""

import pytest
import torch

import cli
import losses
from cli import UserError
from tests.losses.examples import VOID, example


def parser():
    parser = cli.Parser("test")
    losses.add_loss_flags(parser)
    return parser


def test_flags_have_defaults_that_are_accepted():
    args = parser().parse_args([])
    assert losses.parse_loss(args.loss) == {"ce": [1.0]}
    assert losses.class_weights(args.class_weights, torch.tensor([1, 2]), ["a", "b"]) is None
    assert args.label_smoothing == 0


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
    assert losses.TERMS["noisy"].defaults == [0.1, 0.1]


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


# --- the table


@pytest.mark.parametrize(("name", "term"), losses.TERMS.items())
def test_each_row_of_the_table_is_listed_parsed_computed_and_divided(name, term):
    written = f"{name}={':'.join(f'{value:g}' for value in term.defaults)}"
    lines = [line.split(maxsplit=1) for line in parser().format_help().splitlines()]
    [purpose] = [line[1] for line in lines if line and line[0] == written]
    assert term.purpose
    assert len(purpose) < 100
    limits = ""
    if term.parameter:
        parameter, default, lowest, highest = term.parameter
        assert lowest <= default <= highest
        limits = f" ({parameter} {lowest:g} to {highest:g})"
        for bound, beyond in ((lowest, lowest - 1), (highest, highest + 1)):
            assert losses.parse_loss(f"{name}=1:{bound}") == {name: [1.0, bound]}
            with pytest.raises(UserError, match=f"{parameter} {beyond:g} of term"):
                losses.parse_loss(f"{name}=1:{beyond}")
    assert purpose == term.purpose + limits
    assert losses.parse_loss(name) == losses.parse_loss(written) == {name: term.defaults}
    assert term.weight > 0

    logits, targets = example(scale=4)
    outputs = {"out": -logits.abs(), "features": logits, "open": logits.abs()}
    arguments = (targets, 7, None, 0.0, torch.rand(2, 3, 36, 44), outputs, logits, term.defaults[-1])
    divisor, total = term.divisor(losses.Batch(*arguments[:4])), term.total(losses.Batch(*arguments))
    for value in (divisor, total):
        assert value.shape == ()
        assert value.dtype == torch.float32
        assert value.isfinite()
        assert value > 0


def test_marks_of_the_table_are_what_the_terms_do():
    """Pasted: pasted pixels change it. Noise: the noisy logits do. Energy: a shift of all logits does."""
    logits, targets = example(scale=4)
    unpasted = targets.masked_fill(targets == 7, VOID)
    features, images = torch.rand(2, 5, 36, 44), torch.rand(2, 3, 36, 44)

    def total(term, targets=targets, shift=0.0, noisy=0.5):
        torch.manual_seed(0)
        outputs = {"out": logits + shift, "features": features}
        return term.total(losses.Batch(targets, 7, None, 0.0, images, outputs, noisy * logits, term.defaults[-1]))

    for name, term in losses.TERMS.items():
        assert (total(term, unpasted) != total(term)) == term.pasted, name
        assert (total(term, noisy=2.0) != total(term)) == term.noise, name
        shifted = not torch.allclose(total(term, shift=1.0), total(term), rtol=1e-4)
        assert shifted == (term.energy or name == "centre"), name


# --- what --loss and --outliers say together


def test_which_terms_are_chosen():
    assert losses.choose_terms("ce=1", "none") == {"ce": [1.0]}
    assert losses.choose_terms("ce=1", "somewhere").keys() == {"ce", "outlier-energy", "known-energy"}
    assert losses.choose_terms("ce=1,outlier-entropy=2", "somewhere") == {"ce": [1.0], "outlier-entropy": [2.0]}
    assert losses.choose_terms("ce=1,outlier-energy=0.1:-3", "x")["outlier-energy"] == [0.1, -3.0]
    assert losses.choose_terms("ce=1", "somewhere", distances=True).keys() == {"ce", "outlier-entropy"}
    with pytest.raises(UserError, match="without pasted pixels"):
        losses.choose_terms("ce=1,outlier-energy", "none")


@pytest.mark.parametrize(
    ("terms", "options", "message"),
    [
        ("ce,centre", {}, "'centre' of a model without centres"),
        ("ce,known-energy", {"centres": "fixed"}, "'known-energy' of a distance head"),
        ("ce", {"residual": True}, "residual head that no term of the loss teaches"),
    ],
)
def test_terms_that_do_not_fit_the_models_heads_are_refused(terms, options, message):
    with pytest.raises(UserError, match=message):
        losses.check_heads(losses.parse_loss(terms), {"centres": "none", "residual": False, **options})
