"""The method: a DCGAN (Radford et al. 2016) and image completion with it (Yeh et al. 2017, after Amos 2016).

    dcgan = DCGAN(image_size=64, c_dim=3, z_dim=100, gf_dim=64, df_dim=64)
    dcgan.train(ImageFolder("data/mine/aligned", 64, 3), epoch=25, ...)

    dcgan = DCGAN.load("checkpoints/mine")
    *_, last = dcgan.complete(images, masks, ...)     # last.completed holds the pictures

Images are float32 (N, H, W, C) in [-1, 1], masks float32 (N, H, W, 1) with 1 = known and 0 = to fill.
"""

import functools
import json
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

import metrics
import ops
import search
import utils

CHECKPOINT_SECONDS = 300
SCALARS_EVERY, HISTOGRAMS_EVERY, SAMPLES_EVERY = 10, 100, 200  # steps
EPOCH_STEPS = 100  # an epoch's end is marked when the last was at least so many steps ago
EVALUATED_IMAGES, EVALUATED_PIXELS = 2048, 2**25  # at most, so that large images fit into memory


class Completion(NamedTuple):
    """Where a search for z stands after `iteration` iterations."""

    iteration: int
    z: np.ndarray  # (N, z_dim)
    generated: np.ndarray  # G(z), images
    completed: np.ndarray  # M*y + (1-M)*G(z), images
    contextual: np.ndarray  # (N,)
    perceptual: np.ndarray  # (N,)
    total: np.ndarray  # (N,), contextual + lam * perceptual
    current: np.ndarray  # (N,), the total loss of the latest iterate, where all else is of the best
    iterations: int  # of the whole search


class DCGAN:
    """Generator, discriminator, their losses, one training step, one completion step."""

    def __init__(self, image_size, c_dim, z_dim, gf_dim, df_dim, ema=0.0, precision="float32"):
        """Build both networks with fresh weights.

        `image_size` is a power of two of at least 16, `c_dim` 1 or 3; `gf_dim` and `df_dim` are the channels of the
        widest spatial layer. `ema` above 0 keeps a moving average of the generator's weights with that decay.
        `precision` is what the layers compute in: "float32", "mixed_bfloat16" or "mixed_float16"; weights, images and
        logits are float32. Made in the scope of a `tf.distribute` strategy, it trains on all its replicas.
        """
        self.architecture = dict(image_size=image_size, c_dim=c_dim, z_dim=z_dim, gf_dim=gf_dim, df_dim=df_dim, ema=ema)
        self.image_size, self.c_dim, self.z_dim, self.ema = image_size, c_dim, z_dim, ema
        self.precision, self.strategy = precision, tf.distribute.get_strategy()
        with ops.precision(precision):
            self.generator = self.build_generator(gf_dim)
            self.discriminator = self.build_discriminator(df_dim)
        self.averaged = keras.models.clone_model(self.generator) if ema else None
        if ema:
            self.averaged.set_weights(self.generator.get_weights())
        self.step, self.epoch, self.seen = (tf.Variable(0, dtype=tf.int64, trainable=False) for _ in range(3))

    # the two networks

    def channels(self, dim):
        """The channels at spatial sizes 4, 8, ... image_size / 2: dim at the widest, doubling up to 8 dim."""
        sizes = [2**k for k in range(2, self.image_size.bit_length() - 1)]
        return [dim * min(8, self.image_size // (2 * size)) for size in sizes]

    def build_generator(self, gf_dim):
        """z (N, z_dim) -> images (Radford et al. 2016, figure 1)."""
        first, *others = self.channels(gf_dim)
        layers = [
            keras.Input((self.z_dim,)),
            ops.linear(4 * 4 * first, "g_h0_lin"),
            keras.layers.Reshape((4, 4, first)),
        ]
        layers += [ops.batch_norm("g_bn0"), ops.relu()]
        for i, filters in enumerate(others, start=1):
            layers += [ops.conv2d_transpose(filters, f"g_h{i}"), ops.batch_norm(f"g_bn{i}"), ops.relu()]
        layers += [ops.conv2d_transpose(self.c_dim, f"g_h{len(others) + 1}"), ops.tanh()]
        return keras.Sequential(layers, name="generator")

    def build_discriminator(self, df_dim):
        """Images -> logits (N, 1); their sigmoid is the probability that an image is real."""
        layers = [keras.Input((self.image_size, self.image_size, self.c_dim))]
        for i, filters in enumerate(reversed(self.channels(df_dim))):
            layers += [ops.conv2d(filters, f"d_h{i}_conv")]
            layers += [ops.batch_norm(f"d_bn{i}")] if i else []
            layers += [ops.lrelu()]
        layers += [keras.layers.Flatten(), ops.linear(1, f"d_h{i}_lin", dtype="float32")]
        return keras.Sequential(layers, name="discriminator")

    @property
    def sampler(self):
        """The generator to draw samples and completions from: the averaged one where there is one."""
        return self.generator if self.averaged is None else self.averaged

    # the three losses

    @staticmethod
    def discriminator_losses(real_logits, fake_logits):
        """-log D(x) and -log(1 - D(G(z))) of each image, (N,) each (Goodfellow et al. 2014, equation 1)."""
        return ops.sigmoid_cross_entropy(real_logits, 1), ops.sigmoid_cross_entropy(fake_logits, 0)

    @staticmethod
    def generator_loss(fake_logits):
        """-log D(G(z)) of each image, (N,): the non-saturating loss (Goodfellow et al. 2014, section 3)."""
        return ops.sigmoid_cross_entropy(fake_logits, 1)

    def completion_losses(self, z, images, weights, pool=1):
        """G(z) and how well it fits: contextual and perceptual loss of each image, (N,) each (Amos 2016, step 3).

        Batch normalisation runs on its moving statistics, so an image's losses do not depend on its batch. `weights`
        is the mask, or says how much each known pixel counts; with `pool` above 1, (N, H / pool, W / pool, 1), they
        are those of the means of `pool` x `pool` pixels, and only those are compared.
        """
        generated = self.sampler(z, training=False)
        contextual = ops.contextual_loss(ops.mean_pool(generated, pool), ops.mean_pool(images, pool), weights)
        perceptual = self.generator_loss(self.discriminator(generated, training=False))
        return generated, contextual, perceptual

    # training

    def prepare_training(self, learning_rate, beta1):
        """Make the optimizers."""
        with self.strategy.scope():
            self.d_optimizer, self.g_optimizer = (
                ops.adam(learning_rate, beta1, scale_loss=self.precision == "mixed_float16") for _ in range(2)
            )
            # their slots must exist before a checkpoint is restored into them
            self.d_optimizer.build(self.discriminator.trainable_variables)
            self.g_optimizer.build(self.generator.trainable_variables)

    def train_step(self, images, z):
        """One step on a batch of which each replica takes its share.

        Returns the scalars d_loss, d_loss_real, d_loss_fake, g_loss (before the second update) and the probabilities
        d, d_ (N, 1) that D gave to the real and the generated images, all of the whole batch.
        """
        losses, probabilities = self.strategy.run(self.update_networks, args=(images, z))
        if self.averaged is not None:
            weights = self.averaged.trainable_variables, self.generator.trainable_variables
            ops.moving_average_update(*weights, self.step, self.ema)
        self.step.assign_add(1)
        losses = {name: self.strategy.reduce("SUM", loss, axis=None) for name, loss in losses.items()}
        return losses | {
            name: tf.concat(self.strategy.experimental_local_results(d), axis=0) for name, d in probabilities.items()
        }

    def update_networks(self, images, z):
        """One update of the discriminator, then two of the generator, on the same z (Amos 2016, step 2)."""
        images, z = ops.replica_share(images), ops.replica_share(z)
        with tf.GradientTape() as g_tape:
            fakes = self.generator(z, training=True)

        with tf.GradientTape() as d_tape:
            real_logits = self.discriminator(images, training=True)
            fake_logits = self.discriminator(tf.stop_gradient(fakes), training=True)
            d_loss_real, d_loss_fake = map(ops.batch_mean, self.discriminator_losses(real_logits, fake_logits))
            d_loss = d_loss_real + d_loss_fake
        self.update(self.d_optimizer, self.discriminator, d_tape, d_loss)

        with g_tape:  # records on: G has not changed, so its first update shares G(z) with D's
            g_loss = ops.batch_mean(self.generator_loss(self.discriminator(fakes, training=True)))
        self.update(self.g_optimizer, self.generator, g_tape, g_loss)

        with tf.GradientTape() as g_tape:
            fakes = self.generator(z, training=True)
            g_loss = ops.batch_mean(self.generator_loss(self.discriminator(fakes, training=True)))
        self.update(self.g_optimizer, self.generator, g_tape, g_loss)

        losses = {"d_loss": d_loss, "d_loss_real": d_loss_real, "d_loss_fake": d_loss_fake, "g_loss": g_loss}
        return losses, {"d": tf.sigmoid(real_logits), "d_": tf.sigmoid(fake_logits)}

    @staticmethod
    def update(optimizer, network, tape, loss):
        """Apply one step of `optimizer` to the trainable variables of `network` alone."""
        with tape:
            loss = optimizer.scale_loss(loss)  # which changes it for float16 only
        optimizer.apply(tape.gradient(loss, network.trainable_variables), network.trainable_variables)

    def train(
        self,
        images,
        *,
        epoch,
        batch_size,
        learning_rate,
        beta1,
        seed,
        flip,
        checkpoint_dir,
        sample_dir,
        log_dir,
        eval_every=None,
        jit_compile=False,
    ):
        """Train on `images` (a dataset.ImageFolder) until `epoch` epochs are done, those of earlier runs included.

        Goes on from the newest checkpoint of `checkpoint_dir`, and writes one every five minutes and when SIGINT,
        SIGTERM or SIGHUP asks it to stop; config.json beside it says what it was trained with. At the end of the run,
        of each epoch (100 steps apart at least) and every `eval_every` steps it saves too, compares samples with real
        images, and keeps the checkpoint with the nearest in `checkpoint_dir`/best. Writes a sample grid to `sample_dir`
        every 200 steps and the TensorBoard record to a folder of this run's own below `log_dir`. `jit_compile` compiles
        the step with XLA, for one replica. Returns the signal that ended it early, or None.

        Raises utils.UserError if a checkpoint cannot be read or written, if a loss or a weight is not finite any more,
        or if too many images can no longer be read.
        """
        settings = dict(batch_size=batch_size, learning_rate=learning_rate, beta1=beta1, seed=seed, flip=flip)
        settings["precision"] = self.precision
        config = {"architecture": self.architecture, "training": settings}
        best = Path(checkpoint_dir) / "best"
        batch_size = min(batch_size, len(images))
        replicas = self.strategy.num_replicas_in_sync
        if jit_compile and replicas > 1:
            raise utils.UserError("--jit_compile: is for one GPU; choose one with CUDA_VISIBLE_DEVICES")
        if batch_size % replicas:
            raise utils.UserError(
                f"--batch_size {batch_size}: is not a multiple of the {replicas} GPUs; change it, or choose fewer GPUs "
                "with CUDA_VISIBLE_DEVICES"
            )
        self.prepare_training(learning_rate, beta1)
        state = self.training_state()
        for directory in (checkpoint_dir, best):
            utils.remove_unfinished(directory)
        if resumed := bool(utils.find_checkpoints(checkpoint_dir)):
            restore(state, checkpoint_dir).assert_consumed()
            for optimizer in (self.d_optimizer, self.g_optimizer):
                optimizer.learning_rate = learning_rate  # the checkpoint held the earlier run's
        step, done, seen = (int(v.numpy()) for v in (self.step, self.epoch, self.seen))
        if done >= epoch:
            return None
        if seen + batch_size > len(images):  # there are fewer images than there were, or larger batches
            done, seen = done + 1, 0
            self.epoch.assign(done)
            self.seen.assign(seen)
        for directory in (checkpoint_dir, sample_dir):
            Path(directory).mkdir(parents=True, exist_ok=True)
        utils.write_json(Path(checkpoint_dir) / "config.json", config)
        if not resumed:
            save(state, checkpoint_dir, step)

        train_step = tf.function(self.train_step, jit_compile=jit_compile)
        per_epoch = len(images) // batch_size
        total = step + (epoch - done) * per_epoch - seen // batch_size
        bar = tqdm(total=total * batch_size, initial=step * batch_size, unit="img", dynamic_ncols=True)
        bar.mininterval = 0.5 if sys.stderr.isatty() else 30
        name = Path(checkpoint_dir).resolve().name
        writer = tf.summary.create_file_writer(str(Path(log_dir) / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"))
        with utils.deferred_signals() as stop, bar, writer.as_default():
            if resumed:
                message = f"goes on from step {step}"
                tqdm.write(f"{checkpoint_dir}: {message}")
                tf.summary.text("run", message, step)
            shapes = (batch_size, *images.shape), (batch_size, self.z_dim)
            tf.summary.graph(train_step.get_concrete_function(*map(tf.TensorSpec, shapes)).graph)
            saved, marked = time.monotonic(), step
            self.reported, self.shown = (step, saved), {}
            leave = False
            while done < epoch and not leave:
                for batch in images.epoch(done, batch_size, seed, flip, start=seen):
                    z = ops.random_z((batch_size, self.z_dim), seed, "z", step)
                    outputs = train_step(batch, z)
                    # counted here, as to read the variables would wait for the step to end
                    step, seen = step + 1, seen + batch_size
                    if seen + batch_size > len(images):
                        done, seen = done + 1, 0
                    bar.set_description(f"epoch {done + bool(seen)}/{epoch} step {step}", refresh=False)
                    bar.update(batch_size)
                    self.report(step, {"z": z, **outputs}, bar)
                    last = done == epoch
                    leave = bool(stop)  # a signal from here on waits for the next step, which is then saved
                    evaluate = not seen and step - marked >= EPOCH_STEPS or eval_every and step % eval_every == 0
                    evaluate = last or evaluate and not leave
                    keep = evaluate or leave or time.monotonic() - saved > CHECKPOINT_SECONDS
                    if keep or step % SCALARS_EVERY == 0:
                        self.check_finite(step, outputs, checkpoint_dir, weights=keep)
                    show = step % SAMPLES_EVERY == 0 or step == 1 or last
                    if evaluate or show:
                        self.refresh_average()
                    if keep:
                        self.epoch.assign(done)
                        self.seen.assign(seen)
                        save(state, checkpoint_dir, step)
                        saved = time.monotonic()
                    if show:
                        self.write_samples(Path(sample_dir) / f"{name}_{step:06d}.png", step, seed)
                    if evaluate:
                        distance = self.evaluate(images, step, seed, bar, () if last else stop)
                        if distance is not None:
                            keep_best(state, best, step, {**config, "images": len(images)}, distance)
                        marked = step
                    if leave:
                        break
        return stop[0] if stop and done < epoch else None

    def check_finite(self, step, outputs, checkpoint_dir, weights):
        """Raise utils.UserError if a loss, or a weight, is NaN or infinite, so that none reaches a checkpoint."""
        values = {name: outputs[name] for name in ("d_loss", "g_loss")}
        if weights:
            values |= {v.path: v for net in (self.generator, self.discriminator) for v in net.variables}
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise utils.UserError(
                    f"--learning_rate: {name} is not finite at step {step}, training has diverged; the same command "
                    f"with a smaller one goes on from {utils.find_checkpoints(checkpoint_dir)[0]}"
                )

    def report(self, step, outputs, bar):
        """Show what the step returned in TensorBoard and on the progress bar, when its turn has come."""
        if step % SCALARS_EVERY == 0:
            losses = {name: float(outputs[name]) for name in ("d_loss", "d_loss_real", "d_loss_fake", "g_loss")}
            (last, then), self.reported = self.reported, (step, time.monotonic())
            images_per_second = (step - last) * len(outputs["z"]) / (time.monotonic() - then)
            for name, value in {**losses, "images_per_second": images_per_second}.items():
                tf.summary.scalar(name, value, step)
            self.shown |= {name: f"{losses[name]:.3f}" for name in ("d_loss", "g_loss")}
            bar.set_postfix(self.shown, refresh=False)
        if step % HISTOGRAMS_EVERY == 0 or step == 1:
            for name in ("z", "d", "d_"):
                tf.summary.histogram(name, outputs[name], step)

    def write_samples(self, path, step, seed):
        """Write an 8x8 grid of the sampler's images of one fixed z, as a file and as TensorBoard's image G.

        As for `evaluate`, `refresh_average` comes first.
        """
        grid = utils.image_grid(self.sampler(ops.random_z((64, self.z_dim), seed, "s"), training=False))
        utils.write_image(path, grid)
        tf.summary.image("G", grid[None], step)

    def evaluate(self, images, step, seed, bar, stop):
        """Compare samples with real images, the same z and images each time, in TensorBoard and the progress line.

        swd: sliced Wasserstein distance, its mean over all levels; ms_ssim: how alike the samples are, which rises
        when modes collapse. Of the generator, and of the averaged one too. Returns the swd of the sampler; None if
        `stop` asked to leave.
        """
        count = min(EVALUATED_IMAGES, EVALUATED_PIXELS // self.image_size**2, len(images))
        chosen = np.random.default_rng((seed, ord("r"))).choice(len(images), count, replace=False)
        real = np.stack([images.read(i) for i in chosen])
        z = ops.random_z((count, self.z_dim), seed, "e")
        parts = [slice(i, i + 64) for i in range(0, count, 64)]
        bar.set_postfix_str("compares samples with images")
        for name, network in {"generator": self.generator, "averaged": self.averaged}.items():
            if network is None:
                continue
            generated = utils.to_uint8(self.draw(z, network))
            others = np.roll(generated, 1, axis=0)
            ms_ssim = float(np.mean(np.concatenate([ops.ms_ssim(generated[part], others[part]) for part in parts])))
            distances = {}
            for side, distance in metrics.sliced_wasserstein(real, generated):
                if stop:
                    return None
                distances[side] = distance
                tf.summary.scalar(f"swd/{name}_{side}", distance, step)
            swd = float(np.mean(list(distances.values())))
            tf.summary.scalar(f"swd/{name}", swd, step)
            tf.summary.scalar(f"ms_ssim/{name}", ms_ssim, step)
            levels = ", ".join(f"{side}: {distance:.1f}" for side, distance in distances.items())
            tqdm.write(f"step {step}, {name}: swd {swd:.2f} ({levels}), ms_ssim {ms_ssim:.3f}")
        self.shown |= {"swd": f"{swd:.2f}", "ms_ssim": f"{ms_ssim:.3f}"}
        bar.set_postfix(self.shown)
        return swd

    def draw(self, z, network=None):
        """G(z) of many z (N, z_dim), 64 at a time, by the sampler or another network: (N, H, W, C) in [-1, 1]."""
        network = network or self.sampler
        return np.concatenate([network(z[i : i + 64], training=False) for i in range(0, len(z), 64)])

    def refresh_average(self):
        """Make the averaged generator fit for use: its batch-norm statistics are estimated anew from 1,024 random z."""
        if self.averaged is not None:
            ops.reestimate_batch_norm(self.averaged, [ops.random_z((64, self.z_dim), 0, "b", k) for k in range(16)])

    # completion

    @tf.function
    def search(self, approach, z, slots, best, images, weights, pool, settings, first, count):
        """Move z by `count` iterations from number `first` on, down contextual + lam * perceptual loss.

        `best` is the pair of z and total loss of each image's best iterate so far; returns z, slots and best. The
        losses of the images are summed, not averaged: each image's z moves as if it were alone.
        """

        def losses_and_gradient(z):
            with tf.GradientTape() as tape:
                tape.watch(z)
                _, contextual, perceptual = self.completion_losses(z, images, weights, pool)
                losses = contextual + settings["lam"] * perceptual
            return losses, tape.gradient(losses, z)

        for i in tf.range(first, first + count):
            losses, following, slots = search.RULES[approach](losses_and_gradient, z, slots, i, settings)
            best = search.better(best, z, losses)
            z = following
        return z, slots, best

    def complete(
        self,
        images,
        masks,
        numbers=None,
        *,
        weights=None,
        pool=1,
        approach="momentum",
        iterations=200,
        lr=None,
        schedule="cosine",
        momentum=0.9,
        lam=0.1,
        candidates=2048,
        hmc_beta=0.2,
        hmc_eps=0.001,
        hmc_l=100,
        hmc_anneal=1.0,
        interval=20,
        seed=0,
    ):
        """Fill the unknown part of `images`; yields a Completion at the start, each `interval` iterations and the end.

        Each holds the best that was found so far; the last is the result: `*_, last = dcgan.complete(images, masks)`.

        images, masks: (N, H, W, C) in [-1, 1] and (N, H, W, 1), 1 = known; what `images` hold under the hole is never
        used. numbers: whole numbers that, with `seed`, decide each image's random draws, 0 to N - 1 by default.
        weights, pool: see `completion_losses`; the masks by default. approach: "momentum", "adam" or "hmc", see
        search.py. lr: the first step size, which falls to 0 along a cosine unless `schedule` is "constant"; by default
        0.1 for adam, and for momentum 3 over the sum of the weights of all channels, as the gradient grows with it.
        candidates: the search starts from the best of that many random z.
        """
        numbers = range(len(images)) if numbers is None else numbers
        images, masks = (tf.convert_to_tensor(x, tf.float32) for x in (images, masks))
        weights = masks if weights is None else tf.convert_to_tensor(weights, tf.float32)
        if lr is None:
            lr = 0.1 if approach == "adam" else 3 / (self.c_dim * tf.reduce_sum(weights, [1, 2]))  # (N, 1)
        settings = dict(lr=lr, momentum=momentum, lam=lam, iterations=iterations)
        settings |= dict(hmc_beta=hmc_beta, hmc_eps=hmc_eps, hmc_anneal=hmc_anneal)
        settings = {name: tf.convert_to_tensor(value, tf.float32) for name, value in settings.items()}
        settings |= {"anneal": tf.constant(schedule == "cosine"), "hmc_l": tf.constant(hmc_l)}

        z = tf.stack([ops.random_z(self.z_dim, seed, "i", number) for number in numbers])
        best = z, self.total_losses(z, images, weights, pool, settings["lam"])
        for k in range(0, candidates - 1, 64):
            count = min(64, candidates - 1 - k)
            z = tf.constant(ops.random_z((count, self.z_dim), seed, "c", k))
            best = self.best_candidates(z, best, images, weights, pool, settings["lam"])
        z = best[0]
        slots = search.start(approach, z, [(seed, number) for number in numbers])
        done = 0
        while True:
            current = self.total_losses(z, images, weights, pool, settings["lam"])
            best = search.better(best, z, current)
            generated, contextual, perceptual = self.compiled_losses(best[0], images, weights, pool)
            completed = self.composite(images, masks, generated)
            state = best[0], generated, completed, contextual, perceptual, best[1], current
            yield Completion(done, *(x.numpy() for x in state), iterations)
            if done == iterations:
                return
            count = min(interval, iterations - done)
            z, slots, best = self.search(
                approach, z, slots, best, images, weights, pool, settings, tf.constant(done), tf.constant(count)
            )
            done += count

    @tf.function
    def compiled_losses(self, z, images, weights, pool):
        """`completion_losses` as one compiled function."""
        return self.completion_losses(z, images, weights, pool)

    def total_losses(self, z, images, weights, pool, lam):
        """contextual + lam * perceptual loss, (N,)."""
        _, contextual, perceptual = self.compiled_losses(z, images, weights, pool)
        return contextual + lam * perceptual

    @tf.function
    def best_candidates(self, z, best, images, weights, pool, lam):
        """Where one of z (K, z_dim) fits an image better than `best` does, take it; one forward pass for all images."""
        generated = self.sampler(z, training=False)
        perceptual = self.generator_loss(self.discriminator(generated, training=False))
        generated, images = ops.mean_pool(generated, pool), ops.mean_pool(images, pool)

        def try_all(pair):
            losses = ops.contextual_loss(generated, *pair) + lam * perceptual
            return tf.argmin(losses), tf.reduce_min(losses)

        index, losses = tf.map_fn(try_all, (images, weights), fn_output_signature=(tf.int64, tf.float32))
        return search.better(best, tf.gather(z, index), losses)

    @staticmethod
    def composite(images, masks, generated):
        """What is known from the images, the rest as generated: M*y + (1-M)*G(z) (Amos 2016, step 3)."""
        return tf.where(masks > 0, images, generated)

    def refine(self, images, masks, z, steps, *, weights=None, pool=1, lr=6e-4):
        """Fine-tune a copy of the generator for each image, on what is known of it, from its z; returns the G(z).

        Pivotal tuning (Roich et al. 2021): `steps` updates of Adam on the contextual loss, for each image anew, so
        that what surrounds the hole is really that person's. The generator itself stays as it is. Shapes as in
        `complete`; returns (N, H, W, C).
        """
        weights = masks if weights is None else weights
        tuned, optimizer = self.tuned
        pretrained, refined = self.sampler.get_weights(), []
        for image in range(len(z)):
            tuned.set_weights(pretrained)
            for variable in optimizer.variables:
                variable.assign(tf.zeros_like(variable))
            optimizer.learning_rate = lr
            given = [tf.constant(x[image : image + 1], tf.float32) for x in (z, images, weights)]
            for _ in range(steps):
                self.refine_step(*given, pool)
            refined.append(tuned(given[0], training=False).numpy())
        return np.concatenate(refined)

    @functools.cached_property
    def tuned(self):
        """The copy of the generator that `refine` tunes, and its optimizer.

        The last two transposed convolutions stay as they are: tuned to the known pixels, they would weave a pattern
        of single pixels into the hole.
        """
        tuned = keras.models.clone_model(self.sampler)
        for layer in tuned.layers[-5:]:
            layer.trainable = False
        optimizer = keras.optimizers.Adam()
        optimizer.build(tuned.trainable_variables)
        return tuned, optimizer

    @tf.function
    def refine_step(self, z, image, weights, pool):
        """One update of the tuned generator on the contextual loss of one image."""
        tuned, optimizer = self.tuned
        with tf.GradientTape() as tape:
            generated = ops.mean_pool(tuned(z, training=False), pool)
            loss = ops.contextual_loss(generated, ops.mean_pool(image, pool), weights)
        optimizer.apply(tape.gradient(loss, tuned.trainable_variables), tuned.trainable_variables)

    # checkpoints

    def inference_state(self):
        """What completion needs: the step, and the weights of each network under its layers' names."""
        networks = {"generator": self.generator, "discriminator": self.discriminator, "averaged": self.averaged}
        networks = {
            name: tf.train.Checkpoint(**{layer.name: layer for layer in network.layers if layer.weights})
            for name, network in networks.items()
            if network is not None
        }
        return tf.train.Checkpoint(networks=tf.train.Checkpoint(**networks), step=self.step)

    def training_state(self):
        """What a resumed run needs: that, both optimizers, and how far the run had come."""
        state = self.inference_state()
        state.d_optimizer, state.g_optimizer = self.d_optimizer, self.g_optimizer
        state.epoch, state.seen = self.epoch, self.seen
        return state

    @classmethod
    def load(cls, checkpoint_dir):
        """The trained model of a checkpoint directory, ours or one of the original code, ready for completion.

        Raises utils.UserError, naming the file, where there is none, it is damaged or holds other networks.
        """
        if original := utils.find_original(checkpoint_dir):
            architecture, weights = read_original(original)
            dcgan = cls(**architecture)
            dcgan.step.assign(int(original.rpartition("-")[2]))
            assign_original(dcgan, weights, original)
            return dcgan
        if not utils.find_checkpoints(checkpoint_dir):
            raise utils.UserError(f"{checkpoint_dir}: holds no model")
        config = utils.read_config(checkpoint_dir)
        stored = cls(**config["architecture"], precision=config["weights"])
        restore(stored.inference_state(), checkpoint_dir).expect_partial()
        if config["weights"] == "float32":
            stored.refresh_average()
            return stored
        dcgan = cls(**config["architecture"])
        dcgan.start_from(stored)
        dcgan.step.assign(stored.step)
        return dcgan

    def export(self, directory):
        """Write what completion and --init need to a new directory: the sampler and D, once, at half precision.

        That is a seventh of what a training run keeps. Raises utils.UserError if the directory is not empty, or if a
        weight is too large for half precision.
        """
        half = DCGAN(**{**self.architecture, "ema": 0.0}, precision="float16")
        with np.errstate(over="ignore"):  # it is told of below
            half.start_from(self)
        half.step.assign(self.step)
        for variable in half.generator.variables + half.discriminator.variables:
            if not np.isfinite(variable.numpy()).all():
                raise utils.UserError(f"export: {variable.path} does not fit into half precision")
        directory = utils.make_directory(directory, "export", empty=True)
        utils.write_json(directory / "config.json", {"architecture": half.architecture, "weights": "float16"})
        save(half.inference_state(), directory, int(half.step), keep=1)

    def start_from(self, other):
        """Take over the weights of another DCGAN: those its samples are drawn with, and its discriminator's."""
        for network in filter(None, (self.generator, self.averaged)):
            network.set_weights(other.sampler.get_weights())
        self.discriminator.set_weights(other.discriminator.get_weights())


def restore(checkpoint, checkpoint_dir):
    """Read the newest good checkpoint of a directory; each that is damaged is named on standard error.

    Raises utils.UserError if there is none, or if it holds other networks than config.json says.
    """
    for path in utils.find_checkpoints(checkpoint_dir):
        try:
            status = checkpoint.restore(path)
            status.assert_existing_objects_matched()
            return status
        except (AssertionError, ValueError) as error:
            raise utils.UserError(f"{path}: its networks are not those of the config.json beside it") from error
        except (tf.errors.OpError, IndexError) as error:
            print(f"skipped {path}: damaged ({ops.reason(error)})", file=sys.stderr)
    raise utils.UserError(f"{checkpoint_dir}: holds no readable checkpoint; choose another directory, or train anew")


def read_original(path):
    """Read a checkpoint of the original code, which was TensorFlow 1's and has no config.json.

    Returns the architecture that its shapes tell, and its arrays by "layer/variable": the scopes before that changed
    over time. Raises utils.UserError, naming the file, if it is damaged.
    """
    try:
        reader = tf.train.load_checkpoint(path)
        names = {"/".join(name.split("/")[-2:]): name for name in reader.get_variable_to_shape_map()}
        weights = {name: reader.get_tensor(names[name]) for name in names if name.startswith(("g_", "d_"))}
    except (tf.errors.OpError, IndexError) as error:
        raise utils.UserError(f"{path}: damaged ({ops.reason(error)})") from error

    def size(name, axis, usual):  # for what is missing the usual will do: assign_original names it
        shape = np.shape(weights.get(name))
        return shape[axis] if axis < len(shape) else usual

    layers = max(2, sum(f"g_h{i}/w" in weights for i in range(1, 7)))
    architecture = dict(
        image_size=4 * 2**layers,
        c_dim=1 if size(f"g_h{layers}/w", 2, 3) == 1 else 3,
        z_dim=size("g_h0_lin/Matrix", 0, 100),
        gf_dim=max(1, size("g_h1/w", 3, 512) // min(8, 2 ** (layers - 1))),
        df_dim=size("d_h0_conv/w", 3, 64),
        ema=0.0,
    )
    return architecture, weights


def assign_original(dcgan, weights, path):
    """Give a DCGAN the weights that `read_original` read; raise utils.UserError at the first that does not fit."""
    for variable in dcgan.generator.variables + dcgan.discriminator.variables:
        layer, name = variable.path.split("/")[-2:]
        linear = layer.endswith("_lin")
        name = {"kernel": "Matrix" if linear else "w", "bias": "bias" if linear else "biases"}.get(name, name)
        value = weights.get(f"{layer}/{name}")
        if np.shape(value) != tuple(variable.shape):
            found = "is missing" if value is None else f"has {value.shape}"
            raise utils.UserError(
                f"{path}: {layer}/{name} should have shape {tuple(variable.shape)}, but {found}; "
                "these are other networks, choose another model"
            )
        variable.assign(value)


def save(checkpoint, checkpoint_dir, step, keep=3):
    """Write a checkpoint numbered by its step, and drop all but the last `keep` that were written.

    Raises utils.UserError, leaving nothing half-written, if that fails.
    """
    manager = tf.train.CheckpointManager(checkpoint, checkpoint_dir, max_to_keep=keep)
    try:
        manager.save(checkpoint_number=step)
    except tf.errors.OpError as error:
        utils.remove_unfinished(checkpoint_dir)
        raise utils.UserError(
            f"{checkpoint_dir}: step {step} could not be saved ({ops.reason(error)}); is the disk full? "
            "With more room the same command goes on from the checkpoint before"
        ) from error
    # what a killed run wrote but did not list; a short list may itself have been lost, and then all is kept
    listed = {Path(path).name for path in manager.checkpoints}
    for path in utils.find_checkpoints(checkpoint_dir) if len(listed) == keep else ():
        if Path(path).name not in listed:
            utils.remove_checkpoint(path)


def keep_best(checkpoint, directory, step, config, swd):
    """Write the checkpoint to `directory`, in place of the one there, if its sampler's distance is smaller.

    Distances are comparable between runs with the same seed, number of images and networks; else the new one is kept.
    """
    path = directory / "config.json"
    try:
        best = json.loads(path.read_text())
        comparable = all(best[name] == config[name] for name in ("architecture", "images"))
        comparable &= best["training"]["seed"] == config["training"]["seed"]
        comparable &= utils.find_checkpoints(directory) == [str(directory / f"ckpt-{best['step']}")]
        smallest = best["swd"] if comparable else math.inf
    except (OSError, KeyError, TypeError, ValueError):  # there is none, or a killed run did not finish it
        smallest = math.inf
    if swd < smallest:
        save(checkpoint, directory, step, keep=1)
        utils.write_json(path, {**config, "step": step, "swd": swd})
