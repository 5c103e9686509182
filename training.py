"""A run: train a DCGAN, or an encoder for it, from the newest checkpoint on, report, evaluate and save."""

import itertools
import math
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
import masks
import metrics
import ops
import utils

CHECKPOINT_SECONDS = 300
SCALARS_EVERY, HISTOGRAMS_EVERY, SAMPLES_EVERY = 10, 100, 200  # steps
EPOCH_STEPS = 100  # an epoch's end is marked when the last was at least so many steps ago
EVALUATED_IMAGES, EVALUATED_PIXELS = 2048, 2**25  # at most, so that large images fit into memory


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
    """A run that trains networks on images, and goes on from its newest checkpoint; of a GAN or of its encoder."""

    LOSSES = ()  # the scalars that a step returns
    SHOWN = ()  # those of them that the progress bar shows
    HISTOGRAMS = ()  # what else of a step TensorBoard shows
    NUMBERS = "step", "epoch", "seen"  # of a checkpoint

    def __init__(
        self, model, images, *, epoch, batch_size, learning_rate, beta1, seed, flip,
        checkpoint_dir, sample_dir, log_dir, eval_every=None, jit_compile=False,
    ):  # fmt: skip
        """Make the optimizers, and find the place where an earlier run stopped; nothing is written yet.

        `model` is what is trained, a DCGAN or an Encoder, `images` a dataset.ImageFolder. `epoch` counts the epochs of
        earlier runs too. What is learned is evaluated at the end, at the end of each epoch (100 steps apart at least)
        and every `eval_every` steps. `jit_compile` compiles the step with XLA, for one replica. Raises UserError if
        the checkpoint cannot be read, or replicas cannot share a batch.
        """
        self.model, self.images, self.epochs, self.eval_every = model, images, epoch, eval_every
        self.batch_size, self.seed, self.flip = min(batch_size, len(images)), seed, flip
        self.directory, self.sample_dir, self.log_dir = map(Path, (checkpoint_dir, sample_dir, log_dir))
        self.name = Path(os.path.realpath(checkpoint_dir)).name
        training = dict(batch_size=batch_size, learning_rate=learning_rate, beta1=beta1, seed=seed, flip=flip)
        self.config = {"architecture": model.architecture, "training": training | {"precision": model.precision}}
        check_replicas(model.strategy.num_replicas_in_sync, self.batch_size, jit_compile)
        self.learning_rate = learning_rate
        self.optimizers = model.make_optimizers(learning_rate, beta1)
        self.epoch = self.seen = 0  # epochs done, images seen of the next; the steps are the model's
        self.resumed = bool(checkpoint.find(checkpoint_dir)) and self.restore()
        self.compiled_step = tf.function(model.train_step, jit_compile=jit_compile)
        self.saved, self.marked = time.monotonic(), model.step  # when, and at which step an evaluation was last due
        self.reported, self.shown = (model.step, time.monotonic()), {}

    # what a kind of run has of its own

    def inputs(self, batch):
        """What a step is given for a batch of images, a dict by the names of its arguments."""
        raise NotImplementedError

    def prepare_samplers(self):
        """Make what was learned fit to be drawn from, before it is sampled or evaluated."""

    def write_samples(self):
        """Show what has been learned, as a file and in TensorBoard."""
        raise NotImplementedError

    def evaluate(self, bar, stop):
        """Measure what has been learned, and keep the best checkpoint; leave at once if `stop` asks for it."""
        raise NotImplementedError

    # what all have

    def restore(self):
        """Take over the newest good checkpoint, but for the step size, which is this run's own; returns True."""
        place = checkpoint.restore(self.directory, self.model.networks, self.NUMBERS, self.optimizers)
        self.model.step, self.epoch, self.seen = place["step"], place["epoch"], place["seen"]
        self.set_step_size(self.learning_rate)
        self.advance(0)  # for there may be fewer images than there were, or larger batches
        return True

    def set_step_size(self, value):
        """Let all optimizers go on with another step size."""
        for optimizer in self.optimizers.values():
            optimizer.learning_rate = value

    def train(self):
        """Train until `epoch` epochs are done, or SIGINT, SIGTERM or SIGHUP asks to stop; returns that signal, or None.

        Writes a checkpoint every five minutes, when it evaluates and when it ends, and keeps the best of them in its
        "best"; samples every 200 steps; and the TensorBoard record, to a folder of its own below `log_dir`. Raises
        UserError if a checkpoint cannot be written, if a loss or a weight is not finite any more, or if too many images
        can no longer be read.
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
                if due.samples or due.evaluation:
                    self.prepare_samplers()
                if due.save:
                    self.save()
                if due.samples:
                    self.write_samples()
                if due.evaluation:
                    self.evaluate(bar, () if due.end else stop)
                if due.leave:
                    break
        return stop[0] if stop and self.epoch < self.epochs else None

    def finish(self):
        """Train, tell in a line how it ended, and return the exit status of a script."""
        signal = self.train()
        following = "stopped; the same command goes on from there" if signal else "a higher --epoch trains longer"
        print(f"{self.directory}: {self.epoch} of {self.epochs} epochs done, step {self.model.step}; {following}")
        return 128 + signal if signal else 0

    def batches(self):
        """All batches that are left, epoch after epoch."""
        while self.epoch < self.epochs:
            yield from self.images.epoch(self.epoch, self.batch_size, self.seed, self.flip, start=self.seen)

    def step(self, batch):
        """Train on one batch; returns what was given to the step, and what it reported."""
        inputs = self.inputs(batch)
        outputs = self.compiled_step(**inputs, step=tf.constant(self.model.step, tf.int64), **self.optimizers)
        self.model.step += 1
        self.advance(self.batch_size)
        return inputs | outputs

    def advance(self, count):
        """Count images as seen; an epoch ends where no whole batch is left."""
        self.seen += count
        if self.seen + self.batch_size > len(self.images):
            self.epoch, self.seen = self.epoch + 1, 0

    def due(self, stop):
        """What is due after this step; a signal that comes later waits for the next one."""
        step, end, leave = self.model.step, self.epoch == self.epochs, bool(stop)
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
        values = {name: outputs[name] for name in self.SHOWN if due.scalars or due.save}
        if due.save:
            values |= {v.path: v for net in self.model.networks.values() for v in net.variables}
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise cli.UserError(
                    f"--learning_rate: {name} is not finite at step {self.model.step}, training has diverged; the same "
                    f"command with a smaller one goes on from {checkpoint.find(self.directory)[0]}"
                )

    def report(self, outputs, due, bar):
        """Show what the step returned in TensorBoard and on the progress bar, as far as it is due."""
        step = self.model.step
        bar.set_description(f"epoch {self.epoch + bool(self.seen)}/{self.epochs} step {step}", refresh=False)
        bar.update(self.batch_size)
        if due.scalars:
            losses = {name: float(outputs[name]) for name in self.LOSSES}
            (last, then), self.reported = self.reported, (step, time.monotonic())
            images_per_second = (step - last) * self.batch_size / (time.monotonic() - then)
            for name, value in {**losses, "images_per_second": images_per_second}.items():
                tf.summary.scalar(name, value, step)
            self.shown |= {name: f"{losses[name]:.3f}" for name in self.SHOWN}
            bar.set_postfix(self.shown, refresh=False)
        if due.histograms:
            for name in self.HISTOGRAMS:
                tf.summary.histogram(name, outputs[name], step)

    def save(self):
        """Write a checkpoint."""
        checkpoint.save(self.directory, **self.contents())
        self.saved = time.monotonic()

    def contents(self):
        """What a checkpoint of this run holds, as `checkpoint.save` wants it."""
        numbers = {"step": self.model.step, "epoch": self.epoch, "seen": self.seen}
        return dict(networks=self.model.networks, numbers=numbers, optimizers=self.optimizers)

    def prepare_directories(self):
        """Clear away what a killed run left, and write the config and, in a new run, the first checkpoint."""
        for directory in (self.directory, utils.inside(self.directory, "best")):
            checkpoint.remove_unfinished(directory)
        for directory in (self.directory, self.sample_dir):
            directory.mkdir(parents=True, exist_ok=True)
        checkpoint.write_config(self.directory, self.config)
        if not self.resumed:
            checkpoint.save(self.directory, **self.contents(), keep=1)

    def progress_bar(self):
        """The progress bar, in images, with the steps of earlier runs."""
        total = self.model.step + (self.epochs - self.epoch) * (len(self.images) // self.batch_size)
        total -= self.seen // self.batch_size
        bar = tqdm(
            total=total * self.batch_size, initial=self.model.step * self.batch_size, unit="img", dynamic_ncols=True
        )
        bar.mininterval = 0.5 if sys.stderr.isatty() else 30
        return bar

    def summary_writer(self):
        """TensorBoard's writer, to a folder of this run's own."""
        return tf.summary.create_file_writer(str(self.log_dir / f"{self.name}-{time.strftime('%Y%m%d-%H%M%S')}"))

    def record_start(self):
        """Tell where a resumed run goes on, and show the graph of the step in TensorBoard."""
        if self.resumed:
            message = f"goes on from step {self.model.step}"
            tqdm.write(f"{self.directory}: {message}")
            tf.summary.text("run", message, self.model.step)
        inputs = self.inputs(np.zeros((self.batch_size, *self.images.shape), np.float32))
        specs = {name: tf.TensorSpec(value.shape) for name, value in inputs.items()}
        specs |= {"step": tf.TensorSpec((), tf.int64)}
        tf.summary.graph(self.compiled_step.get_concrete_function(**specs, **self.optimizers).graph)
        self.reported = self.model.step, time.monotonic()


class GANRun(Run):
    """A run that trains a DCGAN; its samples are compared with images."""

    LOSSES = "d_loss", "d_loss_real", "d_loss_fake", "g_loss"
    SHOWN = "d_loss", "g_loss"
    HISTOGRAMS = "z", "d", "d_"

    def inputs(self, batch):
        """The images, and z."""
        z = ops.random_z((self.batch_size, self.model.z_dim), self.seed, "batch z", self.model.step)
        return {"images": batch, "z": z}

    def prepare_samplers(self):
        """Estimate the statistics of the averaged generator anew."""
        self.model.samplers()

    def write_samples(self):
        """Write an 8x8 grid of images of one fixed z by the sampler: as a file, and as TensorBoard's G."""
        z = ops.random_z((64, self.model.z_dim), self.seed, "samples")
        grid = utils.image_grid(self.model.sampler(z, training=False))
        utils.write_image(self.sample_dir / f"{self.name}_{self.model.step:06d}.png", grid)
        tf.summary.image("G", grid[None], self.model.step)

    def evaluate(self, bar, stop):
        """Compare samples of each generator with real images, and keep the checkpoint whose sampler's are nearest.

        swd: sliced Wasserstein distance, its mean over all levels; ms_ssim: how alike the samples are, which rises
        when modes collapse; both go to TensorBoard and the progress line. Leaves at once if `stop` asks for it.
        """
        step, self.marked = self.model.step, self.model.step
        real, z = self.evaluation_set()
        bar.set_postfix_str("compares samples with images")
        generators = {name: net for name, net in self.model.networks.items() if name != "discriminator"}
        for name, network in generators.items():
            generated = utils.to_uint8(self.model.draw(z, network))
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
        checkpoint.keep_best(self.directory / "best", config, "swd", swd, **self.contents())

    def evaluation_set(self):
        """The images, uint8 (N, H, W, C), and z, (N, z_dim), that are compared: the same each time."""
        count = min(EVALUATED_IMAGES, EVALUATED_PIXELS // self.model.image_size**2, len(self.images))
        chosen = ops.rng(self.seed, "evaluated images").choice(len(self.images), count, replace=False)
        z = ops.random_z((count, self.model.z_dim), self.seed, "evaluated z")
        return np.stack([self.images.read(i) for i in chosen]), z


class EncoderRun(Run):
    """A run that trains an encoder; it is measured on held-out images, and learns for one generator."""

    LOSSES = "e_loss", "e_loss_all", "e_loss_hole"
    SHOWN = "e_loss", "e_loss_hole"
    NUMBERS = *Run.NUMBERS, "fingerprint"

    def __init__(self, encoder, images, held_out, name, **options):
        """As `Run`; `held_out` are images, uint8 (N, H, W, C), to measure it on; `name` is that of its pictures."""
        self.fingerprint = encoder.dcgan.fingerprint()
        self.held_out = utils.to_float(held_out)
        draws = ops.rng(options["seed"], "evaluated masks")
        drawn = (masks.draw(encoder.dcgan.image_size, draws) for _ in itertools.count())
        holes = (hole for hole in drawn if hole[0] != "full")  # which hides nothing
        self.holes = list(itertools.islice(holes, len(held_out)))
        super().__init__(encoder, images, **options)
        self.name = name
        self.config["fingerprint"] = self.fingerprint

    def restore(self):
        """As `Run.restore`; but of an encoder for another generator take the weights alone, and return False."""
        numbers = checkpoint.restore(self.directory, self.model.networks, ("fingerprint",))
        if numbers["fingerprint"] == self.fingerprint:
            return super().restore()
        tqdm.write(f"{self.directory}: is for another generator; a new run starts from its weights")
        return False

    def inputs(self, batch):
        """The images, and what is known of them: each has a hole of its own, drawn anew in each step."""
        draws = ops.rng(self.seed, "masks", self.model.step)
        holes = [masks.draw(self.model.dcgan.image_size, draws) for _ in range(self.batch_size)]
        shown, known = masks.known_each(np.asarray(batch), holes)
        return {"images": batch, "shown": shown, "known": known}

    def contents(self):
        """What a checkpoint holds, with the generator's fingerprint."""
        contents = super().contents()
        return contents | {"numbers": contents["numbers"] | {"fingerprint": self.fingerprint}}

    def step(self, batch):
        """As `Run.step`; the step size falls to 0 along half a cosine (Loshchilov and Hutter 2017)."""
        done = (self.epoch + self.seen / len(self.images)) / self.epochs
        self.set_step_size(self.learning_rate * (1 + math.cos(math.pi * done)) / 2)
        return super().step(batch)

    def write_samples(self):
        """Write what becomes of 16 of the held-out images, as a file and to TensorBoard."""
        images, holes = self.held_out[:16], self.holes[:16]
        shown, known = masks.known_each(images, holes)
        completed = np.where(known > 0, shown, self.model.dcgan.draw(self.model.guess(shown, known)))
        picture = utils.labelled_rows({"original": images, "known": shown, "completed": completed})
        utils.write_image(self.sample_dir / f"{self.name}_{self.model.step:06d}.png", picture)
        tf.summary.image("completed", picture[None], self.model.step)

    def evaluate(self, bar, stop):
        """Measure |G(E) - y| in the holes of the held-out images, in grey levels, and keep the best checkpoint."""
        step, self.marked = self.model.step, self.model.step
        bar.set_postfix_str("completes held-out images")
        errors = {}
        for i in range(0, len(self.held_out), 64):
            if stop:
                return
            shown, known = masks.known_each(self.held_out[i : i + 64], self.holes[i : i + 64])
            _, losses = self.model.losses(self.held_out[i : i + 64], shown, known, training=False)
            for (kind, _), loss in zip(self.holes[i : i + 64], losses.numpy() * 127.5, strict=True):
                errors.setdefault(kind, []).append(loss)
        means = {kind: float(np.mean(values)) for kind, values in sorted(errors.items())}
        hole = float(np.mean(np.concatenate(list(errors.values()))))
        for name, value in {"hole": hole, **means}.items():
            tf.summary.scalar(f"error/{name}", value, step)
        kinds = ", ".join(f"{kind}: {value:.1f}" for kind, value in means.items())
        tqdm.write(f"step {step}: off by {hole:.2f} grey levels in the holes of {len(self.held_out)} images ({kinds})")
        self.shown |= {"hole": f"{hole:.2f}"}
        bar.set_postfix(self.shown)
        config = {**self.config, "images": len(self.images)}
        checkpoint.keep_best(self.directory / "best", config, "hole", hole, **self.contents())


def check_replicas(replicas, batch_size, jit_compile):
    """Raise UserError, naming the flag, if a step cannot be shared by so many replicas."""
    if jit_compile and replicas > 1:
        raise cli.UserError("--jit_compile: is for one GPU; choose one with CUDA_VISIBLE_DEVICES")
    if batch_size % replicas:
        raise cli.UserError(
            f"--batch_size {batch_size}: is not a multiple of the {replicas} GPUs; change it, or choose fewer GPUs "
            "with CUDA_VISIBLE_DEVICES"
        )
