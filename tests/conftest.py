import contextlib
import io
import os
import runpy
import signal
import sys
from pathlib import Path
from subprocess import CompletedProcess

# tests are what runs in parallel
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"), "1")

import cli

import numpy as np
import pytest
from PIL import Image
from worker_processes import write_images

import checkpoint
import utils
from completion import prior

ROOT = Path(__file__).resolve().parents[1]
TINY = dict(image_size=16, c_dim=3, z_dim=5, gf_dim=8, df_dim=8)
TINY_FLAGS = "--image_size 16 --z_dim 5 --gf_dim 8 --df_dim 8 --batch_size 4".split()
RNG = np.random.default_rng(0)


def pytest_sessionstart(session):
    """Start TensorFlow, without its log lines; on two devices, so that any machine tests a step on several replicas."""
    if session.config.getoption("numprocesses", None):
        return  # the process that hands out the tests
    with cli.quiet_tensorflow():
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    os.environ.pop("TF_CPP_MIN_LOG_LEVEL", None)  # scripts would take it for the user's


def pytest_collection_modifyitems(items):
    """The slow tests first, so that both processes have work to the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def same_draws_for_each_test():
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


def values(variables):
    return [v.numpy() for v in variables]


def changed(before, variables):
    return [not np.array_equal(b, v.numpy()) for b, v in zip(before, variables, strict=True)]


def images(count, size=16, channels=3):
    return RNG.uniform(-1, 1, (count, size, size, channels)).astype(np.float32)


def zs(count, z_dim=5):
    return RNG.uniform(-1, 1, (count, z_dim)).astype(np.float32)


def center_hole(count):
    mask = np.ones((count, 16, 16, 1), np.float32)
    mask[:, 4:12, 4:12] = 0
    return mask


def compiled_step(dcgan, optimizers):
    """A compiled training step: a function of images and z that counts the steps, as a run does."""
    import tensorflow as tf

    step = tf.function(dcgan.train_step)

    def call(x, z):
        outputs = step(x, z, tf.constant(dcgan.step, tf.int64), **optimizers)
        dcgan.step += 1
        return outputs

    return call


def command(script, *arguments):
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def heed_sigint():
    """What a process does first that SIGINT is to stop: those in the background inherit that it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(script, *arguments, cwd=".", status=0):
    """Run a script in this process, where TensorFlow has started, to the exit status expected; what it printed."""
    words, ended = [str(ROOT / script), *map(str, arguments)], 0
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", e, write_through=True) for e in ("strict", "backslashreplace"))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", words)
        try:
            runpy.run_path(words[0], run_name="__main__")
        except SystemExit as end:
            ended = end.code or 0
    done = CompletedProcess(words, ended, *(stream.buffer.getvalue().decode() for stream in (out, err)))
    assert done.returncode == status, done.stdout + done.stderr
    return done


def one_line(done, *words):
    """The one line of standard error, after what was skipped, in which a script said what is wrong, with `words`."""
    *skipped, line = done.stderr.strip().splitlines()
    assert line.startswith(f"{Path(done.args[0]).name}: error: ") and all(word in line for word in words), line
    assert all(line.startswith("skipped") for line in skipped), skipped
    return line


@pytest.fixture
def folder(tmp_path):
    """Ten random 16x16 PNG files, in two subfolders."""
    rng = np.random.default_rng(0)
    for i in range(10):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        utils.write_image(path, rng.integers(0, 256, (16, 16, 3), np.uint8))
    return tmp_path / "images"


@pytest.fixture
def broken(tmp_path):
    """A text file that calls itself an image."""
    path = tmp_path / "broken.png"
    path.write_text("this is no image")
    return path


@pytest.fixture(scope="session")
def tiny_dcgan():
    """A function that makes a tiny DCGAN whose weights and moving statistics are all random, as after training."""
    from model import DCGAN

    def make(**options):
        dcgan = DCGAN(**{**TINY, **options})
        rng = np.random.default_rng(1)
        for network in (dcgan.generator, dcgan.discriminator):
            for variable in network.variables:
                values = rng.normal(0, 0.3, variable.shape)
                variable.assign(np.abs(values) + 0.5 if "variance" in variable.path else values)
        return dcgan

    return make


@pytest.fixture(scope="session")
def tiny(tiny_dcgan):
    """One tiny DCGAN for all tests that change nothing of it: what TensorFlow compiled for one serves the others."""
    return tiny_dcgan()


@pytest.fixture(scope="session")
def small_model(tiny_dcgan, tmp_path_factory):
    """A folder with all that checkpoints/faces-64 holds, for images of that size, but random and small."""
    from completion.encoder import Encoder

    folder, dcgan = tmp_path_factory.mktemp("small") / "faces-64", tiny_dcgan(image_size=64)
    for variable in dcgan.generator.trainable_variables[-2:]:
        variable.assign(variable / 10)  # so that few pixels are at an end of their range
    dcgan.export(folder)
    Encoder(dcgan).export(folder)
    faces = prior.load(checkpoint.SHIPPED, dcgan.image_shape)
    prior.save(folder, faces._replace(components=faces.components[:, :32], variances=faces.variances[:32]))
    return folder


@pytest.fixture(scope="session")
def url(small_model):
    """The link to a running paint.py with the small model."""
    from browser import serving

    with serving("--checkpointDir", small_model) as url:
        yield url


@pytest.fixture(scope="session")
def link(small_model):
    """The link, with a token, to a running paint.py that is there for other machines."""
    from browser import serving

    with serving("--checkpointDir", small_model, "--host", "127.0.0.2") as url:
        yield url


@pytest.fixture(scope="session")
def two_replicas():
    """One strategy for all tests of a process: those of several would take each other's gradients for their own."""
    import tensorflow as tf

    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


@pytest.fixture
def replicated(tiny_dcgan, two_replicas):
    """A function that makes a tiny DCGAN on two replicas."""

    def make(**options):
        with two_replicas.scope():
            return tiny_dcgan(**options)

    return make


@pytest.fixture
def idle_step(monkeypatch):
    """Training steps that change nothing, for tests of what is around them: to compile a real one takes seconds.

    Nor are batch norm's statistics of the moving average estimated anew, nor samples compared with images.
    """
    import tensorflow as tf

    from model import DCGAN
    from training.runs import GANRun

    def train_step(self, images, z, step, d_optimizer, g_optimizer):
        probabilities = tf.fill((len(z), 1), 0.5)
        return dict.fromkeys(GANRun.LOSSES, tf.constant(1.0)) | {"d": probabilities, "d_": probabilities}

    monkeypatch.setattr(DCGAN, "train_step", train_step)
    monkeypatch.setattr(DCGAN, "recalibrate_batchnorm", lambda self: None)
    monkeypatch.setattr(GANRun, "measure", lambda self, stop: None if stop else ("swd", 1.0, {}))


@pytest.fixture
def save_image(tmp_path):
    """A function that writes an array, or a PIL image, to a file and returns its path."""

    def save(name, image, **options):
        path = tmp_path / name
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
        return path

    return save


def events(directory):
    """TensorBoard's record in a directory."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    accumulator.Reload()
    return accumulator


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder in which a tiny model was trained: 10 images in batches of 4, for 6 epochs."""
    home = tmp_path_factory.mktemp("trained")
    write_images(home / "images", 10, np.random.default_rng(0))
    out = run("train-dcgan.py", "--dataset", "images", *TINY_FLAGS, "--epoch", 6, "--ema", 0.9, cwd=home).stdout
    assert out.splitlines()[-1] == "checkpoints/mine: 6 of 6 epochs done, step 12; a higher --epoch trains longer"
    assert "device: " in out and "images: 10, in memory; steps an epoch: 2" in out
    assert "about 1200 steps, --epoch 600, and" in out
    return home
