"""The training images: a folder of files as a shuffled `tf.data` pipeline."""

import concurrent.futures
import hashlib
import os
import sys

import cli

import numpy as np
import tensorflow as tf
from PIL import Image
from tqdm import tqdm

import ops
import utils

BLOCK = 2**24  # values


class ImageFolder:
    """The images below a directory; the seed and the epoch alone decide their order."""

    def __init__(self, directory, image_size, c_dim, train_size=None, seed=0, cache_mb=1024):
        """Find and check all images; decode them into memory if they fit into `cache_mb` MiB as uint8.

        `train_size` takes so many of them, drawn by `seed`. A broken file is named on standard error and left out.
        Raises UserError if no image is left.
        """
        self.directory, self.shape = directory, (image_size, image_size, c_dim)
        self.image_size, self.c_dim = image_size, c_dim  # of the files
        self.paths = utils.find_images(directory, report=True)
        if not self.paths:
            raise cli.UserError(f"--dataset {directory}: {utils.NO_IMAGES}; align.py makes such a folder")
        if train_size and train_size < len(self.paths):
            chosen = ops.rng(seed, "train_size").choice(len(self.paths), train_size, replace=False)
            self.paths = [self.paths[i] for i in sorted(chosen)]

        cached = len(self.paths) * np.prod(self.shape) <= cache_mb * 2**20
        self.images = np.empty((len(self.paths), *self.shape), np.uint8) if cached else None
        with concurrent.futures.ThreadPoolExecutor(max_workers=8) as pool:
            checked = pool.map(self._check, range(len(self.paths)))
            checked = list(tqdm(checked, "reading images", len(self.paths), leave=False, disable=None))
        if not any(checked):
            raise cli.UserError(f"--dataset {directory}: none of its {len(self.paths)} images can be read; see above")
        self._keep(np.flatnonzero(checked))
        self.broken, self.error = set(), None  # since then

    def __len__(self):
        return len(self.paths)

    def steps(self, batch_size):
        """The batches in an epoch; all images are one where there are fewer."""
        return len(self) // min(batch_size, len(self))

    def _keep(self, numbers):
        """Drop all images but those at the rising `numbers`, without a copy of what is in memory."""
        if self.images is not None and len(numbers) < len(self.paths):
            for new, old in enumerate(numbers):
                self.images[new] = self.images[old]
            self.images = self.images[: len(numbers)]
        self.paths = [self.paths[i] for i in numbers]

    def digest(self):
        """Their number and a hash, to compare with another machine's.

        It covers all names and sizes, and the pixels of a hundred: to read all would take long.
        """
        listed = hashlib.sha256()
        for path in self.paths:
            listed.update(os.fsencode(path.relative_to(self.directory)) + b" %d\n" % path.stat().st_size)
        for i in np.unique(np.linspace(0, len(self) - 1, 100).astype(int)):
            listed.update(self.read(i).tobytes())
        return f"{len(self)} ({listed.hexdigest()[:12]})"

    def hold_out(self, count, seed):
        """Take `count` images, drawn by `seed`, out of all epochs from now on: uint8 (count, H, W, C)."""
        chosen = ops.rng(seed, "held out").choice(len(self), count, replace=False)
        held_out = np.stack([self.read(i) for i in chosen])
        self._keep(np.setdiff1d(np.arange(len(self)), chosen))
        return held_out

    def blocks(self):
        """Yield all images in order, in blocks that fit into memory: float32 (N, H, W, C) in [-1, 1]."""
        count = max(1, BLOCK // np.prod(self.shape))
        for start in range(0, len(self), count):
            yield utils.to_float([self.read(i) for i in range(start, min(start + count, len(self)))])

    def _decode(self, i):
        return utils.read_image(self.paths[i], self.image_size, self.c_dim)

    def _check(self, i):
        """Whether image `i` can be read, into memory if it has a place there; a broken one is reported."""
        try:
            if self.images is not None:
                self.images[i] = self._decode(i)
            else:  # the header alone: to decode all would double the first epoch's work
                Image.open(self.paths[i]).close()
            return True
        except Exception as error:  # Pillow raises anything from SyntaxError to struct.error on a damaged file
            why = error if isinstance(error, cli.UserError) else f"{self.paths[i]}: not a readable image ({error})"
            tqdm.write(f"skipped {why}", file=sys.stderr)
            return False

    def read(self, i):
        """Image `i` as uint8 (H, W, C); if its file has broken since, that is reported and the next one is used.

        Raises UserError if more than a tenth of the images are broken.
        """
        if self.images is not None:
            return self.images[i]
        while True:
            try:
                return self._decode(i)
            except cli.UserError as error:
                if i not in self.broken:
                    tqdm.write(f"skipped {error}", file=sys.stderr)
                self.broken.add(i)
            if len(self.broken) > len(self) / 10:
                lost = f"{len(self.broken)} of its {len(self)} images can no longer be read, such as {self.paths[i]}"
                self.error = cli.UserError(f"--dataset: {lost}; when they are back, the same command resumes")
                raise self.error
            i = (i + 1) % len(self)

    def epoch(self, number, batch_size, seed=0, flip=False, start=0, share=np.asarray):
        """Yield the batches of epoch `number`, float32 tensors (batch_size, H, W, C) in [-1, 1], read ahead by tf.data.

        Each image comes once; a last partial batch is dropped. `flip` mirrors about half of them. `start`: so many
        images an interrupted run has already seen. `share` gives the part of a batch, an array, that is read here.
        Raises UserError as `read` does.
        """
        draws = ops.rng(seed, "epoch", number)
        order = draws.permutation(len(self))
        flips = flip & draws.integers(2, size=len(self)).astype(bool)
        whole = slice(start, start + (len(self) - start) // batch_size * batch_size)
        order, flips = (share(values[whole].reshape(-1, batch_size).T).T for values in (order, flips))

        def batch(indices, flips):
            images = [self.read(i) for i in indices]
            return utils.to_float([x[:, ::-1] if flip else x for x, flip in zip(images, flips, strict=True)])

        def load(indices, flips):
            images = tf.numpy_function(batch, [indices, flips], tf.float32)
            return tf.ensure_shape(images, (order.shape[1], *self.shape))

        batches = tf.data.Dataset.from_tensor_slices((order, flips))
        batches = batches.map(load, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
        try:
            yield from batches
        except tf.errors.OpError as error:  # what TensorFlow makes of an error in `read`
            raise self.error or error from None
