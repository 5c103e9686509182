"""A run: train networks from the newest checkpoint, alone or with other workers; report, evaluate and save."""

import contextlib
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
import ops
import utils
from training.workers import Team

CHECKPOINT_SECONDS = 300
SCALARS_EVERY, HISTOGRAMS_EVERY, SAMPLES_EVERY = 10, 100, 200  # steps
EPOCH_STEPS = 100  # at the end of an epoch what was learned is evaluated, if the last time was so many steps ago


class Due(NamedTuple):
    """What is to be done after a step."""

    samples: bool
    evaluation: bool
    save: bool
    end: bool  # the last epoch is done
    leave: bool  # a signal asks for it


class Run:
    """A run that trains networks on images, and resumes from its newest checkpoint.

    A kind of run has three methods of its own: `inputs(batch)` returns the arguments of the model's `train_step` by
    name, `samples()` a name and a picture, uint8 (H, W, C), of what was learned, for `measure(stop)` see `evaluate`.
    """

    LOSSES = ()  # the scalars that a step returns
    SHOWN = ()  # those of them that the progress bar shows
    HISTOGRAMS = ()  # what else of a step TensorBoard shows
    FALLING = False  # whether the learning rate falls to 0 along half a cosine

    def __init__(
        self, model, images, *, epoch, batch_size, learning_rate, beta1, seed, flip,
        checkpoint_dir, sample_dir, log_dir, eval_every=None, jit_compile=False, team=None,
    ):  # fmt: skip
        """Make the optimizers, and read the newest checkpoint if there is one; nothing is written yet.

        `model` is a DCGAN, an Encoder or a Refiner, `images` a dataset.ImageFolder. `epoch` counts the epochs of
        earlier runs too. What is learned is evaluated at the end of each epoch (100 steps apart at least) and every
        `eval_every` steps. `jit_compile` uses XLA, for one replica. `team`: who trains together; each reads its part of
        a batch, the chief alone writes. Raises UserError if the checkpoint cannot be read, or a batch cannot be shared.
        """
        self.model, self.images, self.epochs, self.eval_every = model, images, epoch, eval_every
        self.batch_size, self.seed, self.flip = min(batch_size, len(images)), seed, flip
        self.directory, self.sample_dir, self.log_dir = map(Path, (checkpoint_dir, sample_dir, log_dir))
        self.name, self.learning_rate = utils.folder_name(checkpoint_dir), learning_rate
        training = dict(batch_size=batch_size, learning_rate=learning_rate, beta1=beta1, seed=seed, flip=flip)
        self.config = {"architecture": model.architecture, "training": training | {"precision": model.precision}}
        self.team = team or Team(model.strategy)
        check_replicas(self.team, batch_size, len(images), jit_compile)
        self.optimizers = model.make_optimizers(learning_rate, beta1)
        self.epoch = self.seen = 0  # epochs done, images seen of the next; the step is the model's
        self.evaluated = 0  # the step of the last evaluation
        self.resumed = self.team.chief and bool(checkpoint.find(checkpoint_dir)) and self.restore()
        self.follow_chief()
        self.compiled_step = tf.function(model.train_step, jit_compile=jit_compile)
        self.saved = time.monotonic()
        self.reported, self.shown = (model.step, time.monotonic()), {}

    def restore(self):
        """Read the newest good checkpoint, but keep this run's own learning rate; returns True."""
        numbers = checkpoint.restore(self.directory, self.model.networks, self.numbers(), self.optimizers)
        self.model.step, self.epoch, self.seen = (numbers[name] for name in ("step", "epoch", "seen"))
        self.evaluated = checkpoint.read_config(self.directory).get("evaluated", self.model.step)  # older ones lack it
        self.set_learning_rate(self.learning_rate)
        self.advance(0)  # there may be fewer images than there were, or larger batches
        return True

    def follow_chief(self):
        """Take over the chief's place in the run, weights and optimizers' state."""
        place = self.model.step, self.epoch, self.seen, self.evaluated
        self.model.step, self.epoch, self.seen, self.evaluated = self.team.gather(place)[0]
        parts = [*self.model.networks.values(), *self.optimizers.values()]
        self.team.copy_from_chief([variable for part in parts for variable in part.variables])

    def set_learning_rate(self, value):
        """Set the learning rate of all optimizers."""
        for optimizer in self.optimizers.values():
            optimizer.learning_rate = value

    def train(self):
        """Train until `epoch` epochs are done, or SIGINT, SIGTERM or SIGHUP asks to stop; returns that signal, or None.

        Writes a checkpoint every five minutes, before it evaluates and when it ends, the best one to "best" below, and
        samples every 200 steps. What an earlier run was to evaluate and did not is made up for at the start. Raises
        UserError if a checkpoint cannot be written, if a loss or a weight is no longer finite, or if too many images
        cannot be read.
        """
        if self.team.chief:
            for directory in (self.directory, utils.inside(self.directory, "best")):
                checkpoint.remove_unfinished(directory)
        missed, ended = self.evaluation_due(), self.epoch >= self.epochs
        if ended and not missed:
            return None
        with contextlib.ExitStack() as stack:
            stop = stack.enter_context(cli.deferred_signals())
            if self.team.chief:
                self.prepare_directories()
            bar = stack.enter_context(self.progress_bar())
            folder = str(self.log_dir / f"{self.name}-{time.strftime('%Y%m%d-%H%M%S')}")
            writer = tf.summary.create_file_writer(folder) if self.team.chief else tf.summary.create_noop_writer()
            stack.enter_context(writer.as_default())
            self.record_start()
            left = self.write(Due(samples=False, evaluation=missed, save=False, end=ended, leave=False), bar, stop)
            for batch in () if left else self.batches():
                outputs = self.step(batch)
                due = self.due(stop)
                self.report(outputs, bar)
                self.check_finite(outputs, due)
                if self.write(due, bar, stop):
                    break
        # another worker's signal is unknown here; SIGTERM is what usually ends a job
        return (stop or [signal.SIGTERM])[0] if self.epoch < self.epochs else None

    def write(self, due, bar, stop):
        """Save, sample and evaluate, as far as it is due; the chief does it. Returns whether the run is to be left."""
        evaluated = self.team.chief and self.write_as_chief(due, bar, stop)
        if not due.evaluation:
            return due.leave
        (evaluated,) = self.team.any(evaluated)
        self.evaluated = self.model.step if evaluated else self.evaluated
        return due.leave or not evaluated

    def write_as_chief(self, due, bar, stop):
        """As `write`; returns whether it evaluated, which a signal cuts short."""
        if due.save:
            checkpoint.save(self.directory, **self.contents())
            self.saved = time.monotonic()
        if due.samples:
            name, picture = self.samples()
            utils.write_image(self.sample_dir / f"{self.name}_{self.model.step:06d}.png", picture)
            tf.summary.image(name, picture[None], self.model.step)
        return due.evaluation and self.evaluate(bar, () if due.end else stop)

    def evaluate(self, bar, stop):
        """Measure what has been learned, keep the best checkpoint, and record that it was done; returns whether it was.

        `measure(stop)` returns the name of the measure that decides, its value, the smaller the better, and what the
        progress bar shows; or None as soon as `stop` is set.
        """
        bar.set_postfix_str("evaluating")
        if not (measured := self.measure(stop)):
            return False
        name, value, shown = measured
        self.shown |= shown
        bar.set_postfix(self.shown)
        config = {**self.config, "images": len(self.images)}
        checkpoint.keep_best(self.directory / "best", config, name, value, **self.contents())
        self.evaluated = self.model.step
        self.write_config()
        return True

    def evaluation_due(self):
        """Whether what was learned is to be evaluated after this step: at an epoch's end and at that of the run."""
        since = self.model.step - self.evaluated
        epoch_ends = not self.seen and since >= EPOCH_STEPS
        asked_for = self.eval_every and self.model.step % self.eval_every == 0
        return bool(since and (epoch_ends or asked_for or self.epoch >= self.epochs))

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
            settings = self.epoch, self.batch_size, self.seed, self.flip
            yield from self.images.epoch(*settings, start=self.seen, share=self.team.share)

    def step(self, batch):
        """Train on one batch; returns the inputs and the outputs of the step."""
        if self.FALLING:
            done = (self.epoch + self.seen / len(self.images)) / self.epochs
            self.set_learning_rate(self.learning_rate * ops.half_cosine(done))
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
        evaluation = self.evaluation_due() and (end or not leave)
        samples = step % SAMPLES_EVERY == 0 or step == 1 or end
        return Due(samples, evaluation, save=evaluation or leave or save, end=end, leave=leave)

    def check_finite(self, outputs, due):
        """Raise UserError if a loss, or before a checkpoint a weight, is NaN or infinite: none is saved."""
        values = {name: outputs[name] for name in self.SHOWN if due.save or self.model.step % SCALARS_EVERY == 0}
        if due.save:
            values |= {v.path: v for net in self.model.networks.values() for v in net.variables}
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise cli.UserError(
                    f"--learning_rate: {name} is not finite at step {self.model.step}, training has diverged; the same "
                    f"command with a smaller one resumes from {checkpoint.newest(self.directory)}"
                )

    def report(self, outputs, bar):
        """Show what a step returned in TensorBoard and on the progress bar, every few steps."""
        step, first = self.model.step, self.SHOWN[0] not in self.shown
        bar.set_description(f"epoch {self.epoch + bool(self.seen)}/{self.epochs}", refresh=False)
        bar.update()
        if first or step % SCALARS_EVERY == 0:
            losses = {name: float(outputs[name]) for name in self.LOSSES}
            self.shown |= {name: f"{losses[name]:.3f}" for name in self.SHOWN}
            bar.set_postfix(self.shown, refresh=first)
        if step % SCALARS_EVERY == 0:
            (last, then), self.reported = self.reported, (step, time.monotonic())
            images_per_second = (step - last) * self.batch_size / (time.monotonic() - then)
            for name, value in {**losses, "images_per_second": images_per_second}.items():
                tf.summary.scalar(name, value, step)
        if step % HISTOGRAMS_EVERY == 0 or step == 1:
            for name in self.HISTOGRAMS:
                tf.summary.histogram(name, outputs[name], step)

    def numbers(self):
        """The whole numbers in a checkpoint of this run."""
        return {"step": self.model.step, "epoch": self.epoch, "seen": self.seen}

    def contents(self):
        """What a checkpoint of this run holds, as `checkpoint.save` takes it."""
        return dict(networks=self.model.networks, numbers=self.numbers(), optimizers=self.optimizers)

    def prepare_directories(self):
        """Make the folders, and write the config and, in a new run, the first checkpoint."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.sample_dir.mkdir(parents=True, exist_ok=True)
        self.write_config()
        if not self.resumed:
            checkpoint.save(self.directory, **self.contents(), keep=1)

    def write_config(self):
        """Write config.json, which also says what was evaluated last: a killed run makes up for what it missed."""
        checkpoint.write_config(self.directory, self.config | {"evaluated": self.evaluated})

    def progress_bar(self):
        """The progress bar, in steps, with those of earlier runs."""
        step = self.model.step
        left = (self.epochs - self.epoch) * self.images.steps(self.batch_size) - self.seen // self.batch_size
        bar = tqdm(total=step + left, initial=step, unit="step", dynamic_ncols=True, disable=not self.team.chief)
        bar.mininterval = 0.5 if sys.stderr.isatty() else 30
        return bar

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
