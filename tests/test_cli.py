"""The command line."""

import argparse
import runpy

import cli

import pytest
from conftest import ROOT


def test_number_bounds():
    share = cli.number(float, 0, 1, above=True)
    assert share("1") == 1.0 and share("0.5") == 0.5
    for text in ("0", "1.01", "nan", "inf", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="above 0 to 1"):
            share(text)
    for text in ("1.5", "1" * 400):
        with pytest.raises(argparse.ArgumentTypeError, match="whole"):
            cli.number(int, 1)(text)


SCRIPTS = {"align.py": ["a", "b"], "complete.py": ["a"], "export.py": ["a"], "paint.py": [], "sample.py": []}
SCRIPTS |= dict.fromkeys(["train-dcgan.py", "train-encoder.py", "train-refiner.py"], ["--dataset", "a"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_have_two_spellings_and_the_help_shows_one(monkeypatch, capsys, script):
    words = SCRIPTS[script]
    monkeypatch.setattr("sys.argv", [script, *words])
    parser, _ = runpy.run_path(str(ROOT / script))["parse_args"]()

    def outcome(flag, action):
        try:
            return parser.parse_args([*words, flag, *(["1"] if action.nargs is None else [])])
        except SystemExit:
            return capsys.readouterr().err

    others = {}
    for action in parser._actions:
        for flag in filter(lambda flag: cli.other_spelling(flag) != flag, action.option_strings):
            others[flag] = cli.other_spelling(flag)
            found = outcome(others[flag], action)
            assert found == outcome(flag, action) and "unrecognized" not in str(found)
    assert others and not [flag for flag in others.values() if f"{flag} " in parser.format_help()]


def test_a_flag_may_still_be_abbreviated():
    parser = cli.ArgumentParser()
    parser.add_argument_group("files").add_argument("--outDir")
    parser.add_mutually_exclusive_group().add_argument("--log_dir")
    for flags in ("--out=a --log=b", "--outDir a --logDir b", "--out_d a --log_dir b"):
        assert vars(parser.parse_args(flags.split())) == {"outDir": "a", "log_dir": "b"}


@pytest.mark.parametrize(
    "error, status, words",
    [
        (cli.UserError("--lr: is odd"), 2, "script: error: --lr: is odd\n"),
        (OSError(28, "No space left"), 2, "script: error: [Errno 28] No space left\n"),
        (KeyboardInterrupt(), 130, "script: stopped\n"),
    ],
)
def test_how_a_script_ends_early(capsys, error, status, words):
    def work(args):
        raise error

    with pytest.raises(SystemExit) as end:
        cli.ArgumentParser(prog="script").run(work, None)
    assert end.value.code == status and capsys.readouterr().err == words
