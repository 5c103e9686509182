"""Completed crops go back into their photos: enlarged, joined without a seam, and with the photo's grain."""

import collections
import contextlib
import functools
import shutil
import sys
from typing import NamedTuple

import cli

import numpy as np
import scipy.ndimage
from PIL import Image

import utils
from completion import compositing, masks, patchmatch
from photos import geometry, reading, record

MARGIN = 128  # pixels of a photo that are looked at around its hole; half the hole's longer side where that is more
OTHER = 16  # grey levels, the mean difference from which a photo is another one
BESIDE = "filled beside the face only"
SQUARE, CLEAN = 8, 0.7  # pixels of a side, grey levels: where grain is measured, and what is too little to see

# 64ths of a crop: how far the photo's texture reaches into a face, below which size it is texture, and how far a face
# reaches beyond its outline and then fades
REACH, TEXTURE, BEYOND, FADE = 2, 0.6, 2, 3


def into_photo(photo, hidden, crops, matrices, seed=0, void=None, texture=None, at_once=patchmatch.HOLE):
    """Fill the hole of a whole photo from its completed faces, and what lies beside them by PatchMatch.

    photo: uint8 (H, W, C); what it holds where boolean (H, W) `hidden` is ignored, and nothing else changes. void: what
    is transparent and stays so, boolean (H, W), which is ignored as well. crops: completed faces, uint8 (size, size, C)
    each; matrices: (2, 3), from photo to crop pixels (x, y, 1). Where faces overlap, a pixel comes from the one in
    whose middle it lies most. Each is enlarged to the photo's resolution and joined without a seam (`harmonic`). Beyond
    its outline it fades into what PatchMatch copies from the rest of the photo, near known pixels it takes the fine
    detail of that, and further inside the photo's grain (`seed` decides it). Returns the photo, how many pixels of the
    hole lie in no crop, and what PatchMatch made: as `texture` it serves other crops for the same hole. at_once: see
    `patchmatch.fill`.
    """
    import cv2

    result = photo.copy()
    if not hidden.any():
        return result, 0, texture
    part = around(hidden)  # all work is done in the part of the photo around the hole
    photo, hidden = photo[part], hidden[part]
    known = ~hidden if void is None else ~(hidden | void[part])
    noise = grain(photo, ~known, seed)
    filled, inside, near, faces = photo.astype(np.float64), *np.zeros((2, *hidden.shape, 1)), []
    distance = cv2.distanceTransform(hidden.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[..., None]
    matrices = [matrix @ geometry.resize_matrix(1, (part[1].start, part[0].start)) for matrix in matrices]
    owners = owner_of_pixels(hidden, matrices, [len(crop) for crop in crops])
    done = known.copy()
    for number, (crop, matrix) in enumerate(zip(crops, matrices, strict=True)):
        if not (owners == number).any():
            continue
        box = surrounding(owners == number, 1)  # one more, as that is what the face is joined to
        own = owners[box] == number
        matrix = matrix @ geometry.resize_matrix(1, (box[1].start, box[0].start))
        face, depth = (enlarged(x, matrix, own.shape) for x in (crop, outline(len(crop))))
        error = np.where(done[box][..., None], filled[box] - face, 0.0)
        filled[box][own] = (face + compositing.harmonic(error, own, done[box]))[own]
        unit = len(crop) / 64 * abs(np.linalg.det(matrix[:, :2])) ** -0.5
        inside[box][own] = smoothstep((depth[own] + BEYOND) / FADE)
        near[box][own] = np.clip(2 - distance[box][own] / (REACH * unit), 0, 1)
        faces.append((box, own[..., None], unit))
        done[box] |= own
    if texture is None:
        unsure = hidden & ((inside < 1) | (near > 0))[..., 0]
        texture = patchmatch.fill(utils.to_bytes(filled), unsure, known | (hidden & ~unsure), at_once)
    filled = inside * filled + (1 - inside) * texture
    for box, own, unit in faces:
        error = np.where(own, texture[box] - filled[box], 0.0)
        filled[box] += near[box] * (error - smoothed(error, own, TEXTURE * unit))
    filled += np.sqrt(1 - near**2) * inside * noise
    result[part][hidden] = utils.to_bytes(filled)[hidden]
    return result, int((owners < 0)[hidden].sum()), texture


def smoothstep(values):
    """From 0 at 0 and below to 1 at 1 and above."""
    values = np.clip(values, 0, 1)
    return values**2 * (3 - 2 * values)


@functools.cache
def outline(size):
    """How deep in the face each pixel of a crop lies, in 64ths of it, below 0 beside it: float32 (size, size, 1).

    The outline is the mean face's jaw, and the crop's border.
    """
    import cv2

    jaw = size * geometry.MINMAX_TEMPLATE[:17]
    open_above = np.concatenate([jaw, [[jaw[-1, 0], -size], [jaw[0, 0], -size]]]).astype(np.float32)
    depth = [[cv2.pointPolygonTest(open_above, (x, y), True) for x in range(size)] for y in range(size)]
    y, x = np.indices((size, size)) + 0.5
    border = np.minimum(np.minimum(x, size - x), np.minimum(y, size - y))
    return (np.minimum(depth, border - BEYOND * size / 64) * 64 / size)[..., None].astype(np.float32)


def smoothed(values, where, sigma):
    """float64 (H, W, C) after heat has flown for as long as a Gaussian of `sigma` takes; it is 0 outside of `where`."""
    import cv2

    shrink = max(1, int(sigma / 2))  # what is left is as smooth
    size = [-(-side // shrink) for side in values.shape[1::-1]]
    inner, small = (cv2.resize(x.astype(np.float32), size, interpolation=cv2.INTER_AREA) for x in (where, values))
    for _ in range(16):
        small = inner[..., None] * cv2.GaussianBlur(small, (0, 0), sigma / shrink / 4).reshape(*inner.shape, -1)
    return where * cv2.resize(small, values.shape[1::-1]).reshape(values.shape)


def around(hidden):
    """The part of a photo that `into_photo` looks at: slices."""
    height, width = (side.stop - side.start for side in surrounding(hidden, 0))
    return surrounding(hidden, max(MARGIN, max(height, width) // 2))


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
            advice = "run align.py again (with --overwrite, if an older version wrote the record)"
            raise cli.UserError(f"{part.crop.source}: has changed since its faces were cut out; {advice}")


def put_back(path, photo, hidden, parts, sample, seed, texture=None):
    """Write a photo whose `hidden` part is filled from one sample of its completed crops to `path`, a PNG file.

    It has the photo's own size. Nothing else changes: a grey photo stays grey, what else is transparent stays so, and
    its colour profile and EXIF data stay. What cannot stay is reported. Returns the share of the hole that lies in no
    crop, and the texture (see `into_photo`). Raises UserError if `path` can't be written.
    """
    grey = photo.pixels.shape[2] == 1
    crops = [reading.to_pixels(utils.to_picture(part.completed[sample]), grey) for part in parts]
    own = photo.alpha if parts and not parts[0].crop.mask_file else photo.cut_out
    void = None if own is None else (own < 255) & ~hidden
    matrices = [part.matrix() for part in parts]
    filled, outside, texture = into_photo(photo.pixels, hidden, crops, matrices, seed, void, texture)
    picture = utils.to_picture(filled)
    if void is not None and void.any():
        picture.putalpha(Image.fromarray(np.where(void, own, np.uint8(255))))
    with utils.atomic_write(path) as file:
        picture.save(file, "PNG", **photo.metadata)
    if photo.lost:
        print(f"{path}: {', '.join(photo.lost)}", file=sys.stderr)
    return outside / max(1, hidden.sum()), texture


def find_crops(paths):
    """The `record.Crop` of each of some images, or None; those are told of. Raises UserError if there is no crop."""
    crops = record.find_crops(paths)
    if odd := [path for path, crop in zip(paths, crops, strict=True) if not crop]:
        line = f"{utils.some(odd)}: of no photo that an align.csv above tells of"
        if len(odd) == len(crops):
            raise cli.UserError(f"--put_back: {line}; give faces as align.py writes them")
        print(line, file=sys.stderr)
    return crops


def make_parts(crops, images, completed):
    """The `Part`s of `crops`, without those that are None; images: their `inputs.Images`; completed: of each sample."""
    filled = zip(crops, images.holes.masks, images.pixels, zip(*completed, strict=True), strict=True)
    return [Part(*each) for each in filled if each[0]]


def choose_faces(aligned, kind, size):
    """Which photos are filled, and from which faces: a dict as `restore` takes it, and `Crop`s in order of their paths.

    aligned: what `alignment.align_photos` returns; kind: of the holes, "alpha" where the photos have their own; size:
    of completed crops. Raises UserError if none is filled.
    """
    photos, crops = {}, []
    for (source, mask), cut in aligned.items():
        found, why = ([], cut) if isinstance(cut, str) else (cut, "")
        if kind == "alpha" and why in ("", "no face"):
            known = [masks.transparent(Image.fromarray(crop.pixels), size) for crop in found]
            why = "" if all(each.any() for each in known) else "nothing known: the hole leaves nothing of the face"
            if not mask and not (found[0].pixels.shape[2] == 4 if found else reading.read_photo(source).hidden.any()):
                why = "no hole: nothing in it is transparent; give --mask, --maskDir or --maskType"
            found = [crop for crop, each in zip(found, known, strict=True) if not each.all()]
        elif why == "no face":
            why += ": --points tells where it is"
        photos[source, mask] = why
        crops += [] if why else found
    if all(photos.values()):
        *others, last = (f"{source}: {why}" for (source, _), why in photos.items())
        for line in others:
            print(f"skipped {line}", file=sys.stderr)
        raise cli.UserError(last)
    return photos, sorted(crops, key=lambda crop: crop.path)


def restore(folders, parts, kind, seed=0, photos=None):
    """Put completed crops back into their photos, for each sample in a folder of its own: FOLDER/NAME.png.

    parts: a `Part` for each crop; kind: of their holes. seed: of the first sample's grain, one more for each further
    sample. A photo that is gone or another one now is reported and left out. photos: where whole photos were given, a
    dict from path and mask of each to why it stays as it is, or to "". Each of them comes out then, copied if it is not
    filled. Returns for each folder a line that counts what became of them.
    """
    every, counts, shares = {origin: [] for origin in photos or ()}, collections.Counter(), [[] for _ in folders]
    for part in parts:
        every.setdefault((part.crop.source, part.crop.mask_file), []).append(part)
    names = [utils.shorten(source.stem) for source, _ in every]
    if len({name.casefold() for name in names}) < len(names):
        names = [f"{number:04d}_{name}" for number, name in enumerate(names)]
    for folder in folders:
        with utils.report_write_errors(folder):
            folder.mkdir(exist_ok=True)
    for name, (origin, parts) in zip(names, every.items(), strict=True):
        source, why = origin[0], photos and photos[origin]
        try:
            if why:
                raise cli.UserError(f"{source}: {why}")
            photo = parts[0].crop.photo if parts else None
            if photo is None:
                photo = reading.read_photo(*origin)
                check_unchanged(photo, kind, parts)
            hidden = hidden_in_photo(photo, kind, parts)
            texture = None  # of the first sample, so that what is beside the faces is the same in all
            for sample, folder in enumerate(folders):
                path = folder / f"{name}.png"
                share, texture = put_back(path, photo, hidden, parts, sample, seed + sample, texture)
                shares[sample].append(share)
            counts[BESIDE if shares[0][-1] == 1 else "mended"] += 1
            if shares[0][-1] == 1:
                print(
                    f"{source}: {BESIDE}: the hole touches no face found; --points tells where one is", file=sys.stderr
                )
        except cli.UserError as error:
            counts[why.partition(":")[0] if why else "see above"] += 1
            print(f"{'skipped' if photos is None else 'unchanged'} {error}", file=sys.stderr)
            for folder in folders if photos else ():
                copy(source, folder / f"{name}{utils.shorten(source.suffix, 20)}")
    return [told(folder, counts, each) for folder, each in zip(folders, shares, strict=True)]


def copy(source, path):
    """Copy a file as it is, if it can be read; raises UserError, naming the copy, if that cannot be written."""
    with contextlib.suppress(OSError):
        if source.is_file():  # a pipe would be waited for
            with open(source, "rb") as file, utils.atomic_write(path) as copied:
                shutil.copyfileobj(file, copied)


def told(folder, counts, shares):
    """A line on the photos in a folder: how many were filled, from what, and why others were not; see `restore`."""
    rest = {why: count for why, count in counts.items() if why not in ("mended", BESIDE)}
    done = [f"{counts['mended']} mended", *(f"{counts[BESIDE]} {BESIDE}" for _ in range(counts[BESIDE] > 0))]
    if rest:
        done.append(f"{sum(rest.values())} unchanged ({', '.join(f'{count} {why}' for why, count in rest.items())})")
    share = f"; {np.mean(shares):.0%} of the holes lie beside the faces" if shares else ""
    return f"{folder}: {', '.join(done)}{share}"
