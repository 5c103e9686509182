"""The search for the z whose G(z) completes an image: where it starts, and the rules that move z.

    *_, last = search.complete(dcgan, images, masks)     # last.completed holds the pictures

The step of a rule is a function of

    losses_and_gradient   z (N, z_dim) -> the total loss of each image (N,) and its gradient (N, z_dim)
    z, slots              where the search stands, and the rule's state, a tuple of tensors
    i, numbers            the iteration, from 0, and a dict of the rule's numbers

and returns the losses at z, the next z and the next slots. Each image is searched as if it were alone, in the box
[-1, 1] from which z was drawn in training.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

import ops
from completion.settings import SEARCH

CANDIDATES_AT_ONCE = 64
ITERATIONS, ITERATIONS_FROM_ENCODER = 200, 20  # by default
SPREAD = 0.5  # standard deviation of other initial z around the encoder's


class Completion(NamedTuple):
    """Where a search for z stands after `iteration` iterations."""

    iteration: int
    z: np.ndarray  # (N, z_dim)
    generated: np.ndarray  # G(z), images
    completed: np.ndarray  # M*y + (1-M)*G(z), images (Amos 2016, step 3)
    contextual: np.ndarray  # (N,)
    perceptual: np.ndarray  # (N,)
    total: np.ndarray  # (N,), contextual + lam * perceptual + prior * |z - initial z|^2
    current: np.ndarray  # (N,), the total loss of the latest iterate, where all else is of the best
    iterations: int  # of the whole search
    result: np.ndarray | None = None  # the blended images, at the end of `Completer.complete`


class Problem(NamedTuple):
    """What z is to fit, as `DCGAN.completion_loss` takes it."""

    images: tf.Tensor
    weights: tf.Tensor
    lam: tf.Tensor
    prior_mean: tf.Tensor
    prior: tf.Tensor
    pool: int


def complete(
    dcgan, images, masks, numbers=None, *, weights=None, pool=1, start=None, seed=0,
    progress=lambda done, total: None, **settings,
):  # fmt: skip
    """Fill the unknown part of `images`; yields a `Completion` at the start, each `interval` iterations and the end.

    Each holds the best z so far; the last is the result.

    images, masks: (N, H, W, C) in [-1, 1] and (N, H, W, 1), 1 = known; what `images` hold under the hole is never
    used. numbers: whole numbers that, with `seed`, decide each image's random draws, 0 to N - 1 by default. weights,
    pool: see `DCGAN.completion_loss`; the masks by default. start: the initial z (N, z_dim), such as the encoder's,
    which is then the mean of the prior; without it the search starts from the best of `candidates` random z. progress:
    is called with how many steps are done, and of how many, more often than a state is yielded. settings: see
    `settings.SEARCH`. The learning rate is by default 3 / W for momentum, where W is the sum of the weights of all
    channels, as the gradient grows with it, and 0.1 for adam; with a start 1 / (W + 6 prior) and 0.02.
    """
    numbers = range(len(images)) if numbers is None else numbers
    images, masks = (tf.convert_to_tensor(x, tf.float32) for x in (images, masks))
    weights = masks if weights is None else tf.convert_to_tensor(weights, tf.float32)
    given = {name: default for name, (_, _, default, _) in SEARCH.items()} | settings
    rule, iterations, interval, candidates = map(given.pop, ("approach", "iterations", "interval", "candidates"))
    if iterations is None:
        iterations = ITERATIONS if start is None else ITERATIONS_FROM_ENCODER
    interval = interval or max(1, min(20, iterations // 4))
    if given["lr"] is None:
        total_weight = dcgan.c_dim * tf.reduce_sum(weights, [1, 2])  # (N, 1)
        if rule == "adam":
            given["lr"] = 0.1 if start is None else 0.02
        else:
            given["lr"] = 3 / total_weight if start is None else 1 / (total_weight + 6 * given["prior"])
    lam, prior = (tf.convert_to_tensor(x, tf.float32) for x in (given["lam"], 0 if start is None else given["prior"]))
    prior_mean = tf.zeros((len(images), dcgan.z_dim)) if start is None else tf.clip_by_value(start, -1.0, 1.0)
    problem = Problem(images, weights, lam, prior_mean, prior, pool)
    draws = -(-(candidates - 1) // CANDIDATES_AT_ONCE) if start is None else 0

    def report(done):
        progress(done, draws + iterations)

    if start is None:
        best = best_candidate(dcgan, problem, numbers, candidates, seed, report)
    else:
        best = prior_mean, compiled(dcgan, completion_loss)(prior_mean, problem).total
    slots = RULES[rule].first_slots(best[0], tf.constant([(seed, number) for number in numbers]))
    given |= {"anneal": given.pop("schedule") == "cosine", "iterations": iterations}
    kinds = {"anneal": tf.bool, "hmc_l": tf.int32}
    given = {name: tf.convert_to_tensor(value, kinds.get(name, tf.float32)) for name, value in given.items()}
    steps = iterations, interval, lambda done: report(draws + done)
    yield from descend(dcgan, problem, masks, rule, best, slots, given, *steps)


def near(z, seed, numbers):
    """Other initial z (N, z_dim) around the encoder's, from which other completions of the images come."""
    draws = np.stack([ops.rng(seed, "first z", number).normal(0, SPREAD, z.shape[1]) for number in numbers])
    return np.clip(z + draws, -1, 1).astype(np.float32)


def descend(dcgan, problem, masks, rule, best, slots, given, iterations, interval, progress):
    """The search by a rule, from the best z so far on; yields as `complete` does."""
    z, done, loss = best[0], 0, compiled(dcgan, completion_loss)
    while True:
        current = loss(z, problem).total
        best = better(best, z, current)
        found = loss(best[0], problem)
        completed = tf.where(masks > 0, problem.images, found.generated)
        state = best[0], found.generated, completed, found.contextual, found.perceptual, best[1], current
        yield Completion(done, *(x.numpy() for x in state), iterations)
        if done == iterations:
            return
        goal = min(done + interval, iterations)
        while done < goal:
            count = min(RULES[rule].at_once, goal - done)
            place = tf.constant(done), tf.constant(count)
            z, slots, best = compiled(dcgan, iterate)(rule, z, slots, best, problem, given, *place)
            done += count
            progress(done)


def best_candidate(dcgan, problem, numbers, candidates, seed, progress):
    """The best of random z for each image, and its loss: one z of the image's own, the others for all images."""
    z = tf.stack([ops.random_z(dcgan.z_dim, seed, "first z", number) for number in numbers])
    best = z, compiled(dcgan, completion_loss)(z, problem).total
    for k in range(0, candidates - 1, CANDIDATES_AT_ONCE):
        count = min(CANDIDATES_AT_ONCE, candidates - 1 - k)
        z = tf.constant(ops.random_z((count, dcgan.z_dim), seed, "candidates", k))
        best = compiled(dcgan, best_candidates)(z, best, problem)
        progress(k // CANDIDATES_AT_ONCE + 1)
    return best


def compiled(dcgan, function):
    """A function whose first argument is the model, compiled for that and kept with it."""
    if function not in dcgan.compiled:
        # without autograph, which takes a third of a second and finds nothing to convert
        dcgan.compiled[function] = tf.function(functools.partial(function, dcgan), autograph=False)
    return dcgan.compiled[function]


def completion_loss(dcgan, z, problem):
    """`DCGAN.completion_loss`, to be compiled."""
    return dcgan.completion_loss(z, *problem)


def best_candidates(dcgan, z, best, problem):
    """Where one of z (K, z_dim) fits an image better than `best` does, take it; one forward pass for all images."""
    drawn = dcgan.generate(z)

    def try_all(pair):
        image, weights = pair
        problem_of_one = problem._replace(images=image[None], weights=weights[None], prior_mean=z)
        losses = dcgan.completion_loss(z, *problem_of_one, drawn).total
        return tf.argmin(losses), tf.reduce_min(losses)

    pairs = problem.images, problem.weights
    index, losses = tf.map_fn(try_all, pairs, fn_output_signature=(tf.int64, tf.float32))
    return better(best, tf.gather(z, index), losses)


def iterate(dcgan, rule, z, slots, best, problem, numbers, first, count):
    """Move z by `count` iterations from number `first` on, down the completion loss.

    `best` is the pair of z and loss of each image's best iterate so far; returns z, slots and best. The losses of the
    images are summed, not averaged: each image's z moves as if it were alone.
    """

    def losses_and_gradient(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            losses = dcgan.completion_loss(z, *problem).total
        return losses, tape.gradient(losses, z)

    def move(i, z, slots, best):
        losses, following, slots = RULES[rule].step(losses_and_gradient, z, slots, i, numbers)
        return i + 1, following, slots, better(best, z, losses)

    _, *found = tf.while_loop(lambda i, *_: i < first + count, move, (first, z, slots, best))
    return found


def better(best, z, losses):
    """The pair of z and loss that is the better one of each image: of `best`, and of these."""
    improved = losses < best[1]
    return tf.where(improved[:, None], z, best[0]), tf.where(improved, losses, best[1])


def learning_rate(i, numbers):
    """The learning rate at iteration `i`: constant, or falling to 0 along half a cosine."""
    schedule = ops.half_cosine(tf.cast(i, tf.float32) / numbers["iterations"])
    return numbers["lr"] * tf.where(numbers["anneal"], schedule, 1.0)


def momentum(losses_and_gradient, z, slots, i, numbers):
    """Projected gradient descent with Nesterov momentum (Amos 2016).

    v' = momentum v - lr g;  z' = clip(z - momentum v + (1 + momentum) v', -1, 1).
    """
    losses, gradient = losses_and_gradient(z)
    (v_prev,) = slots
    v = numbers["momentum"] * v_prev - learning_rate(i, numbers) * gradient
    z = z - numbers["momentum"] * v_prev + (1 + numbers["momentum"]) * v
    return losses, tf.clip_by_value(z, -1.0, 1.0), (v,)


def adam(losses_and_gradient, z, slots, i, numbers):
    """Projected Adam (Kingma and Ba 2015, algorithm 1) with beta1 0.9, beta2 0.999 and epsilon 1e-8."""
    losses, gradient = losses_and_gradient(z)
    t = tf.cast(i, tf.float32) + 1
    m = 0.9 * slots[0] + 0.1 * gradient
    v = 0.999 * slots[1] + 0.001 * gradient**2
    corrected = m / (1 - 0.9**t), v / (1 - 0.999**t)
    z -= learning_rate(i, numbers) * corrected[0] / (tf.sqrt(corrected[1]) + 1e-8)
    return losses, tf.clip_by_value(z, -1.0, 1.0), (m, v)


def hmc(losses_and_gradient, z, slots, i, numbers):
    """One draw by Hamiltonian Monte Carlo (Neal 2011) from the density exp(-beta loss) on the box.

    `hmc_l` leapfrog steps of `hmc_eps`, then a Metropolis test for each image; beta is `hmc_beta` times `hmc_anneal`
    to the power of i. At its walls z is reflected, with its velocity, so that detailed balance holds; Amos's code
    clips, which breaks it.
    """
    beta = numbers["hmc_beta"] * numbers["hmc_anneal"] ** tf.cast(i, tf.float32)
    eps = numbers["hmc_eps"]

    def draw(seed):
        seed = tf.random.experimental.stateless_fold_in(seed, i)
        velocity = tf.random.stateless_normal(z.shape[1:], seed)
        return velocity, tf.random.stateless_uniform((), tf.random.experimental.stateless_fold_in(seed, 1))

    velocity, chance = tf.map_fn(draw, slots[0], fn_output_signature=(tf.float32, tf.float32))
    first_losses, gradient = losses_and_gradient(z)
    first_energy = beta * first_losses + tf.reduce_sum(velocity**2, 1) / 2

    def leap(proposal, velocity, losses, gradient):
        velocity -= eps / 2 * beta * gradient
        proposal, velocity = reflect(proposal + eps * velocity, velocity)
        losses, gradient = losses_and_gradient(proposal)
        return proposal, velocity - eps / 2 * beta * gradient, losses, gradient

    start = z, velocity, first_losses, gradient
    proposal, velocity, losses, _ = tf.while_loop(lambda *_: True, leap, start, maximum_iterations=numbers["hmc_l"])
    energy = beta * losses + tf.reduce_sum(velocity**2, 1) / 2
    accepted = tf.math.log(chance) < first_energy - energy
    return first_losses, tf.where(accepted[:, None], proposal, z), slots


def reflect(z, velocity):
    """Fold z back into [-1, 1] at the walls, as often as it takes, turning the velocity round at each."""
    place = tf.math.floormod(z + 1, 4.0)  # there and back is 4 long
    forth = place <= 2
    return tf.where(forth, place - 1, 3 - place), tf.where(forth, velocity, -velocity)


class Rule(NamedTuple):
    """An update rule."""

    step: Callable
    first_slots: Callable  # from the initial z, and seeds (N, 2) that make random draws each image's own
    at_once: int  # iterations between two looks at Ctrl-C, and calls of `progress`


RULES = {
    "momentum": Rule(momentum, lambda z, seeds: (tf.zeros_like(z),), 20),
    "adam": Rule(adam, lambda z, seeds: (tf.zeros_like(z), tf.zeros_like(z)), 20),
    "hmc": Rule(hmc, lambda z, seeds: (seeds,), 1),
}
