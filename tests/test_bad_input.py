"""Careless and hostile input: each ends in one line that names the flag or the file, at once, and breaks nothing.

Scripts run in this process where they can: TensorFlow's start takes seconds.
"""

import contextlib
import errno
import json
import os
import resource
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cli

import numpy as np
import pytest
from conftest import ROOT, TINY, center_hole, command, heed_sigint, images
from PIL import Image

import checkpoint
import complete
import utils
from completion import masks, search

SCRIPTS = ["align.py", "train-dcgan.py", "complete.py", "sample.py"]
FEW = ["--nIter", 1, "--candidates", 1]
NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """A function that runs a script in this process, in `tmp_path`: its exit status and lines of standard error."""
    monkeypatch.chdir(tmp_path)

    def call(script, *flags):
        monkeypatch.setattr(sys, "argv", [script, *map(str, flags)])
        try:
            status = runpy.run_path(str(ROOT / script))["main"]()
        except SystemExit as end:
            status = end.code
        return status, capsys.readouterr().err.strip().splitlines()

    return call


@pytest.fixture
def refusal(call):
    """A function that runs a script in this process, and returns the one line in which it refuses its flags."""

    def refusal(script, *flags):
        status, lines = call(script, *flags)
        assert status == 2 and lines[-1].startswith(f"{script}: error: "), lines
        assert all(line.startswith("skipped") for line in lines[:-1]), lines
        return lines[-1]

    return refusal


@pytest.fixture
def home(tmp_path):
    """`tmp_path` with what the flags below name: images, a model as far as its config, a loop of links and so on."""
    for folder in ("images", "empty", "model", "full"):
        (tmp_path / folder).mkdir()
    utils.write_image(tmp_path / "images/0.png", NOISE)
    for name in ("file", "model/ckpt-1.index", "full/file"):
        (tmp_path / name).touch()
    utils.write_json(tmp_path / "model/config.json", {"architecture": {**TINY, "ema": 0.9}})
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


@contextlib.contextmanager
def disk_of(size):
    """No file can be written beyond `size` bytes, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# a checkpoint directory's config.json, which may be anyone's


def config(**changes):
    """The text of a config.json with other values; None takes one away."""
    architecture, training = {**TINY, "ema": 0.9}, {"batch_size": 4, "learning_rate": 0.0002, "seed": 0}
    content = {"architecture": architecture, "training": training}
    for name, value in changes.items():
        part = architecture if name in architecture else training if name in checkpoint.TRAINING else content
        part[name] = value
        if value is None:
            del part[name]
    return json.dumps(content)


BAD_VALUES = {
    "image_size": [-64, 32.5, 2**20, 2**15, "64", True, [64]],
    "gf_dim": [0, float("nan"), 10**9, "8", True],
    "z_dim": [2**40, 10**400],
    "c_dim": [-3, 2, "3", True],
    "ema": [5, -0.1, "x", True],
    "weights": ["evil", 5, ["float32"], "x" * 1000],
    "batch_size": ["lots", 0, -4, 4.5, True],
    "learning_rate": [-1, 0, 1e20, True],
    "beta1": [1, float("inf")],
    "precision": ["evil", 5],
    "seed": ["x", -1, 2**40, True],
    "flip": [1, "False"],
}
BAD_CONFIGS = [(config(**{name: value}), name) for name, values in BAD_VALUES.items() for value in values]
BAD_CONFIGS += [
    (config(image_size=64, gf_dim=10**4), "gf_dim 10000: such networks need"),
    (config(architecture=None), "'architecture' is missing"),
    (config(z_dim=None), "'z_dim' is missing"),
    (config(training=5), "train-dcgan.py"),
    ("[" * 200_000, "train-dcgan.py"),
    ("[]", "train-dcgan.py"),
    ("null", "train-dcgan.py"),
    ("", "train-dcgan.py"),
    (" " * 2**16 + config(), "train-dcgan.py"),
    ('{"architecture": {"image_size": ' + "9" * 60_000 + "}}", "train-dcgan.py"),
]


@pytest.mark.parametrize("text, words", BAD_CONFIGS, ids=lambda value: value[-40:])
def test_a_bad_config_is_named_by_those_who_read_it(home, refusal, text, words):
    (home / "model/config.json").write_text(text)
    train = ["train-dcgan.py", "--dataset", "images"]
    for flags in (["complete.py", "images", "--checkpointDir"], [*train, "--checkpoint_dir"], [*train, "--init"]):
        line = refusal(*flags, "model")
        assert "error: model/config.json: " in line and words in line and "another model" in line and len(line) < 300


@pytest.mark.parametrize("make", [Path.exists, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_a_config_that_is_no_file_is_named(home, make):
    (home / "model/config.json").unlink()
    make(home / "model/config.json")
    with pytest.raises(cli.UserError, match="model/config.json: is not as train-dcgan.py writes it"):
        checkpoint.read_config(home / "model")


# flags


@pytest.mark.parametrize(
    "line, words",
    [
        # limits
        ("train-dcgan.py --dataset images --gf_dim 1000000000", "--gf_dim: '1000000000' is not a whole number from 1"),
        ("train-dcgan.py --dataset images --gf_dim 10000", "--gf_dim 10000: such networks need"),
        ("train-dcgan.py --dataset images --df_dim 10000", "--df_dim 10000: such networks need"),
        ("train-dcgan.py --dataset images --gf_dim 3000 --z_dim 100000", "--z_dim 100000: such networks need"),
        ("train-dcgan.py --dataset images --ema 5", "--ema: '5' is not a number from 0 to 0.999999"),
        ("train-dcgan.py --dataset images --learning_rate 1e20", "--learning_rate: '1e20' is not a number above 0 to"),
        ("complete.py images --lam 1e38", "--lam: '1e38' is not a number from 0 to"),
        ("complete.py images --lr 1e39", "--lr: '1e39' is not a number above 0 to"),
        # a loop of links
        ("complete.py loop --checkpointDir model", "IMAGE loop: no image to complete; see above"),
        ("complete.py images --checkpointDir model --mask loop", "loop: not a readable image (Too many levels of"),
        ("complete.py images --checkpointDir model --maskDir loop", "--maskDir loop: no such directory"),
        ("complete.py images --checkpointDir model --outDir loop", "--outDir loop: cannot be written"),
        ("complete.py images --checkpointDir model --outDir loop/x", "--outDir loop/x: cannot be written (Too many"),
        ("complete.py images --checkpointDir model --log_dir loop", "--log_dir loop: cannot be written"),
        ("complete.py images --checkpointDir loop", "--checkpointDir loop: holds no model"),
        ("sample.py --checkpointDir loop", "--checkpointDir loop: holds no model"),
        ("sample.py --checkpointDir model --outDir loop", "--outDir loop: cannot be written"),
        ("train-dcgan.py --dataset loop", "--dataset loop: no such directory"),
        ("train-dcgan.py --dataset images --init loop", "--init loop: holds no model"),
        ("train-dcgan.py --dataset images --checkpoint_dir loop", "--checkpoint_dir loop: cannot be written"),
        ("train-dcgan.py --dataset images --sample_dir loop", "--sample_dir loop: cannot be written"),
        ("train-dcgan.py --dataset images --log_dir loop", "--log_dir loop: cannot be written"),
        # what one gets wrong
        ("complete.py images --lam 0,1", "--lam: '0,1' is not a number"),
        ("complete.py images --centerScale 25", "--centerScale: '25' is not a number from 0 to 1"),
        ("complete.py images --maskType centre", "--maskType: invalid choice: 'centre'"),
        ("complete.py images --niter 5", "unrecognized arguments: --niter 5"),
        ("complete.py images --checkpointDir model --mask images", "images: not a readable image (Is a directory)"),
        (
            "complete.py images --checkpointDir model --maskDir images/0.png",
            "--maskDir images/0.png: no such directory",
        ),
        ("complete.py images --checkpointDir model --outDir file", "--outDir file: cannot be written"),
        ("sample.py model", "unrecognized arguments: model"),
        ("sample.py --count 6.5", "--count: '6.5' is not a whole number from 2 to 10000"),
        ("sample.py --count 100000", "--count: '100000' is not a whole number from 2 to 10000"),
        ("sample.py --seed -1", "--seed: '-1' is not a whole number from 0"),
        ("sample.py --arithmetic 1,-2 3 4", "--arithmetic: '-2' is not a whole number from 0"),
        ("sample.py --checkpointDir model --outDir full", "--outDir full: is not empty; choose another"),
        ("train-dcgan.py --dataset images/0.png", "--dataset images/0.png: no such directory; give a folder of images"),
        ("train-dcgan.py --dataset images --epochs 5", "unrecognized arguments: --epochs 5"),
        ("train-dcgan.py --dataset images --batch_size 64.0", "--batch_size: '64.0' is not a whole number from 1"),
        ("train-dcgan.py --dataset images --precision float16", "--precision: 'float16' is not one of auto, float32"),
        ("train-dcgan.py --dataset images --init empty", "--init empty: holds no model; choose another directory"),
        ("train-dcgan.py --dataset images --log_dir file", "--log_dir file: cannot be written"),
    ],
)
def test_flags_that_cannot_be(home, refusal, line, words):
    assert words in refusal(*line.split())
    assert sorted(path.name for path in (home / "images").iterdir()) == ["0.png"]


# pictures


def test_pictures_that_would_fill_the_memory_are_refused(home, refusal):
    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    for name, side, text in (("wide", 2**31 - 1, b""), ("note", 16, b"0" * 10**7)):
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        rest = chunk(b"zTXt", b"a\0\0" + zlib.compress(text)) + chunk(b"IDAT", zlib.compress(b"\0" * 49 * 16))
        (home / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + rest)
    with open(home / "text.png", "wb") as file:
        file.write(b"this is no image")
        file.truncate(2 * 10**8)
    for name in ("wide", "note", "text"):
        line = refusal("complete.py", f"{name}.png", "--checkpointDir", "model")
        assert f"IMAGE {name}.png: no image to complete" in line
        line = refusal("complete.py", "images", "--checkpointDir", "model", "--mask", f"{name}.png")
        assert f"error: {name}.png: not a readable image" in line


def test_a_mask_of_one_endless_row_is_laid_over_the_photo():
    """Only what lies over the photo's centred square is made as large as the photo."""
    hidden = np.zeros((1, 10**7), bool)
    assert masks.fit_hidden(hidden, 64, 1000).all()
    hidden[0, 5 * 10**6] = True
    assert not masks.fit_hidden(hidden, 64, 1000).all()
    for short, side in ((3, 50), (3, 2), (40, 64)):
        hidden = np.random.default_rng(0).random((short, 21 * short)) < 0.05
        middle = hidden[:, 8 * short : 13 * short]
        np.testing.assert_array_equal(masks.fit_hidden(hidden, 32, side), masks.fit_hidden(middle, 32, side))
        np.testing.assert_array_equal(masks.fit_hidden(hidden.T, 32, side), masks.fit_hidden(middle.T, 32, side))


def test_what_is_no_aligned_face_is_told_and_completed(trained, tmp_path, call):
    for name, size in (("in/faces/0.png", (32, 32)), ("in/faces/sub/wide.png", (30, 16)), ("in/large.png", (33, 33))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "green").save(tmp_path / name)
    (tmp_path / "in/faces/loop.png").symlink_to("loop.png")  # is no file
    (tmp_path / "in/faces/up").symlink_to("..")
    flags = ["--checkpointDir", trained / "checkpoints/mine", *FEW]
    status, lines = call("complete.py", "in/faces", *flags, "--outDir", "a")
    assert not status and lines[0].startswith("in/faces/sub/wide.png: not an aligned face, it seems; --photo")
    (tmp_path / "in/faces/align.csv").touch()
    status, lines = call("complete.py", "in", *flags, "--outDir", "b")
    assert not status and lines[0].startswith("in/large.png: not an aligned face")
    assert len(os.listdir(tmp_path / "b/final")) == 3
    os.chdir(tmp_path / "in/faces/sub")
    status, lines = call("complete.py", "wide.png", *flags, "--outDir", tmp_path / "c")
    assert not status and "aligned face" not in "".join(lines)


@pytest.mark.parametrize("letter", ["a", "\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_a_long_name_is_shortened(trained, tmp_path, call, letter):
    stem = letter * (250 // len(letter.encode()))
    utils.write_image(tmp_path / f"{stem}.png", NOISE)
    flags = ["--checkpointDir", trained / "checkpoints/mine", *FEW, "--samples", 2]
    assert not call("complete.py", f"{stem}.png", *flags)[0]
    names = sorted(path.name for path in (tmp_path / "completions/final").iterdir())
    assert names == [f"0000_{utils.shorten(stem)}_{i}.png" for i in range(2)]
    assert utils.shorten(stem) == stem[: 200 // len(letter.encode())]
    assert call("complete.py", "a" * 300)[0] == 2  # a name that no system takes


def test_many_samples_make_a_picture_one_can_look_at(trained, tmp_path, call):
    assert not call("sample.py", "--checkpointDir", trained / "checkpoints/mine", "--count", 200)[0]
    with Image.open(tmp_path / "samples-of-model/samples.png") as picture:
        assert picture.size == (14 * (64 + 4), 15 * (64 + 18))


# links, which lead where nothing is to be written


@pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")  # the lock's file stays open
def test_a_link_is_replaced_or_refused_and_its_target_stays(trained, tmp_path, call, refusal):
    shutil.copytree(trained / "checkpoints/mine", tmp_path / "ck")
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/grid").write_text("kept")
    for name in ("config.json", "best"):
        (tmp_path / "ck" / name).rename(tmp_path / "targets" / name)
    links = {"ck/config.json": "config.json", "ck/best": "best", "ck/ckpt-5_temp": "best", "s/ck_000014.png": "grid"}
    (tmp_path / "s").mkdir()
    for link, target in links.items():
        (tmp_path / link).symlink_to(tmp_path / "targets" / target)

    def targets():
        return {path: path.read_bytes() for path in (tmp_path / "targets").rglob("*") if path.is_file()}

    before = targets()
    flags = ["--dataset", trained / "images", "--epoch", 7, "--checkpoint_dir", "ck", "--sample_dir", "s"]
    line = refusal("train-dcgan.py", *flags)
    assert "error: ck/best: does not lie in ck, or is a link; remove it, or choose another folder" in line
    (tmp_path / "ck/best").unlink()
    assert call("train-dcgan.py", *flags)[0] == 0
    assert targets() == before and len(before) > 3
    assert [(tmp_path / link).is_symlink() for link in links] == [False] * 4
    assert [(tmp_path / link).exists() for link in links] == [True, True, False, True]


@pytest.mark.parametrize("target", ["file", "nowhere", "empty"])
def test_a_lock_that_is_a_link_is_refused(home, target):
    (home / "file").write_text("kept")
    (home / "model/.lock").symlink_to(home / target)
    with pytest.raises(cli.UserError, match=r"model/\.lock: .* is a link; remove it"):
        checkpoint.lock(home / "model", "--checkpoint_dir")
    assert (home / "file").read_text() == "kept" and not (home / "nowhere").exists()


# a full disk, and another run


@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "size, script, name",
    [
        (1000, "complete.py", "before.png"),
        (20_000, "complete.py", "completion.gif"),
        (1000, "sample.py", "samples.png"),
        (45_000, "sample.py", "interpolations.png"),
    ],
)
def test_a_full_disk_leaves_nothing_half_written(trained, tmp_path, call, size, script, name):
    flags = [trained / "images", *FEW] if script == "complete.py" else ["--count", 20]
    with disk_of(size):
        status, lines = call(script, *flags, "--checkpointDir", trained / "checkpoints/mine", "--outDir", "out")
    assert status == 2 and lines[-1] == f"{script}: error: out/{name}: cannot be written ({os.strerror(errno.EFBIG)})"
    written = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert all(path.stat().st_size and not path.name.startswith(".") for path in written)
    assert name not in {path.name for path in written}


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_what_cannot_be_written_leaves_the_old_file(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises((cli.UserError, KeyboardInterrupt)) as told, utils.atomic_write(tmp_path / "a.txt", "x") as file:
        file.write("new")
        raise error
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    assert isinstance(error, KeyboardInterrupt) or "a.txt: cannot be written (No space left)" in str(told.value)
    with disk_of(0), pytest.raises(cli.UserError, match="b.txt: cannot be written"):
        utils.append(tmp_path / "b.txt", "line\n")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_two_runs_in_one_folder(tmp_path):
    (tmp_path / "logs").mkdir()
    with pytest.raises(cli.UserError, match=f"--outDir {tmp_path}: another run writes there; choose another"):
        complete.follow((), images(1), None, tmp_path, tmp_path / "record", None)
    assert os.listdir(tmp_path) == ["logs"]


# Ctrl-C, and no environment


@pytest.mark.parametrize("approach, heard", [("hmc", range(1, 46)), ("momentum", [20, 40, 45]), ("adam", [20, 40, 45])])
def test_ctrl_c_is_heard_during_a_search(tiny_dcgan, approach, heard):
    told = []

    def finish(tell):
        options = dict(iterations=45, interval=45, candidates=1, hmc_l=1, progress=lambda done, total: tell(done))
        states = search.complete(tiny_dcgan(), images(1), center_hole(1), approach=approach, **options)
        return [state.iteration for state in states]

    def stop(done):
        raise KeyboardInterrupt

    assert finish(told.append) == [0, 45] and told == list(heard)
    with pytest.raises(KeyboardInterrupt):
        finish(stop)


@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_packages_are_imported(tmp_path, script):
    """A module that calls itself numpy presses it."""
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass")
    options = dict(env={**os.environ, "PYTHONPATH": str(tmp_path)}, preexec_fn=heed_sigint)
    done = subprocess.run(command(script, "--help"), capture_output=True, text=True, **options)
    assert done.stderr == f"{script}: stopped\n" and done.returncode == -signal.SIGINT


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_environment_is_one_line(script):
    """Without `site` Python finds no packages."""
    start = [sys.executable, "-E", "-S", ROOT / script, "--help"]
    done = subprocess.run(start, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"{script}: error: the package ") and done.stderr.count("\n") == 1
    assert " is not installed; activate the virtual environment (. .venv/bin/activate), or pip install" in done.stderr
