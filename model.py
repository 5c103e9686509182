"""The method: a DCGAN (Radford et al. 2016) and image completion with it (Yeh et al. 2017, after Amos 2016).

    dcgan = DCGAN(image_size=64, c_dim=3, z_dim=100, gf_dim=64, df_dim=64)
    GANRun(dcgan, ImageFolder("data/mine/aligned", 64, 3), epoch=25, ...).train()

    completer = Completer.load("checkpoints/mine")            # a DCGAN, with the encoder and the prior beside it
    *_, last = completer.complete(images, holes)              # last.result holds the pictures

Images are float32 (N, H, W, C) in [-1, 1], masks float32 (N, H, W, 1) with 1 = known and 0 = to fill.
"""

import hashlib
from typing import NamedTuple

import cli

import keras
import numpy as np
import tensorflow as tf

import checkpoint
import ops


class CompletionLoss(NamedTuple):
    """What z costs, (N,) each, and what it draws."""

    total: tf.Tensor
    contextual: tf.Tensor
    perceptual: tf.Tensor
    generated: tf.Tensor  # G(z), (N, H, W, C)


class DCGAN:
    """Generator, discriminator, their losses, the training step and the completion loss."""

    def __init__(self, image_size, c_dim, z_dim, gf_dim, df_dim, ema=0.0, precision="float32"):
        """Build both networks with fresh weights.

        `image_size` is a power of two of at least 16, `c_dim` 1 or 3; `gf_dim` and `df_dim` are the channels of the
        widest spatial layer. `ema` above 0 keeps a moving average of the generator's weights with that decay.
        `precision` is what the layers compute in: "float32", "mixed_bfloat16" or "mixed_float16"; weights, images and
        logits are float32. Made in the scope of a `tf.distribute` strategy, it trains on all its replicas.
        """
        self.architecture = dict(image_size=image_size, c_dim=c_dim, z_dim=z_dim, gf_dim=gf_dim, df_dim=df_dim, ema=ema)
        self.image_size, self.c_dim, self.z_dim, self.ema = image_size, c_dim, z_dim, ema
        self.image_shape = image_size, image_size, c_dim
        self.precision, self.strategy = precision, tf.distribute.get_strategy()
        self.step = self.pretrained_steps = 0  # of training, and those behind the weights that it started from
        self.compiled = {}  # what search.py compiles for this model, by function
        with ops.precision(precision):
            self.generator = self.build_generator(gf_dim)
            self.discriminator = self.build_discriminator(df_dim)
        self.generator_ema = keras.models.clone_model(self.generator) if ema else None
        if ema:
            self.generator_ema.set_weights(self.generator.get_weights())

    # the two networks; the shapes beside their layers are those of 64 pixels and the default dimensions

    def build_generator(self, gf_dim):
        """z (N, z_dim) -> images (Radford et al. 2016, figure 1)."""
        first, *others = checkpoint.channels(self.image_size, gf_dim)
        layers = [keras.Input((self.z_dim,))]  # 100
        layers += [ops.linear(4 * 4 * first, "g_h0_lin"), keras.layers.Reshape((4, 4, first))]  # 4 x 4 x 512
        layers += [ops.batch_norm("g_bn0"), keras.layers.ReLU()]
        for i, filters in enumerate(others, start=1):  # 8 x 8 x 256, 16 x 16 x 128, 32 x 32 x 64
            layers += [ops.conv2d_transpose(filters, f"g_h{i}"), ops.batch_norm(f"g_bn{i}"), keras.layers.ReLU()]
        layers += [ops.conv2d_transpose(self.c_dim, f"g_h{len(others) + 1}"), ops.tanh()]  # 64 x 64 x 3
        return keras.Sequential(layers, name="generator")

    def build_discriminator(self, df_dim):
        """Images -> logits (N, 1); their sigmoid is the probability that an image is real."""
        layers = [keras.Input(self.image_shape)]  # 64 x 64 x 3
        for i, filters in enumerate(reversed(checkpoint.channels(self.image_size, df_dim))):
            layers += [ops.conv2d(filters, f"d_h{i}_conv")]  # 32 x 32 x 64, 16 x 16 x 128, 8 x 8 x 256, 4 x 4 x 512
            layers += [ops.batch_norm(f"d_bn{i}")] if i else []
            layers += [ops.lrelu()]
        layers += [keras.layers.Flatten(), ops.linear(1, f"d_h{i}_lin", dtype="float32")]  # 8192, 1
        return keras.Sequential(layers, name="discriminator")

    @property
    def networks(self):
        """The networks by their names in a checkpoint, the generator's moving average where there is one."""
        networks = {"generator": self.generator, "discriminator": self.discriminator, "averaged": self.generator_ema}
        return {name: network for name, network in networks.items() if network is not None}

    @property
    def inference_generator(self):
        """The generator that draws samples and completions: the moving average where there is one."""
        return self.generator if self.generator_ema is None else self.generator_ema

    def recalibrate_batchnorm(self):
        """Estimate batch norm's statistics of the moving average anew, on 1,024 z, before it is drawn from."""
        if self.generator_ema is not None:
            zs = [ops.random_z((64, self.z_dim), 0, "batch norm", k) for k in range(16)]
            ops.reestimate_batch_norm(self.generator_ema, zs)

    # the three losses

    @staticmethod
    def discriminator_losses(real_logits, fake_logits):
        """-log D(x) and -log(1 - D(G(z))) of each image, (N,) each (Goodfellow et al. 2014, equation 1)."""
        return ops.sigmoid_cross_entropy(real_logits, 1), ops.sigmoid_cross_entropy(fake_logits, 0)

    @staticmethod
    def generator_loss(fake_logits):
        """-log D(G(z)) of each image, (N,): the non-saturating loss (Goodfellow et al. 2014, section 3)."""
        return ops.sigmoid_cross_entropy(fake_logits, 1)

    def generate(self, z):
        """G(z), (N, H, W, C), and its perceptual loss, (N,).

        Batch normalisation runs on its moving statistics, so that an image does not depend on its batch.
        """
        generated = self.inference_generator(z, training=False)
        return generated, self.generator_loss(self.discriminator(generated, training=False))

    def completion_loss(self, z, images, weights, lam=0.1, prior_mean=0.0, prior=0.0, pool=1, drawn=None):
        """contextual + lam * perceptual loss (Amos 2016, step 3) + prior * |z - prior_mean|^2: a `CompletionLoss`.

        `weights` (N, H, W, 1) is the mask, or how much each known pixel counts. With `pool` above 1 only the means of
        `pool` x `pool` pixels are compared, and `weights`, (N, H / pool, W / pool, 1), are those of the means. `drawn`
        is `generate(z)`, where that is known already.
        """
        generated, perceptual = drawn or self.generate(z)
        contextual = ops.contextual_loss(ops.mean_pool(generated, pool), ops.mean_pool(images, pool), weights)
        total = contextual + lam * perceptual + prior * tf.reduce_sum((z - prior_mean) ** 2, 1)
        return CompletionLoss(total, contextual, perceptual, generated)

    # training

    def make_optimizers(self, learning_rate, beta1):
        """Adam for the discriminator and for the generator, see `ops.optimizers`."""
        networks = {"d_optimizer": self.discriminator, "g_optimizer": self.generator}
        return ops.optimizers(networks, learning_rate, beta1, self.precision, self.strategy)

    def train_step(self, images, z, step, d_optimizer, g_optimizer):
        """One step, number `step` from 0, on a batch of which each replica takes its share.

        Returns the scalars d_loss, d_loss_real, d_loss_fake, g_loss (before the second update) and the probabilities
        d, d_ (N, 1) that D gave to the real and the generated images, of several machines to this one's share.
        """
        losses, probabilities = self.strategy.run(self.update_networks, (images, z, d_optimizer, g_optimizer))
        if self.generator_ema is not None:
            weights = self.generator_ema.trainable_variables, self.generator.trainable_variables
            ops.moving_average_update(*weights, step, self.ema)
        losses = {name: self.strategy.reduce("SUM", loss, axis=None) for name, loss in losses.items()}
        return losses | {
            name: tf.concat(self.strategy.experimental_local_results(d), axis=0) for name, d in probabilities.items()
        }

    def update_networks(self, images, z, d_optimizer, g_optimizer):
        """One update of the discriminator, then two of the generator, on the same z (Amos 2016, step 2)."""
        images, z = ops.replica_share(images), ops.replica_share(z)
        with tf.GradientTape() as g_tape:
            fakes = self.generator(z, training=True)

        # (1) update D
        with tf.GradientTape() as d_tape:
            real_logits = self.discriminator(images, training=True)
            fake_logits = self.discriminator(tf.stop_gradient(fakes), training=True)
            d_loss_real, d_loss_fake = map(ops.batch_mean, self.discriminator_losses(real_logits, fake_logits))
            d_loss = d_loss_real + d_loss_fake
        ops.update(d_optimizer, self.discriminator, d_tape, d_loss)

        # (2) update G
        with g_tape:  # records on: G has not changed, so its first update shares G(z) with D's
            g_loss = ops.batch_mean(self.generator_loss(self.discriminator(fakes, training=True)))
        ops.update(g_optimizer, self.generator, g_tape, g_loss)

        # (3) update G again
        with tf.GradientTape() as g_tape:
            fakes = self.generator(z, training=True)
            g_loss = ops.batch_mean(self.generator_loss(self.discriminator(fakes, training=True)))
        ops.update(g_optimizer, self.generator, g_tape, g_loss)

        ops.average_statistics(self.generator, self.discriminator)
        losses = {"d_loss": d_loss, "d_loss_real": d_loss_real, "d_loss_fake": d_loss_fake, "g_loss": g_loss}
        return losses, {"d": tf.sigmoid(real_logits), "d_": tf.sigmoid(fake_logits)}

    # files, and drawing from a trained model

    @classmethod
    def load(cls, directory):
        """The trained model in a checkpoint directory, ours or one of the original code, ready for completion.

        Raises UserError, naming the file, if there is none, if it is damaged or holds other networks.
        """
        if not checkpoint.holds_model(directory):
            raise cli.UserError(f"{directory}: holds no model")
        config = checkpoint.read_config(directory)
        checkpoint.check_size(directory, config)
        stored = dcgan = cls(**config["architecture"], precision=config["weights"])
        step = checkpoint.restore(directory, stored.networks)["step"]
        if config["weights"] == "float32":
            dcgan.recalibrate_batchnorm()
        else:
            dcgan = cls(**config["architecture"])
            dcgan.start_from(stored)
        dcgan.step, dcgan.pretrained_steps = step, config.get("pretrained_steps", 0)
        return dcgan

    def start_from(self, other):
        """Copy the weights of another DCGAN: of its inference generator and its discriminator."""
        for network in filter(None, (self.generator, self.generator_ema)):
            network.set_weights(other.inference_generator.get_weights())
        self.discriminator.set_weights(other.discriminator.get_weights())

    def export(self, directory):
        """Write what completion and --init need to a new directory: inference generator and D, at half precision.

        That is a seventh of what a training run keeps. Raises UserError if the directory is not empty, or if a weight
        is too large for half precision.
        """
        half = DCGAN(**{**self.architecture, "ema": 0.0}, precision="float16")
        with np.errstate(over="ignore"):  # `publish` reports it
            half.start_from(self)
        config = {"architecture": half.architecture, "pretrained_steps": self.pretrained_steps}
        checkpoint.publish(directory, config, half.networks, {"step": self.step})

    def fingerprint(self):
        """A whole number that identifies the inference generator; the same after an export."""
        digest = hashlib.sha256()
        for variable in self.inference_generator.trainable_variables:
            half = variable.numpy().astype(np.float16)
            digest.update(np.where(abs(half) < 2**-13, 0, half).tobytes())  # what machines may round to 0 is 0
        return int.from_bytes(digest.digest()[:7], "big")

    def draw(self, z, network=None):
        """G(z) of many z (N, z_dim), 64 at a time, by the inference or another generator: (N, H, W, C) in [-1, 1]."""
        network = network or self.inference_generator
        return np.concatenate([network(z[i : i + 64], training=False) for i in range(0, len(z), 64)])
