"""train-dcgan.py as a user runs it, on a tiny network."""

import json
import resource
import shutil
import signal
import subprocess
import time

import cli

import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY_FLAGS, command, events, heed_sigint, one_line, run
from PIL import Image
from tensorflow.python.util import _pywrap_determinism

import checkpoint
import ops
from model import DCGAN
from training import runs

MINE = "checkpoints/mine"


def checkpoint_step(directory):
    return int((directory / "checkpoint").read_text().split('"')[1].removeprefix("ckpt-"))


def test_training_leaves_a_model_samples_and_a_record(trained):
    config = json.loads((trained / MINE / "config.json").read_text())
    assert config["architecture"] == dict(image_size=16, c_dim=3, z_dim=5, gf_dim=8, df_dim=8, ema=0.9)
    assert checkpoint_step(trained / MINE) == 12
    samples = sorted((trained / "samples").iterdir())
    assert [p.name for p in samples] == ["mine_000001.png", "mine_000012.png"]
    with Image.open(samples[0]) as image:
        assert image.size == (8 * 16, 8 * 16)

    (log,) = (trained / "logs").glob("mine-*")
    record = events(log)
    scalars = {"d_loss", "d_loss_real", "d_loss_fake", "g_loss", "images_per_second"}
    scalars |= {f"{name}/{net}" for name in ("swd", "ms_ssim") for net in ("generator", "averaged")}
    scalars |= {"swd/generator_16", "swd/averaged_16"}
    assert scalars | {"z", "d", "d_", "G"} <= set(record.Tags()["tensors"])
    assert record.Tags()["graph"]
    plugins = {tag: record.SummaryMetadata(tag).plugin_data.plugin_name for tag in ("g_loss", "d", "G")}
    assert plugins == {"g_loss": "scalars", "d": "histograms", "G": "images"}
    assert [e.step for e in record.Tensors("g_loss")] == [10]
    (event,) = record.Tensors("swd/averaged")
    best = json.loads((trained / MINE / "best/config.json").read_text())
    assert best["swd"] == pytest.approx(tf.make_ndarray(event.tensor_proto)) and best["step"] == event.step == 12
    assert DCGAN.load(trained / MINE / "best").step == 12


def test_a_resumed_run_keeps_what_the_model_was_trained_with(trained, tmp_path, idle_step):
    flags = ["train-dcgan.py", "--dataset", trained / "images", "--checkpoint_dir", "ck"]
    done = run(*flags, *TINY_FLAGS, "--epoch", 1, "--learning_rate", 0.001, cwd=tmp_path)
    assert "1 of 1 epochs done, step 2;" in done.stdout
    # what a killed save left is cleared away
    (tmp_path / "ck/ckpt-4_temp").mkdir()
    (tmp_path / "ck/ckpt-4_temp/part-00000-of-00001.data-00000-of-00001").write_text("half")
    (tmp_path / "ck/ckpt-3.data-00000-of-00001").write_text("moved, but the index was not")
    shutil.rmtree(tmp_path / "logs")
    done = run(*flags, "--epoch", 3, cwd=tmp_path)
    assert "ck: resumes from step 2" in done.stdout
    assert "3 of 3 epochs done, step 6;" in done.stdout and "recognisable faces" not in done.stdout
    assert {path.name.split(".")[0] for path in (tmp_path / "ck").glob("ckpt-*")} == {"ckpt-0", "ckpt-2", "ckpt-6"}
    training = json.loads((tmp_path / "ck/config.json").read_text())["training"]
    assert training["batch_size"] == 4 and training["learning_rate"] == 0.001
    (log,) = (tmp_path / "logs").iterdir()
    (event,) = events(log).Tensors("run")
    assert event.step == 2 and b"resumes from step 2" in tf.make_ndarray(event.tensor_proto).item()
    # nothing is left to do, and nothing is done
    done = run(*flags, "--epoch", 3, cwd=tmp_path)
    assert "3 of 3 epochs done, step 6;" in done.stdout and list((tmp_path / "logs").iterdir()) == [log]
    # all ten images are one batch where 64 are asked for
    done = run(*flags, "--epoch", 5, "--batch_size", 64, cwd=tmp_path)
    assert "5 of 5 epochs done, step 8;" in done.stdout


def test_a_full_disk_stops_the_run_in_one_line(trained, tmp_path, idle_step):
    """A limit on the size of files stands for it: the system refuses to write on in the same way."""
    shutil.copytree(trained / MINE, tmp_path / "ck")
    files = sorted((tmp_path / "ck").glob("ckpt-*"))
    flags = ["--dataset", trained / "images", "--epoch", 7, "--checkpoint_dir", "ck"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        done = run("train-dcgan.py", *flags, cwd=tmp_path, status=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "error: ck: step 14 could not be saved (" in done.stderr.splitlines()[-1]
    assert sorted((tmp_path / "ck").glob("ckpt-*")) == files
    assert DCGAN.load(tmp_path / "ck").step == 12


def test_a_run_with_a_name_as_long_as_the_system_takes(trained, tmp_path, idle_step):
    for name in ("a" + "\u00e9" * 124, "\u3042" * 84):
        flags = ["--dataset", trained / "images", *TINY_FLAGS, "--epoch", 1, "--checkpoint_dir", name]
        run("train-dcgan.py", *flags, cwd=tmp_path)
        cut = name.encode()[:200].decode(errors="ignore")
        assert (tmp_path / f"samples/{cut}_000001.png").exists() and list(tmp_path.glob(f"logs/{cut}-*/*"))


def test_two_runs_keep_out_of_each_others_way(trained, tmp_path):
    with checkpoint.lock(tmp_path, "--checkpoint_dir"):
        flags = ["--dataset", trained / "images", "--checkpoint_dir", tmp_path]
        one_line(run("train-dcgan.py", *flags, cwd=tmp_path, status=2), f"--checkpoint_dir {tmp_path}: another process")


@pytest.fixture
def determinism_ends():
    """TensorFlow has no public way back."""
    yield
    _pywrap_determinism.enable(False)


def test_deterministic_runs_end_bitwise_identical(trained, tmp_path, determinism_ends):
    flags = ["--dataset", trained / "images", *TINY_FLAGS, "--ema", 0.9, "--flip", "--deterministic"]
    flags += ["--eval_every", 4]
    for name, epochs in (("whole", [4]), ("parts", [3, 4])):
        for epoch in epochs:
            run("train-dcgan.py", *flags, "--epoch", epoch, "--checkpoint_dir", name, cwd=tmp_path)
    whole, parts = (tf.train.load_checkpoint(str(tmp_path / name / "ckpt-8")) for name in ("whole", "parts"))
    names = set(whole.get_variable_to_shape_map()) - {"save_counter/.ATTRIBUTES/VARIABLE_VALUE"}
    assert len(names) > 50
    for name in names - {"_CHECKPOINTABLE_OBJECT_GRAPH"}:
        np.testing.assert_array_equal(whole.get_tensor(name), parts.get_tensor(name), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train-dcgan.py", "train-encoder.py"])
def test_ctrl_c_saves_and_leaves(trained, tmp_path, script):
    flags = ["--dataset", trained / "images", "--batch_size", 4]
    if script == "train-dcgan.py":
        flags += TINY_FLAGS
    else:
        shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    process = subprocess.Popen(
        command(script, *flags, "--epoch", 100000),
        cwd=tmp_path, stdout=subprocess.PIPE, text=True, preexec_fn=heed_sigint,
    )  # fmt: skip
    while not list(tmp_path.glob("samples/*.png")):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGINT and time.monotonic() - asked < 15
    step = checkpoint_step(tmp_path / MINE / ("encoder" if "encoder" in script else ""))
    assert f"epochs done, step {step}; stopped; the same command resumes there" in out
    epoch = step // 2 + 2
    assert f"epochs done, step {epoch * 2}; a higher" in run(script, *flags, "--epoch", epoch, cwd=tmp_path).stdout


def test_training_does_what_its_flags_say(trained, tmp_path, monkeypatch):
    flags = "--epoch 9 --train_size 6 --cache_mb 0 --eval_every 5 --jit_compile --precision mixed_bfloat16".split()
    flags += "--learning_rate 0.1 --beta1 0.2 --seed 3 --flip --sample_dir s --log_dir l".split()
    (tmp_path / "s").mkdir()
    (tmp_path / "s/mine_2_000001.png").touch()  # of another run, and not in the way of mine_000001.png
    given = {}

    class Run:
        epoch = 0

        def __init__(self, dcgan, images, **options):
            given.update(options, dcgan=dcgan, images=images)

        def finish(self):
            """Leaves out the training."""
            return 0

    monkeypatch.setattr(runs, "GANRun", Run)
    run("train-dcgan.py", "--dataset", trained / "images", *TINY_FLAGS, *flags, cwd=tmp_path)
    dcgan, images, team = given.pop("dcgan"), given.pop("images"), given.pop("team")
    assert given == dict(
        epoch=9, batch_size=4, learning_rate=0.1, beta1=0.2, seed=3, flip=True, eval_every=5, jit_compile=True,
        checkpoint_dir=MINE, sample_dir="s", log_dir="l",
    )  # fmt: skip
    assert dcgan.precision == "mixed_bfloat16" and dcgan.ema == 0.999 and len(images) == 6 and images.images is None
    assert team.count == 1 and team.chief


@pytest.mark.parametrize(
    "error, reason",
    [
        (tf.errors.ResourceExhaustedError(None, None, "{{function_node x}} No space left\nmore"), "No space left"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_too_little_memory_or_disk_is_one_line(error, reason):
    with pytest.raises(cli.UserError) as told, ops.memory_and_disk("--batchSize"):
        raise error
    assert str(told.value) == f"--batchSize: too little memory, or a full disk ({reason})"


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--dataset", "empty"], ["--dataset empty: holds no images (.avif, .bmp, "]),
        (["--dataset", "broken"], ["--dataset broken", "none of its 1 images"]),
        (["--dataset", "images", "--checkpoint_dir", "file/ck"], ["--checkpoint_dir file/ck", "cannot be written"]),
        (["--dataset", ""], ["--dataset: is empty"]),
        (["--dataset", "images", "--sample_dir", "taken", "--checkpoint_dir", "x/mine"], ["--sample_dir taken"]),
        (["--dataset", "images", "--z_dim", "7", "--checkpoint_dir", "mine"], ["--z_dim 7", "z_dim 5"]),
    ],
)
def test_training_errors(trained, tmp_path, broken, flags, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    broken.rename(tmp_path / "broken/broken.png")
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/mine_000001.png").write_text("")
    (tmp_path / "images").symlink_to(trained / "images")
    (tmp_path / "mine").symlink_to(trained / MINE)
    one_line(run("train-dcgan.py", *flags, cwd=tmp_path, status=2), *words)


def test_a_checkpoint_of_another_architecture_is_one_line_for_both_scripts(trained, tmp_path):
    shutil.copytree(trained / MINE, tmp_path / "other")
    config = json.loads((tmp_path / "other/config.json").read_text())
    config["architecture"]["gf_dim"] = 16
    (tmp_path / "other/config.json").write_text(json.dumps(config))
    wrong = ["--checkpoint_dir", "other"]
    for flags in (["train-dcgan.py", *wrong, "--dataset"], ["complete.py", *wrong]):
        one_line(run(*flags, trained / "images", cwd=tmp_path, status=2), "ckpt-12", "config.json")
    assert json.loads((tmp_path / "other/config.json").read_text()) == config


def test_damaged_checkpoints_are_named_and_older_ones_used(trained, tmp_path, idle_step):
    shutil.copytree(trained / MINE, tmp_path / "damaged")
    (tmp_path / "damaged/ckpt-12.data-00000-of-00001").write_bytes(b"short")
    train = ["train-dcgan.py", "--checkpoint_dir", "damaged", "--dataset", trained / "images", "--epoch"]
    done = run(*train, 7, cwd=tmp_path)
    assert "skipped damaged/ckpt-12: damaged" in done.stderr and "7 of 7 epochs done, step 14;" in done.stdout
    for path in (tmp_path / "damaged").glob("*.index"):
        path.write_bytes(b"short")
    for flags in ([*train, 9], ["complete.py", trained / "images/0.png", "--checkpointDir", "damaged"]):
        one_line(run(*flags, cwd=tmp_path, status=2), "error: damaged: holds no readable checkpoint")
