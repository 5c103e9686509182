"""A run: train networks from the newest checkpoint on, alone or with other machines, report, evaluate and save."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import checkpoint
import utils
from training.workers import Team

CHECKPOINT_SECONDS = 300
SCALARS_EVERY, HISTOGRAMS_EVERY, SAMPLES_EVERY = 10, 100, 200  # steps
EPOCH_STEPS = 100  # an epoch's end is marked when the last was at least so many steps ago


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
        checkpoint_dir, sample_dir, log_dir, eval_every=None, jit_compile=False, team=None,
    ):  # fmt: skip
        """Make the optimizers, and find the place where an earlier run stopped; nothing is written yet.

        `model` is what is trained, a DCGAN or an Encoder, `images` a dataset.ImageFolder. `epoch` counts the epochs of
        earlier runs too. What is learned is evaluated at the end, at the end of each epoch (100 steps apart at least)
        and every `eval_every` steps. `jit_compile` compiles the step with XLA, for one replica. `team` are the
        machines that train together, by default this one: each reads its part of a batch, and the chief alone writes.
        Raises UserError if the checkpoint cannot be read, or replicas cannot share a batch.
        """
        self.model, self.images, self.epochs, self.eval_every = model, images, epoch, eval_every
        self.batch_size, self.seed, self.flip = min(batch_size, len(images)), seed, flip
        self.directory, self.sample_dir, self.log_dir = map(Path, (checkpoint_dir, sample_dir, log_dir))
        self.name = Path(os.path.realpath(checkpoint_dir)).name
        training = dict(batch_size=batch_size, learning_rate=learning_rate, beta1=beta1, seed=seed, flip=flip)
        self.config = {"architecture": model.architecture, "training": training | {"precision": model.precision}}
        self.team = team or Team(model.strategy)
        check_replicas(self.team, batch_size, len(images), jit_compile)
        self.learning_rate = learning_rate
        self.optimizers = model.make_optimizers(learning_rate, beta1)
        self.epoch = self.seen = 0  # epochs done, images seen of the next; the steps are the model's
        self.resumed = self.team.chief and bool(checkpoint.find(checkpoint_dir)) and self.restore()
        self.follow_chief()
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

    def follow_chief(self):
        """Be where the chief is: at its step, with its weights and its optimizers' state."""
        place = self.team.gather([self.model.step, self.epoch, self.seen])
        self.model.step, self.epoch, self.seen = place[0]
        parts = [*self.model.networks.values(), *self.optimizers.values()]
        self.team.copy_from_chief([variable for part in parts for variable in part.variables])

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
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(cli.deferred_signals())
            if self.team.chief:
                self.prepare_directories()
            bar = stack.enter_context(self.progress_bar())
            stack.enter_context(self.summary_writer().as_default())
            self.record_start()
            for batch in self.batches():
                outputs = self.step(batch)
                due = self.due(stop)
                self.report(outputs, due, bar)
                self.check_finite(outputs, due)
                if self.team.chief:
                    self.write(due, bar, stop)
                if due.leave:
                    break
        # a signal that another worker got is told as the one that usually ends a job
        return (stop or [signal.SIGTERM])[0] if self.epoch < self.epochs else None

    def write(self, due, bar, stop):
        """Save, sample and evaluate, as far as it is due."""
        if due.samples or due.evaluation:
            self.prepare_samplers()
        if due.save:
            self.save()
        if due.samples:
            self.write_samples()
        if due.evaluation:
            self.evaluate(bar, () if due.end else stop)

    def finish(self):
        """Train, tell in a line how it ended, and return the exit status of a script."""
        with cli.deferred_signals():  # one that comes late must not end us while others wait
            ended_by = self.train()
            self.team.part()
        following = "stopped; the same command goes on from there" if ended_by else "a higher --epoch trains longer"
        print(f"{self.directory}: {self.epoch} of {self.epochs} epochs done, step {self.model.step}; {following}")
        return 128 + ended_by if ended_by else 0

    def batches(self):
        """All batches that are left, epoch after epoch."""
        while self.epoch < self.epochs:
            yield from self.images.epoch(
                self.epoch, self.batch_size, self.seed, self.flip, start=self.seen, share=self.team.share
            )

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
        """What is due after this step, the same with all workers; a signal that comes later waits for the next one."""
        late = self.team.chief and time.monotonic() - self.saved > CHECKPOINT_SECONDS
        leave, save = self.team.any(bool(stop), late)
        step, end = self.model.step, self.epoch == self.epochs
        marked = not self.seen and step - self.marked >= EPOCH_STEPS
        evaluation = end or not leave and bool(marked or self.eval_every and step % self.eval_every == 0)
        return Due(
            scalars=step % SCALARS_EVERY == 0,
            histograms=step % HISTOGRAMS_EVERY == 0 or step == 1,
            samples=step % SAMPLES_EVERY == 0 or step == 1 or end,
            evaluation=evaluation,
            save=evaluation or leave or save,
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
                    f"command with a smaller one goes on from {checkpoint.newest(self.directory)}"
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
        total, initial = total * self.batch_size, self.model.step * self.batch_size
        bar = tqdm(total=total, initial=initial, unit="img", dynamic_ncols=True, disable=not self.team.chief)
        bar.mininterval = 0.5 if sys.stderr.isatty() else 30
        return bar

    def summary_writer(self):
        """TensorBoard's writer, to a folder of this run's own."""
        if not self.team.chief:
            return tf.summary.create_noop_writer()
        return tf.summary.create_file_writer(str(self.log_dir / f"{self.name}-{time.strftime('%Y%m%d-%H%M%S')}"))

    def record_start(self):
        """Tell where a resumed run goes on, and show the graph of the step in TensorBoard."""
        if self.resumed:
            message = f"goes on from step {self.model.step}"
            tqdm.write(f"{self.directory}: {message}")
            tf.summary.text("run", message, self.model.step)
        inputs = self.inputs(self.team.share(np.zeros((self.batch_size, *self.images.shape), np.float32)))
        specs = {name: tf.TensorSpec(value.shape) for name, value in inputs.items()}
        specs |= {"step": tf.TensorSpec((), tf.int64)}
        tf.summary.graph(self.compiled_step.get_concrete_function(**specs, **self.optimizers).graph)
        self.reported = self.model.step, time.monotonic()


def check_replicas(team, batch_size, count, jit_compile):
    """Raise UserError, naming the flag, if a step on at most `count` images cannot be shared by all of a team."""
    replicas = team.strategy.num_replicas_in_sync
    what = f"{replicas} GPUs" if replicas > team.count else f"{replicas} workers"
    fewer = "fewer GPUs with CUDA_VISIBLE_DEVICES" if replicas > team.count else "fewer workers"
    if jit_compile and replicas > 1:
        raise cli.UserError(f"--jit_compile: is for one GPU, and there are {what}; leave it out, or choose one")
    if count < batch_size and count % replicas:
        raise cli.UserError(f"--dataset: holds {count} images, which {what} cannot share; add some, or choose {fewer}")
    if count >= batch_size and batch_size % replicas:
        raise cli.UserError(f"--batch_size {batch_size}: is not a multiple of the {what}; change it, or choose {fewer}")
