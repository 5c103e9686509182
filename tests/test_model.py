"""The networks, the losses, the training step."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import RNG, center_hole, changed, compiled_step, images, values, zs
from scipy.special import expit, log_expit

import checkpoint
import ops
from model import DCGAN

# networks


def test_parameter_counts_of_the_reference():
    dcgan = DCGAN(image_size=64, c_dim=3, z_dim=100, gf_dim=64, df_dim=64)
    assert dcgan.generator.count_params() == 5_137_283
    assert dcgan.discriminator.count_params() == 4_318_337


@pytest.mark.parametrize(
    "size, channels",
    [(16, [2, 1]), (32, [4, 2, 1]), (64, [8, 4, 2, 1]), (128, [8, 8, 4, 2, 1]), (256, [8, 8, 8, 4, 2, 1])],
)
@pytest.mark.parametrize("c_dim", [1, 3])
def test_shapes_at_every_size(size, channels, c_dim):
    dcgan = DCGAN(image_size=size, c_dim=c_dim, z_dim=5, gf_dim=3, df_dim=3)
    channels = [3 * c for c in channels]
    assert checkpoint.channels(size, 3) == channels
    generated = dcgan.generator(zs(2), training=False)
    assert generated.shape == (2, size, size, c_dim)
    assert dcgan.discriminator(generated, training=False).shape == (2, 1)
    convolutions = [layer.filters for layer in dcgan.discriminator.layers if isinstance(layer, keras.layers.Conv2D)]
    assert convolutions == channels[::-1]


def test_first_weights():
    keras.utils.set_random_seed(0)
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


@pytest.mark.parametrize("label", [0, 1])
def test_the_gradient_of_the_cross_entropy_is_exact_for_large_logits(label):
    x = np.linspace(-30, 30, 61, dtype=np.float32)[:, None]

    @tf.function
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(ops.sigmoid_cross_entropy(x, label))
        return tape.gradient(loss, x)

    expected = -expit(-x.astype(float)) if label else expit(x.astype(float))
    np.testing.assert_allclose(gradient(tf.constant(x)), expected, rtol=1e-6)


def test_contextual_loss_against_numpy():
    a, b, mask = images(3), images(3), (RNG.random((3, 16, 16, 1)) < 0.5).astype(np.float32)
    expected = [sum(abs(a[i, y, x] - b[i, y, x]).sum() for y, x in np.argwhere(mask[i, ..., 0])) for i in range(3)]
    np.testing.assert_allclose(ops.contextual_loss(a, b, mask), expected, rtol=1e-5)


def test_completion_losses_are_per_image(tiny):
    z, y, mask = zs(3), images(3), center_hole(3)
    _, contextual, perceptual, generated = tiny.completion_loss(z, y, mask)
    logits = tiny.discriminator(generated, training=False).numpy()
    np.testing.assert_allclose(generated, tiny.generator(z, training=False), atol=1e-6)
    np.testing.assert_allclose(contextual, (mask * np.abs(generated - y)).sum((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(perceptual, -log_expit(logits)[:, 0], rtol=1e-4)


# training


def weights(dcgan):
    return dcgan.generator.trainable_variables + dcgan.discriminator.trainable_variables


def statistics(dcgan):
    return dcgan.generator.non_trainable_variables + dcgan.discriminator.non_trainable_variables


def plain_step(dcgan, x, z, learning_rate, groups=1):
    """The article's step, written plainly: G(z) anew for each update, every loss in its own tape, gradient descent.

    Each of `groups` parts of the batch goes through the networks on its own; the losses are the means over all.
    """
    g, d = dcgan.generator, dcgan.discriminator
    parts = list(zip(np.split(x, groups), np.split(z, groups), strict=True))

    def descend(network, loss_function):
        with tf.GradientTape() as tape:
            loss = sum(loss_function(*part) for part in parts) / groups
        gradients = tape.gradient(loss, network.trainable_variables)
        for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
            variable.assign_sub(learning_rate * gradient)
        return float(loss)

    def d_loss(x, z):
        fake = d(g(z, training=True), training=True)
        real = d(x, training=True)
        return -tf.reduce_mean(tf.math.log(tf.sigmoid(real)) + tf.math.log(1 - tf.sigmoid(fake)))

    def g_loss(x, z):
        return -tf.reduce_mean(tf.math.log(tf.sigmoid(d(g(z, training=True), training=True))))

    return descend(d, d_loss), descend(g, g_loss), descend(g, g_loss)


def gradient_descent(dcgan):
    """A compiled training step with plain gradient descent, and its optimizers, whose step size is 0 at first."""
    with dcgan.strategy.scope():
        optimizers = {name: keras.optimizers.SGD(0.0) for name in ("d_optimizer", "g_optimizer")}
        optimizers["d_optimizer"].build(dcgan.discriminator.trainable_variables)
        optimizers["g_optimizer"].build(dcgan.generator.trainable_variables)
    return compiled_step(dcgan, optimizers), optimizers.values()


def statistics_after_a_step(dcgan, x, z):
    """The moving statistics after the training passes of a step that changes no weight.

    These are G's two, as its first pass is shared, and D's four: real, fake and both G updates.
    """
    fakes = [dcgan.generator(z, training=True) for _ in range(2)]
    for batch in (x, fakes[0], fakes[0], fakes[1]):
        dcgan.discriminator(batch, training=True)
    return statistics(dcgan)


def test_the_shared_step_equals_the_plain_one(tiny_dcgan):
    x, z = images(4), zs(4)
    expected = tiny_dcgan()
    d = expit(expected.discriminator(x, training=True).numpy())
    d_ = expit(expected.discriminator(expected.generator(z, training=True), training=True).numpy())
    d_loss, _, g_loss = plain_step(expected, x, z, 0.1)

    dcgan = tiny_dcgan()
    step, optimizers = gradient_descent(dcgan)
    step(x, z)
    for a, b in zip(statistics(dcgan), statistics_after_a_step(tiny_dcgan(), x, z), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=a.path)

    for optimizer in optimizers:
        optimizer.learning_rate.assign(0.1)
    outputs = step(x, z)
    assert float(outputs["d_loss"]) == pytest.approx(d_loss, rel=1e-4)
    assert float(outputs["d_loss_real"] + outputs["d_loss_fake"]) == pytest.approx(d_loss, rel=1e-4)
    assert float(outputs["g_loss"]) == pytest.approx(g_loss, rel=1e-4)
    np.testing.assert_allclose(outputs["d"], d, atol=1e-5)
    np.testing.assert_allclose(outputs["d_"], d_, atol=1e-5)
    for a, b in zip(weights(dcgan), weights(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4, err_msg=a.path)


def test_no_sum_of_a_step_has_three_terms(tiny_dcgan):
    """TensorFlow adds up more than two in any order where the networks are large, even with --deterministic."""
    dcgan = tiny_dcgan()
    arguments = tf.constant(images(4)), tf.constant(zs(4)), tf.constant(0, tf.int64)
    step = tf.function(dcgan.train_step).get_concrete_function(*arguments, **dcgan.make_optimizers(0.01, 0.5))
    sums = [node for node in step.graph.as_graph_def().node if node.op == "AddN"]
    assert sums and all(len(node.input) == 2 for node in sums)


def test_an_update_changes_its_own_network_only(tiny_dcgan):
    dcgan = tiny_dcgan()
    optimizers = dcgan.make_optimizers(0.01, 0.5)
    step = compiled_step(dcgan, optimizers)
    networks = {"d_optimizer": dcgan.discriminator, "g_optimizer": dcgan.generator}
    for updating in networks:
        for name, optimizer in optimizers.items():
            optimizer.learning_rate.assign(0.01 * (name == updating))
        before = {name: values(network.trainable_variables) for name, network in networks.items()}
        step(images(4), zs(4))
        for name, network in networks.items():
            assert set(changed(before[name], network.trainable_variables)) == {name == updating}


def test_adam_is_that_of_tensorflow_1(tiny_dcgan):
    """Kingma and Ba 2015, the form before section 2.1: the epsilon stands beside the uncorrected second moment."""
    dcgan = tiny_dcgan()
    optimizer, variables = dcgan.make_optimizers(0.0002, 0.5)["g_optimizer"], dcgan.generator.trainable_variables
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


def test_a_step_on_two_replicas_equals_one_on_both_halves(tiny_dcgan, replicated):
    """Each replica normalises its half of the batch by itself; losses and gradients are those of the whole.

    The moving statistics are the mean of both.
    """
    x, z = images(6), zs(6)
    expected = tiny_dcgan()
    d_loss, _, g_loss = plain_step(expected, x, z, 0.1, groups=2)
    halves = [statistics_after_a_step(tiny_dcgan(), x[half], z[half]) for half in (slice(3), slice(3, 6))]
    dcgan = replicated(ema=0.5)
    step, optimizers = gradient_descent(dcgan)
    step(x, z)
    for ours, a, b in zip(statistics(dcgan), *halves, strict=True):
        for replica in ours.value.values:
            np.testing.assert_allclose(replica, (a + b) / 2, rtol=1e-4, atol=1e-5, err_msg=ours.path)

    dcgan.step = 0
    for optimizer in optimizers:
        optimizer.learning_rate.assign(0.1)
    old = values(dcgan.generator_ema.trainable_variables)
    outputs = step(x, z)
    assert float(outputs["d_loss"]) == pytest.approx(d_loss, rel=1e-4)
    assert float(outputs["g_loss"]) == pytest.approx(g_loss, rel=1e-4)
    assert outputs["d"].shape == outputs["d_"].shape == (6, 1) and dcgan.step == 1
    for a, b in zip(weights(dcgan), weights(expected), strict=True):
        for replica in a.value.values:
            np.testing.assert_allclose(replica, b, atol=2e-4, err_msg=a.path)
    # the average after the first step: a tenth of the old, nine tenths of the new
    new = values(dcgan.generator.trainable_variables)
    for average, a, b in zip(dcgan.generator_ema.trainable_variables, old, new, strict=True):
        np.testing.assert_allclose(average.numpy(), 0.1 * a + 0.9 * b, atol=1e-5)


def test_half_precision_takes_nearly_the_same_step(tiny_dcgan):
    x, z = images(8), zs(8)
    steps = {}
    for precision in ("float32", "mixed_bfloat16", "mixed_float16"):
        dcgan = tiny_dcgan(precision=precision)
        before = values(weights(dcgan))
        outputs = compiled_step(dcgan, dcgan.make_optimizers(0.01, 0.5))(x, z)
        after = values(weights(dcgan))
        assert all(v.dtype == np.float32 for v in after) and outputs["d_loss"].dtype == tf.float32
        steps[precision] = np.concatenate([(a - b).ravel() for a, b in zip(after, before, strict=True)])
        assert dcgan.generator(z).dtype == dcgan.discriminator(x).dtype == tf.float32
    full = steps["float32"]
    for precision, tolerance in (("mixed_bfloat16", 0.1), ("mixed_float16", 0.02)):
        half = steps[precision]
        assert full @ half / np.linalg.norm(full) / np.linalg.norm(half) > 1 - tolerance, precision
        assert not np.array_equal(full, half)


def test_float16_survives_gradients_that_overflow(tiny_dcgan):
    """Their step is left out, and the factor on the loss halved (Micikevicius et al. 2018, section 3.2)."""
    dcgan = tiny_dcgan(precision="mixed_float16")
    optimizers = dcgan.make_optimizers(0.01, 0.5)
    step = compiled_step(dcgan, optimizers)
    for optimizer in optimizers.values():
        optimizer.dynamic_scale.assign(1e30)
    x, z = images(4), zs(4)
    before = values(dcgan.generator.trainable_variables)
    step(x, z)
    assert not any(changed(before, dcgan.generator.trainable_variables))
    assert float(optimizers["d_optimizer"].dynamic_scale) == pytest.approx(5e29)
    assert float(optimizers["g_optimizer"].dynamic_scale) == pytest.approx(2.5e29)
    for optimizer in optimizers.values():
        optimizer.dynamic_scale.assign(1024)
    step(x, z)
    assert any(changed(before, dcgan.generator.trainable_variables))


def test_float16_on_two_replicas_leaves_a_step_out_when_one_overflows(replicated):
    dcgan = replicated(precision="mixed_float16")
    optimizers = dcgan.make_optimizers(0.01, 0.5)
    step = compiled_step(dcgan, optimizers)
    x, z = images(6), zs(6)
    x[3:] *= 30  # so that the second replica overflows first
    for scale in 2.0 ** np.arange(8, 20):
        for optimizer in optimizers.values():
            optimizer.dynamic_scale.assign(scale)
        step(x, z)
    for variable in weights(dcgan):
        assert all(np.isfinite(replica).all() for replica in variable.value.values)


def test_moving_average_of_the_generator(tiny_dcgan):
    dcgan = tiny_dcgan(ema=0.35)
    step = compiled_step(dcgan, dcgan.make_optimizers(0.01, 0.5))
    expected = values(dcgan.generator_ema.trainable_variables)
    for t in range(6):
        step(images(4), zs(4))
        decay = min(0.35, (1 + t) / (10 + t))
        new = values(dcgan.generator.trainable_variables)
        expected = [decay * e + (1 - decay) * n for e, n in zip(expected, new, strict=True)]
    assert dcgan.step == 6 and (1 + 5) / (10 + 5) > 0.35  # both branches of the minimum were met
    for average, e in zip(dcgan.generator_ema.trainable_variables, expected, strict=True):
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
