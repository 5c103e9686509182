"""The encoder: a network that predicts, from a masked image, the z whose G(z) is that image.

    encoder = Encoder(dcgan)                              # to train: runs.EncoderRun
    encoder, outdated = Encoder.load("checkpoints/mine", dcgan)
    z = encoder.guess(*holes.masked(images))              # the initial z of search.complete

It learns from whole faces what no search can know: what usually lies under a hole (after Lahiri et al. 2020, "Prior
Guided GAN Based Semantic Inpainting"). The generator is not changed.
"""

import functools
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import checkpoint
import ops

HIDDEN_UNITS = 512


class Encoder:
    """E(M*y, M) -> z for the inference generator of a DCGAN, its losses and its training step."""

    def __init__(self, dcgan, precision="float32"):
        """Build the network with fresh weights; for the other arguments see `DCGAN`, whose strategy it shares."""
        self.dcgan, self.precision, self.strategy = dcgan, precision, dcgan.strategy
        self.architecture = dcgan.architecture
        self.step = 0  # training steps behind the weights
        with ops.precision(precision):
            self.network = self.build(dcgan.architecture["df_dim"])
        self.networks = {"encoder": self.network}

    def build(self, dim):
        """Masked images and their masks, (N, H, W, C + 1) -> z (N, z_dim) in [-1, 1].

        The discriminator's convolutions, then two linear layers.
        """
        layers = [keras.Input((self.dcgan.image_size, self.dcgan.image_size, self.dcgan.c_dim + 1))]  # 64 x 64 x 4
        for i, filters in enumerate(reversed(checkpoint.channels(self.dcgan.image_size, dim))):
            layers += [ops.conv2d(filters, f"e_h{i}_conv")]  # 32 x 32 x 64, 16 x 16 x 128, 8 x 8 x 256, 4 x 4 x 512
            layers += [ops.batch_norm(f"e_bn{i}")] if i else []
            layers += [ops.lrelu()]
        layers += [keras.layers.Flatten(), ops.linear(HIDDEN_UNITS, f"e_h{i}_lin"), ops.lrelu()]  # 8192, 512
        layers += [ops.linear(self.dcgan.z_dim, "e_z_lin"), ops.tanh()]  # 100
        return keras.Sequential(layers, name="encoder")

    def losses(self, images, masked, masks, training):
        """Mean |G(E) - y| of each image, over all of it and over its hole, (N,) each."""
        z = self.network(tf.concat([masked, masks], -1), training=training)
        drawn = self.dcgan.inference_generator(z, training=False)
        return tf.reduce_mean(tf.abs(drawn - images), [1, 2, 3]), ops.hole_error(drawn, images, masks)

    def make_optimizers(self, learning_rate, beta1):
        """Adam for the network, see `ops.optimizers`."""
        return ops.optimizers({"e_optimizer": self.network}, learning_rate, beta1, self.precision, self.strategy)

    def train_step(self, images, masked, masks, step, e_optimizer):
        """One step on a batch of which each replica takes its share; returns the scalars e_loss and its two parts."""
        losses = self.strategy.run(self.update_network, (images, masked, masks, e_optimizer))
        return {name: self.strategy.reduce("SUM", loss, axis=None) for name, loss in losses.items()}

    def update_network(self, images, masked, masks, optimizer):
        """Move the encoder down the sum of both losses."""
        images, masked, masks = map(ops.replica_share, (images, masked, masks))
        with tf.GradientTape() as tape:
            all_loss, hole_loss = map(ops.batch_mean, self.losses(images, masked, masks, training=True))
            loss = all_loss + hole_loss
        ops.update(optimizer, self.network, tape, loss)
        ops.average_statistics(self.network)
        return {"e_loss": loss, "e_loss_all": all_loss, "e_loss_hole": hole_loss}

    def guess(self, masked, masks):
        """z (N, z_dim), float32, of masked images (N, H, W, C), 0 in the hole, and their masks (N, H, W, 1)."""
        inputs = np.concatenate([masked, masks], -1).astype(np.float32)
        parts = [self.network(inputs[i : i + 64], training=False) for i in range(0, len(inputs), 64)]
        return np.concatenate(parts)

    @classmethod
    def load(cls, directory, dcgan):
        """The encoder beside the model in a directory, or None; and whether there is one, but of other generators.

        See `checkpoint.read_parts`.
        """
        folder, make, outdated = Path(directory) / checkpoint.ENCODER, functools.partial(cls, dcgan), False
        found = checkpoint.read_parts(folder, dcgan, "train-encoder.py", make, ("step", "fingerprint"))
        for encoder, numbers in found:
            if numbers["fingerprint"] == dcgan.fingerprint():
                return encoder, False
            outdated = True
        return None, outdated

    def converted(self, precision):
        """The same encoder at another precision."""
        other = Encoder(self.dcgan, precision)
        with np.errstate(over="ignore"):  # `export` reports it
            other.network.set_weights(self.network.get_weights())
        other.step = self.step
        return other

    def export(self, directory):
        """Write it at half precision beside the model in `directory`, to which its generator was exported.

        Raises UserError if there is one, or if a weight is too large for half precision.
        """
        numbers = {"step": self.step, "fingerprint": self.dcgan.fingerprint()}
        half = self.converted("float16")
        config = {"architecture": self.architecture | {"ema": 0.0}}
        checkpoint.publish(Path(directory) / checkpoint.ENCODER, config, half.networks, numbers)
