"""The refiner: a network that draws a completed image at twice its resolution, as the known pixels there suggest.

    refiner = Refiner(dcgan)                              # to train: runs.RefinerRun
    refiner = Refiner.load("checkpoints/mine", dcgan)
    larger = refiner.refine(completed, images, masks)

The completion is its coarse stage (after Yu et al. 2018, "Generative Image Inpainting with Contextual Attention"). A
patch discriminator judges what it draws in the hole (after Yu et al. 2019, "Free-Form Image Inpainting with Gated
Convolution").
"""

import functools
import itertools
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import checkpoint
import ops

WIDTH = 64  # channels of the refiner at a quarter of its resolution
ADVERSARIAL, FEATURES = 0.02, 0.5  # weights of the losses beside L1
AVERAGE = 0.999  # decay of the moving average of the weights
WARM_UP = 600  # steps with L1 alone


class Refiner:
    """R(completed, masked image, mask) -> an image of twice the size, its losses and its training step.

    Sizes are those for a DCGAN of 64 pixels.
    """

    def __init__(self, dcgan, precision="float32", trains=True):
        """Build the networks with fresh weights; one that no longer `trains` has only the one that draws.

        For the other arguments see `DCGAN`, whose strategy it shares.
        """
        self.dcgan, self.precision, self.strategy = dcgan, precision, dcgan.strategy
        self.architecture, self.size, self.c_dim = dcgan.architecture, 2 * dcgan.image_size, dcgan.c_dim
        self.step = 0  # training steps behind the weights
        with ops.precision(precision):
            self.average = self.build("refiner_ema")
            self.network = self.build("refiner") if trains else None
            self.discriminator = self.build_discriminator() if trains else None
        self.networks = {"refiner_ema": self.average}
        if trains:
            self.average.set_weights(self.network.get_weights())
            self.networks |= {"refiner": self.network, "discriminator": self.discriminator}

    def build(self, name):
        """A U of convolutions (Ronneberger et al. 2015), whose result is added to the completed image, enlarged.

        Takes completed images (N, 64, 64, C), and masked images with their masks (N, 128, 128, C + 1). Pixels are
        folded into channels, and it goes down to 8 x 8, so that one eye tells of the other.
        """
        conv = convolutions("r")
        completed = keras.Input((self.size // 2, self.size // 2, self.c_dim))
        masked = keras.Input((self.size, self.size, self.c_dim + 1))
        x = keras.layers.Concatenate()([ops.SpaceToDepth(2)(completed), ops.SpaceToDepth(4)(masked)])  # 32 x 32
        x, skips = conv(x, WIDTH, after=ops.lrelu), []
        for channels in 2 * WIDTH, 3 * WIDTH:  # 16 x 16 x 128, 8 x 8 x 192
            skips.append(residual_block(x, conv))
            x = conv(skips[-1], channels, 4, 2, after=ops.lrelu)
        x = residual_block(residual_block(x, conv), conv)
        for channels, skip in zip((2 * WIDTH, WIDTH), reversed(skips), strict=True):  # and back
            x = ops.DepthToSpace(2)(conv(x, 4 * channels, after=ops.lrelu))
            x = residual_block(keras.layers.Add()([x, skip]), conv)
        x = ops.DepthToSpace(2)(conv(x, 4 * 24, after=ops.lrelu))  # 64 x 64 x 24
        x = conv(keras.layers.Concatenate()([x, completed]), 32, after=ops.lrelu)
        x = ops.lrelu()(ops.DepthToSpace(2)(conv(x, 32)))  # 128 x 128 x 8
        # a last convolution at full size: without it the folded channels show as a checkerboard (Odena et al. 2016)
        small = keras.initializers.RandomNormal(stddev=1e-3)
        x = conv(x, self.c_dim, dtype="float32", kernel_initializer=small)
        return keras.Model([completed, masked], x, name=name)

    def build_discriminator(self):
        """Images with their masks (N, 128, 128, C + 1) -> a logit for each patch (N, 8, 8, 1), and all features."""
        conv, features = convolutions("p"), []
        image = keras.Input((self.size, self.size, self.c_dim + 1))
        x = ops.SpaceToDepth(2)(image)
        for channels in 48, 96, 192:
            x = conv(x, channels, 4, 2, after=ops.lrelu)
            features.append(x)
        return keras.Model(image, [conv(x, 1, dtype="float32"), *features], name="discriminator")

    def draw(self, network, completed, masked, masks, training=False):
        """What a network makes of completed, and of masked images with their masks, twice as large."""
        return enlarge(completed, self.size) + network([completed, tf.concat([masked, masks], -1)], training=training)

    def refine(self, completed, images, masks):
        """Completed images (N, 64, 64, C) at twice the size, float32 (N, 128, 128, C) in [-1, 1].

        images: the true ones at that size, whose hidden pixels are ignored; masks: (N, 128, 128, 1), 1 = known.
        """
        masked = np.where(masks > 0, images, 0).astype(np.float32)
        parts = (tf.constant(values, tf.float32) for values in (completed, masked, masks))
        return np.clip(self.draw(self.average, *parts), -1, 1)

    def make_optimizers(self, learning_rate, beta1):
        """Adam for the refiner and for the discriminator, see `ops.optimizers`."""
        networks = {"r_optimizer": self.network, "d_optimizer": self.discriminator}
        return ops.optimizers(networks, learning_rate, beta1, self.precision, self.strategy)

    def train_step(self, images, completed, masks, step, r_optimizer, d_optimizer):
        """One step, number `step` from 0, on a batch of which each replica takes its share; returns scalars."""
        inputs = images, completed, masks, step, r_optimizer, d_optimizer
        losses = self.strategy.run(self.update_networks, inputs)
        weights = self.average.trainable_variables, self.network.trainable_variables
        ops.moving_average_update(*weights, step, AVERAGE)
        return {name: self.strategy.reduce("SUM", loss, axis=None) for name, loss in losses.items()}

    def update_networks(self, images, completed, masks, step, r_optimizer, d_optimizer):
        """One update of the refiner and one of the discriminator, on the same images; the first steps by L1 alone."""
        images, completed, masks = map(ops.replica_share, (images, completed, masks))
        with tf.GradientTape() as r_tape, tf.GradientTape() as d_tape:
            drawn = self.draw(self.network, completed, masks * images, masks, training=True)
            l1, coarse = (ops.hole_error(each, images, masks) for each in (drawn, enlarge(completed, self.size)))
            filled = masks * images + (1 - masks) * tf.clip_by_value(drawn, -1.05, 1.05)
            real, *real_features = self.discriminator(tf.concat([images, masks], -1), training=True)
            fake, *fake_features = self.discriminator(tf.concat([filled, masks], -1), training=True)
            features = feature_distance(fake_features, real_features)
            adversarial = -tf.reduce_mean(fake, [1, 2, 3])
            d_loss = ops.batch_mean(hinge_loss(real, fake, masks))
            weight = tf.cast(step >= WARM_UP, tf.float32)
            r_loss = ops.batch_mean(l1 + weight * (FEATURES * features + ADVERSARIAL * adversarial))
        ops.update(r_optimizer, self.network, r_tape, r_loss)
        ops.update(d_optimizer, self.discriminator, d_tape, d_loss)
        parts = {"r_loss_l1": l1, "r_loss_features": features, "completed_l1": coarse}
        return {"r_loss": r_loss, "d_loss": d_loss} | {name: ops.batch_mean(loss) for name, loss in parts.items()}

    @classmethod
    def load(cls, directory, dcgan):
        """The refiner beside the model in a directory, or None; see `checkpoint.read_parts`."""
        folder, make = Path(directory) / checkpoint.REFINER, functools.partial(cls, dcgan, trains=False)
        found = checkpoint.read_parts(folder, dcgan, "train-refiner.py", make)
        return next((refiner for refiner, _ in found), None)

    def converted(self, precision):
        """The same refiner at another precision, to draw with."""
        other = Refiner(self.dcgan, precision, trains=False)
        with np.errstate(over="ignore"):  # `export` reports it
            other.average.set_weights(self.average.get_weights())
        other.step = self.step
        return other

    def export(self, directory):
        """Write it at half precision beside the model in `directory`.

        Raises UserError if there is one, or if a weight is too large for half precision.
        """
        half = self.converted("float16")
        config = {"architecture": self.architecture | {"ema": 0.0}}
        checkpoint.publish(Path(directory) / checkpoint.REFINER, config, half.networks, {"step": self.step})


def feature_distance(fake, real):
    """Mean |difference| of the discriminator's features of each image, (N,) (Wang et al. 2018, equation 3)."""
    pairs = [
        (tf.cast(a, tf.float32), tf.cast(tf.stop_gradient(b), tf.float32)) for a, b in zip(fake, real, strict=True)
    ]
    return sum(tf.reduce_mean(tf.abs(a - b), [1, 2, 3]) for a, b in pairs) / len(pairs)


def hinge_loss(real, fake, masks):
    """The discriminator's hinge loss of each image, (N,), over the patches that the hole reaches."""
    side = masks.shape[1] // real.shape[1]
    judged = tf.nn.max_pool2d(1 - masks, side, side, "VALID")
    losses = judged * (tf.nn.relu(1 - real) + tf.nn.relu(1 + fake))
    return tf.reduce_sum(losses, [1, 2, 3]) / tf.maximum(tf.reduce_sum(judged, [1, 2, 3]), 1.0)


def convolutions(prefix):
    """A function that adds convolutions to a network, named in their order, and an activation `after` each."""
    numbers = itertools.count()

    def conv(x, channels, kernel=3, stride=1, after=None, **options):
        name = f"{prefix}_h{next(numbers)}_conv"
        x = keras.layers.Conv2D(channels, kernel, stride, padding="same", name=name, **options)(x)
        return after()(x) if after else x

    return conv


def residual_block(x, conv):
    """x + what two convolutions make of it (He et al. 2016)."""
    y = conv(conv(x, x.shape[-1], after=ops.lrelu), x.shape[-1])
    return keras.layers.Add()([x, y])


def enlarge(images, size):
    """Images (N, H, W, C) in [-1, 1] at `size` x `size` pixels, bicubic."""
    return tf.clip_by_value(tf.image.resize(images, (size, size), "bicubic"), -1, 1)
