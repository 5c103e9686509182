import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import utils

# two devices, so that a step on several replicas can be tested on any machine
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
ROOT = Path(__file__).resolve().parents[1]
TINY = dict(image_size=16, c_dim=3, z_dim=5, gf_dim=8, df_dim=8)


def command(script, *arguments):
    return [sys.executable, str(ROOT / script), *map(str, arguments)]


def heed_sigint():
    """What a process does first that SIGINT is to stop: those in the background inherit that it is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run(script, *arguments, cwd=None, status=0):
    """Run a script as a user does, to the exit status that is expected; returns what it printed."""
    done = subprocess.run(command(script, *arguments), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def one_line(done, *words):
    """Check that a script said what is wrong in one line of standard error, with `words`, after what it skipped."""
    lines = done.stderr.strip().splitlines()
    for word in words:
        assert word in lines[-1]
    assert all(line.startswith("skipped") for line in lines[:-1])


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


@pytest.fixture
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


@pytest.fixture
def save_image(tmp_path):
    """A function that writes an array, or a PIL image, to a file and returns its path."""

    def save(name, image, **options):
        path = tmp_path / name
        (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(path, **options)
        return path

    return save
