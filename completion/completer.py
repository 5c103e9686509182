"""The one way from images with holes to filled images: the search for z, with all that a model has, and blending.

completer = Completer.load("checkpoints/faces-64")
*_, last = completer.complete(images, masks.holes("mask", hidden))     # last.result holds the pictures
"""

import sys
from dataclasses import dataclass, field

import cli

import numpy as np

from completion import compositing, prior, search
from completion.encoder import Encoder
from completion.prior import ProbabilisticPCA
from completion.refiner import Refiner
from completion.settings import DETAIL
from model import DCGAN

SAVED = "half a minute or more for each batch, on two CPU cores"  # at 64 pixels, by the search from an encoder's z


@dataclass(frozen=True)
class Completer:
    """A DCGAN with what was learned beside it, and how images are completed with them."""

    dcgan: DCGAN
    encoder: Encoder | None = None  # without it the search starts from candidates
    prior: ProbabilisticPCA | None = None
    blending: str = "poisson"  # or "gaussian", which needs the prior, or "none"
    detail: float = DETAIL
    seed: int = 0
    settings: dict = field(default_factory=dict)  # of the search, see `settings.SEARCH`
    refiner: Refiner | None = None  # which draws completed faces at twice the size, for whole photos

    @classmethod
    def load(cls, directory, start=None, blending=None, detail=None, seed=0, photos=False, **settings):
        """The model in a directory, with its encoder and prior as far as they are there and used.

        start: "encoder" or "candidates"; by default the encoder where there is one, but for hmc or where `candidates`
        are given. blending: "gaussian" where there is a prior, else "poisson". photos: whether it completes whole
        photos, with the refiner if there is one. That there is no encoder is reported on standard error. Raises
        UserError where something is asked for that the model does not have.
        """
        dcgan = DCGAN.load(directory)
        remedy = f"./train-encoder.py --checkpointDir {directory} --dataset DIR"
        if start == "encoder" and settings.get("candidates"):
            raise cli.UserError("--candidates: are another start than --start encoder; leave one of them out")
        encoder, faces, notice = None, None, None
        if start == "encoder" or not (start or settings.get("candidates") or settings.get("approach") == "hmc"):
            encoder, outdated = Encoder.load(directory, dcgan)
            lack = "its encoder is for another generator" if outdated else "it has no encoder that was measured"
            if start == "encoder" and not encoder:
                raise cli.UserError(f"--start encoder: {directory}: {lack}; {remedy} makes one")
            if not encoder:
                notice = f"{lack}, so candidates are the start; {remedy} {'renews it' if outdated else 'makes one'}"
        if settings.get("prior") is not None and not encoder:
            raise cli.UserError("--prior: is for --start encoder, and with that a model that has one; leave it out")
        if blending in (None, "gaussian"):
            faces = prior.load(directory, dcgan.image_shape)
            if blending and not faces:
                raise cli.UserError(f"--blend gaussian: {directory} has no {prior.FILE}; {remedy} makes one")
        if detail is not None and not faces:
            raise cli.UserError(f"--detail: is for --blend gaussian, and with that a model that has {prior.FILE}")
        if notice:
            print(f"{directory}: {notice}, and saves {SAVED}", file=sys.stderr)
        blending = blending or ("gaussian" if faces else "poisson")
        detail, refiner = DETAIL if detail is None else detail, Refiner.load(directory, dcgan) if photos else None
        return cls(dcgan, encoder, faces, blending, detail, seed, settings, refiner)

    def complete(self, images, holes, sample=0, progress=lambda done, total: None, numbers=None, near=None):
        """Fill the holes of images; yields a `search.Completion` on the way, the last with the blended `result`.

        images: (N, H, W, C) in [-1, 1]; what lies under a hole is never used. holes: `masks.Holes`. sample: each
        number gives another completion; 0 starts from the encoder's z, the others from z near it, as all do from z
        `near` (N, z_dim) where that is given. progress, numbers: see `search.complete`.
        """
        numbers, seed = range(len(images)) if numbers is None else numbers, self.seed + sample
        start = self.encoder.guess(*holes.masked(images)) if near is None and self.encoder else near
        if start is not None and (sample or near is not None):
            start = search.near(start, seed, numbers)
        options = dict(weights=holes.weights, pool=holes.pool, start=start, seed=seed, **self.settings)
        for state in search.complete(self.dcgan, images, holes.masks, numbers, progress=progress, **options):
            if state.iteration < state.iterations:
                yield state
        yield state._replace(result=self.blend(images, state.generated, holes))

    def blend(self, images, generated, holes, detail=None):
        """Join what was generated with the known pixels: float32 (N, H, W, C).

        detail: how much is kept of what G drew beyond the most probable face, 0 to 1; that of this object by default.
        """
        if self.blending == "none":
            return np.where(holes.masks > 0, images, generated)
        faces = self.prior if self.blending == "gaussian" else None
        detail = self.detail if detail is None else detail
        return compositing.blend(images, generated, holes.masks, faces, detail, holes.pool)
