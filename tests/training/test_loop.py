"""A run: what it is fed, when it saves and evaluates, how it stops and resumes."""

import contextlib
import json
import signal

import cli

import keras
import numpy as np
import pytest
from conftest import TINY, events, values, zs
from PIL import Image

import checkpoint
import ops
import utils
from completion import masks
from completion.encoder import Encoder
from model import DCGAN
from training import dataset, loop, quality, runs
from training.dataset import ImageFolder
from training.runs import EncoderRun, GANRun


class Interrupted(GANRun):
    """A run that gets SIGTERM in the steps in `stops`, and keeps what it was trained on in `fed`."""

    def __init__(self, *args, fed, stops, **settings):
        super().__init__(*args, **settings)
        self.fed, self.stops = fed, stops

    def step(self, batch):
        outputs = super().step(batch)
        self.fed.append((batch.numpy(), outputs["z"]))
        if self.model.step in self.stops:
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


def assert_equal_feeds(first, second):
    assert len(first.fed) == len(second.fed)
    for (x, z), (x_, z_) in zip(first.fed, second.fed, strict=True):
        np.testing.assert_array_equal(x, x_)
        np.testing.assert_array_equal(z, z_)


def test_a_resumed_run_is_fed_what_an_unstopped_one_is(folder, tmp_path, two_replicas, idle_step):
    whole, parts = train(tmp_path / "whole", folder), train(tmp_path / "parts", folder, stops=(2, 6, 7))
    assert_equal_feeds(whole, parts)
    # each step has a z and images of its own, each epoch another order, and some are mirrored
    assert len({z.tobytes() for _, z in whole.fed}) == len(whole.fed) == 12
    files = [utils.to_float(utils.read_image(p, 16, 3)) for p in utils.find_images(folder)]
    upright = [any(np.array_equal(image, file) for file in files) for x, _ in whole.fed for image in x]
    assert 0.2 < np.mean(upright) < 0.8
    assert (parts.model.step, parts.epoch, parts.seen) == (12, 4, 0)
    with two_replicas.scope():
        parts = train(tmp_path / "replicas", folder, stops=(3,), batch_size=4)
    assert_equal_feeds(train(tmp_path / "alone", folder, batch_size=4), parts)


def test_a_stopped_run_ends_as_if_never_stopped(folder, tmp_path):
    whole, parts = train(tmp_path / "whole", folder), train(tmp_path / "parts", folder, stops=(7,))
    trained, resumed = (run.model.networks | run.optimizers for run in (whole, parts))
    assert set(trained) == {"generator", "discriminator", "averaged", "d_optimizer", "g_optimizer"}
    for name in trained:
        for a, b in zip(trained[name].variables, resumed[name].variables, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, err_msg=f"{name} {a.path}")
    # the samples are the moving average's
    grid = np.asarray(Image.open(tmp_path / "whole/sample/checkpoint_000012.png"))
    whole.model.recalibrate_batchnorm()
    samples = whole.model.generator_ema(ops.random_z((64, 5), 1, "samples"), training=False)
    np.testing.assert_allclose(grid, utils.image_grid(samples, columns=8), atol=1)


def test_nothing_is_lost_to_a_signal_while_samples_are_drawn(folder, tmp_path, monkeypatch, idle_step):
    monkeypatch.setattr(utils, "write_image", lambda *_: signal.raise_signal(signal.SIGTERM))
    dcgan = DCGAN(**TINY)
    assert GANRun(dcgan, ImageFolder(folder, 16, 3), **settings(tmp_path)).train() == signal.SIGTERM
    assert dcgan.step == DCGAN.load(tmp_path / "checkpoint").step == 2


class Killed(BaseException):
    """Stands for SIGKILL."""


def best_after_stops(monkeypatch, home, folder, kill=None, term=()):
    """Train 4 epochs, evaluated each, and resume until done; returns what was evaluated, and the best's config.

    The swd of steps 3, 6, 9 and 12 is 5, 2, 4 and 1. kill: the name of the function that is killed at steps 6 and 12.
    """
    evaluated, killed = [], set()

    def measure(self, stop):
        evaluated.append(self.model.step)
        swd = {3: 5.0, 6: 2.0, 9: 4.0, 12: 1.0}[self.model.step]
        return None if stop else ("swd", swd, {})

    monkeypatch.setattr(GANRun, "measure", measure)
    monkeypatch.setattr(loop, "EPOCH_STEPS", 3)
    original = getattr(checkpoint, kill) if kill else None

    def call(directory, *args, **kwargs):
        step = (kwargs.get("numbers") or args[0]).get("step")
        meant = step in {6, 12} - killed and (directory.name == "best") == (kill != "save")
        if not meant or kill == "save":
            original(directory, *args, **kwargs)
        if meant:
            killed.add(step)
            raise Killed

    if kill:
        monkeypatch.setattr(checkpoint, kill, call)
    for _ in range(4):
        dcgan = DCGAN(**TINY)
        run = Interrupted(dcgan, ImageFolder(folder, 16, 3), fed=[], stops=term, **settings(home))
        with contextlib.suppress(Killed):
            if run.train() is None:
                break
    assert run.epoch == 4 and not list((home / "checkpoint").rglob("*_temp")) and len(killed) == 2 * bool(kill)
    return evaluated, json.loads((home / "checkpoint/best/config.json").read_text())


@pytest.mark.parametrize(
    "stops, evaluated",
    [
        ({}, [3, 6, 9, 12]),
        ({"term": (3, 4, 9)}, [3, 6, 9, 12]),
        ({"kill": "save"}, [3, 6, 9, 12]),  # before the evaluation
        ({"kill": "keep_best"}, [3, 6, 6, 9, 12, 12]),  # after it
        ({"kill": "write_config"}, [3, 6, 6, 9, 12, 12]),  # while the best one is written
    ],
)
def test_the_best_does_not_depend_on_when_a_run_was_stopped(folder, tmp_path, monkeypatch, idle_step, stops, evaluated):
    found, best = best_after_stops(monkeypatch, tmp_path, folder, **stops)
    assert found == evaluated and best["step"] == 12 and best["swd"] == 1.0
    assert [path.rpartition("/")[2] for path in checkpoint.find(tmp_path / "checkpoint/best")] == ["ckpt-12"]


def test_an_evaluation_that_a_signal_cuts_short_is_made_up_for(folder, tmp_path, monkeypatch, idle_step):
    def measure(self, stop):
        if not evaluated:
            signal.raise_signal(signal.SIGTERM)
        evaluated.append(self.model.step)
        return None if stop else ("swd", 1.0, {})

    evaluated = []
    monkeypatch.setattr(GANRun, "measure", measure)
    for ended in (signal.SIGTERM, None, None):
        run = GANRun(DCGAN(**TINY), ImageFolder(folder, 16, 3), **settings(tmp_path, epoch=1, eval_every=2))
        assert run.train() == ended
    assert evaluated == [2, 2, 3] and run.evaluated == 3


@pytest.mark.parametrize("method", ["step", "report", "evaluate"])
def test_a_signal_does_not_spare_the_last_evaluation(folder, tmp_path, monkeypatch, idle_step, method):
    original = getattr(GANRun, method)

    def interrupted(self, *args):
        outputs = original(self, *args) if method == "step" else None
        if self.model.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return outputs or original(self, *args)

    monkeypatch.setattr(GANRun, method, interrupted)
    assert GANRun(DCGAN(**TINY), ImageFolder(folder, 16, 3), **settings(tmp_path, epoch=1)).train() is None
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
    monkeypatch.setattr(runs, "EVALUATED_IMAGES", 6)
    monkeypatch.setattr(quality, "sliced_wasserstein", distance)
    kept = []
    monkeypatch.setattr(checkpoint, "keep_best", lambda directory, config, name, swd, **contents: kept.append(swd))
    dcgan, files = tiny_dcgan(ema=0.9), ImageFolder(folder, 16, 3)
    dcgan.generator_ema.set_weights([v + 0.1 for v in dcgan.generator.get_weights()])
    several = [GANRun(dcgan, files, **settings(tmp_path, seed=seed)) for seed in (1, 2)]
    (tmp_path / "checkpoint").mkdir()
    for run in (several[0], *several):
        run.evaluate(bar, ())
    assert kept == [2.5, 4.5, 6.5]  # the averaged one's
    z = ops.random_z((6, 5), 2, "evaluated z")
    for (_, generated), network in zip(compared[4:], (dcgan.generator, dcgan.generator_ema), strict=True):
        np.testing.assert_allclose(generated, utils.to_uint8(network(z, training=False)), atol=1)
    pairs = generated, np.roll(generated, 1, 0)
    assert float(bar.shown["ms_ssim"]) == pytest.approx(np.mean(quality.ms_ssim(*pairs)), abs=1e-3)
    for i, j in ((0, 2), (1, 3)):
        np.testing.assert_array_equal(compared[i], compared[j])
    real = [[next(k for k in range(10) if np.array_equal(x, files.read(k))) for x in pair[0]] for pair in compared]
    assert len(set(real[0])) == 6 and real[0] == real[1] != real[4]
    several[0].evaluate(bar, [signal.SIGTERM])
    assert len(kept) == 3


def test_checkpoints_at_the_start_at_intervals_and_at_epochs_ends(folder, tmp_path, monkeypatch, idle_step):
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda *_, numbers, **__: saved.append(numbers["step"]))
    monkeypatch.setattr(checkpoint, "keep_best", lambda *_, **__: None)
    train(tmp_path / "short", folder)
    assert saved == [0, 12]
    saved.clear()
    monkeypatch.setattr(loop, "EPOCH_STEPS", 5)
    train(tmp_path / "seldom", folder)
    assert saved == [0, 6, 12]
    saved.clear()
    train(tmp_path / "evaluated", folder, eval_every=4)
    assert saved == [0, 4, 8, 12]
    saved.clear()
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    train(tmp_path / "often", folder)
    assert saved == list(range(13))


def test_settings_of_a_resumed_run(folder, tmp_path, idle_step):
    train(tmp_path, folder, epoch=1)
    for optimizer in train(tmp_path, folder, epoch=2, learning_rate=0.5).optimizers.values():
        assert float(optimizer.learning_rate) == 0.5
        assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.5, 0.999, 1e-8)
    # with larger batches what is left of the epoch is not enough for one
    config = tmp_path / "checkpoint/config.json"
    checkpoint.write_config(config.parent, json.loads(config.read_text()) | {"pretrained_steps": 9})
    assert train(tmp_path, folder, stops=(7,), epoch=3).model.pretrained_steps == 9
    assert json.loads(config.read_text())["pretrained_steps"] == 9
    run = train(tmp_path, folder, epoch=5, batch_size=10)
    assert [len(x) for x, _ in run.fed] == [10, 10] and run.epoch == 5


@pytest.mark.slow
def test_training_on_two_replicas_stops_and_resumes(folder, tmp_path, two_replicas):
    with two_replicas.scope():
        parts = train(tmp_path / "parts", folder, stops=(3,), batch_size=4)
        assert parts.model.strategy.num_replicas_in_sync == 2 and parts.model.step == 8
        with pytest.raises(cli.UserError, match="--batch_size 3: is not a multiple of the 2 GPUs"):
            train(tmp_path / "odd", folder)
        (folder / "a" / "0.png").unlink()
        with pytest.raises(cli.UserError, match="--dataset: holds 9 images, which 2 GPUs cannot share"):
            train(tmp_path / "few", folder, batch_size=64)
    z, loaded = zs(2), DCGAN.load(tmp_path / "parts/checkpoint")
    np.testing.assert_allclose(loaded.generator(z), parts.model.generator(z), atol=1e-5)
    np.testing.assert_allclose(loaded.generator_ema(z), parts.model.generator_ema(z), atol=1e-5)


def train_encoder(home, folder, dcgan, stops=(), **options):
    """Train an encoder of a DCGAN for 4 epochs of 3 steps on 9 of 10 images, stopped after each of `stops`."""
    for stop in (*stops, None):
        keras.utils.set_random_seed(1)
        files = ImageFolder(folder, 16, 3)
        run = EncoderRun(Encoder(dcgan), files, files.hold_out(1, 1), "pictures", **settings(home, **options))
        original = run.step

        def step(batch, original=original, run=run, stop=stop):
            outputs = original(batch)
            if run.model.step == stop:
                signal.raise_signal(signal.SIGTERM)
            return outputs

        run.step = step
        assert (run.train() is None) == (stop is None)
    return run


def test_a_stopped_encoder_ends_as_if_never_stopped(folder, tmp_path, tiny):
    whole = train_encoder(tmp_path / "whole", folder, tiny)
    parts = train_encoder(tmp_path / "parts", folder, tiny, stops=(7,))
    assert (parts.model.step, parts.epoch, parts.seen) == (12, 4, 0)
    (whole_adam,), (parts_adam,) = whole.optimizers.values(), parts.optimizers.values()
    for a, b in zip(whole.model.network.variables, parts.model.network.variables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=a.path)
    for a, b in zip(whole_adam.variables, parts_adam.variables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, err_msg=a.path)
    # the learning rate falls along a cosine to the end, of which 12 steps of 3 images on 9 are counted
    assert float(whole_adam.learning_rate) == pytest.approx(0.01 * (1 + np.cos(np.pi * 11 / 12)) / 2)
    (record,) = (tmp_path / "whole/log").iterdir()
    assert {"e_loss", "e_loss_all", "e_loss_hole", "images_per_second"} & {*events(record).Tags()["tensors"]}
    assert "error/hole" in events(record).Tags()["tensors"]
    assert Image.open(tmp_path / "whole/sample/pictures_000012.png").size[1] > 3 * 128

    # the best is kept by its error in holes
    best = json.loads((tmp_path / "whole/checkpoint/best/config.json").read_text())
    assert best["fingerprint"] == tiny.fingerprint() and best["images"] == 9
    (kind, mask), image, encoder = whole.holes[0], whole.held_out[:1], Encoder(tiny)
    checkpoint.restore(tmp_path / "whole/checkpoint/best", encoder.networks)
    shown, known = masks.holes(kind, [mask]).masked(image)
    error = abs(tiny.draw(encoder.guess(shown, known)) - image)[np.broadcast_to(known == 0, image.shape)]
    assert best["hole"] == pytest.approx(127.5 * error.mean(), rel=1e-3)


def test_images_kept_apart_are_not_learned_from(folder, monkeypatch):
    files = ImageFolder(folder, 16, 3)
    everything = [files.read(i).copy() for i in range(10)]
    apart = files.hold_out(4, seed=3)
    again = ImageFolder(folder, 16, 3, cache_mb=0)
    np.testing.assert_array_equal(apart, again.hold_out(4, seed=3))
    assert len(files) == len(again) == 6 and files.paths == again.paths
    monkeypatch.setattr(dataset, "BLOCK", 2500)  # three images at a time
    assert [len(block) for block in files.blocks()] == [3, 3]
    batches = utils.to_uint8(np.concatenate(list(files.epoch(0, 2))))
    blocks = utils.to_uint8(np.concatenate(list(files.blocks())))
    for rest in (batches, blocks, [again.read(i) for i in range(6)]):
        seen = sorted(x.tobytes() for x in [*rest, *apart])
        assert seen == sorted(x.tobytes() for x in everything)


def test_a_new_generator_takes_over_the_weights_of_the_old_ones_encoder(folder, tmp_path, tiny, tiny_dcgan, capsys):
    new = tiny_dcgan()
    new.generator.trainable_variables[0].assign_add(new.generator.trainable_variables[0])
    before = train_encoder(tmp_path, folder, tiny, epoch=1)
    files = ImageFolder(folder, 16, 3)
    run = EncoderRun(Encoder(new), files, files.hold_out(1, 1), "pictures", **settings(tmp_path))
    assert "is for another generator; a new run starts from its weights" in capsys.readouterr().out
    assert (run.model.step, run.epoch, run.resumed) == (0, 0, False)
    for a, b in zip(before.model.network.variables, run.model.network.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert run.train() is None
    numbers = checkpoint.restore(tmp_path / "checkpoint", Encoder(new).networks, ("step", "fingerprint"))
    assert numbers == {"step": 12, "fingerprint": new.fingerprint()}
    assert json.loads((tmp_path / "checkpoint/best/config.json").read_text())["fingerprint"] == new.fingerprint()


def test_no_held_out_image_has_a_hole_that_hides_nothing(folder, tmp_path, tiny):
    files = ImageFolder(folder, 16, 3)
    run = EncoderRun(Encoder(tiny), files, np.zeros((300, 16, 16, 3)), "pictures", **settings(tmp_path))
    assert len(run.holes) == 300 and {kind for kind, _ in run.holes} == {*masks.TYPES, "boxes", "strokes"} - {"full"}


def test_a_diverged_run_stops_before_it_is_saved(folder, tmp_path, tiny_dcgan):
    dcgan = tiny_dcgan(ema=0.9)
    dcgan.step = 3
    GANRun(dcgan, ImageFolder(folder, 16, 3), **settings(tmp_path)).prepare_directories()
    with pytest.raises(cli.UserError, match="not finite at step.*resumes from .*ckpt-3"):
        train(tmp_path, folder, epoch=3, learning_rate=1e30)
    dcgan = DCGAN(**TINY)
    assert checkpoint.restore(tmp_path / "checkpoint", dcgan.networks) == {"step": 3} and all(
        np.isfinite(v).all() for v in values(dcgan.generator.variables)
    )
