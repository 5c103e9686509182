"""Completed crops go back into their photos: which are repaired, written and copied, and how many."""

import collections
import contextlib
import shutil
import sys
from typing import NamedTuple

import cli

import numpy as np
from PIL import Image

import utils
from completion import masks
from photos import detection, filling, geometry, reading, record

OTHER = 16  # grey levels, the mean difference from which a photo is another one
RIM = 2  # how many times as much as elsewhere neighbours differ where damage reaches beyond its mask
BESIDE = "filled without a face"


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


def shows_a_rim(pixels, hidden):
    """Whether there is an edge right beside a hole, as where the damage that it hides reaches beyond it.

    pixels: uint8 (H, W, C); hidden: boolean (H, W). Neighbours at one to four pixels from the hole are compared with
    those at five to ten.
    """
    import cv2

    part = filling.around(hidden)
    grey, known = pixels[part].mean(-1, dtype=np.float32), (~hidden[part]).astype(np.uint8)
    distance = np.ceil(cv2.distanceTransform(known, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)).clip(0, 11).astype(np.uint8)
    sums, counts = np.zeros((2, 11))
    for one, other in (np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1]):
        shell = np.minimum(distance[one], distance[other])
        used = distance[one] != distance[other]  # those further away are all 11
        sums += np.bincount(shell[used], np.abs(grey[one] - grey[other])[used], 11)
        counts += np.bincount(shell[used], minlength=11)
    steps = sums / np.maximum(counts, 1)
    return steps[1:5].max() > RIM * np.median(steps[5:]) + 1


def put_back(path, photo, hidden, parts, sample, seed, texture=None, refiner=None):
    """Write a photo whose `hidden` part is filled from one sample of its completed crops to `path`, a PNG file.

    It has the photo's own size. Nothing else changes: a grey photo stays grey, what else is transparent stays so, and
    its colour profile and EXIF data stay. What cannot stay is reported. Returns the share of the hole that lies in no
    crop, and the texture (see `filling.into_photo`). Raises UserError if `path` can't be written.
    """
    grey = photo.pixels.shape[2] == 1
    crops = [reading.to_pixels(utils.to_picture(part.completed[sample]), grey) for part in parts]
    own = photo.alpha if parts and not parts[0].crop.mask_file else photo.cut_out
    void = None if own is None else (own < 255) & ~hidden
    matrices = [part.matrix() for part in parts]
    options = dict(refiner=refiner, predictor=detection.installed_predictor() if parts else None)
    filled, outside, texture = filling.into_photo(photo.pixels, hidden, crops, matrices, seed, void, texture, **options)
    picture = utils.to_picture(filled)
    if void is not None and void.any():
        picture.putalpha(Image.fromarray(np.where(void, own, np.uint8(255))))
    with utils.atomic_write(path) as file:
        picture.save(file, "PNG", compress_level=4, **photo.metadata)  # half the time, 3 % more
    if photo.lost:
        print(f"{path}: {', '.join(photo.lost)}", file=sys.stderr)
    return outside / max(1, hidden.sum()), texture


def find_crops(paths, kind):
    """The `record.Crop` of each of some images, or None; those are told of.

    kind: of their holes, or False where a flag chose it. Raises UserError if there is no crop or no photo of any, and
    where a hole would be the default one although a mask tells what is damaged.
    """
    crops = record.find_crops(paths)
    if odd := [path for path, crop in zip(paths, crops, strict=True) if not crop]:
        line = f"{utils.some(odd)}: of no photo that an align.csv above tells of"
        if len(odd) == len(crops):
            raise cli.UserError(f"--put_back: {line}; give faces as align.py writes them")
        print(line, file=sys.stderr)
    found = [crop for crop in crops if crop]
    if not any(crop.source.exists() for crop in found):
        advice = "put the photos back where they were, or run align.py again"
        raise cli.UserError(f"--put_back: {utils.some([crop.source for crop in found])}: no such file; {advice}")
    if kind == "center" and (masked := [crop.source for crop in found if crop.mask_file]):
        advice = "--photo fills what is beside it, and --maskType another hole"
        raise cli.UserError(f"--put_back: {utils.some(masked)}: its mask hides nothing of its face; {advice}")
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
    for origin, cut in aligned.items():
        source, mask, _ = origin
        found, why = ([], cut) if isinstance(cut, str) else (cut, "")
        if kind == "alpha" and why in ("", "no face"):
            known = [masks.transparent(Image.fromarray(crop.pixels), size) for crop in found]
            why = "" if all(each.any() for each in known) else "nothing known: the hole leaves nothing of the face"
            if not mask and not (found[0].pixels.shape[2] == 4 if found else reading.read_photo(source).hidden.any()):
                why = "no hole: nothing in it is transparent; give --mask, --maskDir or --maskType"
            found = [crop for crop, each in zip(found, known, strict=True) if not each.all()]
        elif why == "no face":
            why += ": --points tells where it is"
        photos[origin] = why
        crops += [] if why else found
    if all(photos.values()):
        *others, last = (f"{source}: {why}" for (source, *_), why in photos.items())
        for line in others:
            print(f"skipped {line}", file=sys.stderr)
        raise cli.UserError(last)
    return photos, sorted(crops, key=lambda crop: crop.path)


def restore(folders, parts, kind, seed=0, photos=None, refiner=None):
    """Put completed crops back into their photos, for each sample in a folder of its own: FOLDER/NAME.png.

    parts: a `Part` for each crop; kind: of their holes. seed: of the first sample's grain, one more for each further
    sample. A photo that is gone or another one now is reported and left out. photos: where whole photos were given, a
    dict from the `record.Crop.origin` of each to why it stays as it is, or to "". Each of them comes out then, copied
    if it is not filled. refiner: see `filling.into_photo`. Returns for each folder a line that counts what became of
    them.
    """
    every, counts, shares = {origin: [] for origin in photos or ()}, collections.Counter(), [[] for _ in folders]
    for part in parts:
        every.setdefault(part.crop.origin, []).append(part)
    names = [utils.shorten(source.stem) for source, *_ in every]
    users = collections.Counter(map(str.casefold, names))
    numbered = [f"{number:04d}_{name}" for number, name in enumerate(names)]
    names = [number if users[name.casefold()] > 1 else name for number, name in zip(numbered, names, strict=True)]
    if len(set(map(str.casefold, names))) < len(names):
        names = numbered
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
            if origin[1] and shows_a_rim(photo.pixels, hidden):
                line = f"its damage seems to reach beyond its mask; paint more, or give more than --grow {origin[2]}"
                print(f"{source}: {line}", file=sys.stderr)
            texture = None  # of the first sample, so that what is beside the faces is the same in all
            for sample, folder in enumerate(folders):
                path = folder / f"{name}.png"
                share, texture = put_back(path, photo, hidden, parts, sample, seed + sample, texture, refiner)
                shares[sample].append(share)
            counts[BESIDE if share == 1 else "mended"] += 1
            if share == 1:
                line = "the hole touches no face found; --points tells where one is"
                print(f"{source}: {BESIDE}: {line}", file=sys.stderr)
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
