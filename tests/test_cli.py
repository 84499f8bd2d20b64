"""The command line: recipes, options, errors, exit codes; the progress line, against a real pseudo-terminal."""

import errno
import fcntl
import os
import pty
import struct
import sys
import termios
import threading

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


# ---------------------------------------------------------------------------------------------------------------------
# Progress


class Clock:
    """time.monotonic that moves only when told."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(cli.time, "monotonic", lambda: self.now)


def test_progress_writes_few_plain_lines_to_a_pipe(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    progress = cli.Progress(600, "epoch 1/2")
    for step in range(1, 41):
        clock.now += 1
        progress.update(step * 10, loss=1 / step, miou=None)
    progress.close()
    progress.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "epoch 1/2  150/600 images  10/s  0:45 left  loss 0.06667  miou -",
        "epoch 1/2  300/600 images  10/s  0:30 left  loss 0.03333  miou -",
        "epoch 1/2  400/600 images  10/s  0:40 taken  loss 0.025  miou -",
    ]


def test_progress_counts_the_rate_from_where_it_resumed(capsys, monkeypatch):
    clock = Clock(monkeypatch)
    progress = cli.Progress(20000, "train", "steps", done=9000)
    clock.now += 20
    progress.update(9100)
    progress.close()
    assert capsys.readouterr().err.splitlines()[0] == "train  9100/20000 steps  5/s  36:20 left"
    cli.Progress(0, "nothing").close()
    assert capsys.readouterr().err == "nothing  0/0 images\n"


def in_terminal(monkeypatch, columns, job):
    """What `job` writes to a standard error that is a terminal of that many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    pieces = []

    def read():  # beside the job: a terminal holds only a few kilobytes
        while not pieces or b"END" not in pieces[-1]:
            pieces.append(os.read(master, 1 << 12))

    reader = threading.Thread(target=read)
    reader.start()
    with os.fdopen(slave, "w") as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        job()
        terminal.write("END")
        terminal.flush()
        reader.join(timeout=30)
    os.close(master)
    return b"".join(pieces).decode().removesuffix("END")


def test_progress_rewrites_one_line_on_a_terminal(monkeypatch):
    clock = Clock(monkeypatch)

    def job():
        progress = cli.Progress(100, "epoch 1/2")
        for done in range(1, 101):
            clock.now += 0.0625
            progress.update(done, loss=0.5, active_classes=11)
        progress.close()

    written = in_terminal(monkeypatch, 200, job)
    assert written.count("\n") == 1
    assert written.endswith("\n")
    states = written.split("\r")
    assert 45 <= len(states) <= 60  # ten times a second, not a hundred
    assert states[1] == "epoch 1/2  2/100 images  16/s  0:06 left  loss 0.5  active classes 11\x1b[K"
    assert "100/100 images  16/s  0:06 taken" in states[-2]
    narrow = in_terminal(monkeypatch, 30, job)
    assert all(len(state.replace("\x1b[K", "").strip()) <= 29 for state in narrow.split("\r"))
    assert "epoch 1/2" in in_terminal(monkeypatch, 0, job)  # some terminals report no width
