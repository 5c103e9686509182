"""The search for the z whose G(z) completes an image: where it starts, and the rules that move z.

    *_, last = search.complete(dcgan, images, masks)     # last.completed holds the pictures

A rule is a function of

    losses_and_gradient   z (N, z_dim) -> the total loss of each image (N,) and its gradient (N, z_dim)
    z, slots              where the search stands, and what the rule remembers, a tuple of tensors
    i, settings           the iteration, from 0, and a dict of the rule's numbers

and returns the losses at z, the next z and the next slots. Each image is searched as if it were alone, in the box
[-1, 1] from which z was drawn in training.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

import ops

CANDIDATES_AT_ONCE = 64
ITERATIONS, ITERATIONS_FROM_ENCODER = 200, 20  # by default
SPREAD = 0.5  # standard deviation of other starts around an encoder's guess
WITHOUT_A_WORD = {"momentum": 20, "adam": 20, "hmc": 1}  # iterations in which neither Ctrl-C nor `progress` is heard


class Completion(NamedTuple):
    """Where a search for z stands after `iteration` iterations."""

    iteration: int
    z: np.ndarray  # (N, z_dim)
    generated: np.ndarray  # G(z), images
    completed: np.ndarray  # M*y + (1-M)*G(z), images
    contextual: np.ndarray  # (N,)
    perceptual: np.ndarray  # (N,)
    total: np.ndarray  # (N,), contextual + lam * perceptual + prior * |z - start|^2
    current: np.ndarray  # (N,), the total loss of the latest iterate, where all else is of the best
    iterations: int  # of the whole search


class Problem(NamedTuple):
    """What z is searched for: to fit the known of `images`, as `DCGAN.completion_losses` wants it."""

    images: tf.Tensor
    masks: tf.Tensor
    weights: tf.Tensor
    pool: int
    lam: tf.Tensor  # weight of the perceptual loss
    expected: tf.Tensor  # (N, z_dim), the z that an encoder guessed
    prior: tf.Tensor  # what the squared distance to that costs


def complete(
    dcgan, images, masks, numbers=None, *, weights=None, pool=1, start=None, prior=100.0, approach="momentum",
    iterations=None, lr=None, schedule="cosine", momentum=0.9, lam=0.1, candidates=2048, hmc_beta=0.2, hmc_eps=0.001,
    hmc_l=100, hmc_anneal=1.0, interval=None, seed=0, progress=lambda done, total: None,
):  # fmt: skip
    """Fill the unknown part of `images`; yields a Completion at the start, each `interval` iterations and the end.

    Each holds the best that was found so far; the last is the result.

    images, masks: (N, H, W, C) in [-1, 1] and (N, H, W, 1), 1 = known; what `images` hold under the hole is never
    used. numbers: whole numbers that, with `seed`, decide each image's random draws, 0 to N - 1 by default. weights,
    pool: see `DCGAN.completion_losses`; the masks by default. approach: one of `RULES`. lr: the first step size, which
    falls to 0 along a cosine unless `schedule` is "constant"; by default 3 / W for momentum, where W is the sum of the
    weights of all channels, as the gradient grows with it, and 0.1 for adam; with a start 1 / (W + 6 prior) and 0.02.
    start: z (N, z_dim) to start from, as an encoder guesses them, and `prior` what their squared distance to z costs
    (100 was chosen for faces of 64 pixels); without it the search starts from the best of `candidates` random z.
    iterations: 200, or 20 with a start, by default. interval: a quarter of them, 20 at most, by default. progress: is
    told how many steps are done, and of how many, more often than what is yielded.
    """
    numbers = range(len(images)) if numbers is None else numbers
    images, masks = (tf.convert_to_tensor(x, tf.float32) for x in (images, masks))
    weights = masks if weights is None else tf.convert_to_tensor(weights, tf.float32)
    if iterations is None:
        iterations = ITERATIONS if start is None else ITERATIONS_FROM_ENCODER
    interval = interval or max(1, min(20, iterations // 4))
    if lr is None:
        total_weight = dcgan.c_dim * tf.reduce_sum(weights, [1, 2])  # (N, 1)
        if approach == "adam":
            lr = 0.1 if start is None else 0.02
        else:
            lr = 3 / total_weight if start is None else 1 / (total_weight + 6 * prior)
    settings = dict(lr=lr, momentum=momentum, iterations=iterations)
    settings |= dict(hmc_beta=hmc_beta, hmc_eps=hmc_eps, hmc_anneal=hmc_anneal)
    settings = {name: tf.convert_to_tensor(value, tf.float32) for name, value in settings.items()}
    settings |= {"anneal": tf.constant(schedule == "cosine"), "hmc_l": tf.constant(hmc_l)}

    lam, prior = (tf.convert_to_tensor(value, tf.float32) for value in (lam, prior if start is not None else 0))
    guess = tf.zeros((len(images), dcgan.z_dim)) if start is None else tf.clip_by_value(start, -1.0, 1.0)
    problem = Problem(images, masks, weights, pool, lam, guess, prior)
    draws = -(-(candidates - 1) // CANDIDATES_AT_ONCE) if start is None else 0

    def tell(done):
        progress(done, draws + iterations)

    if start is None:
        best = best_start(dcgan, problem, numbers, candidates, seed, tell)
    else:
        best = guess, total_losses(dcgan, guess, problem)
    slots = first_slots(approach, best[0], [(seed, number) for number in numbers])
    steps = iterations, interval, lambda done: tell(draws + done)
    yield from descend(dcgan, problem, approach, best, slots, settings, *steps)


def others_near(start, seed, numbers):
    """Other z (N, z_dim) near the `start` that an encoder guessed, from which other completions of the images come."""
    draws = np.stack([ops.rng(seed, "first z", number).normal(0, SPREAD, start.shape[1]) for number in numbers])
    return np.clip(start + draws, -1, 1).astype(np.float32)


def descend(dcgan, problem, approach, best, slots, settings, iterations, interval, progress):
    """The search from the z of `best` on, by the rule `approach`; yields as `complete` does."""
    z, done = best[0], 0
    while True:
        current = total_losses(dcgan, z, problem)
        best = better(best, z, current)
        generated, *losses = compiled(dcgan, losses_of)(best[0], problem.images, problem.weights, problem.pool)
        completed = composite(problem.images, problem.masks, generated)
        state = best[0], generated, completed, *losses, best[1], current
        yield Completion(done, *(x.numpy() for x in state), iterations)
        if done == iterations:
            return
        goal = min(done + interval, iterations)
        while done < goal:
            count = min(WITHOUT_A_WORD[approach], goal - done)
            place = tf.constant(done), tf.constant(count)
            z, slots, best = compiled(dcgan, iterate)(approach, z, slots, best, problem, settings, *place)
            done += count
            progress(done)


def best_start(dcgan, problem, numbers, candidates, seed, progress):
    """The best of random z for each image, and its total loss: one z of the image's own, the others for all images."""
    z = tf.stack([ops.random_z(dcgan.z_dim, seed, "first z", number) for number in numbers])
    best = z, total_losses(dcgan, z, problem)
    for k in range(0, candidates - 1, CANDIDATES_AT_ONCE):
        count = min(CANDIDATES_AT_ONCE, candidates - 1 - k)
        z = tf.constant(ops.random_z((count, dcgan.z_dim), seed, "candidates", k))
        best = compiled(dcgan, best_candidates)(z, best, problem)
        progress(k // CANDIDATES_AT_ONCE + 1)
    return best


def compiled(dcgan, function):
    """A function whose first argument is the model, compiled for that; it is kept with the model, and goes with it."""
    if function not in dcgan.compiled:
        dcgan.compiled[function] = tf.function(functools.partial(function, dcgan))
    return dcgan.compiled[function]


def losses_of(dcgan, z, images, weights, pool):
    """`DCGAN.completion_losses`, to be compiled."""
    return dcgan.completion_losses(z, images, weights, pool)


def total_losses(dcgan, z, problem):
    """The `total` of z, compiled."""
    _, contextual, perceptual = compiled(dcgan, losses_of)(z, problem.images, problem.weights, problem.pool)
    return total(z, contextual, perceptual, problem)


def total(z, contextual, perceptual, problem):
    """contextual + lam * perceptual loss + prior * |z - start|^2, (N,)."""
    return contextual + problem.lam * perceptual + problem.prior * tf.reduce_sum((z - problem.expected) ** 2, 1)


def best_candidates(dcgan, z, best, problem):
    """Where one of z (K, z_dim) fits an image better than `best` does, take it; one forward pass for all images."""
    generated = dcgan.inference_generator(z, training=False)
    perceptual = dcgan.generator_loss(dcgan.discriminator(generated, training=False))
    generated, images = ops.mean_pool(generated, problem.pool), ops.mean_pool(problem.images, problem.pool)

    def try_all(pair):
        losses = ops.contextual_loss(generated, *pair) + problem.lam * perceptual
        return tf.argmin(losses), tf.reduce_min(losses)

    index, losses = tf.map_fn(try_all, (images, problem.weights), fn_output_signature=(tf.int64, tf.float32))
    return better(best, tf.gather(z, index), losses)


def iterate(dcgan, approach, z, slots, best, problem, settings, first, count):
    """Move z by `count` iterations from number `first` on, down the `total` loss.

    `best` is the pair of z and total loss of each image's best iterate so far; returns z, slots and best. The losses
    of the images are summed, not averaged: each image's z moves as if it were alone.
    """

    def losses_and_gradient(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            _, contextual, perceptual = dcgan.completion_losses(z, problem.images, problem.weights, problem.pool)
            losses = total(z, contextual, perceptual, problem)
        return losses, tape.gradient(losses, z)

    for i in tf.range(first, first + count):
        losses, following, slots = RULES[approach](losses_and_gradient, z, slots, i, settings)
        best = better(best, z, losses)
        z = following
    return z, slots, best


def better(best, z, losses):
    """The pair of z and loss that is the better one of each image: of `best`, and of these."""
    improved = losses < best[1]
    return tf.where(improved[:, None], z, best[0]), tf.where(improved, losses, best[1])


def first_slots(approach, z, seeds):
    """The slots of a rule before its first iteration; `seeds` (N, 2), int32, make HMC's draws an image's own."""
    zeros = tf.zeros_like(z)
    return {"momentum": (zeros,), "adam": (zeros, zeros), "hmc": (tf.convert_to_tensor(seeds, tf.int32),)}[approach]


def step_size(i, settings):
    """The step size at iteration `i`: constant, or falling to 0 along half a cosine (Loshchilov and Hutter 2017)."""
    progress = tf.cast(i, tf.float32) / settings["iterations"]
    cosine = 0.5 * (1 + tf.cos(math.pi * progress))
    return settings["lr"] * tf.where(settings["anneal"], cosine, 1.0)


def momentum(losses_and_gradient, z, slots, i, settings):
    """Projected gradient descent with Nesterov momentum (Amos 2016).

    v' = momentum v - lr g;  z' = clip(z - momentum v + (1 + momentum) v', -1, 1).
    """
    losses, gradient = losses_and_gradient(z)
    (v_prev,) = slots
    v = settings["momentum"] * v_prev - step_size(i, settings) * gradient
    z = z - settings["momentum"] * v_prev + (1 + settings["momentum"]) * v
    return losses, tf.clip_by_value(z, -1.0, 1.0), (v,)


def adam(losses_and_gradient, z, slots, i, settings):
    """Projected Adam (Kingma and Ba 2015, algorithm 1) with beta1 0.9, beta2 0.999 and epsilon 1e-8."""
    losses, gradient = losses_and_gradient(z)
    t = tf.cast(i, tf.float32) + 1
    m = 0.9 * slots[0] + 0.1 * gradient
    v = 0.999 * slots[1] + 0.001 * gradient**2
    corrected = m / (1 - 0.9**t), v / (1 - 0.999**t)
    z -= step_size(i, settings) * corrected[0] / (tf.sqrt(corrected[1]) + 1e-8)
    return losses, tf.clip_by_value(z, -1.0, 1.0), (m, v)


def hmc(losses_and_gradient, z, slots, i, settings):
    """One draw by Hamiltonian Monte Carlo (Neal 2011) from the density exp(-beta loss) on the box.

    `hmc_l` leapfrog steps of `hmc_eps`, then a Metropolis test for each image; beta is `hmc_beta` times `hmc_anneal`
    to the power of i. At its walls z is reflected, with its velocity, so that detailed balance holds; Amos's code
    clips, which breaks it.
    """
    beta = settings["hmc_beta"] * settings["hmc_anneal"] ** tf.cast(i, tf.float32)
    eps = settings["hmc_eps"]

    def draw(seed):
        seed = tf.random.experimental.stateless_fold_in(seed, i)
        velocity = tf.random.stateless_normal(z.shape[1:], seed)
        return velocity, tf.random.stateless_uniform((), tf.random.experimental.stateless_fold_in(seed, 1))

    velocity, chance = tf.map_fn(draw, slots[0], fn_output_signature=(tf.float32, tf.float32))
    first_losses, gradient = losses_and_gradient(z)
    first_energy = beta * first_losses + tf.reduce_sum(velocity**2, 1) / 2

    proposal, losses = z, first_losses
    for _ in tf.range(settings["hmc_l"]):
        velocity -= eps / 2 * beta * gradient
        proposal, velocity = reflect(proposal + eps * velocity, velocity)
        losses, gradient = losses_and_gradient(proposal)
        velocity -= eps / 2 * beta * gradient
    energy = beta * losses + tf.reduce_sum(velocity**2, 1) / 2
    accepted = tf.math.log(chance) < first_energy - energy
    return first_losses, tf.where(accepted[:, None], proposal, z), slots


def reflect(z, velocity):
    """Fold z back into [-1, 1] at the walls, as often as it takes, turning the velocity round at each."""
    place = tf.math.floormod(z + 1, 4.0)  # to and fro is 4 long
    forth = place <= 2
    return tf.where(forth, place - 1, 3 - place), tf.where(forth, velocity, -velocity)


RULES = {"momentum": momentum, "adam": adam, "hmc": hmc}


def composite(images, masks, generated):
    """What is known from the images, the rest as generated: M*y + (1-M)*G(z) (Amos 2016, step 3)."""
    return tf.where(masks > 0, images, generated)
