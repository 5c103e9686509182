"""How fast the training step is, on this machine, beside other ways to write it, and what of it reaches the user.

    pip install -r requirements-benchmark.txt
    python benchmarks/speed.py --dataset data/mine/aligned

Times in turn, in blocks of steps, at 64x64 with batches of 64:

- train() with its input pipeline, progress bar, TensorBoard record and samples;
- the compiled step alone, on one batch that stays in memory, in each precision, and by two replicas, here on two
  halves of one CPU, each with half of the batch: what is lost is what working together costs;
- the same networks and updates as a plain port to Keras would write them, and as PyTorch's users do, eager and with
  torch.compile: each update computes all that it needs, the step here shares G(z) between D's update and G's first;
- a limit: no faster than the step's multiplications at the rate of a product of two large matrices.

Prints a Markdown table: the median images/s of the blocks, and the medians of their ratio to the float32 step and to
the limit of the same round, so that what slows the machine for a while counts little.

    python benchmarks/speed.py --workers 2 --batch_size 256 --blocks 5 --steps 4

times instead the step of workers that are each held to one core: one alone, two apart, and two that train together,
each with a batch of its own.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import speed_keras
import speed_workers
import tensorflow as tf

import ops
from model import DCGAN
from training.dataset import ImageFolder
from training.runs import GANRun

try:
    import speed_torch
    import torch
except ModuleNotFoundError:
    torch = None

ARCHITECTURE = dict(image_size=64, c_dim=3, z_dim=100, gf_dim=64, df_dim=64, ema=0.999)
TRAINING = dict(learning_rate=0.0002, beta1=0.5)
PRECISIONS = ("float32", "mixed_bfloat16")
# of the convolutions and linear layers, for each image, two for each multiply-add, padding counted: D's update takes
# one pass through G, two through D and their gradient to the weights and, but for the first layer, the inputs; each of
# G's takes a pass through D and its gradient to the inputs, and that of G to the weights and inputs; the second a pass
# through G too
FLOP = 5.18e9
REFERENCE = "step, float32"


def our_step(batch_size, precision):
    """The compiled step of train(), as a function of no arguments that returns G's loss."""
    dcgan = DCGAN(**ARCHITECTURE, precision=precision)
    optimizers = dcgan.make_optimizers(**TRAINING)
    compiled = tf.function(dcgan.train_step)
    images = tf.random.uniform((batch_size, 64, 64, 3), -1, 1)
    z = tf.random.uniform((batch_size, 100), -1, 1)
    return lambda: compiled(images, z, 0, **optimizers)["g_loss"]


def images_per_second(step, batch_size, count):
    """Images/s of `count` calls of a step."""
    start = time.monotonic()
    for _ in range(count):
        loss = step()
    float(loss)  # waits for the last
    return count * batch_size / (time.monotonic() - start)


def limit(dtype, size=4096, count=4):
    """Images/s of a step that were nothing but its multiplications, at the rate of a matrix product."""
    matrix = tf.cast(tf.random.normal((size, size)), dtype)
    tf.matmul(matrix, matrix)
    start = time.monotonic()
    for _ in range(count):
        product = tf.matmul(matrix, matrix)
    float(product[0, 0])
    return count * 2 * size**3 / (time.monotonic() - start) / FLOP


def machine():
    """A line on what the numbers depend on."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(": ")[1] for line in cpuinfo.splitlines() if line.startswith("model name")]
    versions = [f"{module.__name__} {module.__version__}" for module in (tf, keras, torch) if module]
    return ", ".join([*names[:1], f"{os.cpu_count()} cores", *versions])


class TimedRun(GANRun):
    """A run that stops after every block of steps to time the others."""

    def __init__(self, *args, steps, others, **settings):
        super().__init__(*args, **settings)
        self.block, self.others, self.rounds, self.block_start = steps, others, [], time.monotonic()

    def evaluate(self, *args):
        """Left out: it is not of the step."""

    def report(self, outputs, bar):
        super().report(outputs, bar)
        if self.model.step % self.block:
            return
        float(outputs["g_loss"])
        rates = {"train(), float32": self.block * self.batch_size / (time.monotonic() - self.block_start)}
        rates |= {name: measure() for name, measure in self.others.items()}
        self.rounds.append(rates)
        self.block_start = time.monotonic()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--dataset")
    what.add_argument("--workers", type=int, metavar="N")
    parser.add_argument("--blocks", type=int, default=11, help="blocks of each kind; the first is not counted")
    parser.add_argument("--steps", type=int, default=20, help="steps in a block")
    parser.add_argument("--batch_size", type=int, default=64)
    args = parser.parse_args()
    if args.workers:
        print(machine())
        return speed_workers.table(args.workers, args.batch_size, "float32", args.blocks, args.steps)
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
    print(ops.use_device())
    print(machine())
    if not torch:
        print("PyTorch is not installed, so its rows are left out: see requirements-benchmark.txt")

    # all in one process: threads that spin after a block do so for milliseconds, and PyTorch was as fast in its own
    steps = {f"step, {precision}": our_step(args.batch_size, precision) for precision in PRECISIONS}
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        steps["step, float32, two replicas"] = our_step(args.batch_size, "float32")
    steps["plain port to Keras, float32"] = speed_keras.train_step(args.batch_size)
    if torch:
        steps["PyTorch, float32"] = speed_torch.train_step(args.batch_size, compiled=False)
        steps["PyTorch with torch.compile, float32"] = speed_torch.train_step(args.batch_size, compiled=True)
    for step in steps.values():
        step()  # compiles it

    count = args.blocks * args.steps * args.batch_size
    images = ImageFolder(args.dataset, 64, 3, train_size=count)
    others = {name: partial(images_per_second, step, args.batch_size, args.steps) for name, step in steps.items()}
    others |= {f"limit, {dtype}": partial(limit, dtype) for dtype in ("float32", "bfloat16")}
    settings = dict(epoch=-(-count // len(images)), batch_size=args.batch_size, **TRAINING, seed=0, flip=True)
    with tempfile.TemporaryDirectory() as home:
        settings |= dict(checkpoint_dir=home, sample_dir=home, log_dir=home)
        run = TimedRun(DCGAN(**ARCHITECTURE), images, steps=args.steps, others=others, **settings)
        run.train()
    rounds = run.rounds[1:]
    print("\n| | images/s | of the float32 step | of the limit |\n|---|---|---|---|")
    for name in rounds[0]:
        ceiling = "limit, bfloat16" if "bfloat16" in name else "limit, float32"
        rate, *ratios = (
            statistics.median(rates[name] / (rates[other] if other else 1) for rates in rounds)
            for other in (None, REFERENCE, ceiling)
        )
        print(f"| {name} | {rate:.1f} | {ratios[0]:.2f} | {ratios[1]:.2f} |")


if __name__ == "__main__":
    main()
