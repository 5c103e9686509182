"""A plain port: the same networks and updates in Keras, written like TensorFlow's DCGAN tutorial, for speed.py."""

import keras
import tensorflow as tf
from keras import layers


def generator():
    """z (N, 100) -> images (N, 64, 64, 3)."""
    net = [layers.Dense(4 * 4 * 512), layers.Reshape((4, 4, 512)), layers.BatchNormalization(), layers.ReLU()]
    for channels in (256, 128, 64):
        net += [layers.Conv2DTranspose(channels, 5, strides=2, padding="same")]
        net += [layers.BatchNormalization(), layers.ReLU()]
    net += [layers.Conv2DTranspose(3, 5, strides=2, padding="same", activation="tanh")]
    return keras.Sequential([keras.Input((100,)), *net])


def discriminator():
    """Images (N, 64, 64, 3) -> logits (N, 1)."""
    net = [layers.Conv2D(64, 5, strides=2, padding="same"), layers.LeakyReLU(0.2)]
    for channels in (128, 256, 512):
        net += [layers.Conv2D(channels, 5, strides=2, padding="same")]
        net += [layers.BatchNormalization(), layers.LeakyReLU(0.2)]
    return keras.Sequential([keras.Input((64, 64, 3)), *net, layers.Flatten(), layers.Dense(1)])


def train_step(batch_size):
    """A function of no arguments that makes one update of D and two of G, on random values; returns G's loss."""
    g, d = generator(), discriminator()
    g_optimizer, d_optimizer = (keras.optimizers.Adam(2e-4, beta_1=0.5, epsilon=1e-8) for _ in (g, d))
    g_optimizer.build(g.trainable_variables)
    d_optimizer.build(d.trainable_variables)
    cross_entropy = keras.losses.BinaryCrossentropy(from_logits=True)
    images = tf.random.uniform((batch_size, 64, 64, 3), -1, 1)
    z = tf.random.uniform((batch_size, 100), -1, 1)

    def update_discriminator():
        with tf.GradientTape() as tape:
            real_logits = d(images, training=True)
            fake_logits = d(g(z, training=True), training=True)
            loss = cross_entropy(tf.ones_like(real_logits), real_logits)
            loss += cross_entropy(tf.zeros_like(fake_logits), fake_logits)
        gradients = tape.gradient(loss, d.trainable_variables)
        d_optimizer.apply_gradients(zip(gradients, d.trainable_variables, strict=True))

    def update_generator():
        with tf.GradientTape() as tape:
            logits = d(g(z, training=True), training=True)
            loss = cross_entropy(tf.ones_like(logits), logits)
        gradients = tape.gradient(loss, g.trainable_variables)
        g_optimizer.apply_gradients(zip(gradients, g.trainable_variables, strict=True))
        return loss

    @tf.function
    def step():
        update_discriminator()
        update_generator()
        return update_generator()

    return step
