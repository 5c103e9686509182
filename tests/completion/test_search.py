"""The search for z: its rules on a plain function, then all of it on tiny networks."""

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from conftest import center_hole, changed, images, values, zs

import ops
from completion import search

SCALE, CENTRE = np.array([3.0, 30.0, 0.5]), np.array([0.4, -0.2, 1.5])  # the last minimum lies outside the box


def gradient_of(z):
    return 2 * SCALE * (z - CENTRE)


def losses_and_gradient(z):
    return tf.reduce_sum(tf.cast(SCALE, tf.float32) * (z - CENTRE) ** 2, 1), tf.cast(gradient_of(z), tf.float32)


def run(rule, z, iterations, **settings):
    settings = {"iterations": float(iterations), "anneal": True, **settings}
    settings = {name: tf.constant(value) for name, value in settings.items()}
    rule, z = search.RULES[rule], tf.constant(z, tf.float32)
    slots, step = rule.first_slots(z, tf.constant([(0, i) for i in range(len(z))])), tf.function(rule.step)
    for i in range(iterations):
        _, z, slots = step(losses_and_gradient, z, slots, tf.constant(i), settings)
    return z.numpy()


@pytest.mark.parametrize("anneal", [True, False])
def test_momentum_against_numpy(anneal):
    z = zs(4, 3)
    expected, v = z.astype(float), 0.0
    for i in range(12):
        lr = 0.02 * (0.5 * (1 + np.cos(np.pi * i / 12)) if anneal else 1)
        v_prev, v = v, 0.8 * v - lr * gradient_of(expected)
        expected = np.clip(expected - 0.8 * v_prev + 1.8 * v, -1, 1)
    np.testing.assert_allclose(run("momentum", z, 12, lr=0.02, momentum=0.8, anneal=anneal), expected, atol=1e-5)


def test_adam_against_numpy():
    z = zs(4, 3)
    expected, m, v = z.astype(float), 0.0, 0.0
    for i in range(12):
        lr, g = 0.1 * 0.5 * (1 + np.cos(np.pi * i / 12)), gradient_of(expected)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        m_hat, v_hat = m / (1 - 0.9 ** (i + 1)), v / (1 - 0.999 ** (i + 1))
        expected = np.clip(expected - lr * m_hat / (np.sqrt(v_hat) + 1e-8), -1, 1)
    np.testing.assert_allclose(run("adam", z, 12, lr=0.1), expected, atol=1e-5)


def test_hmc_against_numpy():
    z = zs(6, 3)
    settings = dict(hmc_beta=0.9, hmc_anneal=1.5, hmc_eps=0.2, hmc_l=4)
    expected, accepted, reflected = z.astype(float), [], 0
    for i in range(5):
        beta = 0.9 * 1.5**i
        for n in range(6):
            seed = tf.random.experimental.stateless_fold_in(tf.constant((0, n)), i)
            start = tf.random.stateless_normal((3,), seed).numpy()
            chance = float(tf.random.stateless_uniform((), tf.random.experimental.stateless_fold_in(seed, 1)))
            x, v = expected[n].copy(), start.astype(float)
            for _ in range(4):
                v -= 0.2 / 2 * beta * gradient_of(x)
                x += 0.2 * v
                while (abs(x) > 1).any():
                    v = np.where(abs(x) > 1, -v, v)
                    x = np.where(x > 1, 2 - x, np.where(x < -1, -2 - x, x))
                    reflected += 1
                v -= 0.2 / 2 * beta * gradient_of(x)

            def energy(x, v, beta=beta):
                return beta * (SCALE * (x - CENTRE) ** 2).sum() + (v**2).sum() / 2

            accepted.append(chance < np.exp(energy(expected[n], start) - energy(x, v)))
            expected[n] = x if accepted[-1] else expected[n]
    assert reflected and 0 < np.mean(accepted) < 1
    np.testing.assert_allclose(run("hmc", z, 5, **settings), expected, atol=1e-3)


def test_hmc_draws_from_the_density_on_the_box():
    """exp(-beta loss) is a normal distribution cut off at the walls, in each dimension."""
    z = run("hmc", np.zeros((4000, 3), np.float32), 30, hmc_beta=0.5, hmc_anneal=1.0, hmc_eps=0.15, hmc_l=10)
    for k in range(3):
        sd = np.sqrt(1 / (2 * 0.5 * SCALE[k]))
        wanted = scipy.stats.truncnorm((-1 - CENTRE[k]) / sd, (1 - CENTRE[k]) / sd, CENTRE[k], sd)
        assert z[:, k].mean() == pytest.approx(wanted.mean(), abs=4 * wanted.std() / np.sqrt(4000))
        assert z[:, k].std() == pytest.approx(wanted.std(), rel=0.06)


def test_better_takes_each_image_for_itself():
    best = tf.constant([[0.0], [0.0]]), tf.constant([1.0, 2.0])
    z, losses = search.better(best, tf.constant([[5.0], [5.0]]), tf.constant([1.5, 1.5]))
    assert z.numpy().tolist() == [[0.0], [5.0]] and losses.numpy().tolist() == [1.0, 1.5]


@pytest.mark.parametrize("iterations", [0, 12])
def test_a_search_from_a_start_stays_near_it(tiny, iterations):
    """The loss has the prior's share, and its pull is that of a quadratic: checked against the article's in NumPy."""
    x, start = images(3), zs(3)
    found = {}
    for prior in (0.0, 1e6):
        options = dict(start=start, prior=prior, iterations=iterations, lam=0.2)
        first, *_, last = [*search.complete(tiny, x, center_hole(3), **options)] * 2
        _, contextual, perceptual, generated = tiny.completion_loss(last.z, x, center_hole(3))
        expected = contextual + 0.2 * perceptual + prior * np.sum((last.z - start) ** 2, 1)
        np.testing.assert_allclose(last.total, expected, rtol=1e-3)
        np.testing.assert_array_equal(first.z, start)
        found[prior] = last.z
    np.testing.assert_allclose(found[1e6], start, atol=0.02)
    assert (np.abs(found[0.0] - start).max(1) > 0.02).all() == (iterations > 0)


def test_progress_counts_candidates_and_iterations(tiny):
    told = []
    options = dict(iterations=30, interval=30, candidates=200, progress=lambda done, total: told.append((done, total)))
    list(search.complete(tiny, images(1), center_hole(1), **options))
    assert told == [(1, 34), (2, 34), (3, 34), (4, 34), (24, 34), (34, 34)]
    told.clear()
    list(search.complete(tiny, images(1), center_hole(1), start=zs(1), **options))
    assert told == [(20, 30), (30, 30)]


def test_other_starts_are_near_and_of_each_image_alone():
    start = zs(2, 4000)
    others = np.stack([search.near(start, seed, [0, 1]) for seed in (1, 2)])
    assert others.dtype == np.float32 and abs(others).max() <= 1
    np.testing.assert_array_equal(others[0, 1:], search.near(start[1:], 1, [1]))
    inside = abs(start) < 0.01  # where hardly anything is clipped from one side alone
    clipped = scipy.stats.norm(0, search.SPREAD).expect(lambda x: min(1, max(-1, x)) ** 2) ** 0.5
    assert (others - start)[:, inside].std() == pytest.approx(clipped, abs=0.08)
    assert (others[0] != others[1]).mean() > 0.6 and (others[:, 0] != others[:, 1]).mean() > 0.6


def test_the_first_step_from_a_start_is_by_the_weights_and_the_prior(tiny):
    x, mask, start = images(2), center_hole(2), zs(2)
    options = dict(start=start, iterations=1, momentum=0.0, schedule="constant")
    *_, last = search.complete(tiny, x, mask, **options)
    z = tf.constant(start)
    with tf.GradientTape() as tape:
        tape.watch(z)
        _, contextual, perceptual, _ = tiny.completion_loss(z, x, mask)
        losses = contextual + 0.1 * perceptual
    steps = tape.gradient(losses, z) / (3 * 192 + 6 * 100)
    np.testing.assert_allclose(last.z, np.clip(start - steps, -1, 1), atol=1e-5)
    assert (last.total < losses.numpy()).all()


def test_adam_gets_nearer_from_a_start(tiny):
    first, *_, last = search.complete(tiny, images(3), center_hole(3), start=zs(3) / 2, approach="adam")
    assert (last.total < first.total).all()


def test_the_default_step_is_stable_where_little_is_known(tiny):
    """The prior's curvature alone would throw z about, were the step as long as the weights allow."""
    x, mask = images(2), np.zeros((2, 16, 16, 1), np.float32)
    mask[:, 3:5, 3] = 1
    options = dict(start=zs(2), iterations=40, interval=1)
    currents = np.array([state.current for state in search.complete(tiny, x, mask, **options)])
    assert (currents[1:] < 2 * currents[0]).all() and (currents[-1] <= currents[0]).all()


def complete(dcgan, y, mask, numbers=None, **options):
    options = {"iterations": 10, "candidates": 1, "interval": 4, **options}
    return list(search.complete(dcgan, y, mask, numbers, **options))


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
