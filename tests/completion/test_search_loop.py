"""Completion: the search for z, on tiny networks."""

import numpy as np
import pytest
import tensorflow as tf
from conftest import center_hole, changed, images, values

import ops
from completion import search

# completion


def complete(dcgan, y, mask, numbers=None, **options):
    return list(
        search.complete(dcgan, y, mask, numbers, **{"iterations": 10, "candidates": 1, "interval": 4, **options})
    )


def first_z(count, seed=0):
    return np.stack([ops.random_z(5, seed, "first z", number) for number in range(count)])


def test_the_articles_search_against_numpy(tiny):
    y, mask = images(3), center_hole(3)
    z, lr, momentum, lam = first_z(3), 0.05, 0.9, 0.5
    options = dict(lr=lr, momentum=momentum, lam=lam, schedule="constant", iterations=7, interval=3)
    states = complete(tiny, y, mask, **options)

    v, clipped, losses, iterates = np.zeros_like(z), False, [], []
    for _ in range(8):
        with tf.GradientTape() as tape:
            z_ = tf.constant(z)
            tape.watch(z_)
            generated = tiny.generator(z_, training=False)
            loss = tf.reduce_sum(tf.abs(mask * generated - mask * y), [1, 2, 3])
            loss -= lam * tf.math.log_sigmoid(tiny.discriminator(generated, training=False))[:, 0]
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


def test_gradient_of_the_completion_loss_by_finite_differences(tiny):
    y, mask, lam, lr = images(2), center_hole(2), 3.0, 1e-5
    z = first_z(2)

    def loss(z):
        _, contextual, perceptual, _ = tiny.completion_loss(tf.constant(z), y, mask)
        return (contextual.numpy() + lam * perceptual.numpy()).astype(np.float64)

    # without momentum, one iteration moves z by -lr times the gradient
    options = dict(lr=lr, momentum=0.0, lam=lam, schedule="constant")
    moved = complete(tiny, y, mask, iterations=1, **options)[-1].z
    gradient = (z - moved) / lr
    for k in range(z.shape[1]):
        h = np.zeros_like(z)
        h[:, k] = 2e-3
        np.testing.assert_allclose((loss(z + h) - loss(z - h)) / 4e-3, gradient[:, k], rtol=0.02, atol=0.1)


@pytest.mark.parametrize("approach", ["momentum", "adam", "hmc"])
def test_completion_improves_and_leaves_the_networks_alone(tiny, approach):
    y, mask = images(2), center_hole(2)
    variables = tiny.generator.variables + tiny.discriminator.variables
    before = values(variables)
    states = complete(tiny, y, mask, approach=approach, hmc_l=5, hmc_eps=0.02)
    assert not any(changed(before, variables))
    assert (states[-1].total < states[0].total).all()
    for s in states:
        generated = tiny.generator(s.z, training=False)
        np.testing.assert_allclose(s.generated, generated, atol=1e-5)
        np.testing.assert_array_equal(s.completed, np.where(mask, y, s.generated))
        np.testing.assert_allclose(s.contextual, (mask * np.abs(generated - y)).sum((1, 2, 3)), rtol=1e-4)
        np.testing.assert_allclose(s.total, s.contextual + 0.1 * s.perceptual, rtol=1e-4)


@pytest.mark.parametrize("approach", ["momentum", "adam", "hmc"])
def test_an_image_does_not_depend_on_its_batch(tiny, approach):
    y, mask = images(3), center_hole(3)
    options = dict(approach=approach, candidates=20, hmc_l=5, hmc_eps=0.01)
    together = complete(tiny, y, mask, **options)[-1]
    for part in (slice(0, 1), slice(1, 3)):
        apart = complete(tiny, y[part], mask[part], range(3)[part], **options)[-1]
        np.testing.assert_allclose(apart.completed, together.completed[part], atol=1e-4)
        np.testing.assert_allclose(apart.z, together.z[part], atol=1e-4)


@pytest.mark.parametrize("hidden", [-1.0, np.nan])
def test_hidden_pixels_never_matter(tiny, hidden):
    y, mask = images(2), center_hole(2)
    other = np.where(mask, y, np.float32(hidden))
    a, b = (complete(tiny, x, mask, candidates=20)[-1] for x in (y, other))
    np.testing.assert_array_equal(a.completed, b.completed)


def test_the_search_starts_from_the_best_candidate(tiny):
    y, mask = images(3), center_hole(3)
    start = complete(tiny, y, mask, candidates=100, iterations=1)[0]
    shared = [ops.random_z((count, 5), 0, "candidates", k) for k, count in ((0, 64), (64, 35))]
    for n in range(3):
        z = np.concatenate([first_z(3)[n : n + 1], *shared])
        assert len(z) == 100
        repeated = np.repeat(y[n : n + 1], 100, 0), np.repeat(mask[n : n + 1], 100, 0)
        _, contextual, perceptual, _ = tiny.completion_loss(z, *repeated)
        total = contextual.numpy() + 0.1 * perceptual.numpy()
        np.testing.assert_array_equal(start.z[n], z[total.argmin()])
        assert start.total[n] == pytest.approx(total.min(), rel=1e-5)


def test_means_alone_are_compared_where_only_they_are_known(tiny):
    y, mask = images(2), np.zeros((2, 16, 16, 1), np.float32)
    last = complete(tiny, y, mask, weights=np.ones((2, 4, 4, 1)), pool=4)[-1]
    means = [x.reshape(2, 4, 4, 4, 4, 3).mean((2, 4)) for x in (last.generated, y)]
    np.testing.assert_allclose(last.contextual, np.abs(means[0] - means[1]).sum((1, 2, 3)), rtol=1e-4)
    np.testing.assert_array_equal(last.completed, last.generated)
