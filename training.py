"""A run: train a DCGAN from its newest checkpoint on, report, evaluate and save."""

import os
import sys
import time
from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import checkpoint
import metrics
import ops
import utils

CHECKPOINT_SECONDS = 300
SCALARS_EVERY, HISTOGRAMS_EVERY, SAMPLES_EVERY = 10, 100, 200  # steps
EPOCH_STEPS = 100  # an epoch's end is marked when the last was at least so many steps ago
EVALUATED_IMAGES, EVALUATED_PIXELS = 2048, 2**25  # at most, so that large images fit into memory
LOSSES = "d_loss", "d_loss_real", "d_loss_fake", "g_loss"


class Due(NamedTuple):
    """What is to be done after a step."""

    scalars: bool
    histograms: bool
    samples: bool
    evaluation: bool
    save: bool
    end: bool  # the last epoch is done
    leave: bool  # a signal asks for it


class Run:
    """A run of training on `images` (a dataset.ImageFolder), which goes on from the newest checkpoint."""

    def __init__(
        self, dcgan, images, *, epoch, batch_size, learning_rate, beta1, seed, flip,
        checkpoint_dir, sample_dir, log_dir, eval_every=None, jit_compile=False,
    ):  # fmt: skip
        """Make the optimizers, and find the place where an earlier run stopped; nothing is written yet.

        `epoch` counts the epochs of earlier runs too. Samples are compared with images at the end, at the end of each
        epoch (100 steps apart at least) and every `eval_every` steps. `jit_compile` compiles the step with XLA, for one
        replica. Raises UserError if the checkpoint cannot be read, or replicas cannot share a batch.
        """
        self.dcgan, self.images, self.epochs, self.eval_every = dcgan, images, epoch, eval_every
        self.batch_size, self.seed, self.flip = min(batch_size, len(images)), seed, flip
        self.directory, self.sample_dir, self.log_dir = map(Path, (checkpoint_dir, sample_dir, log_dir))
        self.name = Path(os.path.realpath(checkpoint_dir)).name
        training = dict(batch_size=batch_size, learning_rate=learning_rate, beta1=beta1, seed=seed, flip=flip)
        self.config = {"architecture": dcgan.architecture, "training": training | {"precision": dcgan.precision}}
        check_replicas(dcgan.strategy.num_replicas_in_sync, self.batch_size, jit_compile)
        self.optimizers = dcgan.make_optimizers(learning_rate, beta1)
        self.epoch = self.seen = 0  # epochs done, images seen of the next; the steps are the model's
        self.resumed = bool(checkpoint.find(checkpoint_dir))
        if self.resumed:
            self.restore(learning_rate)
        self.compiled_step = tf.function(dcgan.train_step, jit_compile=jit_compile)
        self.saved, self.marked = time.monotonic(), dcgan.step  # when, and at which step an evaluation was last due
        self.reported, self.shown = (dcgan.step, time.monotonic()), {}

    def restore(self, learning_rate):
        """Take over the newest good checkpoint; only the step size is this run's own."""
        names = ("step", "epoch", "seen")
        place = checkpoint.restore(self.directory, self.dcgan.networks, names, self.optimizers)
        self.dcgan.step, self.epoch, self.seen = place["step"], place["epoch"], place["seen"]
        for optimizer in self.optimizers.values():
            optimizer.learning_rate = learning_rate
        self.advance(0)  # for there may be fewer images than there were, or larger batches

    def train(self):
        """Train until `epoch` epochs are done, or SIGINT, SIGTERM or SIGHUP asks to stop; returns that signal, or None.

        Writes a checkpoint every five minutes, when it evaluates and when it ends, and keeps the one with the nearest
        samples in its "best"; a sample grid every 200 steps; and the TensorBoard record, to a folder of its own below
        `log_dir`. Raises UserError if a checkpoint cannot be written, if a loss or a weight is not finite any more, or
        if too many images can no longer be read.
        """
        if self.epoch >= self.epochs:
            return None
        self.prepare_directories()
        with cli.deferred_signals() as stop, self.progress_bar() as bar, self.summary_writer().as_default():
            self.record_start()
            for batch in self.batches():
                outputs = self.step(batch)
                due = self.due(stop)
                self.report(outputs, due, bar)
                self.check_finite(outputs, due)
                samplers = self.dcgan.samplers() if due.samples or due.evaluation else {}
                if due.save:
                    self.save()
                if due.samples:
                    self.write_samples(samplers)
                if due.evaluation:
                    self.evaluate(samplers, bar, () if due.end else stop)
                if due.leave:
                    break
        return stop[0] if stop and self.epoch < self.epochs else None

    def batches(self):
        """All batches that are left, epoch after epoch."""
        while self.epoch < self.epochs:
            yield from self.images.epoch(self.epoch, self.batch_size, self.seed, self.flip, start=self.seen)

    def step(self, batch):
        """Train on one batch; returns what it was reported, z included."""
        z = ops.random_z((self.batch_size, self.dcgan.z_dim), self.seed, "batch z", self.dcgan.step)
        outputs = self.compiled_step(batch, z, tf.constant(self.dcgan.step, tf.int64), **self.optimizers)
        self.dcgan.step += 1
        self.advance(self.batch_size)
        return {"z": z, **outputs}

    def advance(self, count):
        """Count images as seen; an epoch ends where no whole batch is left."""
        self.seen += count
        if self.seen + self.batch_size > len(self.images):
            self.epoch, self.seen = self.epoch + 1, 0

    def due(self, stop):
        """What is due after this step; a signal that comes later waits for the next one."""
        step, end, leave = self.dcgan.step, self.epoch == self.epochs, bool(stop)
        marked = not self.seen and step - self.marked >= EPOCH_STEPS
        evaluation = end or not leave and bool(marked or self.eval_every and step % self.eval_every == 0)
        return Due(
            scalars=step % SCALARS_EVERY == 0,
            histograms=step % HISTOGRAMS_EVERY == 0 or step == 1,
            samples=step % SAMPLES_EVERY == 0 or step == 1 or end,
            evaluation=evaluation,
            save=evaluation or leave or time.monotonic() - self.saved > CHECKPOINT_SECONDS,
            end=end,
            leave=leave,
        )

    def check_finite(self, outputs, due):
        """Raise UserError if a loss, or before a checkpoint a weight, is NaN or infinite: none is saved."""
        values = {name: outputs[name] for name in ("d_loss", "g_loss") if due.scalars or due.save}
        if due.save:
            values |= {v.path: v for net in (self.dcgan.generator, self.dcgan.discriminator) for v in net.variables}
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise cli.UserError(
                    f"--learning_rate: {name} is not finite at step {self.dcgan.step}, training has diverged; the same "
                    f"command with a smaller one goes on from {checkpoint.find(self.directory)[0]}"
                )

    def report(self, outputs, due, bar):
        """Show what the step returned in TensorBoard and on the progress bar, as far as it is due."""
        step = self.dcgan.step
        bar.set_description(f"epoch {self.epoch + bool(self.seen)}/{self.epochs} step {step}", refresh=False)
        bar.update(self.batch_size)
        if due.scalars:
            losses = {name: float(outputs[name]) for name in LOSSES}
            (last, then), self.reported = self.reported, (step, time.monotonic())
            images_per_second = (step - last) * self.batch_size / (time.monotonic() - then)
            for name, value in {**losses, "images_per_second": images_per_second}.items():
                tf.summary.scalar(name, value, step)
            self.shown |= {name: f"{losses[name]:.3f}" for name in ("d_loss", "g_loss")}
            bar.set_postfix(self.shown, refresh=False)
        if due.histograms:
            for name in ("z", "d", "d_"):
                tf.summary.histogram(name, outputs[name], step)

    def save(self):
        """Write a checkpoint."""
        checkpoint.save(self.directory, **self.contents())
        self.saved = time.monotonic()

    def contents(self):
        """What a checkpoint of this run holds, as `checkpoint.save` wants it."""
        numbers = {"step": self.dcgan.step, "epoch": self.epoch, "seen": self.seen}
        return dict(networks=self.dcgan.networks, numbers=numbers, optimizers=self.optimizers)

    def write_samples(self, samplers):
        """Write an 8x8 grid of images of one fixed z by the last of `samplers`: as a file, and as TensorBoard's G."""
        z = ops.random_z((64, self.dcgan.z_dim), self.seed, "samples")
        grid = utils.image_grid(list(samplers.values())[-1](z, training=False))
        utils.write_image(self.sample_dir / f"{self.name}_{self.dcgan.step:06d}.png", grid)
        tf.summary.image("G", grid[None], self.dcgan.step)

    def evaluate(self, samplers, bar, stop):
        """Compare samples of each of `samplers` with real images, and keep the best of the last one's checkpoints.

        swd: sliced Wasserstein distance, its mean over all levels; ms_ssim: how alike the samples are, which rises
        when modes collapse; both go to TensorBoard and the progress line. Leaves at once if `stop` asks for it.
        """
        step, self.marked = self.dcgan.step, self.dcgan.step
        real, z = self.evaluation_set()
        bar.set_postfix_str("compares samples with images")
        for name, network in samplers.items():
            generated = utils.to_uint8(self.dcgan.draw(z, network))
            distances = {}
            for side, distance in metrics.sliced_wasserstein(real, generated):
                if stop:
                    return
                distances[side] = distance
                tf.summary.scalar(f"swd/{name}_{side}", distance, step)
            swd, ms_ssim = float(np.mean(list(distances.values()))), ops.mean_ms_ssim(generated)
            tf.summary.scalar(f"swd/{name}", swd, step)
            tf.summary.scalar(f"ms_ssim/{name}", ms_ssim, step)
            levels = ", ".join(f"{side}: {distance:.1f}" for side, distance in distances.items())
            tqdm.write(f"step {step}, {name}: swd {swd:.2f} ({levels}), ms_ssim {ms_ssim:.3f}")
        self.shown |= {"swd": f"{swd:.2f}", "ms_ssim": f"{ms_ssim:.3f}"}
        bar.set_postfix(self.shown)
        config = {**self.config, "images": len(self.images)}
        checkpoint.keep_best(self.directory / "best", config, swd, **self.contents())

    def evaluation_set(self):
        """The images, uint8 (N, H, W, C), and z, (N, z_dim), that are compared: the same each time."""
        count = min(EVALUATED_IMAGES, EVALUATED_PIXELS // self.dcgan.image_size**2, len(self.images))
        chosen = ops.rng(self.seed, "evaluated images").choice(len(self.images), count, replace=False)
        z = ops.random_z((count, self.dcgan.z_dim), self.seed, "evaluated z")
        return np.stack([self.images.read(i) for i in chosen]), z

    def prepare_directories(self):
        """Clear away what a killed run left, and write the config and, in a new run, the first checkpoint."""
        for directory in (self.directory, utils.inside(self.directory, "best")):
            checkpoint.remove_unfinished(directory)
        for directory in (self.directory, self.sample_dir):
            directory.mkdir(parents=True, exist_ok=True)
        checkpoint.write_config(self.directory, self.config)
        if not self.resumed:
            self.save()

    def progress_bar(self):
        """The progress bar, in images, with the steps of earlier runs."""
        total = self.dcgan.step + (self.epochs - self.epoch) * (len(self.images) // self.batch_size)
        total -= self.seen // self.batch_size
        bar = tqdm(
            total=total * self.batch_size, initial=self.dcgan.step * self.batch_size, unit="img", dynamic_ncols=True
        )
        bar.mininterval = 0.5 if sys.stderr.isatty() else 30
        return bar

    def summary_writer(self):
        """TensorBoard's writer, to a folder of this run's own."""
        return tf.summary.create_file_writer(str(self.log_dir / f"{self.name}-{time.strftime('%Y%m%d-%H%M%S')}"))

    def record_start(self):
        """Tell where a resumed run goes on, and show the graph of the step in TensorBoard."""
        if self.resumed:
            message = f"goes on from step {self.dcgan.step}"
            tqdm.write(f"{self.directory}: {message}")
            tf.summary.text("run", message, self.dcgan.step)
        shapes = (self.batch_size, *self.images.shape), (self.batch_size, self.dcgan.z_dim)
        inputs = *map(tf.TensorSpec, shapes), tf.TensorSpec((), tf.int64)
        tf.summary.graph(self.compiled_step.get_concrete_function(*inputs, **self.optimizers).graph)
        self.reported = self.dcgan.step, time.monotonic()


def check_replicas(replicas, batch_size, jit_compile):
    """Raise UserError, naming the flag, if a step cannot be shared by so many replicas."""
    if jit_compile and replicas > 1:
        raise cli.UserError("--jit_compile: is for one GPU; choose one with CUDA_VISIBLE_DEVICES")
    if batch_size % replicas:
        raise cli.UserError(
            f"--batch_size {batch_size}: is not a multiple of the {replicas} GPUs; change it, or choose fewer GPUs "
            "with CUDA_VISIBLE_DEVICES"
        )
