"""The command line: recipes, options, errors, exit codes."""

import errno

import pytest

import cli


def parser():
    p = cli.Parser("text")
    p.add_argument("--lr", type=cli.non_negative, default=0.1, help="rate")
    p.add_argument("--image-size", type=cli.size, default=[2, 3], help="size")
    p.add_argument("--model", default="a", help="model")
    return p


def test_typed_flags_beat_the_recipe_wherever_it_stands(tmp_path):
    recipe = tmp_path / "r.args"
    recipe.write_text("--lr 1e-3  # why\n# a comment\n--model 'with space' --image-size 240x320\n")
    for words in (["--lr", "5", f"@{recipe}"], [f"@{recipe}", "--lr=5"]):
        p = parser()
        args = p.parse_args(words)
        assert (args.lr, args.model, args.image_size) == (5.0, "with space", [240, 320])
        assert p.typed == {"lr"}
        assert p.given == {"lr", "model", "image_size"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--lrr", "1"], "did you mean '--lr'"),
        (["--lr", "fast"], "--lr"),
        (["--lr", "-1"], "at least 0"),
        (["--image-size", "240"], "height x width"),
        (["--image-size", "0x3"], "height x width"),
        (["@missing.args"], "missing.args"),
        (["stray"], "unknown flag 'stray'"),
    ],
)
def test_a_wrong_flag_is_one_line_and_code_2(words, part, capsys):
    assert cli.run(lambda: parser().parse_args(words)) == 2
    out = capsys.readouterr()
    assert out.err.startswith("error: ")
    assert out.err.count("\n") == 1
    assert part in out.err


def test_unclosed_quote_in_a_recipe_names_the_line(tmp_path):
    recipe = tmp_path / "r.args"
    recipe.write_text("--lr 1\n--model 'open\n")
    with pytest.raises(cli.UserError, match="r.args:2"):
        parser().parse_args([f"@{recipe}"])


def test_choice_options_follow_the_type_of_their_default():
    known = {"net": {"channels": 96, "laterals": True, "drop": 0.1, "kind": "x"}, "other": {}}
    name, options = cli.parse_choice("net:channels=64,laterals=off", known)
    assert (name, options) == ("net", {"channels": 64, "laterals": False, "drop": 0.1, "kind": "x"})
    for text, part in [
        ("ned", "did you mean 'net'"),
        ("net:chanels=3", "did you mean 'channels'"),
        ("net:channels=3.5", "channels='3.5'"),
        ("net:laterals=yes", "on or off"),
        ("net:drop=1,drop=2", "twice"),
    ]:
        with pytest.raises(cli.UserError, match=part):
            cli.parse_choice(text, known)


def test_items_read_ranges_bare_names_and_none():
    known = {"flip": 0.5, "scale": [0.5, 2.0]}
    assert cli.parse_items("flip,scale=0.8:1.2", known) == {"flip": 0.5, "scale": [0.8, 1.2]}
    assert cli.parse_items("none", known) == {}
    assert cli.parse_items("scale=1", known) == {"scale": [1.0]}


def raising(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (cli.UserError("what", "where", "remedy"), 2),
        (FloatingPointError("loss is nan at step 3"), 1),
        (KeyboardInterrupt(), 130),
        (OSError(errno.ENOSPC, "No space left on device", "file"), 2),
        (MemoryError("too much"), 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1),
    ],
)
def test_exit_codes(error, code, capsys):
    assert cli.run(raising(error)) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bug_is_not_dressed_up_as_the_users_mistake():
    for bug in (ValueError("bug"), RuntimeError("bug"), OSError(errno.EIO, "bug"), TypeError("bug")):
        with pytest.raises(type(bug), match="bug"):
            cli.run(raising(bug))


def test_no_result_is_code_0_and_a_code_is_passed_on():
    assert cli.run(lambda: None) == 0
    assert cli.run(lambda: 1) == 1


def test_error_text_has_what_where_remedy():
    assert str(cli.UserError("label 37", "a.png", "fix it")) == "label 37 at a.png; fix it"
