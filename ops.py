"""Layers with the reference's initial weights, and the tensor maths of the method. Knows nothing of DCGAN."""

import contextlib
import math
from pathlib import Path

import cli

import keras
import numpy as np
import tensorflow as tf

# each use of random numbers in training, search and samples has a stream of its own, so that no two share their draws
STREAMS = {
    "train_size": 116, "epoch": 101, "batch z": 122, "samples": 115, "batch norm": 98,
    "evaluated images": 114, "evaluated z": 118, "first z": 105, "candidates": 99, "jitter": 106,
    "masks": 109, "evaluated masks": 119, "held out": 104,
}  # fmt: skip


@contextlib.contextmanager
def memory_and_disk(flags):
    """Raise UserError, which names `flags`, where what TensorFlow does inside runs out of memory or disk."""
    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        raise cli.UserError(f"{flags}: too little memory, or a full disk ({cli.reason(error)})") from error


@contextlib.contextmanager
def precision(policy):
    """Layers made inside compute in "float32", "mixed_bfloat16" or "mixed_float16"; their weights are float32."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def linear(units, name, dtype=None):
    """Dense layer, weights normal with std 0.02."""
    init = keras.initializers.RandomNormal(stddev=0.02)
    return keras.layers.Dense(units, kernel_initializer=init, name=name, dtype=dtype)


def conv2d(filters, name):
    """5x5 convolution with stride 2: halves height and width. Weights truncated normal with std 0.02."""
    init = keras.initializers.TruncatedNormal(stddev=0.02)
    return keras.layers.Conv2D(filters, 5, strides=2, padding="same", kernel_initializer=init, name=name)


def conv2d_transpose(filters, name):
    """5x5 transposed convolution with stride 2: doubles height and width. Weights normal with std 0.02."""
    init = keras.initializers.RandomNormal(stddev=0.02)
    return keras.layers.Conv2DTranspose(filters, 5, strides=2, padding="same", kernel_initializer=init, name=name)


class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' layer, with TensorFlow's fused operation in training; each replica has moving statistics of its own.

    Keras computes the moments one by one, in float32 copies of its input. See `average_statistics`.
    """

    def call(self, inputs, training=None, mask=None):
        if not training:
            return super().call(inputs)
        gamma, beta = tf.convert_to_tensor(self.gamma), tf.convert_to_tensor(self.beta)
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=gamma, offset=beta, mean=[], variance=[], epsilon=self.epsilon, is_training=True
        )
        count = tf.cast(tf.size(inputs) / tf.size(gamma), tf.float32)
        variance *= (count - 1) / count  # it returns that of a sample, but Keras keeps that of the batch
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            assign_here(moving, moving * self.momentum + new * (1 - self.momentum))
        return outputs


def assign_here(variable, value):
    """Assign a variable on this replica alone; outside of replicas, on all."""
    if tf.distribute.in_cross_replica_context():
        variable.assign(value)
    else:
        tf.raw_ops.AssignVariableOp(resource=variable.value.handle, value=value)


def average_statistics(*networks):
    """Set the moving statistics of networks to the means over all replicas: once a step, in one transfer.

    As they move linearly, the result is the same as if each layer had moved towards the means.
    """
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync > 1:
        variables = [variable for network in networks for variable in network.non_trainable_variables]
        means = context.all_reduce("MEAN", [tf.identity(variable) for variable in variables])
        for variable, mean in zip(variables, means, strict=True):
            assign_here(variable, mean)


def batch_norm(name):
    """Batch normalisation with scale and centre; its moving statistics decay by 0.9 with every training pass.

    Each replica normalises its own share of a batch.
    """
    return BatchNormalization(momentum=0.9, epsilon=1e-5, name=name)


def tanh():
    """tanh(x), in float32 whatever x is."""
    return keras.layers.Activation("tanh", dtype="float32")


def lrelu():
    """Leaky ReLU: max(x, 0.2 x)."""
    return keras.layers.LeakyReLU(0.2)


class SpaceToDepth(keras.layers.Layer):
    """Squares of `side` x `side` pixels become channels: (N, H, W, C) -> (N, H / side, W / side, C side^2)."""

    def __init__(self, side, **options):
        super().__init__(**options)
        self.side = side

    def call(self, inputs):
        return tf.nn.space_to_depth(inputs, self.side)


class DepthToSpace(SpaceToDepth):
    """Channels become squares of pixels: the inverse of `SpaceToDepth` (Shi et al. 2016)."""

    def call(self, inputs):
        return tf.nn.depth_to_space(inputs, self.side)


class Adam(keras.optimizers.Adam):
    """Keras' Adam by TensorFlow's fused operation: one pass over the weights where Keras makes ten."""

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)
        step = tf.cast(self.iterations + 1, tf.float32)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=self.beta_1**step,
            beta2_power=self.beta_2**step,
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


class LossScaleOptimizer(keras.optimizers.LossScaleOptimizer):
    """Keras' optimizer, but all replicas skip a step when the gradients of one overflow; Keras asks the first alone."""

    def check_finite(self, grads):
        overflows = tf.cast(tf.logical_not(super().check_finite(grads)), tf.int32)
        return tf.distribute.get_replica_context().all_reduce("SUM", overflows) == 0


def optimizers(networks, learning_rate, beta1, precision, strategy):
    """Adam, with the epsilon of TensorFlow 1, for each of some networks, dicts by name.

    In "mixed_float16" it scales the loss, which keeps small gradients from vanishing.
    """
    made = {}
    with strategy.scope():
        for name, network in networks.items():
            optimizer = Adam(learning_rate, beta_1=beta1, epsilon=1e-8)
            made[name] = LossScaleOptimizer(optimizer) if precision == "mixed_float16" else optimizer
            made[name].build(network.trainable_variables)  # its slots are there before they are restored
    return made


def update(optimizer, network, tape, loss):
    """Apply one step of `optimizer` to the trainable variables of `network` alone."""
    with tape:
        loss = optimizer.scale_loss(loss)  # which changes it for float16 only
    optimizer.apply(tape.gradient(loss, network.trainable_variables), network.trainable_variables)


def replica_share(batch):
    """This replica's part of this worker's batch: of n replicas here the i-th gets the i-th n-th."""
    context = tf.distribute.get_replica_context()
    several = context.num_replicas_in_sync > 1
    here = len(context.strategy.extended.worker_devices) if several else 1
    return tf.reshape(batch, (here, -1, *batch.shape[1:]))[context.replica_id_in_sync_group % here]


def batch_mean(losses):
    """Per-image losses (N,) of a replica -> its part of the batch's mean; the parts of all replicas add up to it."""
    return tf.nn.compute_average_loss(losses)


def half_cosine(progress):
    """1 to 0 along half a cosine as `progress`, a number or a tensor, goes from 0 to 1 (Loshchilov and Hutter 2017)."""
    cos = tf.cos if tf.is_tensor(progress) else math.cos
    return 0.5 * (1 + cos(math.pi * progress))


def rng(seed, stream, *numbers):
    """NumPy's generator for one use, a name in `STREAMS`, seeded by whole numbers, such as the step."""
    return np.random.default_rng((seed, STREAMS[stream], *numbers))


def random_z(shape, seed, stream, number=0):
    """z uniform on [-1, 1], float32 of `shape`, the same on every device; for the rest see `rng`."""
    return rng(seed, stream, number).uniform(-1, 1, shape).astype(np.float32)


def sigmoid_cross_entropy(logits, label):
    """-log sigmoid(logit) for label 1, -log(1 - sigmoid(logit)) for label 0. Logits (N, 1) -> per-image losses (N,).

    TensorFlow's own function uses a logit four times; the sum of the four gradients is rounded in any order.
    """
    return tf.squeeze(tf.nn.softplus(-logits if label else logits), 1)


def contextual_loss(generated, images, weights):
    """L1 distance on the known pixels, |W*G(z) - W*y| summed over each image (Amos 2016, step 3; Yeh et al. 2017).

    `generated` and `images` are (N, H, W, C) in [-1, 1]; `weights` (N, H, W, 1) are the mask, 1 = known, or how much
    each known pixel counts. Returns (N,).
    """
    images = tf.where(weights > 0, images, 0.0)  # what is under the hole, NaN too, is ignored
    return tf.reduce_sum(tf.abs(weights * generated - weights * images), axis=[-3, -2, -1])


def hole_error(drawn, images, masks):
    """Mean |drawn - y| of each image over its hole, (N,)."""
    hidden = 1 - masks
    count = tf.maximum(tf.reduce_sum(hidden, [1, 2, 3]), 1.0) * images.shape[-1]
    return tf.reduce_sum(hidden * tf.abs(drawn - images), [1, 2, 3]) / count


def mean_pool(images, pool):
    """The means of `pool` x `pool` pixels: (..., H, W, C) -> (..., H / pool, W / pool, C)."""
    return images if pool == 1 else tf.nn.avg_pool2d(images, pool, pool, "VALID")


def moving_average_update(averages, values, step, decay):
    """Move each average towards its value with decay min(decay, (1 + step) / (10 + step)): quickly at first."""
    step = tf.cast(step, tf.float32)
    rate = 1 - tf.minimum(decay, (1 + step) / (10 + step))
    for average, value in zip(averages, values, strict=True):
        average.assign_sub(rate * (average - value))


def reestimate_batch_norm(network, batches):
    """Set the moving statistics of `network` to the plain mean of those of `batches`, a list of its inputs.

    A moving average of weights needs it: the average of the statistics does not fit the average of the weights.
    """
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    decays = [layer.momentum for layer in norms]
    for k, batch in enumerate(batches):
        for layer in norms:
            layer.momentum = k / (k + 1)  # the moving average after k + 1 batches is then their mean
        network(batch, training=True)
    for layer, decay in zip(norms, decays, strict=True):
        layer.momentum = decay


def grow_memory():
    """Let GPU memory grow on demand instead of taking it all at once; returns the GPUs."""
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    return gpus


def use_device(deterministic=False):
    """Make TensorFlow ready to compute; returns a line that names the device in use.

    `deterministic` makes TensorFlow use operations that are bitwise reproducible.
    """
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    gpus = grow_memory()
    # the first float16 value makes TensorFlow log that most CPUs do not compute in it: here, where that is held back
    with tf.device("CPU:0"):
        tf.zeros([], tf.float16)
    if not gpus:
        return "device: CPU (TensorFlow sees no GPU; TF_CPP_MIN_LOG_LEVEL=0 shows why)"
    names = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    return f"device: GPU ({', '.join(names)})"


def strategy():
    """The tf.distribute strategy for all GPUs of this machine: one replica on each, where there are several."""
    several = len(tf.config.list_physical_devices("GPU")) > 1
    return tf.distribute.MirroredStrategy() if several else tf.distribute.get_strategy()


def fastest_precision():
    """What was measured to train fastest without harm: "mixed_bfloat16" on a CPU that computes in it, or "float32"."""
    if tf.config.list_physical_devices("GPU"):
        return "float32"
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "mixed_bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"
