"""The command line: the parser, errors in one line, signals, and a quiet start of TensorFlow.

Scripts import it first. It needs no package, so that a missing one, or Ctrl-C during imports, ends in one line too.
"""

import argparse
import contextlib
import logging
import math
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

VERBOSE = "TF_CPP_MIN_LOG_LEVEL" in os.environ  # the user wants to see TensorFlow's log


class UserError(Exception):
    """A mistake a user can correct; its message is one line that names the flag or file and says what to do."""


@contextlib.contextmanager
def named(flag):
    """Put a flag before the message of a UserError that is raised inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{flag} {error}") from error


def end_in_one_line(kind, error, trace):
    """The `sys.excepthook` that reports Ctrl-C, and a package that is not installed, without a traceback."""
    script = Path(sys.argv[0]).name
    if issubclass(kind, KeyboardInterrupt):
        print(f"{script}: stopped", file=sys.stderr)
    elif issubclass(kind, ModuleNotFoundError):
        advice = "activate the virtual environment (. .venv/bin/activate), or pip install -r requirements.txt in one"
        print(f"{script}: error: the package {error.name} is not installed; {advice}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.__excepthook__(kind, error, trace)


if os.path.dirname(os.path.realpath(sys.argv[0])) == os.path.dirname(os.path.realpath(__file__)):  # a script of ours
    sys.excepthook = end_in_one_line


def other_spelling(flag):
    """--outDir of --out_dir, and --out_dir of --outDir."""
    snake = re.sub("[A-Z]", lambda letter: f"_{letter[0].lower()}", flag)
    return re.sub("_([a-z])", lambda match: match[1].upper(), flag) if snake == flag else snake


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, but an error is one line without the usage text, and a flag has two spellings.

    The one that it is added with is documented; its `other_spelling` means the same. The exit status stays 2.
    """

    def parse_known_args(self, args=None, namespace=None):
        for flag, action in [*self._option_string_actions.items()]:
            self._option_string_actions.setdefault(other_spelling(flag), action)
        return super().parse_known_args(args, namespace)

    def _get_option_tuples(self, option_string):
        """What a flag may abbreviate; both spellings of one are no ambiguity."""
        return [*{id(found[0]): found for found in super()._get_option_tuples(option_string)}.values()]

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def run(self, work, args):
        """Do `work(args)` and return its exit status; a UserError ends the script by `error`."""
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: names of files may be no UTF-8
        for action in self._actions:  # an empty value comes from a shell variable that is not set
            value = getattr(args, action.dest, None)
            if "" in (value if isinstance(value, list) else [value]):
                self.error(f"{'/'.join(action.option_strings) or action.metavar}: is empty")
        try:
            return work(args)
        except (UserError, OSError) as error:
            self.error(str(error))
        except KeyboardInterrupt:
            self.exit(130, f"{self.prog}: stopped\n")


def number(kind, low, high=math.inf, above=False):
    """An argparse `type` for an `int` or `float` from `low` (or `above` it) to `high`."""

    def parse(text):
        with contextlib.suppress(ValueError, OverflowError):  # the latter for whole numbers that no float can hold
            value = kind(text)
            if math.isfinite(value) and low <= value <= high and not (above and value == low):
                return value
        limits = f"{'above' if above else 'from'} {low}" + (f" to {high}" if high < math.inf else "")
        raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if kind is int else ''}number {limits}")

    return parse


def one_of(*options):
    """An argparse `type` for one of `options`, of any type."""
    texts = {str(option): option for option in options}

    def parse(text):
        if text not in texts:
            raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(texts)}")
        return texts[text]

    return parse


def reason(error):
    """The first line of an exception's message, without the name of TensorFlow's node."""
    return (str(getattr(error, "message", error)).splitlines() or [type(error).__name__])[0].split("}} ")[-1]


@contextlib.contextmanager
def redirect_errors(file):
    """Write to a binary file what this process writes to standard error inside this, C and C++ code included."""
    stderr = os.dup(2)
    os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


@contextlib.contextmanager
def quiet_tensorflow():
    """Import TensorFlow and list its devices inside this: what it logs at its start is held back.

    It is shown after all if the block fails, or if the user has set TF_CPP_MIN_LOG_LEVEL.
    """
    show = VERBOSE
    if "tensorflow" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    with tempfile.TemporaryFile() as log:
        try:
            with redirect_errors(log):  # the messages come from C++ before its logging is set up
                yield
        except UserError:
            raise
        except Exception:
            show = True
            raise
        finally:
            if show:
                log.seek(0)
                sys.stderr.write(log.read().decode(errors="replace"))


@contextlib.contextmanager
def deferred_signals():
    """Yield a list that collects SIGINT, SIGTERM and SIGHUP, so that a loop can leave at a safe place."""
    received, before = [], {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup asks
            before[number] = signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
