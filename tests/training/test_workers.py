"""Several workers that train one model: processes of their own on this machine, on a tiny network."""

import re
import shutil
import signal
import time

import cli

import keras
import numpy as np
import pytest
from conftest import RNG, TINY, TINY_FLAGS, one_line, run
from worker_processes import Workers, write_images

import checkpoint
from completion.encoder import Encoder
from model import DCGAN
from training.dataset import ImageFolder
from training.runs import EncoderRun, GANRun
from training.workers import Team

ARCHITECTURE = [flag for name, value in TINY.items() for flag in (f"--{name}", value)]
FLAGS = ["--dataset", "images", "--checkpoint_dir", "mine", "--join_timeout", 60, *ARCHITECTURE]


def steps(home):
    """The step of each checkpoint."""
    return sorted(int(path.rpartition("-")[2]) for path in checkpoint.find(home / "mine"))


def wait_for(workers, text, i=0, seconds=90):
    """Wait until a worker has written a text."""
    end = time.monotonic() + seconds
    while text not in (workers.home / f"err{i}").read_text() + (workers.home / f"out{i}").read_text():
        assert time.monotonic() < end and workers.processes[i].poll() is None, workers.said(i)
        time.sleep(0.1)


def test_workers_read_what_one_would_each_file_once(tmp_path, monkeypatch):
    write_images(tmp_path / "images", 330, RNG)
    images = ImageFolder(tmp_path / "images", 16, 3, cache_mb=0)
    read = []
    decode = images._decode
    monkeypatch.setattr(images, "_decode", lambda i: read.append(i) or decode(i))
    settings = dict(number=1, batch_size=64, seed=3, flip=True)
    alone = [batch.numpy() for batch in images.epoch(**settings)]
    assert len(alone) == 5 and len(set(read)) == len(read) == 320
    of_one = set(read)
    for count in (2, 4):
        read.clear()
        teams = [Team(None, i, [""] * count) for i in range(count)]
        shares = [[batch.numpy() for batch in images.epoch(**settings, share=team.share)] for team in teams]
        assert set(read) == of_one and len(read) == 320
        for whole, *parts in zip(alone, *shares, strict=True):
            np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.slow
def test_two_workers_train_as_two_replicas_do(tmp_path, two_replicas):
    write_images(tmp_path / "images", 320, RNG)
    flags = "--epoch 4 --cache_mb 0 --seed 3 --flip --precision float32".split()
    workers = Workers(tmp_path, 2, *FLAGS, *flags)
    keras.utils.set_random_seed(3)
    with two_replicas.scope():
        dcgan = DCGAN(**TINY, ema=0.999)
    homes = {f"{name}_dir": tmp_path / "replicas" for name in ("checkpoint", "sample", "log")}
    training = dict(epoch=4, batch_size=64, learning_rate=0.0002, beta1=0.5, seed=3, flip=True)
    GANRun(dcgan, ImageFolder(tmp_path / "images", 16, 3), **training, **homes).train()
    assert workers.wait(120) == [0, 0], workers.said(0) + workers.said(1)
    assert "20" in workers.said(1, "out")[-1]
    trained = DCGAN.load(tmp_path / "mine")
    assert trained.step == dcgan.step == 20
    for name, network in dcgan.networks.items():
        for ours, theirs in zip(network.variables, trained.networks[name].variables, strict=True):
            np.testing.assert_allclose(theirs.numpy(), ours.numpy(), rtol=0, atol=1e-5, err_msg=ours.path)
    # the chief alone writes
    assert len(list((tmp_path / "logs").iterdir())) == 1 and len(list((tmp_path / "samples").iterdir())) == 2


@pytest.mark.slow
def test_a_run_outlives_its_workers(tmp_path):
    """One gets SIGTERM, and all leave; another is killed, and the others say so; fewer go on."""
    write_images(tmp_path / "images", 24, RNG)
    flags = [*FLAGS, "--batch_size", 12, "--epoch", 10**6]
    workers = Workers(tmp_path, 2, *flags)
    wait_for(workers, "step/s")
    workers.processes[1].send_signal(signal.SIGTERM)
    assert workers.wait(60) == [128 + signal.SIGTERM] * 2, workers.said(0) + workers.said(1)
    (_, left) = steps(tmp_path)
    assert all(f"step {left}; stopped" in workers.said(i, "out")[-1] for i in range(2))

    workers = Workers(tmp_path, 3, *flags)
    wait_for(workers, f"resumes from step {left}")
    wait_for(workers, "step/s")
    workers.processes[2].kill()
    assert workers.wait(60) == [2, 2, -signal.SIGKILL]
    lost = f"train-dcgan.py: error: lost worker 2 ({workers.addresses[2]}), or the network to it; start all again with "
    for i in range(2):
        assert workers.said(i) == [f"{lost}the same command: they resume from mine/ckpt-{steps(tmp_path)[-1]}"]

    newest = steps(tmp_path)[-1]
    workers = Workers(tmp_path, 1, *flags)
    wait_for(workers, f"resumes from step {newest}")
    workers.processes[0].send_signal(signal.SIGTERM)
    assert workers.wait(60) == [128 + signal.SIGTERM] and steps(tmp_path)[-1] > newest


@pytest.mark.slow
def test_what_differs_between_workers_is_named(tmp_path):
    write_images(tmp_path / "images", 24, RNG)
    write_images(tmp_path / "others", 24, RNG)
    workers = Workers(tmp_path, 2, FLAGS, [*FLAGS, "--dataset", "others"])
    assert workers.wait(60) == [2, 2]
    for i in range(2):
        (line,) = workers.said(i)
        told = r"train-dcgan.py: error: images: 24 \(\w+\) for worker 1 \(.*\), 24 \(\w+\) for worker 0 \(.*"
        assert re.fullmatch(told, line)
    assert not steps(tmp_path)


def test_workers_compare_settings_and_images(folder, monkeypatch):
    def compare(self, settings):
        compared.update(settings())
        raise cli.UserError("enough")

    compared = {}
    monkeypatch.setattr(Team, "compare", compare)
    one_line(run("train-dcgan.py", "--dataset", folder, *TINY_FLAGS, cwd=folder.parent, status=2), "enough")
    assert compared["images"] == ImageFolder(folder, 16, 3).digest() and compared["learning_rate"] == 0.0002
    assert compared["gf_dim"] == 8


def test_the_worker_whose_setting_differs_is_named(monkeypatch):
    monkeypatch.setattr(Team, "gather", lambda self, value: [value, value | {"learning_rate": 0.1}])
    with pytest.raises(cli.UserError, match=r"learning_rate: 0.1 for worker 1 \(b:1\), 0.0002 for worker 0 \(a:1\)"):
        Team(None, 0, ["a:1", "b:1"]).compare(lambda: {"seed": 1, "learning_rate": 0.0002})


@pytest.mark.slow
def test_a_worker_that_never_comes_is_named(tmp_path):
    write_images(tmp_path / "images", 24, RNG)
    workers = Workers(tmp_path, 2, [*FLAGS, "--join_timeout", 5], ["--version"])
    assert workers.wait(60) == [2, 2]
    (line,) = workers.said(0)
    assert f"error: --join_timeout 5: worker 1 ({workers.addresses[1]}) did not come" in line


@pytest.mark.slow
def test_two_workers_train_an_encoder_as_two_replicas_do(trained, tmp_path, two_replicas):
    for copy in ("workers", "replicas"):
        shutil.copytree(trained, tmp_path / copy, ignore=shutil.ignore_patterns("logs", "samples"))
    flags = ["--dataset", "images", "--epoch", 2, "--batch_size", 4, "--precision", "float32"]
    workers = Workers(tmp_path / "workers", 2, *flags, script="train-encoder.py")
    home = tmp_path / "replicas"
    images, source = ImageFolder(home / "images", 16, 3), DCGAN.load(home / "checkpoints/mine")
    held_out = images.hold_out(1, 0)
    keras.utils.set_random_seed(0)
    with two_replicas.scope():
        dcgan = DCGAN(**TINY)
        dcgan.start_from(source)
        encoder = Encoder(dcgan)
    homes = dict(checkpoint_dir=home / "encoder", sample_dir=home, log_dir=home)
    training = dict(epoch=2, batch_size=4, learning_rate=0.0005, beta1=0.5, seed=0, flip=False)
    EncoderRun(encoder, images, held_out, "mine", **training, **homes).train()
    assert workers.wait(120) == [0, 0], workers.said(0) + workers.said(1)
    trained_by_two, _ = Encoder.load(tmp_path / "workers/checkpoints/mine", source)
    assert trained_by_two.step == encoder.step == 4
    for ours, theirs in zip(encoder.network.variables, trained_by_two.network.variables, strict=True):
        np.testing.assert_allclose(theirs.numpy(), ours.numpy(), rtol=0, atol=1e-5, err_msg=ours.path)
