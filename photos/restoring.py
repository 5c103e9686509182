"""Completed crops go back into their photos: enlarged, joined without a seam, and with the photo's grain."""

import sys
from typing import NamedTuple

import cli

import numpy as np
import scipy.ndimage
from PIL import Image

import utils
from completion import compositing
from photos import geometry, occlusion, reading, record

MARGIN = 32  # pixels of a photo that are looked at around its hole
INPAINTED = 2**14  # pixels of a hole that OpenCV inpaints at once
OTHER = 16  # grey levels, the mean difference from which a photo is another one
SQUARE, CLEAN = 8, 0.7  # pixels of a side, grey levels: where grain is measured, and what is too little to see


def into_photo(photo, hidden, crops, matrices, seed=0, void=None):
    """Fill the hole of a whole photo from its completed faces, and what lies in none of them by inpainting.

    photo: uint8 (H, W, C); what it holds where boolean (H, W) `hidden` is ignored, and nothing else changes. void: what
    is transparent and stays so, boolean (H, W), which is ignored as well. crops:
    completed faces, uint8 (size, size, C) each; matrices: (2, 3), from photo to crop pixels (x, y, 1). Where faces
    overlap, a pixel comes from the one in whose middle it lies most. Each is enlarged to the photo's resolution, joined
    without a seam (`harmonic`), and gets the grain of the photo (`seed` decides it). Returns the photo, and how
    many pixels of the hole lie in no face.
    """
    result = photo.copy()
    left = hidden.copy()
    if hidden.any():
        part = surrounding(hidden, MARGIN)  # all work is done in the part of the photo around the hole
        filled, rest = photo[part].astype(np.float64), hidden[part].copy()
        known = ~rest if void is None else ~(rest | void[part])
        noise = grain(photo[part], ~known, seed)
        matrices = [matrix @ geometry.resize_matrix(1, (part[1].start, part[0].start)) for matrix in matrices]
        owners = owner_of_pixels(rest, matrices, [len(crop) for crop in crops])
        for number, (crop, matrix) in enumerate(zip(crops, matrices, strict=True)):
            own = rest & (owners == number)
            if not own.any():
                continue
            face = enlarged(crop, matrix, rest.shape)
            error = np.where(rest[..., None], 0.0, filled - face)
            filled[own] = (face + compositing.harmonic(error, own, known))[own]
            rest &= ~own
            known |= own
        left[part] = rest
        filled = inpainted(filled, rest, known)
        filled[hidden[part]] += noise[hidden[part]]
        result[part][hidden[part]] = np.clip(filled.round(), 0, 255).astype(np.uint8)[hidden[part]]
    return result, int(left.sum())


def surrounding(hidden, margin):
    """The slices of the smallest rectangle that holds all of boolean (H, W) `hidden` and `margin` pixels around it."""
    spans = [np.flatnonzero(hidden.any(axis)) for axis in (1, 0)]
    return tuple(slice(max(0, int(span[0]) - margin), int(span[-1]) + 1 + margin) for span in spans)


def owner_of_pixels(hidden, matrices, sizes):
    """Which face each hidden pixel is filled from, (H, W): a number, or -1 where none reaches."""
    y, x = np.nonzero(hidden)
    owner, nearest = np.full(len(x), -1), np.full(len(x), 1.0)
    for number, (matrix, size) in enumerate(zip(matrices, sizes, strict=True)):
        place = np.stack([x, y], -1) @ matrix[:, :2].T + matrix[:, 2]
        distance = np.abs((place + 0.5) / size - 0.5).max(1) * 2  # 1 at the crop's border
        owner[distance < nearest] = number
        nearest = np.minimum(nearest, distance)
    owners = np.full(hidden.shape, -1)
    owners[y, x] = owner
    return owners


def enlarged(crop, matrix, shape):
    """A crop (size, size, C) where it lies in a photo of `shape` (H, W): float64 (H, W, C), repeated at its borders."""
    import cv2

    shrink = abs(np.linalg.det(matrix[:, :2])) ** 0.5  # crop pixels for each of the photo's
    crop = crop.astype(np.float32)
    if shrink > 1:
        crop = scipy.ndimage.gaussian_filter(crop, (shrink / 2, shrink / 2, 0))
    options = dict(flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
    return cv2.warpAffine(crop, matrix, shape[::-1], **options).reshape(*shape, -1).astype(np.float64)


def inpainted(pixels, hidden, known):
    """float64 (H, W, C) with what is `hidden` inpainted after Telea, at a lower resolution where it is large.

    What is neither that nor `known` is ignored.
    """
    if not hidden.any() or not known.any():
        return pixels
    shrink = max(1, round((hidden.sum() / INPAINTED) ** 0.5))
    shares, sums = (compositing.shrunk(values, shrink) for values in (known[..., None], pixels * known[..., None]))
    large = occlusion.inpaint(shares[..., 0], sums, hidden.shape)
    large = large + compositing.harmonic(np.where(hidden[..., None], 0.0, pixels - large), hidden, known)
    return np.where(hidden[..., None], large, pixels)


def grain(photo, hidden, seed):
    """Noise like that of a photo around its hole: float64 (H, W, C), zeros where the photo is clean.

    What is beyond a curve of light is measured in squares of 8 x 8 known pixels; the flattest quarter of them shows
    noise and little else. Noise of that strength, and as alike between neighbours and channels, is drawn.
    """
    height, width = (side - side % SQUARE for side in hidden.shape)
    squares = photo[:height, :width].astype(np.float64)
    squares = squares.reshape(height // SQUARE, SQUARE, width // SQUARE, SQUARE, photo.shape[2]).swapaxes(1, 2)
    squares = squares.reshape(height * width // SQUARE**2, SQUARE, SQUARE, photo.shape[2])
    whole = ~hidden[:height, :width].reshape(height // SQUARE, SQUARE, width // SQUARE, SQUARE).any((1, 3)).ravel()
    clipped = ((squares <= 2) | (squares >= 253)).any((1, 2, 3))
    squares = squares[whole & ~clipped]
    if len(squares) < 4:
        return np.zeros(photo.shape)
    y, x = np.indices((SQUARE, SQUARE)).reshape(2, -1)
    curves = np.linalg.qr(np.stack([x**0, x, y, x * x, x * y, y * y], 1).astype(np.float64))[0]
    noise = squares.reshape(len(squares), -1, photo.shape[2])
    noise = noise - curves @ (curves.T @ noise)
    strengths = (noise**2).mean((1, 2))
    noise = noise[strengths <= np.quantile(strengths, 0.25)]
    covariance = np.einsum("npc,npd->cd", noise, noise) / len(noise) / (SQUARE**2 - 6)
    if np.trace(covariance) / len(covariance) < CLEAN**2:
        return np.zeros(photo.shape)
    noise = noise.reshape(-1, SQUARE, SQUARE, photo.shape[2])
    alike = [(noise[:, 1:] * noise[:, :-1]).mean(), (noise[:, :, 1:] * noise[:, :, :-1]).mean()]
    alike = np.clip(np.mean(alike) / (noise**2).mean(), 0, 0.6)  # of neighbours; those of white noise are not
    side = (1 - np.sqrt(1 - 2 * alike**2)) / (2 * alike) if alike > 1e-3 else 0  # [side, 1, side] makes it so
    drawn = np.random.default_rng(seed).standard_normal(photo.shape)
    for axis in (0, 1):
        drawn = scipy.ndimage.convolve1d(drawn, np.array([side, 1, side]) / np.sqrt(1 + 2 * side**2), axis)
    return drawn @ np.linalg.cholesky(covariance + 1e-9 * np.eye(len(covariance))).T


class Part(NamedTuple):
    """A completed crop of a photo."""

    crop: record.Crop
    mask: np.ndarray  # (size, size, 1), 1 = known
    pixels: np.ndarray  # uint8 (size, size, C), as it was
    completed: list  # the same, completed, for each sample

    def matrix(self, size=None):
        """The (2, 3) matrix from the photo's pixels to those of the crop resized to `size`, by default the mask's."""
        zoom = (size or len(self.mask)) / self.crop.size
        return (geometry.resize_matrix(zoom) @ [*self.crop.matrix, [0, 0, 1]])[:2]


def hidden_in_photo(photo, kind, parts):
    """What is missing of a photo, boolean (H, W): of the kind "alpha" in itself, else what the crops' holes cover."""
    import cv2

    if kind == "alpha":
        return photo.hole
    height, width = photo.pixels.shape[:2]
    hidden = np.zeros((height, width), bool)
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    for part in parts:
        hidden |= cv2.warpAffine(1 - part.mask[..., 0], part.matrix(), (width, height), flags=flags) > 0
    return hidden


def check_unchanged(photo, kind, parts):
    """Raise UserError if the known part of a crop is not what the photo shows there: it, or its hole, has changed."""
    import cv2

    for part in parts:
        size = min(len(part.pixels), part.crop.size)
        now = geometry.warp(photo.rgba, part.matrix(size), size)
        gone = now[..., 3] < 255
        now = reading.to_pixels(Image.fromarray(now[..., :3].copy()), part.pixels.shape[-1] == 1)
        crop, known = (cv2.resize(x, (size, size), interpolation=cv2.INTER_AREA) for x in (part.pixels, part.mask))
        known = known == 1
        error = np.abs(now.astype(float) - crop.reshape(now.shape))[known & ~gone]
        inner = cv2.erode(gone.astype(np.uint8), np.ones((3, 3))) > 0  # the edge depends on the way of resizing
        if kind == "alpha" and (inner & known).any() or error.size and error.mean() > OTHER:
            raise cli.UserError(f"{part.crop.source}: has changed since its faces were cut out; run align.py again")


def put_back(path, photo, hidden, parts, sample, seed):
    """Write a photo whose `hidden` part is filled from one sample of its completed crops to `path`, a PNG file.

    It has the photo's own size. Nothing else changes: a grey photo stays grey, what else is transparent stays so, and
    its colour profile and EXIF data stay. What cannot stay is reported. Returns the share of the hole that lies in no
    crop. Raises UserError if `path` can't be written.
    """
    grey = photo.pixels.shape[2] == 1
    crops = [reading.to_pixels(utils.to_picture(part.completed[sample]), grey) for part in parts]
    own = photo.alpha if parts and not parts[0].crop.mask_file else photo.cut_out
    void = None if own is None else (own < 255) & ~hidden
    filled, outside = into_photo(photo.pixels, hidden, crops, [part.matrix() for part in parts], seed, void)
    picture = utils.to_picture(filled)
    if void is not None and void.any():
        picture.putalpha(Image.fromarray(np.where(void, own, np.uint8(255))))
    with utils.atomic_write(path) as file:
        picture.save(file, "PNG", **photo.metadata)
    if photo.lost:
        print(f"{path}: {', '.join(photo.lost)}", file=sys.stderr)
    return outside / max(1, hidden.sum())


def restore(folders, crops, holes, pixels, completed, seed=0):
    """Put completed crops back into their photos, for each sample in a folder of its own: FOLDER/NAME.png.

    crops: of each the `record.Crop`, or None where it came from no photo; holes: `masks.Holes`; pixels: uint8
    (size, size, C) each, as they were; completed: for each sample all of them, completed. seed: of the first sample's
    grain, one more for each further sample. Returns for each folder how many photos were written, and the mean share
    of their holes that lies in no crop. A photo that is gone or another one now is reported and left out.
    """
    photos, shares = {}, [[] for _ in folders]
    for crop, *rest, samples in zip(crops, holes.masks, pixels, zip(*completed, strict=True), strict=True):
        if crop:
            photos.setdefault((crop.source, crop.mask_file), []).append(Part(crop, *rest, samples))
    names = [utils.shorten(source.stem) for source, _ in photos]
    if len({name.casefold() for name in names}) < len(names):
        names = [f"{number:04d}_{name}" for number, name in enumerate(names)]
    for name, (origin, parts) in zip(names, photos.items(), strict=True):
        try:
            for folder in folders:
                with utils.report_write_errors(folder):
                    folder.mkdir(exist_ok=True)
            photo = parts[0].crop.photo
            if photo is None:
                photo = reading.read_photo(*origin)
                check_unchanged(photo, holes.kind, parts)
            hidden = hidden_in_photo(photo, holes.kind, parts)
            for sample, folder in enumerate(folders):
                path = folder / f"{name}.png"
                shares[sample].append(put_back(path, photo, hidden, parts, sample, seed + sample))
        except cli.UserError as error:
            print(f"skipped {error}", file=sys.stderr)
    return [(len(each), float(np.mean(each)) if each else 0.0) for each in shares]
