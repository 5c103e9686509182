"""The command line."""

import argparse

import cli

import pytest


def test_number_bounds():
    share = cli.number(float, 0, 1, above=True)
    assert share("1") == 1.0 and share("0.5") == 0.5
    for text in ("0", "1.01", "nan", "inf", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="above 0 to 1"):
            share(text)
    with pytest.raises(argparse.ArgumentTypeError, match="whole"):
        cli.number(int, 1)("1.5")
    with pytest.raises(argparse.ArgumentTypeError, match="whole"):
        cli.number(int, 1)("1" * 400)


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
