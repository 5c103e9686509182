"""Each script as a user runs it: a process of its own, on a tiny network."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import utils

ROOT = Path(__file__).resolve().parents[1]
TINY_FLAGS = "--image_size 16 --z_dim 5 --gf_dim 8 --df_dim 8 --batch_size 4".split()


def command(script, *arguments):
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def run(script, *arguments, cwd=None, status=0):
    done = subprocess.run(command(script, *arguments), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def checkpoint_step(directory):
    return int((directory / "checkpoint").read_text().split('"')[1].removeprefix("ckpt-"))


def events(directory):
    accumulator = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder in which a tiny model was trained: 10 images in batches of 4, for 6 epochs."""
    home = tmp_path_factory.mktemp("trained")
    rng = np.random.default_rng(0)
    (home / "images").mkdir()
    for i in range(10):
        utils.write_image(home / "images" / f"{i}.png", rng.integers(0, 256, (16, 16, 3), np.uint8))
    out = run("train-dcgan.py", "--dataset", "images", *TINY_FLAGS, "--epoch", 6, "--ema", 0.9, cwd=home)
    assert out.stdout.splitlines()[-1] == "checkpoints/mine: epoch 6 of 6, step 12"
    assert "device: " in out.stdout
    return home


def test_training_leaves_a_model_samples_and_a_record(trained):
    config = json.loads((trained / "checkpoints/mine/config.json").read_text())
    assert config["architecture"] == dict(image_size=16, c_dim=3, z_dim=5, gf_dim=8, df_dim=8, ema=0.9)
    assert checkpoint_step(trained / "checkpoints/mine") == 12
    samples = sorted((trained / "samples").iterdir())
    assert [p.name for p in samples] == ["train_00_000001.png", "train_06_000012.png"]
    with Image.open(samples[0]) as image:
        assert image.size == (8 * 16, 8 * 16)

    (log,) = (trained / "logs").glob("mine-*")
    record = events(log)
    scalars = {"d_loss", "d_loss_real", "d_loss_fake", "g_loss", "images_per_second"}
    assert scalars | {"z", "d", "d_", "G"} <= set(record.Tags()["tensors"])
    assert record.Tags()["graph"]
    plugins = {tag: record.SummaryMetadata(tag).plugin_data.plugin_name for tag in ("g_loss", "d", "G")}
    assert plugins == {"g_loss": "scalars", "d": "histograms", "G": "images"}
    assert [e.step for e in record.Tensors("g_loss")] == [10]


def test_resume_goes_on_with_what_the_model_was_trained_with(trained, tmp_path):
    flags = ["--dataset", trained / "images", "--sample_dir", tmp_path / "s", "--log_dir", tmp_path / "l"]
    flags += ["--checkpoint_dir", tmp_path / "ck"]
    done = run("train-dcgan.py", *flags, *TINY_FLAGS, "--epoch", 1, "--learning_rate", 0.001)
    assert "epoch 1 of 1, step 2" in done.stdout
    done = run("train-dcgan.py", *flags, "--epoch", 3)
    assert "epoch 3 of 3, step 6" in done.stdout
    training = json.loads((tmp_path / "ck/config.json").read_text())["training"]
    assert training["batch_size"] == 4 and training["learning_rate"] == 0.001
    assert len(list((tmp_path / "l").iterdir())) == 2
    # nothing is left to do, and nothing is done
    done = run("train-dcgan.py", *flags, "--epoch", 3)
    assert "epoch 3 of 3, step 6" in done.stdout and len(list((tmp_path / "l").iterdir())) == 2
    # all ten images are one batch where 64 are asked for
    done = run("train-dcgan.py", *flags, "--epoch", 5, "--batch_size", 64)
    assert "epoch 5 of 5, step 8" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves(trained, tmp_path, number):
    flags = ["--dataset", trained / "images", "--sample_dir", "s", "--log_dir", "l", "--checkpoint_dir", "ck"]
    process = subprocess.Popen(
        command("train-dcgan.py", *flags, *TINY_FLAGS, "--epoch", 100000),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "s/train_00_000001.png").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    asked = time.monotonic()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number and time.monotonic() - asked < 15
    step = checkpoint_step(tmp_path / "ck")
    assert f"step {step}\nstopped" in out
    done = run("train-dcgan.py", *flags, "--epoch", step // 2 + 2, cwd=tmp_path)
    assert f"step {(step // 2 + 2) * 2}\n" in done.stdout


def test_complete_in_several_batches(trained, broken, tmp_path):
    files = sorted((trained / "images").iterdir())[:5]
    flags = ["--nIter", 25, "--outInterval", 10, "--batchSize", 3, "--outDir", tmp_path / "out"]
    done = run("complete.py", *files[:2], broken, *files[2:], *flags, cwd=trained)
    assert "model: checkpoints/mine, step 12" in done.stdout
    assert f"skipped {broken}" in done.stderr

    out = tmp_path / "out"
    assert np.load(out / "z.npy").shape == (5, 5)
    for i, file in enumerate(files):
        original, final = (utils.read_image(p, 16, 3) for p in (file, out / f"final/{i:04d}_{i}.png"))
        same = (original == final).all(-1)
        hole = np.zeros_like(same)
        hole[4:12, 4:12] = True
        assert same[~hole].all() and same[hole].mean() < 0.1
        log = np.loadtxt(out / f"logs/hats_{i:02d}.log")
        np.testing.assert_array_equal(log[:, 0], [0, 10, 20, 25])
    for batch, count in (("batch_00", 3), ("batch_01", 2)):
        for folder in ("hats_imgs", "completed"):
            assert sorted(p.stem for p in (out / batch / folder).iterdir()) == ["0000", "0010", "0020", "0025"]
        with Image.open(out / batch / "completion.gif") as gif:
            assert gif.n_frames == 4
        for name in ("before.png", "masked.png"):
            with Image.open(out / batch / name) as image:
                assert image.size == (16 * count, 16)


def test_complete_one_grey_image_of_another_size(trained, tmp_path, save_image):
    grey = save_image("grey.jpg", np.random.default_rng(0).integers(0, 256, (40, 30), np.uint8))
    run("complete.py", grey, "--nIter", 5, "--outDir", tmp_path / "out", cwd=trained)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"before.png", "masked.png", "hats_imgs", "completed", "logs", "final", "z.npy", "completion.gif"}
    with Image.open(tmp_path / "out/final/0000_grey.png") as image:
        assert image.size == (16, 16) and image.mode == "RGB"


@pytest.mark.parametrize("script", ["train-dcgan.py", "complete.py"])
def test_help_does_not_wait_for_tensorflow(script):
    code = f"""if True:
        import runpy, sys
        sys.argv = ["{script}", "--help"]
        try:
            runpy.run_path(r"{ROOT / script}", run_name="__main__")
        finally:
            assert "tensorflow" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "usage" in done.stdout


def one_line(done, *words):
    lines = done.stderr.strip().splitlines()
    for word in words:
        assert word in lines[-1]
    assert all(line.startswith("skipped") for line in lines[:-1])


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--dataset", "nowhere"], ["--dataset nowhere", "no such directory"]),
        (["--dataset", "empty"], ["--dataset empty", "holds no images"]),
        (["--dataset", "broken"], ["--dataset broken", "none of its 1 images"]),
        (["--dataset", "images", "--checkpoint_dir", "file/ck"], ["--checkpoint_dir file/ck", "cannot be written"]),
        (["--dataset", "images", "--sample_dir", "taken"], ["--sample_dir taken", "another run"]),
        (["--dataset", "images", "--z_dim", "7", "--checkpoint_dir", "mine"], ["--z_dim 7", "z_dim 5"]),
        (["--dataset", "images", "--epoch", "0"], ["--epoch", "from 1"]),
        (["--dataset", "images", "--image_size", "60"], ["--image_size", "64"]),
        ([], ["--dataset"]),
    ],
)
def test_training_errors(trained, tmp_path, broken, flags, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    broken.rename(tmp_path / "broken/broken.png")
    (tmp_path / "file").write_text("")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/train_00_000001.png").write_text("")
    (tmp_path / "images").symlink_to(trained / "images")
    (tmp_path / "mine").symlink_to(trained / "checkpoints/mine")
    one_line(run("train-dcgan.py", *flags, cwd=tmp_path, status=2), *words)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["images/0.png", "--checkpointDir", "nowhere"], ["--checkpointDir nowhere", "holds no model"]),
        (["nowhere.png"], ["nowhere.png", "no image to complete"]),
        (["empty"], ["empty", "no image to complete"]),
        (["broken.png"], ["broken.png", "no image to complete"]),
        (["images/0.png", "--outDir", "file/out"], ["--outDir file/out", "cannot be written"]),
        (["images/0.png", "--outDir", "images"], ["--outDir images", "not empty"]),
        (["images/0.png", "--centerScale", "0.5"], ["--centerScale 0.5", "no hole"]),
        (["images/0.png", "--nIter", "0"], ["--nIter", "from 1"]),
        (["images/0.png", "--lr", "-1"], ["--lr", "above 0"]),
        (["images/0.png", "--checkpointDir", "odd"], ["config.json", "architecture"]),
        ([], ["IMAGE"]),
    ],
)
def test_completion_errors(trained, tmp_path, broken, flags, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/config.json").write_text("{}")
    (tmp_path / "odd/checkpoint").write_text("")
    (tmp_path / "images").symlink_to(trained / "images")
    (tmp_path / "checkpoints").symlink_to(trained / "checkpoints")
    one_line(run("complete.py", *flags, cwd=tmp_path, status=2), *words)


def test_a_damaged_checkpoint_is_one_line_for_both_scripts(trained, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for path in (trained / "checkpoints/mine").iterdir():
        (damaged / path.name).write_bytes(path.read_bytes()[:500])
    flags = ["--sample_dir", tmp_path / "s", "--log_dir", tmp_path / "l", "--checkpoint_dir", damaged]
    done = run("train-dcgan.py", "--dataset", trained / "images", *flags, "--epoch", 9, status=2)
    one_line(done, "ckpt-12", "cannot be read")
    image = trained / "images/0.png"
    done = run("complete.py", image, "--checkpointDir", damaged, "--outDir", tmp_path / "o", status=2)
    one_line(done, "ckpt-12", "cannot be read")
