"""How much of the compiled training step's speed reaches the user of train-dcgan.py.

    python tests/benchmark.py --dataset data/mine/aligned

Runs train() with its input pipeline, progress bar, TensorBoard record and samples, and in turn with it, in blocks of
20 steps, the same compiled step on one batch that stays in memory. Prints images/s of both and their ratio.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tensorflow as tf

import ops
from dataset import ImageFolder
from model import DCGAN

BLOCK = 20


class TimedDCGAN(DCGAN):
    """A DCGAN whose train() stops after every block of steps to time as many bare ones."""

    def report(self, step, outputs, bar):
        super().report(step, outputs, bar)
        self.count += 1
        if self.count % BLOCK:
            return
        now = time.monotonic()
        self.train_seconds.append(now - self.block_start)
        for _ in range(BLOCK):
            losses = self.bare_step(*self.batch)
        float(losses["g_loss"])
        self.bare_seconds.append(time.monotonic() - now)
        self.step.assign(step)  # which the average of the generator goes by
        self.block_start = time.monotonic()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--blocks", type=int, default=11, help="blocks of each kind; the first is not counted")
    parser.add_argument("--batch_size", type=int, default=64)
    args = parser.parse_args()
    print(ops.use_device())

    images = ImageFolder(args.dataset, 64, 3, train_size=args.blocks * BLOCK * args.batch_size)
    dcgan = TimedDCGAN(image_size=64, c_dim=3, z_dim=100, gf_dim=64, df_dim=64, ema=0.999)
    dcgan.batch = (
        tf.random.uniform((args.batch_size, 64, 64, 3), -1, 1),
        tf.random.uniform((args.batch_size, 100), -1, 1),
    )
    dcgan.bare_step = tf.function(dcgan.train_step)
    dcgan.count, dcgan.train_seconds, dcgan.bare_seconds, dcgan.block_start = 0, [], [], time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        dcgan.train(
            images,
            epoch=-(-args.blocks * BLOCK * args.batch_size // len(images)),
            batch_size=args.batch_size,
            learning_rate=0.0002,
            beta1=0.5,
            seed=0,
            flip=True,
            checkpoint_dir=home,
            sample_dir=home,
            log_dir=home,
        )
    train, bare = dcgan.train_seconds[1:], dcgan.bare_seconds[1:]
    for name, seconds in (("train()", train), ("bare step", bare)):
        print(f"{name:10} {BLOCK * args.batch_size / statistics.median(seconds):7.1f} images/s")
    ratio = statistics.median(b / t for t, b in zip(train, bare, strict=True))
    print(f"ratio      {ratio:7.3f} (median of {len(train)} pairs)")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB")


if __name__ == "__main__":
    main()
