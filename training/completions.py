"""What a refiner learns from: faces at twice a model's size, and what that model makes of them once they have holes."""

import dataclasses
import hashlib
import os
from pathlib import Path

import numpy as np
from tqdm import tqdm

import ops
import utils
from completion import masks
from training.dataset import ImageFolder

BLOCK = 64  # faces that are completed at once, and kept in one file
LEFT_OUT = "full", "lowres", "grid", "random"  # holes that no photo has
DETAILS = 0.5, 1.0  # of the completions, see `prior.gaussian_blend`


class CompletedFaces(ImageFolder):
    """Faces at twice the size of a model's, each with a hole: uint8 (2 S, 2 S, 2 C + 1), see `split`.

    The first channels are those of the face, then come the mask, and the completed face in squares of 2 x 2 pixels.
    """

    def __init__(self, directory, completer, folder, seed=0, train_size=None, cache_mb=1024):
        """Find all faces, and complete those of which `folder` does not hold it yet. Arguments as of `ImageFolder`.

        The seed decides the holes. Raises UserError if there is no face, or if a file cannot be written.
        """
        dcgan = completer.dcgan
        super().__init__(directory, 2 * dcgan.image_size, dcgan.c_dim, train_size, seed, cache_mb)
        self.holes = [draw_hole(self.image_size, ops.rng(seed, "masks", i)) for i in range(len(self))]
        self.completed = []
        blocks = [range(start, min(start + BLOCK, len(self))) for start in range(0, len(self), BLOCK)]
        for block in tqdm(blocks, f"completing {len(self)} faces", unit="block", leave=False, disable=None):
            self.completed += list(self._complete(block, completer, Path(folder), seed))
        self.shape = self.image_size, self.image_size, 2 * self.c_dim + 1

    def _complete(self, block, completer, folder, seed):
        """The completed faces of a block, uint8 (N, S, S, C): from its file, or else anew."""
        files = "".join(f"{self.paths[i]} {os.stat(self.paths[i]).st_size}\n" for i in block)
        key = hashlib.sha256(f"{seed} {completer.dcgan.fingerprint()} {files}".encode(errors="surrogateescape"))
        path, size = folder / f"{key.hexdigest()[:16]}.png", self.image_size // 2
        shape = len(block), size, size, self.c_dim
        if path.is_file():
            picture = np.asarray(utils.open_image(path))
            if picture.size == np.prod(shape):
                return picture.reshape(shape)
        images = utils.block_means(utils.to_float([self.read(i) for i in block]), 2)
        holes = masks.holes("mask", [known_at_half(self.holes[i]) for i in block])
        detail = float(ops.rng(seed, "masks", block[0]).uniform(*DETAILS))
        settings = dict(completer.settings, iterations=0) if completer.encoder else completer.settings
        *_, last = dataclasses.replace(completer, detail=detail, settings=settings).complete(images, holes)
        completed = utils.to_uint8(last.result)
        with utils.report_write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        utils.write_image(path, completed.reshape(-1, *shape[2:]))
        return completed

    def _keep(self, numbers):
        super()._keep(numbers)
        for values in (self.holes, self.completed) if hasattr(self, "completed") else ():
            values[:] = [values[i] for i in numbers]

    def read(self, i):
        """As `ImageFolder.read`, with the mask and the completed face once that is there."""
        face = super().read(i)
        if len(self.completed) < len(self):
            return face
        mask = np.uint8(255) * self.holes[i].astype(np.uint8)
        return np.concatenate([face, mask, self.completed[i].repeat(2, 0).repeat(2, 1)], -1)


def draw_hole(size, rng):
    """A random hole such as photos have, with something known at half its size: its mask, float32 (size, size, 1)."""
    while True:
        kind, mask = masks.draw(size, rng)
        half = known_at_half(mask)
        if kind not in LEFT_OUT and half.any() and not half.all():
            return mask


def known_at_half(mask):
    """The mask of an image at half the size: known is what is known of all four pixels."""
    return (utils.block_means(mask[None], 2)[0] == 1).astype(np.float32)


def split(batch):
    """The faces, completed faces at half the size and masks in a batch of `CompletedFaces`, (N, H, W, 2 C + 1)."""
    channels = batch.shape[-1] // 2
    images, known, completed = batch[..., :channels], batch[..., channels : channels + 1], batch[..., channels + 1 :]
    return {"images": images, "completed": completed[:, ::2, ::2], "masks": np.float32(known > 0)}
