"""Completed crops go back into their photos: enlarged, joined without a seam, and with the photo's grain."""

import io
import sys
from typing import NamedTuple

import cli

import numpy as np
import scipy.linalg
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg
from PIL import Image, ImageCms

import utils
from completion import compositing, masks
from photos import geometry, record

MARGIN = 32  # pixels of a photo that are looked at around its hole


INPAINTED = 2**14  # pixels of a hole that OpenCV inpaints at once


SQUARE, CLEAN = 8, 0.7  # pixels of a side, grey levels: where grain is measured, and what is too little to see


def into_photo(photo, hidden, crops, matrices, seed=0):
    """Fill the hole of a whole photo from its completed faces, and what lies in none of them by inpainting.

    photo: uint8 (H, W, C); what it holds where boolean (H, W) `hidden` has no say, and nothing else changes. crops:
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
        owners = owner_of_pixels(rest, [shifted(matrix, part) for matrix in matrices], [len(crop) for crop in crops])
        for number, (crop, matrix) in enumerate(zip(crops, matrices, strict=True)):
            own = rest & (owners == number)
            if not own.any():
                continue
            face = enlarged(crop, shifted(matrix, part), rest.shape)
            error = np.where(rest[..., None], 0.0, filled - face)
            filled[own] = (face + compositing.harmonic(error, own, ~rest))[own]
            rest &= ~own
        left[part] = rest
        filled = inpainted(filled, rest)
        filled[hidden[part]] += grain(photo[part], hidden[part], seed)[hidden[part]]
        result[part][hidden[part]] = np.clip(filled.round(), 0, 255).astype(np.uint8)[hidden[part]]
    return result, int(left.sum())


def surrounding(hidden, margin):
    """The slices of the smallest rectangle that holds all of boolean (H, W) `hidden` and `margin` pixels around it."""
    spans = [np.flatnonzero(hidden.any(axis)) for axis in (1, 0)]
    return tuple(slice(max(0, int(span[0]) - margin), int(span[-1]) + 1 + margin) for span in spans)


def shifted(matrix, part):
    """A (2, 3) matrix from pixels of a photo as one from pixels of a `part` of it, two slices."""
    offset = np.array([part[1].start, part[0].start])
    return np.column_stack([matrix[:, :2], matrix[:, :2] @ offset + matrix[:, 2]])


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


def inpainted(pixels, hidden):
    """float64 (H, W, C) with what is `hidden` inpainted after Telea, at a lower resolution where it is large."""
    import cv2

    if not hidden.any() or hidden.all():
        return pixels
    shrink = max(1, round((hidden.sum() / INPAINTED) ** 0.5))
    shares, sums = (compositing.shrunk(values, shrink) for values in (~hidden[..., None], pixels * ~hidden[..., None]))
    small = np.clip(sums / np.maximum(shares, 1e-6), 0, 255).round().astype(np.uint8)
    filled = cv2.inpaint(small, (shares[..., 0] < 0.5).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    large = cv2.resize(filled, hidden.shape[::-1], interpolation=cv2.INTER_LINEAR).reshape(*hidden.shape, -1)
    large = large + compositing.harmonic(np.where(hidden[..., None], 0.0, pixels - large), hidden, ~hidden)
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


GREY = "1", "L", "LA", "La"  # modes of Pillow without colours


OTHER = 16  # grey levels, the mean difference from which a photo is another one


def to_model(origin, size):
    """The (2, 3) matrix from the photo's pixels to those of its crop resized to `size`."""
    zoom = size / origin.size
    return np.column_stack([zoom * origin.matrix[:, :2], zoom * (origin.matrix[:, 2] + 0.5) - 0.5])


class Part(NamedTuple):
    """A completed crop."""

    origin: record.Origin
    mask: np.ndarray  # (size, size, 1), 1 = known
    crop: np.ndarray  # uint8 (size, size, C), as it was
    completed: np.ndarray  # the same, completed

    @property
    def matrix(self):
        """The (2, 3) matrix from the photo's pixels to those of the crop, resized as it was for the model."""
        return to_model(self.origin, len(self.mask))


def hidden_in_photo(image, kind, parts):
    """What is missing of a photo, boolean (H, W): of the kind "alpha" in itself, else what the crops' holes cover."""
    import cv2

    if kind == "alpha":
        return masks.missing(image, parts[0].origin.mask)
    hidden = np.zeros(image.size[::-1], bool)
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    for part in parts:
        hidden |= cv2.warpAffine(1 - part.mask[..., 0], part.matrix, image.size, flags=flags) > 0
    return hidden


def check_unchanged(image, kind, parts):
    """Raise UserError if the known part of a crop is not what the photo shows there: it, or its hole, has changed."""
    import cv2

    gone = masks.missing(image, parts[0].origin.mask)
    layers = np.dstack([np.asarray(image.convert("RGB")), np.where(gone, 0, 255).astype(np.uint8)])
    for part in parts:
        size = min(len(part.crop), part.origin.size)
        now = geometry.warp(layers, to_model(part.origin, size), size)
        gone = now[..., 3] < 255
        now = Image.fromarray(now[..., :3].copy()).convert("L" if part.crop.shape[-1] == 1 else "RGB")
        crop, known = (cv2.resize(x, (size, size), interpolation=cv2.INTER_AREA) for x in (part.crop, part.mask))
        known = known == 1
        error = np.abs(np.asarray(now).astype(float) - crop)[known & ~gone]
        inner = cv2.erode(gone.astype(np.uint8), np.ones((3, 3))) > 0  # the edge depends on the way of resizing
        if kind == "alpha" and (inner & known).any() or error.size and error.mean() > OTHER:
            raise cli.UserError(f"{part.origin.source}: has changed since its faces were cut out; run align.py again")


def pixels_of(picture, grey):
    """A Pillow image as uint8 (H, W, 1) if it is to be `grey`, else (H, W, 3)."""
    return np.asarray(picture.convert("L" if grey else "RGB")).reshape(picture.height, picture.width, -1)


def put_back(path, parts, kind, seed=0):
    """Write a photo whose hole is filled from its completed crops to `path`, a PNG file, at its own size and upright.

    parts: `Part`s, all of one photo; kind: of hole, see `masks.Holes`. Nothing but the hole changes; a grey photo stays
    grey, and its colour profile and EXIF data stay. What cannot stay is told. Returns the share of the hole that lies
    in no crop. Raises UserError if the photo can't be read, is no longer what it was, or `path` can't be written.
    """
    source = parts[0].origin.source
    image = utils.open_image(source)
    hidden = hidden_in_photo(image, kind, parts)
    check_unchanged(image, kind, parts)
    kept, lost = keepable(source, image)
    grey = image.mode in GREY
    crops = [pixels_of(utils.to_picture(part.completed), grey) for part in parts]
    matrices = [part.matrix for part in parts]
    filled, outside = into_photo(pixels_of(image, grey), hidden, crops, matrices, seed)
    with utils.atomic_write(path) as file:
        utils.to_picture(filled).save(file, "PNG", **kept)
    if lost:
        print(f"{path}: {', '.join(lost)}", file=sys.stderr)
    return outside / max(1, hidden.sum())


def keepable(source, image):
    """What a PNG file keeps of a photo beside its pixels, a dict for Pillow, and a list of what is lost, in words."""
    kept, lost = {}, []
    with Image.open(source) as file:
        if ";16" in f"{file.mode} {file.tile}":
            lost.append("16 bits a channel became 8")
    try:
        kept["exif"] = image.getexif().tobytes()
    except Exception:  # Pillow raises anything on damaged ones
        lost.append("its EXIF data cannot be read and are left out")
    profile = image.info.get("icc_profile")
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        lost.append(f"{image.mode} became RGB")
    elif profile:
        try:
            ImageCms.ImageCmsProfile(io.BytesIO(profile))
            kept["icc_profile"] = profile
        except OSError:
            lost.append("its colour profile cannot be read and is left out")
    return kept, lost


def mend(folder, paths, holes, crops, completed, seed=0):
    """Put all completed crops that a record tells of back into their photos: `folder`/NAME.png, each photo once.

    paths, crops, completed: the file of each crop, its uint8 pixels and the result, (size, size, C) each; holes:
    `masks.Holes`. Returns how many photos were written and the mean share of their holes that lies in no crop. A photo
    that is gone or another one now is told of and left out.
    """
    found, photos = record.origins(paths), {}
    for path, *rest in zip(paths, holes.masks, crops, completed, strict=True):
        if path in found:
            photos.setdefault((found[path].source, found[path].mask), []).append(Part(found[path], *rest))
    names, outside = [utils.shorten(source.stem) for source, _ in photos], []
    if len({name.casefold() for name in names}) < len(names):
        names = [f"{number:04d}_{name}" for number, name in enumerate(names)]
    for name, parts in zip(names, photos.values(), strict=True):
        try:
            with utils.report_write_errors(folder):
                folder.mkdir(exist_ok=True)
            outside.append(put_back(folder / f"{name}.png", parts, holes.kind, seed))
        except cli.UserError as error:
            print(f"skipped {error}", file=sys.stderr)
    return len(outside), float(np.mean(outside)) if outside else 0.0
