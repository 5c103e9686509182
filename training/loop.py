"""A run: train networks from the newest checkpoint, alone or with other workers; report, evaluate and save."""

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
EPOCH_STEPS = 100  # at the end of an epoch what was learned is evaluated, if the last time was so many steps ago


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
    """A run that trains networks on images, and resumes from its newest checkpoint.

    A kind of run says what its steps are given, how samples are written and what is measured: `inputs(batch)` returns
    the arguments of the model's `train_step` by name, `write_samples()` shows what has been learned as a file and in
    TensorBoard, `measure(stop)` returns what `evaluate` needs, and `recalibrate()` comes before both.
    """

    LOSSES = ()  # the scalars that a step returns
    SHOWN = ()  # those of them that the progress bar shows
    HISTOGRAMS = ()  # what else of a step TensorBoard shows
    NUMBERS = "step", "epoch", "seen"  # of a checkpoint

    def __init__(
        self, model, images, *, epoch, batch_size, learning_rate, beta1, seed, flip,
        checkpoint_dir, sample_dir, log_dir, eval_every=None, jit_compile=False, team=None,
    ):  # fmt: skip
        """Make the optimizers, and read the newest checkpoint if there is one; nothing is written yet.

        `model` is what is trained, a DCGAN or an Encoder, `images` a dataset.ImageFolder. `epoch` counts the epochs of
        earlier runs too. What is learned is evaluated at the end, at the end of each epoch (100 steps apart at least)
        and every `eval_every` steps. `jit_compile` compiles the step with XLA, for one replica. `team` are the
        workers that train together, by default this one: each reads its part of a batch, and the chief alone writes.
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
        self.saved, self.evaluated = time.monotonic(), model.step  # when, and at which step, it was last done
        self.reported, self.shown = (model.step, time.monotonic()), {}

    def restore(self):
        """Read the newest good checkpoint, but keep this run's own learning rate; returns True."""
        place = checkpoint.restore(self.directory, self.model.networks, self.NUMBERS, self.optimizers)
        self.model.step, self.epoch, self.seen = place["step"], place["epoch"], place["seen"]
        self.set_learning_rate(self.learning_rate)
        self.advance(0)  # there may be fewer images than there were, or larger batches
        return True

    def follow_chief(self):
        """Take over the chief's step, weights and optimizers' state."""
        place = self.team.gather([self.model.step, self.epoch, self.seen])
        self.model.step, self.epoch, self.seen = place[0]
        parts = [*self.model.networks.values(), *self.optimizers.values()]
        self.team.copy_from_chief([variable for part in parts for variable in part.variables])

    def recalibrate(self):
        """Prepare what was learned to be sampled; most networks need nothing."""

    def set_learning_rate(self, value):
        """Set the learning rate of all optimizers."""
        for optimizer in self.optimizers.values():
            optimizer.learning_rate = value

    def train(self):
        """Train until `epoch` epochs are done, or SIGINT, SIGTERM or SIGHUP asks to stop; returns that signal, or None.

        Writes a checkpoint every five minutes, when it evaluates and when it ends, and keeps the best one in "best"
        below; samples every 200 steps; and the TensorBoard record, to a new folder below `log_dir`. Raises UserError if
        a checkpoint cannot be written, if a loss or a weight is no longer finite, or if too many images cannot be read.
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
        # if another worker got it, which signal it was is not known here; SIGTERM is what usually ends a job
        return (stop or [signal.SIGTERM])[0] if self.epoch < self.epochs else None

    def write(self, due, bar, stop):
        """Save, sample and evaluate, as far as it is due."""
        if due.samples or due.evaluation:
            self.recalibrate()
        if due.save:
            checkpoint.save(self.directory, **self.contents())
            self.saved = time.monotonic()
        if due.samples:
            self.write_samples()
        if due.evaluation:
            self.evaluate(bar, () if due.end else stop)

    def evaluate(self, bar, stop):
        """Measure what has been learned, show it, and keep the best checkpoint; leave at once when `stop` is set.

        `measure(stop)` returns the name and the value of the measure that decides, the smaller the better, and what the
        progress bar shows; or None if it was stopped.
        """
        self.evaluated = self.model.step
        bar.set_postfix_str("evaluating")
        if not (measured := self.measure(stop)):
            return
        name, value, shown = measured
        self.shown |= shown
        bar.set_postfix(self.shown)
        config = {**self.config, "images": len(self.images)}
        checkpoint.keep_best(self.directory / "best", config, name, value, **self.contents())

    def finish(self):
        """Train, print in a line how it ended, and return the exit status of a script."""
        with cli.deferred_signals():  # a late one must not end this process while others wait
            ended_by = self.train()
            self.team.barrier()
        following = "stopped; the same command resumes there" if ended_by else "a higher --epoch trains longer"
        print(f"{self.directory}: {self.epoch} of {self.epochs} epochs done, step {self.model.step}; {following}")
        return 128 + ended_by if ended_by else 0

    def batches(self):
        """All batches that are left, epoch after epoch."""
        while self.epoch < self.epochs:
            yield from self.images.epoch(
                self.epoch, self.batch_size, self.seed, self.flip, start=self.seen, share=self.team.share
            )

    def step(self, batch):
        """Train on one batch; returns the inputs and the outputs of the step."""
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
        """What is due after this step, the same for all workers; a signal that comes later waits for the next one."""
        late = self.team.chief and time.monotonic() - self.saved > CHECKPOINT_SECONDS
        leave, save = self.team.any(bool(stop), late)
        step, end = self.model.step, self.epoch == self.epochs
        epoch_ends = not self.seen and step - self.evaluated >= EPOCH_STEPS
        evaluation = end or not leave and bool(epoch_ends or self.eval_every and step % self.eval_every == 0)
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
                    f"command with a smaller one resumes from {checkpoint.newest(self.directory)}"
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

    def contents(self):
        """What a checkpoint of this run holds, as `checkpoint.save` wants it."""
        numbers = {"step": self.model.step, "epoch": self.epoch, "seen": self.seen}
        return dict(networks=self.model.networks, numbers=numbers, optimizers=self.optimizers)

    def prepare_directories(self):
        """Remove what a killed run left, and write the config and, in a new run, the first checkpoint."""
        for directory in (self.directory, utils.inside(self.directory, "best")):
            checkpoint.remove_unfinished(directory)
        for directory in (self.directory, self.sample_dir):
            directory.mkdir(parents=True, exist_ok=True)
        checkpoint.write_config(self.directory, self.config)
        if not self.resumed:
            checkpoint.save(self.directory, **self.contents(), keep=1)

    def progress_bar(self):
        """The progress bar, in images, with the steps of earlier runs."""
        initial = self.model.step * self.batch_size
        left = (self.epochs - self.epoch) * self.images.steps(self.batch_size) - self.seen // self.batch_size
        total = initial + left * self.batch_size
        bar = tqdm(total=total, initial=initial, unit="img", dynamic_ncols=True, disable=not self.team.chief)
        bar.mininterval = 0.5 if sys.stderr.isatty() else 30
        return bar

    def summary_writer(self):
        """TensorBoard's writer, to a new folder."""
        if not self.team.chief:
            return tf.summary.create_noop_writer()
        return tf.summary.create_file_writer(str(self.log_dir / f"{self.name}-{time.strftime('%Y%m%d-%H%M%S')}"))

    def record_start(self):
        """Report where a run resumes, and show the graph of the step in TensorBoard."""
        if self.resumed:
            message = f"resumes from step {self.model.step}"
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
