"""Careless and hostile input: each ends in one line that names the flag or the file, at once, and breaks nothing."""

import contextlib
import errno
import json
import os
import resource
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
from conftest import ROOT, TINY, center_hole, command, heed_sigint, images, one_line, run
from PIL import Image

import checkpoint
import utils
from completion import inputs, masks, output, search

SCRIPTS = ["align.py", "train-dcgan.py", "complete.py", "sample.py"]
FEW = ["--nIter", 1, "--candidates", 1]
NOISE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.fixture
def home(tmp_path):
    """`tmp_path` with what the flags below name: images, a model as far as its config, a loop of links and so on."""
    for folder in ("images", "empty", "model", "full"):
        (tmp_path / folder).mkdir()
    utils.write_image(tmp_path / "images/0.png", NOISE)
    for name in ("file", "model/ckpt-1.index", "full/file"):
        (tmp_path / name).touch()
    checkpoint.write_config(tmp_path / "model", {"architecture": {**TINY, "ema": 0.9}})
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
    ("{}", "train-dcgan.py"),
    ("null", "train-dcgan.py"),
    ("", "train-dcgan.py"),
    (" " * 2**16 + config(), "train-dcgan.py"),
    ('{"architecture": {"image_size": ' + "9" * 60_000 + "}}", "train-dcgan.py"),
]


@pytest.mark.parametrize("text, words", BAD_CONFIGS, ids=lambda value: value[-40:])
def test_a_bad_config_is_named_by_those_who_read_it(home, text, words):
    (home / "model/config.json").write_text(text)
    train = ["train-dcgan.py", "--dataset", "images"]
    for flags in (["complete.py", "images", "--checkpointDir"], [*train, "--checkpoint_dir"], [*train, "--init"]):
        line = one_line(run(*flags, "model", cwd=home, status=2), "error: model/config.json: ", words, "another model")
        assert len(line) < 300


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
        # limits; those of what config.json holds too are above
        ("train-dcgan.py --dataset images --gf_dim 10000", "--gf_dim 10000: such networks need"),
        ("train-dcgan.py --dataset images --df_dim 10000", "--df_dim 10000: such networks need"),
        ("train-dcgan.py --dataset images --gf_dim 3000 --z_dim 100000", "--z_dim 100000: such networks need"),
        ("train-dcgan.py --dataset images --ema 5", "--ema: '5' is not a number from 0 to 0.999999"),
        ("complete.py images --lam 1e38", "--lam: '1e38' is not a number from 0 to"),
        ("complete.py images --lr 1e39", "--lr: '1e39' is not a number above 0 to"),
        ("complete.py images --centerScale 25", "--centerScale: '25' is not a number from 0 to 1"),
        ("sample.py --count 100000", "--count: '100000' is not a whole number from 2 to 10000"),
        ("sample.py --seed -1", "--seed: '-1' is not a whole number from 0"),
        ("sample.py --arithmetic 1,-2 3 4", "--arithmetic: '-2' is not a whole number from 0"),
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
        ("train-dcgan.py --dataset loop", "--dataset loop: no such directory; give a folder of images"),
        ("train-dcgan.py --dataset images --init loop", "--init loop: holds no model; choose another directory"),
        ("train-dcgan.py --dataset images --checkpoint_dir loop", "--checkpoint_dir loop: cannot be written"),
        ("train-dcgan.py --dataset images --sample_dir images/x", "--sample_dir images/x: lies in images, among"),
        ("train-dcgan.py --dataset images --sample_dir loop", "--sample_dir loop: cannot be written"),
        ("train-dcgan.py --dataset images --log_dir loop", "--log_dir loop: cannot be written"),
        # a file where a folder is asked for, and the reverse
        ("complete.py images --checkpointDir model --mask images", "images: not a readable image (Is a directory)"),
        ("complete.py images --checkpointDir model --maskDir file", "--maskDir file: no such directory"),
        ("train-dcgan.py --dataset file", "--dataset file: is a file; give a folder of images"),
        ("sample.py --checkpointDir model --outDir full", "--outDir full: is not empty; choose another"),
    ],
)
def test_flags_that_cannot_be(home, line, words):
    one_line(run(*line.split(), cwd=home, status=2), words)
    assert sorted(path.name for path in (home / "images").iterdir()) == ["0.png"]


NO_UTF8 = os.fsdecode(b"x\xff")


def test_folders_that_tensorflow_cannot_name_are_refused(home):
    for line, words in (
        ("complete.py images --checkpointDir model --outDir", "--outDir x\\udcff: its name is no UTF-8; rename it"),
        ("sample.py --checkpointDir model --outDir", "--outDir x\\udcff: its name is no UTF-8"),
        ("export.py --checkpointDir model", "OUT x\\udcff: its name is no UTF-8"),
        ("train-dcgan.py --dataset images --checkpoint_dir", "--checkpoint_dir x\\udcff: its name is no UTF-8"),
        ("train-dcgan.py --dataset images --log_dir", "--log_dir x\\udcff: its name is no UTF-8"),
    ):
        one_line(run(*line.split(), NO_UTF8, cwd=home, status=2), words)
    (home / "model").rename(home / NO_UTF8)
    for line in ("complete.py images --checkpointDir", "train-dcgan.py --dataset images --init"):
        one_line(run(*line.split(), NO_UTF8, cwd=home, status=2), "error: x\\udcff: its name is no UTF-8")


# checkpoints


def test_a_config_of_far_larger_networks_than_the_checkpoint_holds_is_refused_before_they_are_built(home):
    (home / "model/config.json").write_text(config(gf_dim=4000))
    (home / "model/ckpt-1.data-00000-of-00001").write_bytes(b"0" * 55_000)
    for line in (
        "complete.py images --checkpointDir",
        "sample.py --checkpointDir",
        "train-dcgan.py --dataset images --checkpointDir",
        "train-dcgan.py --dataset images --init",
    ):
        done = run(*line.split(), "model", cwd=home, status=2)
        one_line(done, "model/ckpt-1: is too small, so its networks are not those of the config.json beside it")


def test_what_is_no_file_is_no_checkpoint(home):
    for name in ("ckpt-\u00b2.index", "DCGAN.model-\u00b2.index"):
        (home / "model" / name).touch()
    for name in ("ckpt-7.index", "DCGAN.model-8", "ckpt-1.data-00000-of-00001"):
        os.mkfifo(home / "model" / name)
    assert checkpoint.find(home / "model") == [str(home / "model/ckpt-1")]
    done = run("sample.py", "--checkpointDir", "model", cwd=home, status=2)
    line = "skipped model/ckpt-1: damaged (ckpt-1.data-00000-of-00001 is no file)"
    assert one_line(done, "model: holds no readable checkpoint") and line in done.stderr
    (home / "model/ckpt-1.index").unlink()
    one_line(run("sample.py", "--checkpointDir", "model", cwd=home, status=2), "--checkpointDir model: holds no model")
    os.mkfifo(home / "model/.lock")
    with pytest.raises(cli.UserError, match=r"model/\.lock: cannot be written"):
        checkpoint.lock(home / "model", "--checkpoint_dir")
    (home / "model/DCGAN.model-3.index").touch()
    os.mkfifo(home / "model/DCGAN.model-3.data-00000-of-00001")
    one_line(run("sample.py", "--checkpointDir", "model", cwd=home, status=2), "model/DCGAN.model-3: damaged")


# pictures


def test_pictures_that_would_fill_the_memory_are_refused(home):
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
        done = run("complete.py", f"{name}.png", "--checkpointDir", "model", cwd=home, status=2)
        one_line(done, f"IMAGE {name}.png: no image to complete")
        done = run("complete.py", "images", "--checkpointDir", "model", "--mask", f"{name}.png", cwd=home, status=2)
        one_line(done, f"error: --mask {name}.png: not a readable image")


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


def test_what_is_no_aligned_face_is_told_and_completed(trained, tmp_path):
    for name, size in (("in/faces/0.png", (32, 32)), ("in/faces/sub/wide.png", (30, 16)), ("in/large.png", (33, 33))):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "green").save(tmp_path / name)
    (tmp_path / "in/faces/loop.png").symlink_to("loop.png")  # is no file
    (tmp_path / "in/faces/up").symlink_to("..")
    flags = ["--checkpointDir", trained / "checkpoints/mine", *FEW]
    told = run("complete.py", "in/faces", *flags, "--outDir", "a", cwd=tmp_path).stderr
    assert told.startswith("in/faces/sub/wide.png: not an aligned face, it seems; --photo")
    (tmp_path / "in/faces/align.csv").touch()
    told = run("complete.py", "in", *flags, "--outDir", "b", cwd=tmp_path).stderr
    assert told.startswith("in/large.png: not an aligned face")
    assert len(os.listdir(tmp_path / "b/final")) == 3
    told = run("complete.py", "wide.png", *flags, "--outDir", tmp_path / "c", cwd=tmp_path / "in/faces/sub").stderr
    assert "aligned face" not in told


@pytest.mark.parametrize("letter", ["a", "\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_a_long_name_is_shortened(trained, tmp_path, letter):
    stem = letter * (250 // len(letter.encode()))
    utils.write_image(tmp_path / f"{stem}.png", NOISE)
    flags = ["--checkpointDir", trained / "checkpoints/mine", *FEW, "--samples", 2]
    run("complete.py", f"{stem}.png", *flags, cwd=tmp_path)
    names = sorted(path.name for path in (tmp_path / "completions/final").iterdir())
    assert names == [f"0000_{utils.shorten(stem)}_{i}.png" for i in range(2)]
    assert utils.shorten(stem) == stem[: 200 // len(letter.encode())]
    run("complete.py", "a" * 300, cwd=tmp_path, status=2)  # a name that no system takes


def test_many_samples_make_a_picture_one_can_look_at(trained, tmp_path):
    run("sample.py", "--checkpointDir", trained / "checkpoints/mine", "--count", 200, cwd=tmp_path)
    with Image.open(tmp_path / "samples-of-model/samples.png") as picture:
        assert picture.size == (14 * (64 + 4), 15 * (64 + 18))


# links, which lead where nothing is to be written


def test_a_link_is_replaced_or_refused_and_its_target_stays(trained, tmp_path):
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
    done = run("train-dcgan.py", *flags, cwd=tmp_path, status=2)
    one_line(done, "error: ck/best: does not lie in ck, or is a link; remove it, or choose another folder")
    (tmp_path / "ck/best").unlink()
    run("train-dcgan.py", *flags, cwd=tmp_path)
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
def test_a_full_disk_leaves_nothing_half_written(trained, tmp_path, size, script, name):
    flags = [trained / "images", *FEW] if script == "complete.py" else ["--count", 20]
    with disk_of(size):
        flags += ["--checkpointDir", trained / "checkpoints/mine", "--outDir", "out"]
        done = run(script, *flags, cwd=tmp_path, status=2)
    line = done.stderr.splitlines()[-1]  # after a progress bar
    assert line == f"{script}: error: out/{name}: cannot be written ({os.strerror(errno.EFBIG)})"
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
    batch = inputs.Images(range(1), [], [], np.zeros((1, 16, 16, 3), np.uint8), None)
    with pytest.raises(cli.UserError, match=f"--outDir {tmp_path}: another run writes there; choose another"):
        output.write_search((), batch, tmp_path, tmp_path / "record")
    assert os.listdir(tmp_path) == ["logs"]


# Ctrl-C, and no environment


@pytest.mark.parametrize("approach, heard", [("hmc", range(1, 46)), ("momentum", [20, 40, 45]), ("adam", [20, 40, 45])])
def test_ctrl_c_is_heard_during_a_search(tiny, approach, heard):
    told = []

    def finish(tell):
        options = dict(iterations=45, interval=45, candidates=1, hmc_l=1, progress=lambda done, total: tell(done))
        states = search.complete(tiny, images(1), center_hole(1), approach=approach, **options)
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
