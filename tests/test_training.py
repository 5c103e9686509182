"""A run: what it is fed, when it saves and evaluates, how it stops and goes on."""

import signal

import cli

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY, values, zs
from PIL import Image

import checkpoint
import ops
import training
import utils
from dataset import ImageFolder
from model import DCGAN
from training import Run


class Interrupted(Run):
    """A run that gets SIGTERM in the steps in `stops`, and keeps what it was trained on in `fed`."""

    def __init__(self, *args, fed, stops, **settings):
        super().__init__(*args, **settings)
        self.fed, self.stops = fed, stops

    def step(self, batch):
        outputs = super().step(batch)
        self.fed.append((batch.numpy(), outputs["z"]))
        if self.dcgan.step in self.stops:
            signal.raise_signal(signal.SIGTERM)
        return outputs


def settings(home, **options):
    """What a run takes, with folders in `home`: 4 epochs of 3 steps with the images of `folder`."""
    dirs = {f"{name}_dir": str(home / name) for name in ("checkpoint", "sample", "log")}
    return dict(epoch=4, batch_size=3, learning_rate=0.01, beta1=0.5, seed=1, flip=True) | dirs | options


def train(home, folder, stops=(), **options):
    """Train a tiny DCGAN for 4 epochs of 3 steps, with a stop after each of `stops`; returns the run; it has `fed`."""
    fed = []
    for _ in range(len(stops) + 1):
        keras.utils.set_random_seed(1)
        dcgan = DCGAN(**TINY, ema=0.9)
        run = Interrupted(dcgan, ImageFolder(folder, 16, 3), fed=fed, stops=stops, **settings(home, **options))
        signum = run.train()
    assert signum is None
    return run


def test_a_stopped_run_goes_on_as_if_never_stopped(folder, tmp_path):
    whole, parts = train(tmp_path / "whole", folder), train(tmp_path / "parts", folder, stops=(2, 6, 7))
    fed = whole.fed
    assert len(fed) == len(parts.fed) == 12
    for (x, z), (x_, z_) in zip(fed, parts.fed, strict=True):
        np.testing.assert_array_equal(x, x_)
        np.testing.assert_array_equal(z, z_)
    # each step has a z and images of its own, each epoch another order, and some are mirrored
    assert len({z.tobytes() for _, z in fed}) == 12
    files = [utils.to_float(utils.read_image(p, 16, 3)) for p in utils.find_images(folder)]
    upright = [any(np.array_equal(image, file) for file in files) for x, _ in fed for image in x]
    assert 0.2 < np.mean(upright) < 0.8
    assert (parts.dcgan.step, parts.epoch, parts.seen) == (12, 4, 0)
    trained, resumed = (run.dcgan.networks | run.optimizers for run in (whole, parts))
    assert set(trained) == {"generator", "discriminator", "averaged", "d_optimizer", "g_optimizer"}
    for name in trained:
        for a, b in zip(trained[name].variables, resumed[name].variables, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, err_msg=f"{name} {a.path}")


def test_nothing_is_lost_to_a_signal_while_samples_are_drawn(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "write_samples", lambda self, samplers: signal.raise_signal(signal.SIGTERM))
    dcgan = DCGAN(**TINY)
    assert Run(dcgan, ImageFolder(folder, 16, 3), **settings(tmp_path)).train() == signal.SIGTERM
    assert dcgan.step == DCGAN.load(tmp_path / "checkpoint").step == 2


@pytest.mark.parametrize("method", ["step", "report", "evaluate"])
def test_a_signal_does_not_spare_the_last_evaluation(folder, tmp_path, monkeypatch, method):
    original = getattr(Run, method)

    def interrupted(self, *args):
        outputs = original(self, *args) if method == "step" else None
        if self.dcgan.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return outputs or original(self, *args)

    monkeypatch.setattr(Run, method, interrupted)
    assert Run(DCGAN(**TINY), ImageFolder(folder, 16, 3), **settings(tmp_path, epoch=1)).train() is None
    assert DCGAN.load(tmp_path / "checkpoint/best").step == 3


def test_an_evaluation_compares_the_same_samples_and_images_each_time(folder, tmp_path, tiny_dcgan, monkeypatch):
    class Bar:
        def set_postfix(self, shown):
            self.shown = shown

        def set_postfix_str(self, text):
            pass

    def distance(real, generated):
        compared.append((real, generated))
        yield 16, float(len(compared))
        yield 8, float(len(compared)) + 1

    compared, bar = [], Bar()
    monkeypatch.setattr(training, "EVALUATED_IMAGES", 6)
    monkeypatch.setattr(training.metrics, "sliced_wasserstein", distance)
    kept = []
    monkeypatch.setattr(checkpoint, "keep_best", lambda directory, config, swd, **contents: kept.append(swd))
    dcgan, files = tiny_dcgan(ema=0.9), ImageFolder(folder, 16, 3)
    dcgan.averaged.set_weights([v + 0.1 for v in dcgan.generator.get_weights()])
    samplers = {"generator": dcgan.generator, "averaged": dcgan.averaged}
    runs = [Run(dcgan, files, **settings(tmp_path, seed=seed)) for seed in (1, 2)]
    for run in (runs[0], *runs):
        run.evaluate(samplers, bar, ())
    assert kept == [2.5, 4.5, 6.5]  # the averaged one's
    z = ops.random_z((6, 5), 2, "evaluated z")
    for (_, generated), network in zip(compared[4:], (dcgan.generator, dcgan.averaged), strict=True):
        np.testing.assert_allclose(generated, utils.to_uint8(network(z, training=False)), atol=1)
    pairs = generated, np.roll(generated, 1, 0)
    assert float(bar.shown["ms_ssim"]) == pytest.approx(np.mean(ops.ms_ssim(*pairs)), abs=1e-3)
    for i, j in ((0, 2), (1, 3)):
        np.testing.assert_array_equal(compared[i], compared[j])
    real = [[next(k for k in range(10) if np.array_equal(x, files.read(k))) for x in pair[0]] for pair in compared]
    assert len(set(real[0])) == 6 and real[0] == real[1] != real[4]
    runs[0].evaluate(samplers, bar, [signal.SIGTERM])
    assert len(kept) == 3


def test_checkpoints_at_the_start_at_intervals_and_at_epochs_ends(folder, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(
        checkpoint, "save", lambda directory, networks, numbers, optimizers: saved.append(numbers["step"])
    )
    monkeypatch.setattr(checkpoint, "keep_best", lambda *_, **__: None)
    train(tmp_path / "short", folder)
    assert saved == [0, 12]
    saved.clear()
    monkeypatch.setattr(training, "EPOCH_STEPS", 5)
    train(tmp_path / "seldom", folder)
    assert saved == [0, 6, 12]
    saved.clear()
    train(tmp_path / "evaluated", folder, eval_every=4)
    assert saved == [0, 4, 8, 12]
    saved.clear()
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0)
    train(tmp_path / "often", folder)
    assert saved == list(range(13))


def test_settings_of_a_resumed_run(folder, tmp_path):
    train(tmp_path, folder, epoch=1)
    for optimizer in train(tmp_path, folder, epoch=2, learning_rate=0.5).optimizers.values():
        assert float(optimizer.learning_rate) == 0.5
        assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.5, 0.999, 1e-8)
    # with larger batches what is left of the epoch is not enough for one
    train(tmp_path, folder, stops=(7,), epoch=3)
    run = train(tmp_path, folder, epoch=5, batch_size=10)
    assert [len(x) for x, _ in run.fed] == [10, 10] and run.epoch == 5


def test_samples_are_the_averaged_generators(folder, tmp_path):
    dcgan = train(tmp_path, folder).dcgan
    grid = np.asarray(Image.open(tmp_path / "sample/checkpoint_000012.png"))
    samples = dcgan.samplers()["averaged"](ops.random_z((64, 5), 1, "samples"), training=False)
    np.testing.assert_allclose(grid, utils.image_grid(samples, columns=8), atol=1)


def test_training_on_two_replicas_stops_and_goes_on(folder, tmp_path):
    whole = train(tmp_path / "whole", folder, batch_size=4)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        parts = train(tmp_path / "parts", folder, stops=(3,), batch_size=4)
        assert parts.dcgan.strategy.num_replicas_in_sync == 2 and parts.dcgan.step == 8
        with pytest.raises(cli.UserError, match="--batch_size 3: is not a multiple of the 2 GPUs"):
            train(tmp_path / "odd", folder)
    for (x, z), (x_, z_) in zip(whole.fed, parts.fed, strict=True):
        np.testing.assert_array_equal(x, x_)
        np.testing.assert_array_equal(z, z_)
    z = zs(2)
    loaded = DCGAN.load(tmp_path / "parts" / "checkpoint")
    np.testing.assert_allclose(loaded.generator(z), parts.dcgan.generator(z), atol=1e-5)
    np.testing.assert_allclose(loaded.averaged(z), parts.dcgan.averaged(z), atol=1e-5)


def test_a_diverged_run_stops_before_it_is_saved(folder, tmp_path):
    train(tmp_path, folder, epoch=1)
    with pytest.raises(cli.UserError, match="not finite at step.*goes on from .*ckpt-3"):
        train(tmp_path, folder, epoch=3, learning_rate=1e30)
    dcgan = DCGAN(**TINY)
    assert checkpoint.restore(tmp_path / "checkpoint", dcgan.networks) == {"step": 3} and all(
        np.isfinite(v).all() for v in values(dcgan.generator.variables)
    )
