"""The update rules that move z. Each is a function of

    losses_and_gradient   z (N, z_dim) -> the total loss of each image (N,) and its gradient (N, z_dim)
    z, slots              where the search stands, and what the rule remembers, a tuple of tensors
    i, settings           the iteration, from 0, and a dict of the rule's numbers

and returns the losses at z, the next z and the next slots. Each image is searched as if it were alone, in the box
[-1, 1] from which z was drawn in training.
"""

import math

import tensorflow as tf

import ops


def start(approach, z, seeds):
    """The slots of a rule before its first iteration; `seeds` (N, 2), int32, make HMC's draws an image's own."""
    zeros = tf.zeros_like(z)
    return {"momentum": (zeros,), "adam": (zeros, zeros), "hmc": (tf.convert_to_tensor(seeds, tf.int32),)}[approach]


def step_size(i, settings):
    """The step size at iteration `i`: constant, or falling to 0 along half a cosine (Loshchilov and Hutter 2017)."""
    progress = tf.cast(i, tf.float32) / settings["iterations"]
    cosine = 0.5 * (1 + tf.cos(math.pi * progress))
    return settings["lr"] * tf.where(settings["anneal"], cosine, 1.0)


def momentum(losses_and_gradient, z, slots, i, settings):
    """Projected gradient descent with momentum, the article's."""
    losses, gradient = losses_and_gradient(z)
    z, v = ops.momentum_update(z, *slots, gradient, step_size(i, settings), settings["momentum"])
    return losses, z, (v,)


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


def better(best, z, losses):
    """The pair of z and loss that is the better one of each image: of `best`, and of these."""
    improved = losses < best[1]
    return tf.where(improved[:, None], z, best[0]), tf.where(improved, losses, best[1])


RULES = {"momentum": momentum, "adam": adam, "hmc": hmc}
