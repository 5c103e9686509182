import shutil
import signal

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import TINY
from PIL import Image
from scipy.special import expit, log_expit

import model
import ops
import utils
from dataset import ImageFolder
from model import DCGAN

RNG = np.random.default_rng(0)


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


# networks


def test_parameter_counts_of_the_reference():
    dcgan = DCGAN(image_size=64, c_dim=3, z_dim=100, gf_dim=64, df_dim=64)
    assert dcgan.generator.count_params() == 5_137_283
    assert dcgan.discriminator.count_params() == 4_318_337


@pytest.mark.parametrize(
    "size, channels",
    [
        (16, [2, 1]),
        (32, [4, 2, 1]),
        (64, [8, 4, 2, 1]),
        (128, [8, 8, 4, 2, 1]),
        (256, [8, 8, 8, 4, 2, 1]),
    ],
)
@pytest.mark.parametrize("c_dim", [1, 3])
def test_shapes_at_every_size(size, channels, c_dim):
    dcgan = DCGAN(image_size=size, c_dim=c_dim, z_dim=5, gf_dim=3, df_dim=3)
    channels = [3 * c for c in channels]
    assert dcgan.channels(3) == channels
    generated = dcgan.generator(zs(2), training=False)
    assert generated.shape == (2, size, size, c_dim)
    assert dcgan.discriminator(generated, training=False).shape == (2, 1)
    convolutions = [layer.filters for layer in dcgan.discriminator.layers if isinstance(layer, keras.layers.Conv2D)]
    assert convolutions == channels[::-1]


def test_first_weights():
    dcgan = DCGAN(image_size=64, c_dim=3, z_dim=100, gf_dim=16, df_dim=16)
    for network in (dcgan.generator, dcgan.discriminator):
        for layer in network.layers:
            if hasattr(layer, "kernel"):
                kernel = layer.kernel.numpy()
                truncated = isinstance(layer, keras.layers.Conv2D)
                # a normal cut off at two standard deviations has 0.8796 of its standard deviation
                assert kernel.std() == pytest.approx(0.02 * (0.8796 if truncated else 1), rel=0.05)
                assert (np.abs(kernel).max() <= 0.04) == truncated
                assert not layer.bias.numpy().any()


# losses


def test_losses_against_numpy():
    real, fake = RNG.normal(0, 3, (2, 7, 1)).astype(np.float32)
    d_loss_real, d_loss_fake = DCGAN.discriminator_losses(real, fake)
    np.testing.assert_allclose(d_loss_real, -log_expit(real)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(d_loss_fake, -log_expit(-fake)[:, 0], rtol=1e-5)
    np.testing.assert_allclose(DCGAN.generator_loss(fake), -log_expit(fake)[:, 0], rtol=1e-5)


def test_contextual_loss_against_numpy():
    a, b, mask = images(3), images(3), (RNG.random((3, 16, 16, 1)) < 0.5).astype(np.float32)
    expected = [sum(abs(a[i, y, x] - b[i, y, x]).sum() for y, x in np.argwhere(mask[i, ..., 0])) for i in range(3)]
    np.testing.assert_allclose(ops.contextual_loss(a, b, mask), expected, rtol=1e-5)


def test_completion_losses_are_per_image(tiny_dcgan):
    dcgan = tiny_dcgan()
    z, y, mask = zs(3), images(3), center_hole(3)
    generated, contextual, perceptual = dcgan.completion_losses(z, y, mask)
    logits = dcgan.discriminator(generated, training=False).numpy()
    np.testing.assert_allclose(generated, dcgan.generator(z, training=False), atol=1e-6)
    np.testing.assert_allclose(contextual, (mask * np.abs(generated - y)).sum((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(perceptual, -log_expit(logits)[:, 0], rtol=1e-4)


# training


def plain_step(dcgan, x, z, learning_rate, groups=1):
    """The article's step, written plainly: G(z) anew for each update, every loss in its own tape, gradient descent.

    Each of `groups` parts of the batch goes through the networks on its own; the losses are the means over all.
    """
    g, d = dcgan.generator, dcgan.discriminator
    parts = list(zip(np.split(x, groups), np.split(z, groups), strict=True))

    def descend(network, loss_function):
        with tf.GradientTape() as tape:
            loss = sum(loss_function(*part) for part in parts) / groups
        for variable, gradient in zip(
            network.trainable_variables, tape.gradient(loss, network.trainable_variables), strict=True
        ):
            variable.assign_sub(learning_rate * gradient)
        return float(loss)

    def d_loss(x, z):
        fake = d(g(z, training=True), training=True)
        real = d(x, training=True)
        return tf.reduce_mean(tf.nn.softplus(-real)) + tf.reduce_mean(tf.nn.softplus(fake))

    def g_loss(x, z):
        return tf.reduce_mean(tf.nn.softplus(-d(g(z, training=True), training=True)))

    return descend(d, d_loss), descend(g, g_loss), descend(g, g_loss)


def descend(dcgan, x, z):
    """One compiled training step with plain gradient descent, step size 0.1; returns what train_step does."""
    with dcgan.strategy.scope():
        dcgan.d_optimizer, dcgan.g_optimizer = (keras.optimizers.SGD(0.1) for _ in range(2))
        dcgan.d_optimizer.build(dcgan.discriminator.trainable_variables)
        dcgan.g_optimizer.build(dcgan.generator.trainable_variables)
    return tf.function(dcgan.train_step)(x, z)


def test_the_shared_step_equals_the_plain_one(tiny_dcgan):
    x, z = images(4), zs(4)
    expected = tiny_dcgan()
    d_loss, _, g_loss = plain_step(expected, x, z, 0.1)

    outputs = descend(dcgan := tiny_dcgan(), x, z)
    assert float(outputs["d_loss"]) == pytest.approx(d_loss, rel=1e-4)
    assert float(outputs["d_loss_real"] + outputs["d_loss_fake"]) == pytest.approx(d_loss, rel=1e-4)
    assert float(outputs["g_loss"]) == pytest.approx(g_loss, rel=1e-4)
    for ours, theirs in ((dcgan.generator, expected.generator), (dcgan.discriminator, expected.discriminator)):
        for a, b in zip(ours.trainable_variables, theirs.trainable_variables, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4, err_msg=a.path)


@pytest.mark.parametrize("name", ["generator", "discriminator"])
def test_an_update_changes_its_own_network_only(tiny_dcgan, name):
    dcgan = tiny_dcgan()
    dcgan.prepare_training(0.01, 0.5)
    other = {"generator": dcgan.d_optimizer, "discriminator": dcgan.g_optimizer}[name]
    other.learning_rate.assign(0.0)
    g, d = values(dcgan.generator.trainable_variables), values(dcgan.discriminator.trainable_variables)
    tf.function(dcgan.train_step)(images(4), zs(4))
    assert all(changed(g, dcgan.generator.trainable_variables)) == (name == "generator")
    assert any(changed(g, dcgan.generator.trainable_variables)) == (name == "generator")
    assert all(changed(d, dcgan.discriminator.trainable_variables)) == (name == "discriminator")
    assert any(changed(d, dcgan.discriminator.trainable_variables)) == (name == "discriminator")


def test_moving_statistics_advance_with_every_training_pass(tiny_dcgan):
    """G's twice a step, as its first pass is shared, and D's four times: real, fake and both G updates."""
    dcgan = tiny_dcgan()
    dcgan.prepare_training(0.01, 0.5)
    for optimizer in (dcgan.d_optimizer, dcgan.g_optimizer):
        optimizer.learning_rate.assign(0.0)
    x, z = images(4), zs(4)
    expected = tiny_dcgan()
    fakes = [expected.generator(z, training=True) for _ in range(2)]
    for batch in (x, fakes[0], fakes[0], fakes[1]):
        expected.discriminator(batch, training=True)
    tf.function(dcgan.train_step)(x, z)
    for ours, theirs in ((dcgan.generator, expected.generator), (dcgan.discriminator, expected.discriminator)):
        for a, b in zip(ours.non_trainable_variables, theirs.non_trainable_variables, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=a.path)


def test_reported_probabilities(tiny_dcgan):
    dcgan = tiny_dcgan()
    dcgan.prepare_training(0.01, 0.5)
    x, z = images(4), zs(4)
    expected = tiny_dcgan()
    d = expit(expected.discriminator(x, training=True).numpy())
    d_ = expit(expected.discriminator(expected.generator(z, training=True), training=True).numpy())
    outputs = tf.function(dcgan.train_step)(x, z)
    np.testing.assert_allclose(outputs["d"], d, atol=1e-5)
    np.testing.assert_allclose(outputs["d_"], d_, atol=1e-5)


def test_adam_is_that_of_tensorflow_1(tiny_dcgan):
    """Kingma and Ba 2015, the form before section 2.1: the epsilon stands beside the uncorrected second moment."""
    dcgan = tiny_dcgan()
    dcgan.prepare_training(0.0002, 0.5)
    optimizer, variables = dcgan.g_optimizer, dcgan.generator.trainable_variables
    before = values(variables)
    gradients = [[RNG.normal(0, 1e-6, v.shape).astype(np.float32) for v in variables] for _ in range(3)]
    m, v = [0.0] * len(before), [0.0] * len(before)
    for t, gradient in enumerate(gradients, start=1):
        optimizer.apply([tf.constant(g) for g in gradient], variables)
        rate = 0.0002 * np.sqrt(1 - 0.999**t) / (1 - 0.5**t)
        for i, g in enumerate(gradient):
            m[i], v[i] = 0.5 * m[i] + 0.5 * g, 0.999 * v[i] + 0.001 * g.astype(np.float64) ** 2
            before[i] = before[i] - rate * m[i] / (np.sqrt(v[i]) + 1e-8)
    for expected, variable in zip(before, variables, strict=True):
        np.testing.assert_allclose(variable.numpy(), expected, atol=2e-6)


def two_replicas(tiny_dcgan, **options):
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        return tiny_dcgan(**options)


def test_a_step_on_two_replicas_equals_one_on_both_halves(tiny_dcgan):
    """Each replica normalises its half of the batch by itself; losses and gradients are those of the whole."""
    x, z = images(6), zs(6)
    expected = tiny_dcgan()
    d_loss, _, g_loss = plain_step(expected, x, z, 0.1, groups=2)
    dcgan = two_replicas(tiny_dcgan, ema=0.5)
    old = values(dcgan.averaged.trainable_variables)
    outputs = descend(dcgan, x, z)
    assert float(outputs["d_loss"]) == pytest.approx(d_loss, rel=1e-4)
    assert float(outputs["g_loss"]) == pytest.approx(g_loss, rel=1e-4)
    assert outputs["d"].shape == outputs["d_"].shape == (6, 1) and dcgan.step.numpy() == 1
    for ours, theirs in ((dcgan.generator, expected.generator), (dcgan.discriminator, expected.discriminator)):
        for a, b in zip(ours.trainable_variables, theirs.trainable_variables, strict=True):
            for replica in a.value.values:
                np.testing.assert_allclose(replica, b, atol=2e-4, err_msg=a.path)
    # the average after the first step: a tenth of the old, nine tenths of the new
    for average, a, b in zip(dcgan.averaged.trainable_variables, old, dcgan.generator.trainable_variables, strict=True):
        np.testing.assert_allclose(average.numpy(), 0.1 * a + 0.9 * b.numpy(), atol=1e-5)


def test_training_on_two_replicas_stops_and_goes_on(folder, tmp_path):
    whole, fed = train(tmp_path / "whole", folder, batch_size=4)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        parts, fed_in_parts = train(tmp_path / "parts", folder, stops=(3,), batch_size=4)
        assert parts.strategy.num_replicas_in_sync == 2 and parts.step.numpy() == 8
        with pytest.raises(utils.UserError, match="--batch_size 3: is not a multiple of the 2 GPUs"):
            train(tmp_path / "odd", folder)
    for (x, z), (x_, z_) in zip(fed, fed_in_parts, strict=True):
        np.testing.assert_array_equal(x, x_)
        np.testing.assert_array_equal(z, z_)
    z = zs(2)
    loaded = DCGAN.load(tmp_path / "parts" / "checkpoint")
    np.testing.assert_allclose(loaded.generator(z), parts.generator(z), atol=1e-5)
    np.testing.assert_allclose(loaded.averaged(z), parts.averaged(z), atol=1e-5)


def test_moving_statistics_of_two_replicas_are_the_mean_of_both(tiny_dcgan):
    x, z = images(6), zs(6)
    ones = [tiny_dcgan() for _ in range(2)]
    for one, half in zip(ones, (slice(3), slice(3, 6)), strict=True):
        fakes = [one.generator(z[half], training=True) for _ in range(2)]
        for batch in (x[half], fakes[0], fakes[0], fakes[1]):
            one.discriminator(batch, training=True)
    dcgan = two_replicas(tiny_dcgan)
    dcgan.prepare_training(1e-30, 0.5)
    tf.function(dcgan.train_step)(x, z)
    for name in ("generator", "discriminator"):
        variables = (getattr(network, name).non_trainable_variables for network in (dcgan, *ones))
        for ours, a, b in zip(*variables, strict=True):
            for replica in ours.value.values:
                np.testing.assert_allclose(replica, (a + b) / 2, rtol=1e-4, atol=1e-5, err_msg=ours.path)


@pytest.mark.parametrize("precision, tolerance", [("mixed_bfloat16", 0.1), ("mixed_float16", 0.02)])
def test_half_precision_takes_nearly_the_same_step(tiny_dcgan, precision, tolerance):
    x, z = images(8), zs(8)
    steps = []
    for dcgan in (tiny_dcgan(), tiny_dcgan(precision=precision)):
        before = values(dcgan.generator.trainable_variables + dcgan.discriminator.trainable_variables)
        dcgan.prepare_training(0.01, 0.5)
        outputs = tf.function(dcgan.train_step)(x, z)
        after = values(dcgan.generator.trainable_variables + dcgan.discriminator.trainable_variables)
        assert all(v.dtype == np.float32 for v in after) and outputs["d_loss"].dtype == tf.float32
        steps.append(np.concatenate([(a - b).ravel() for a, b in zip(after, before, strict=True)]))
        assert dcgan.generator(z).dtype == dcgan.discriminator(x).dtype == tf.float32
    full, half = steps
    assert full @ half / np.linalg.norm(full) / np.linalg.norm(half) > 1 - tolerance
    assert not np.array_equal(full, half)


def test_float16_survives_gradients_that_overflow(tiny_dcgan):
    """Their step is left out, and the factor on the loss halved (Micikevicius et al. 2018, section 3.2)."""
    dcgan = tiny_dcgan(precision="mixed_float16")
    dcgan.prepare_training(0.01, 0.5)
    for optimizer in (dcgan.d_optimizer, dcgan.g_optimizer):
        optimizer.dynamic_scale.assign(1e30)
    step, x, z = tf.function(dcgan.train_step), images(4), zs(4)
    before = values(dcgan.generator.trainable_variables)
    step(x, z)
    assert not any(changed(before, dcgan.generator.trainable_variables))
    assert float(dcgan.d_optimizer.dynamic_scale) == pytest.approx(5e29)
    assert float(dcgan.g_optimizer.dynamic_scale) == pytest.approx(2.5e29)
    for optimizer in (dcgan.d_optimizer, dcgan.g_optimizer):
        optimizer.dynamic_scale.assign(1024)
    step(x, z)
    assert any(changed(before, dcgan.generator.trainable_variables))


def test_float16_on_two_replicas_leaves_a_step_out_when_one_overflows(tiny_dcgan):
    dcgan = two_replicas(tiny_dcgan, precision="mixed_float16")
    dcgan.prepare_training(0.01, 0.5)
    step, x, z = tf.function(dcgan.train_step), images(6), zs(6)
    x[3:] *= 30  # so that the second replica overflows first
    for scale in 2.0 ** np.arange(8, 20):
        for optimizer in (dcgan.d_optimizer, dcgan.g_optimizer):
            optimizer.dynamic_scale.assign(scale)
        step(x, z)
    for variable in dcgan.generator.trainable_variables + dcgan.discriminator.trainable_variables:
        assert all(np.isfinite(replica).all() for replica in variable.value.values)


def test_moving_average_of_the_generator(tiny_dcgan):
    dcgan = tiny_dcgan(ema=0.35)
    dcgan.prepare_training(0.01, 0.5)
    expected = values(dcgan.averaged.trainable_variables)
    step = tf.function(dcgan.train_step)
    for t in range(6):
        step(images(4), zs(4))
        decay = min(0.35, (1 + t) / (10 + t))
        new = values(dcgan.generator.trainable_variables)
        expected = [decay * e + (1 - decay) * n for e, n in zip(expected, new, strict=True)]
    assert int(dcgan.step) == 6 and (1 + 5) / (10 + 5) > 0.35  # both branches of the minimum were met
    for average, e in zip(dcgan.averaged.trainable_variables, expected, strict=True):
        np.testing.assert_allclose(average.numpy(), e, atol=1e-5)


def test_reestimated_statistics_are_the_mean_over_the_batches(tiny_dcgan):
    network = tiny_dcgan().generator
    batches = [zs(8) for _ in range(3)]
    first = keras.Model(network.inputs[0], network.get_layer("g_bn0").input)
    inputs = [first(b).numpy() for b in batches]
    ops.reestimate_batch_norm(network, batches)
    norm = network.get_layer("g_bn0")
    np.testing.assert_allclose(norm.moving_mean, np.mean([x.mean((0, 1, 2)) for x in inputs], 0), atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, np.mean([x.var((0, 1, 2)) for x in inputs], 0), rtol=1e-4)
    assert norm.momentum == 0.9


class Interrupted(DCGAN):
    """A DCGAN that sends itself SIGTERM after the steps in `stops`, and keeps what it was trained on."""

    stops = ()

    def report(self, step, outputs, bar):
        super().report(step, outputs, bar)
        if step in self.stops:
            signal.raise_signal(signal.SIGTERM)

    def train_step(self, images, z):
        tf.py_function(lambda *x: self.fed.append([v.numpy() for v in x]), [images, z], [])
        return super().train_step(images, z)


def train(home, folder, stops=(), **options):
    """Train a tiny DCGAN for 4 epochs of 3 steps, with a stop after each of `stops`; returns it and what it was fed."""
    settings = dict(epoch=4, batch_size=3, learning_rate=0.01, beta1=0.5, seed=1, flip=True) | options
    fed = []
    for _ in range(len(stops) + 1):
        keras.utils.set_random_seed(1)
        dcgan = Interrupted(**TINY, ema=0.9)
        dcgan.fed, dcgan.stops = fed, stops
        dirs = {f"{name}_dir": str(home / name) for name in ("checkpoint", "sample", "log")}
        signum = dcgan.train(ImageFolder(folder, 16, 3), **settings, **dirs)
    assert signum is None
    return dcgan, fed


def test_a_stopped_run_goes_on_as_if_never_stopped(folder, tmp_path):
    whole, fed = train(tmp_path / "whole", folder)
    parts, fed_in_parts = train(tmp_path / "parts", folder, stops=(2, 6, 7))
    assert len(fed) == len(fed_in_parts) == 12
    for (x, z), (x_, z_) in zip(fed, fed_in_parts, strict=True):
        np.testing.assert_array_equal(x, x_)
        np.testing.assert_array_equal(z, z_)
    # each step has a z and images of its own, each epoch another order, and some are mirrored
    assert len({z.tobytes() for _, z in fed}) == 12
    files = [utils.to_float(utils.read_image(p, 16, 3)) for p in utils.find_images(folder)]
    upright = [any(np.array_equal(image, file) for file in files) for x, _ in fed for image in x]
    assert 0.2 < np.mean(upright) < 0.8
    assert int(parts.step) == 12 and int(parts.epoch) == 4 and int(parts.seen) == 0
    for name in ("generator", "discriminator", "averaged", "d_optimizer", "g_optimizer"):
        for a, b in zip(getattr(whole, name).variables, getattr(parts, name).variables, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, err_msg=f"{name} {a.path}")


def test_nothing_is_lost_to_a_signal_while_samples_are_drawn(folder, tmp_path):
    class Late(DCGAN):
        def write_samples(self, path, step, seed):
            signal.raise_signal(signal.SIGTERM)

    dcgan = Late(**TINY)
    settings = dict(epoch=4, batch_size=3, learning_rate=0.01, beta1=0.5, seed=1, flip=True)
    dirs = {f"{name}_dir": str(tmp_path / name) for name in ("checkpoint", "sample", "log")}
    assert dcgan.train(ImageFolder(folder, 16, 3), **settings, **dirs) == signal.SIGTERM
    assert int(dcgan.step) == int(DCGAN.load(tmp_path / "checkpoint").step) == 2


@pytest.mark.parametrize("method", ["report", "evaluate"])
def test_a_signal_does_not_spare_the_last_evaluation(folder, tmp_path, monkeypatch, method):
    original = getattr(DCGAN, method)

    def interrupted(self, *args):
        if int(self.step) == 3:
            signal.raise_signal(signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(DCGAN, method, interrupted)
    dcgan = DCGAN(**TINY)
    settings = dict(epoch=1, batch_size=3, learning_rate=0.01, beta1=0.5, seed=1, flip=True)
    dirs = {f"{name}_dir": str(tmp_path / name) for name in ("checkpoint", "sample", "log")}
    assert dcgan.train(ImageFolder(folder, 16, 3), **settings, **dirs) is None
    assert int(DCGAN.load(tmp_path / "checkpoint/best").step) == 3


def test_an_evaluation_compares_the_same_samples_and_images_each_time(folder, tiny_dcgan, monkeypatch):
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
    monkeypatch.setattr(model, "EVALUATED_IMAGES", 6)
    monkeypatch.setattr(model.metrics, "sliced_wasserstein", distance)
    dcgan, files = tiny_dcgan(ema=0.9), ImageFolder(folder, 16, 3)
    dcgan.averaged.set_weights([v + 0.1 for v in dcgan.generator.get_weights()])
    dcgan.shown = {}
    assert [dcgan.evaluate(files, 1, seed, bar, ()) for seed in (1, 1, 2)] == [2.5, 4.5, 6.5]  # the averaged one's
    z = ops.random_z((6, 5), 2, "e")
    for (_, generated), network in zip(compared[4:], (dcgan.generator, dcgan.averaged), strict=True):
        np.testing.assert_allclose(generated, utils.to_uint8(network(z, training=False)), atol=1)
    pairs = generated, np.roll(generated, 1, 0)
    assert float(bar.shown["ms_ssim"]) == pytest.approx(np.mean(ops.ms_ssim(*pairs)), abs=1e-3)
    for i, j in ((0, 2), (1, 3)):
        np.testing.assert_array_equal(compared[i], compared[j])
    real = [[next(k for k in range(10) if np.array_equal(x, files.read(k))) for x in pair[0]] for pair in compared]
    assert len(set(real[0])) == 6 and real[0] == real[1] != real[4]
    assert dcgan.evaluate(files, 1, 1, bar, [signal.SIGTERM]) is None


def test_checkpoints_at_the_start_at_intervals_and_at_epochs_ends(folder, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(model, "save", lambda state, directory, step, keep=3: saved.append(step))
    monkeypatch.setattr(model, "keep_best", lambda *_: None)
    train(tmp_path / "short", folder)
    assert saved == [0, 12]
    saved.clear()
    monkeypatch.setattr(model, "EPOCH_STEPS", 5)
    train(tmp_path / "seldom", folder)
    assert saved == [0, 6, 12]
    saved.clear()
    train(tmp_path / "evaluated", folder, eval_every=4)
    assert saved == [0, 4, 8, 12]
    saved.clear()
    monkeypatch.setattr(model, "CHECKPOINT_SECONDS", 0)
    train(tmp_path / "often", folder)
    assert saved == list(range(13))


def test_settings_of_a_resumed_run(folder, tmp_path):
    train(tmp_path, folder, epoch=1)
    dcgan, _ = train(tmp_path, folder, epoch=2, learning_rate=0.5)
    for optimizer in (dcgan.d_optimizer, dcgan.g_optimizer):
        assert float(optimizer.learning_rate) == 0.5
        assert (optimizer.beta_1, optimizer.beta_2, optimizer.epsilon) == (0.5, 0.999, 1e-8)
    # with larger batches what is left of the epoch is not enough for one
    train(tmp_path, folder, stops=(7,), epoch=3)
    dcgan, fed = train(tmp_path, folder, epoch=5, batch_size=10)
    assert [len(x) for x, _ in fed] == [10, 10] and int(dcgan.epoch) == 5


def test_samples_are_the_averaged_generators(folder, tmp_path):
    dcgan, _ = train(tmp_path, folder)
    grid = np.asarray(Image.open(tmp_path / "sample/checkpoint_000012.png"))
    dcgan.refresh_average()
    samples = dcgan.averaged(ops.random_z((64, 5), 1, "s"), training=False)
    np.testing.assert_allclose(grid, utils.image_grid(samples, columns=8), atol=1)


# completion


def complete(dcgan, y, mask, numbers=None, **options):
    return list(dcgan.complete(y, mask, numbers, **{"iterations": 10, "candidates": 1, "interval": 4, **options}))


def first_z(count, seed=0):
    return np.stack([ops.random_z(5, seed, "i", number) for number in range(count)])


def test_the_articles_search_against_numpy(tiny_dcgan):
    dcgan = tiny_dcgan()
    y, mask = images(3), center_hole(3)
    z, lr, momentum, lam = first_z(3), 0.05, 0.9, 0.5
    options = dict(lr=lr, momentum=momentum, lam=lam, schedule="constant", iterations=7, interval=3)
    states = complete(dcgan, y, mask, **options)

    v, clipped, losses, iterates = np.zeros_like(z), False, [], []
    for _ in range(8):
        with tf.GradientTape() as tape:
            z_ = tf.constant(z)
            tape.watch(z_)
            generated = dcgan.generator(z_, training=False)
            loss = tf.reduce_sum(tf.abs(mask * generated - mask * y), [1, 2, 3])
            loss -= lam * tf.math.log_sigmoid(dcgan.discriminator(generated, training=False))[:, 0]
        losses.append(loss.numpy())
        iterates.append(z)
        g = tape.gradient(loss, z_).numpy()
        v_prev = np.copy(v)
        v = momentum * v - lr * g
        z = z + -momentum * v_prev + (1 + momentum) * v
        clipped |= (np.abs(z) > 1).any()
        z = np.clip(z, -1, 1)
    assert clipped and (np.abs(iterates[-1]) < 1).any()
    assert [s.iteration for s in states] == [0, 3, 6, 7]
    best = np.argmin(losses, 0)
    assert (best != 7).any()  # or the best would only be the last
    for state in states:
        np.testing.assert_allclose(state.current, losses[state.iteration], rtol=1e-4)
        np.testing.assert_allclose(state.total, np.min(losses[: state.iteration + 1], 0), rtol=1e-4)
    np.testing.assert_allclose(states[-1].z, [iterates[best[n]][n] for n in range(3)], atol=1e-4)


def test_gradient_of_the_completion_loss_by_finite_differences(tiny_dcgan):
    dcgan = tiny_dcgan()
    y, mask, lam, lr = images(2), center_hole(2), 3.0, 1e-5
    z = first_z(2)

    def loss(z):
        _, contextual, perceptual = dcgan.completion_losses(tf.constant(z), y, mask)
        return (contextual.numpy() + lam * perceptual.numpy()).astype(np.float64)

    # without momentum, one iteration moves z by -lr times the gradient
    options = dict(lr=lr, momentum=0.0, lam=lam, schedule="constant")
    moved = complete(dcgan, y, mask, iterations=1, **options)[-1].z
    gradient = (z - moved) / lr
    for k in range(z.shape[1]):
        h = np.zeros_like(z)
        h[:, k] = 2e-3
        np.testing.assert_allclose((loss(z + h) - loss(z - h)) / 4e-3, gradient[:, k], rtol=0.02, atol=0.1)


@pytest.mark.parametrize("approach", ["momentum", "adam", "hmc"])
def test_completion_improves_and_leaves_the_networks_alone(tiny_dcgan, approach):
    dcgan = tiny_dcgan()
    y, mask = images(2), center_hole(2)
    variables = dcgan.generator.variables + dcgan.discriminator.variables
    before = values(variables)
    states = complete(dcgan, y, mask, approach=approach, hmc_l=5, hmc_eps=0.02)
    assert not any(changed(before, variables))
    assert (states[-1].total < states[0].total).all()
    for s in states:
        generated = dcgan.generator(s.z, training=False)
        np.testing.assert_allclose(s.generated, generated, atol=1e-5)
        np.testing.assert_array_equal(s.completed, np.where(mask, y, s.generated))
        np.testing.assert_allclose(s.contextual, (mask * np.abs(generated - y)).sum((1, 2, 3)), rtol=1e-4)
        np.testing.assert_allclose(s.total, s.contextual + 0.1 * s.perceptual, rtol=1e-4)


@pytest.mark.parametrize("approach", ["momentum", "adam", "hmc"])
def test_an_image_does_not_depend_on_its_batch(tiny_dcgan, approach):
    dcgan = tiny_dcgan()
    y, mask = images(5), center_hole(5)
    options = dict(approach=approach, candidates=20, hmc_l=5, hmc_eps=0.01)
    together = complete(dcgan, y, mask, **options)[-1]
    for part in (slice(0, 1), slice(1, 5)):
        apart = complete(dcgan, y[part], mask[part], range(5)[part], **options)[-1]
        np.testing.assert_allclose(apart.completed, together.completed[part], atol=1e-4)
        np.testing.assert_allclose(apart.z, together.z[part], atol=1e-4)


@pytest.mark.parametrize("hidden", [-1.0, np.nan])
def test_hidden_pixels_never_matter(tiny_dcgan, hidden):
    dcgan = tiny_dcgan()
    y, mask = images(2), center_hole(2)
    other = np.where(mask, y, np.float32(hidden))
    a, b = (complete(dcgan, x, mask, candidates=20)[-1] for x in (y, other))
    np.testing.assert_array_equal(a.completed, b.completed)
    refined = [dcgan.refine(x, mask, a.z, 2) for x in (y, other)]
    np.testing.assert_array_equal(*refined)


def test_the_search_starts_from_the_best_candidate(tiny_dcgan):
    dcgan = tiny_dcgan()
    y, mask = images(3), center_hole(3)
    start = complete(dcgan, y, mask, candidates=100, iterations=1)[0]
    shared = [ops.random_z((count, 5), 0, "c", k) for k, count in ((0, 64), (64, 35))]
    for n in range(3):
        z = np.concatenate([first_z(3)[n : n + 1], *shared])
        assert len(z) == 100
        repeated = np.repeat(y[n : n + 1], 100, 0), np.repeat(mask[n : n + 1], 100, 0)
        _, contextual, perceptual = dcgan.completion_losses(z, *repeated)
        total = contextual.numpy() + 0.1 * perceptual.numpy()
        np.testing.assert_array_equal(start.z[n], z[total.argmin()])
        assert start.total[n] == pytest.approx(total.min(), rel=1e-5)


def test_means_alone_are_compared_where_only_they_are_known(tiny_dcgan):
    dcgan = tiny_dcgan()
    y, mask = images(2), np.zeros((2, 16, 16, 1), np.float32)
    last = complete(dcgan, y, mask, weights=np.ones((2, 4, 4, 1)), pool=4)[-1]
    means = [x.reshape(2, 4, 4, 4, 4, 3).mean((2, 4)) for x in (last.generated, y)]
    np.testing.assert_allclose(last.contextual, np.abs(means[0] - means[1]).sum((1, 2, 3)), rtol=1e-4)
    np.testing.assert_array_equal(last.completed, last.generated)


def test_refinement_fits_what_is_known_and_leaves_the_generator_alone(tiny_dcgan):
    dcgan = tiny_dcgan()
    y, mask = images(3), center_hole(3)
    last = complete(dcgan, y, mask)[-1]
    before = values(dcgan.generator.variables)
    together = dcgan.refine(y, mask, last.z, 20)
    assert not any(changed(before, dcgan.generator.variables))
    assert ((mask * np.abs(together - y)).sum((1, 2, 3)) < last.contextual).all()
    np.testing.assert_allclose(dcgan.refine(y[2:], mask[2:], last.z[2:], 20), together[2:], atol=1e-4)
    np.testing.assert_allclose(dcgan.refine(y, mask, last.z, 0), last.generated, atol=1e-5)
    dcgan.refine(y[:1], mask[:1], last.z[:1], 3)
    tuned = changed(values(dcgan.tuned[0].variables), dcgan.generator.variables)
    names = {v.path.split("/")[-2] for v, moved in zip(dcgan.generator.variables, tuned, strict=True) if moved}
    assert names == {"g_h0_lin", "g_bn0"}  # all but the last two transposed convolutions, g_h1 and g_h2
    assert dcgan.refine_step.experimental_get_tracing_count() == 1  # each would keep its memory


@pytest.mark.parametrize("weights, pool", [("mask", 1), ("random", 1), ("random", 4)])
def test_refinement_is_adam_on_the_contextual_loss(tiny_dcgan, weights, pool):
    dcgan = tiny_dcgan()
    y, mask, z = images(1), center_hole(1), zs(1)
    side = 16 // pool
    counts = mask if weights == "mask" else np.random.default_rng(0).random((1, side, side, 1)).astype(np.float32)
    first = dcgan.generator.layers[0]
    before = [v.numpy() for v in first.trainable_variables]

    def means(x):
        return tf.reduce_mean(tf.reshape(x, (1, side, pool, side, pool, 3)), (2, 4))

    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.abs(counts * (means(dcgan.generator(z, training=False)) - means(y))))
    gradients = tape.gradient(loss, first.trainable_variables)
    if weights == "mask":
        y = np.where(mask == 1, y, np.nan)  # which nobody may look at
    dcgan.refine(y, mask, z, 1, weights=None if weights == "mask" else counts, pool=pool, lr=0.01)
    # the first step of Adam (Kingma and Ba 2015, end of section 2) goes by lr against the sign of each gradient
    for value, gradient, after in zip(before, gradients, dcgan.tuned[0].layers[0].trainable_variables, strict=True):
        np.testing.assert_allclose(after, value - 0.01 * gradient / (np.abs(gradient) + 1e-7 / 0.001**0.5), atol=2e-6)


# checkpoints


def trained(tiny_dcgan, directory, steps=2):
    dcgan = tiny_dcgan(ema=0.9)
    dcgan.prepare_training(0.01, 0.5)
    step = tf.function(dcgan.train_step)
    for _ in range(steps):
        step(images(4), zs(4))
    model.save(dcgan.training_state(), directory, steps)
    utils.write_json(directory / "config.json", {"architecture": dcgan.architecture})
    return dcgan


def test_checkpoint_round_trip(tiny_dcgan, tmp_path):
    before = trained(tiny_dcgan, tmp_path)
    after = DCGAN(**TINY, ema=0.9)
    after.prepare_training(0.01, 0.5)
    model.restore(after.training_state(), tmp_path).assert_consumed()
    assert int(after.step) == 2
    for name in ("generator", "discriminator", "averaged", "d_optimizer", "g_optimizer"):
        theirs, ours = getattr(before, name).variables, getattr(after, name).variables
        assert len(ours) == len(theirs) > 0 and not any(changed(values(theirs), ours)), name
    assert int(after.g_optimizer.iterations) == 4 and int(after.d_optimizer.iterations) == 2
    x, z = images(4), zs(4)
    for dcgan in (before, after):
        tf.function(dcgan.train_step)(x, z)
    for a, b in zip(before.generator.variables, after.generator.variables, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_load_for_completion(tiny_dcgan, tmp_path):
    before = trained(tiny_dcgan, tmp_path)
    before.refresh_average()
    after = DCGAN.load(tmp_path)
    assert after.sampler is after.averaged
    z, x = zs(3), images(3)
    np.testing.assert_allclose(after.sampler(z), before.averaged(z), atol=1e-5)
    np.testing.assert_allclose(after.discriminator(x), before.discriminator(x), atol=1e-5)


def test_an_exported_model_draws_nearly_the_same(tiny_dcgan, tmp_path):
    before = trained(tiny_dcgan, tmp_path / "run")
    before.refresh_average()
    before.export(tmp_path / "small")
    after = DCGAN.load(tmp_path / "small")
    assert int(after.step) == 2 and after.averaged is None
    z, x = zs(3), images(3)
    for ours, theirs in ((after.generator(z), before.averaged(z)), (after.discriminator(x), before.discriminator(x))):
        np.testing.assert_allclose(ours, theirs, rtol=0.01, atol=0.01)
        assert ours.dtype == tf.float32 and not np.array_equal(ours, theirs)
    for variable, exact in zip(after.generator.variables, before.averaged.variables, strict=True):
        np.testing.assert_array_equal(variable.numpy(), exact.numpy().astype(np.float16))
    weights = sum(v.numpy().size for v in after.generator.variables + after.discriminator.variables)
    files = [path.stat().st_size for path in (tmp_path / "small").glob("*.data*")]
    assert len(files) == 1 and files[0] < 2.5 * weights + 5000
    with pytest.raises(utils.UserError, match="is not empty"):
        before.export(tmp_path / "small")
    for network, name in ((before.discriminator, "d_h0_conv"), (before.averaged, "g_h0_lin")):
        network.get_layer(name).bias.assign_add(np.full(network.get_layer(name).bias.shape, 1e5))
        with pytest.raises(utils.UserError, match=f"{name}/bias does not fit"):
            before.export(tmp_path / "large")
        assert not (tmp_path / "large").exists()


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tiny_dcgan, tmp_path, capsys):
    trained(tiny_dcgan, tmp_path, steps=2)
    trained(tiny_dcgan, tmp_path, steps=10)
    data = tmp_path / "ckpt-10.data-00000-of-00001"
    content = data.read_bytes()
    (tmp_path / "checkpoint").unlink()
    for damaged in (content[: len(content) // 2], b"\0" * len(content), None):
        data.write_bytes(damaged) if damaged else data.unlink()
        assert int(DCGAN.load(tmp_path).step) == 2
        assert f"skipped {tmp_path}/ckpt-10: damaged" in capsys.readouterr().err
    (tmp_path / "ckpt-2.index").write_text("")
    with pytest.raises(utils.UserError, match="holds no readable checkpoint"):
        DCGAN.load(tmp_path)


def test_what_a_killed_run_did_not_list_goes_and_what_is_listed_stays(tiny_dcgan, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = tiny_dcgan().inference_state()

    def save(step):
        model.save(state, "./run", step)
        return [int(path.rpartition("-")[2]) for path in utils.find_checkpoints("./run")]

    assert [save(step) for step in (1, 2, 3)][-1] == [3, 2, 1]
    for file in tmp_path.glob("run/ckpt-3.*"):
        shutil.copy(file, str(file).replace("ckpt-3.", "ckpt-9."))
    assert save(4) == [4, 3, 2]
    (tmp_path / "run/checkpoint").unlink()  # the list itself is lost: nothing goes until there is a whole one again
    assert save(5) == [5, 4, 3, 2] and save(6) == [6, 5, 4, 3, 2]
    assert save(7) == [7, 6, 5]


def test_the_best_checkpoint_is_kept_beside(tiny_dcgan, tmp_path):
    state = tiny_dcgan().inference_state()
    config = {"architecture": TINY, "training": {"seed": 1}, "images": 10}

    def offer(step, swd, **changes):
        model.keep_best(state, tmp_path, step, {**config, **changes}, swd)
        (kept,) = utils.find_checkpoints(tmp_path)
        return int(kept.rpartition("-")[2])

    assert [offer(5, 10.0), offer(6, 12.0), offer(7, 9.0)] == [5, 5, 7]
    assert offer(4, 8.0) == 4  # of a run that went back
    # what cannot be compared is replaced, and so is what a killed run did not finish
    assert offer(8, 20.0, images=11) == 8
    assert offer(9, 30.0, training={"seed": 2}) == 9
    (tmp_path / "config.json").write_text("{")
    assert offer(10, 40.0) == 10
    model.save(state, tmp_path, 11, keep=1)
    assert offer(12, 50.0) == 12 and offer(13, 51.0) == 12


def test_a_diverged_run_stops_before_it_is_saved(folder, tmp_path):
    train(tmp_path, folder, epoch=1)
    with pytest.raises(utils.UserError, match="not finite at step.*goes on from .*ckpt-3"):
        train(tmp_path, folder, epoch=3, learning_rate=1e30)
    dcgan = DCGAN.load(tmp_path / "checkpoint")
    assert int(dcgan.step) == 3 and all(np.isfinite(v).all() for v in values(dcgan.generator.variables))


def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tiny_dcgan, tmp_path, monkeypatch):
    trained(tiny_dcgan, tmp_path)
    dcgan = tiny_dcgan(ema=0.9)
    dcgan.prepare_training(0.01, 0.5)
    before = sorted(tmp_path.iterdir())

    def full(manager, checkpoint_number):
        (tmp_path / f"ckpt-{checkpoint_number}_temp").mkdir()
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.train.CheckpointManager, "save", full)
    with pytest.raises(utils.UserError, match="step 5 could not be saved.*No space left"):
        model.save(dcgan.training_state(), tmp_path, 5)
    assert sorted(tmp_path.iterdir()) == before
    assert int(DCGAN.load(tmp_path).step) == 2
