"""The command line that all scripts share.

A script builds a `Parser`, lets each module add its own group of flags, and runs its `main` through `run`, which
turns a user's mistake into one line on standard error and exit code 2. A recipe is a file of flags read with
`@recipes/camvid.args`; a flag typed by hand beats the recipe wherever the recipe stands.

Exit codes: 0 fine; 1 a fault was found or the run went wrong; 2 the user's input is wrong; 130/143 interrupted.
"""

import argparse
import difflib
import errno
import numbers
import os
import shlex
import sys
import time


class UserError(ValueError):
    """A mistake the user can mend. Its text is the line printed after `error: `.

    what: what is wrong, with the offending value; where: file, flag or folder; remedy: what to do about it.
    """

    def __init__(self, what, where=None, remedy=None):
        super().__init__(what + (f" at {where}" if where else "") + (f"; {remedy}" if remedy else ""))


def warn(text):
    """Print one warning line on standard error."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def nearest(word, known):
    """The hint that ends an error about an unknown name: the closest known one, then all of them."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return (f"did you mean {close[0]!r}? " if close else "") + "known: " + ", ".join(known)


# ---------------------------------------------------------------------------------------------------------------------
# Values


def size(text):
    """'240x320' -> [240, 320], height × width in pixels."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write height x width in pixels, like 240x320")
    return [int(height), int(width)]


def positive_int(text):
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def natural(text):
    """A whole number of at least 0."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def non_negative(text):
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def names(text):
    """'cow, sheep' -> ['cow', 'sheep']; nothing for an empty text."""
    return [name.strip() for name in text.split(",") if name.strip()]


def _convert(text, default, option):
    """Read an option's text as the type of its default; a list is written 'a:b'."""
    try:
        if isinstance(default, bool):
            return {"on": True, "off": False}[text]
        if isinstance(default, list):
            return [float(part) for part in text.split(":")]
        return type(default)(text)
    except (ValueError, KeyError):
        kind = "on or off" if isinstance(default, bool) else f"like {default}"
        raise UserError(f"option {option}={text!r} cannot be read", remedy=f"write it {kind}") from None


def parse_items(text, known):
    """Read 'flip=0.5,scale=0.5:2' into {name: value}.

    text: comma-separated NAME=VALUE, 'none' for nothing. known: {name: default}; the default's type says how the value
    is read, and a bare NAME takes the default.
    Raises UserError for an unknown name (with the nearest known one), a repeated one or an unreadable value.
    """
    items = {}
    for part in filter(None, (part.strip() for part in ("" if text == "none" else text).split(","))):
        name, equals, value = part.partition("=")
        if name not in known:
            raise UserError(f"unknown option {name!r}", f"{text!r}", nearest(name, known))
        if name in items:
            raise UserError(f"option {name!r} given twice", f"{text!r}", "keep one of the two")
        items[name] = _convert(value, known[name], name) if equals else known[name]
    return items


def parse_choice(text, known):
    """Read 'fpn_mobilenet_v2:channels=96' into ('fpn_mobilenet_v2', {'channels': 96, …}).

    known: {choice: {option: default}}; options not written keep their default.
    Raises UserError for an unknown choice or option.
    """
    name, _, options = text.partition(":")
    if name not in known:
        raise UserError(f"unknown choice {name!r}", remedy=nearest(name, known))
    return name, {**known[name], **parse_items(options, known[name])}


# ---------------------------------------------------------------------------------------------------------------------
# Parser


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The script's own text as it was written, one line a flag with its default."""


class Parser(argparse.ArgumentParser):
    """An argument parser with recipes, exact flag names, and errors as `UserError`.

    After parsing, `given` holds the names of all flags that a recipe or the user set, `typed` those set by hand.
    """

    def __init__(self, description):
        super().__init__(description=description, formatter_class=_Help, allow_abbrev=False)
        self.given, self.typed = set(), set()

    def error(self, message):
        raise UserError(message.replace("argument ", "", 1), remedy="--help lists the flags")

    def parse_args(self, args=None, namespace=None):
        """Parse, recipes first, so that what was typed by hand wins."""
        words = list(sys.argv[1:] if args is None else args)
        typed = [word for word in words if not word.startswith("@")]
        recipe = [flag for word in words if word.startswith("@") for flag in read_recipe(word[1:])]
        parsed, unknown = self.parse_known_args(recipe + typed, namespace)
        if unknown:
            flags = sorted(flag for flag in self._option_string_actions if flag.startswith("--"))
            raise UserError(f"unknown flag {unknown[0]!r}", remedy=nearest(unknown[0].partition("=")[0], flags))
        self.typed = self._names(typed)
        self.given = self.typed | self._names(recipe)
        return parsed

    def _names(self, words):
        actions = (self._option_string_actions.get(word.partition("=")[0]) for word in words)
        return {action.dest for action in actions if action}


def read_recipe(path):
    """The flags in a recipe file, read line by line as a shell would: quotes hold, `#` starts a comment."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = file.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read recipe ({error.__class__.__name__})", path, "recipes are in recipes/") from None
    words = []
    for number, line in enumerate(lines, 1):
        try:
            words += shlex.split(line, comments=True)
        except ValueError as error:
            raise UserError(f"recipe line cannot be read ({error})", f"{path}:{number}", "close the quote") from None
    return words


# ---------------------------------------------------------------------------------------------------------------------
# Progress


def _clock(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def figure_text(value):
    """A figure for the terminal: four digits of a real number, a whole one as it is, '-' for None."""
    if value is None:
        return "-"
    real = isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral)
    return f"{value:.4g}" if real else str(value)


class Progress:
    """How far a long job is, on standard error.

    On a terminal one line that rewrites itself up to ten times a second; elsewhere a plain line at most every 15
    seconds, and one at the end. `contextlib.closing` ends the line when the job fails half-way.
    total: number of units in the whole job; done: how many of them an earlier run did.
    """

    def __init__(self, total, label, unit="images", done=0):
        self.total, self.label, self.unit = total, label, unit
        self.first = self.done = done
        self.figures = {}
        self.start = self.last = time.monotonic()
        self.live = sys.stderr.isatty()

    def update(self, done, **figures):
        """`done` units of the total are finished; figures are printed by their names."""
        self.done, self.figures = done, figures
        now = time.monotonic()
        if now - self.last >= (0.1 if self.live else 15):
            self._print(now)

    def close(self):
        """Print the last state, the time taken in place of the time left, and end the line."""
        if self.start is not None:
            self._print(time.monotonic(), end=True)
            self.start = None

    def _line(self, now, end):
        seconds, new = now - self.start, self.done - self.first
        parts = [self.label, f"{self.done}/{self.total} {self.unit}"]
        if new > 0 and seconds > 0:
            rate = new / seconds
            left = max(self.total - self.done, 0) / rate
            parts += [f"{rate:.3g}/s", f"{_clock(seconds)} taken" if end else f"{_clock(left)} left"]
        return "  ".join(
            parts + [f"{name.replace('_', ' ')} {figure_text(value)}" for name, value in self.figures.items()]
        )

    def _print(self, now, end=False):
        line = self._line(now, end)
        self.last = now
        if self.live:
            line = "\r" + line[: _columns() - 1] + "\x1b[K"  # a full line would wrap and could not be rewritten
        sys.stderr.write(line + ("\n" if end or not self.live else ""))
        sys.stderr.flush()


def _columns():
    """Width of the terminal on standard error; some report 0."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


# ---------------------------------------------------------------------------------------------------------------------
# Running a script


# What the user can do about an operating system's refusal; any other OSError is a bug and keeps its traceback.
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space, or write elsewhere"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a place that you may write to"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG), "choose another folder"),
}


def _out_of_memory(error):
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "can't allocate" in str(error)


def run(main):
    """Run a script's main and return its exit code; a user's mistake is one line, not a traceback."""
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:  # the loss is not finite
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        where = f" at {error.filename}" if error.filename else ""
        print(f"error: {error.strerror}{where}; {REMEDIES[error.errno]}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not _out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        print(f"error: out of memory ({reason}); try a smaller --batch-size or --image-size", file=sys.stderr)
        return 1
