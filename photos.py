"""Whole photos: the record of the crops that were cut out of them, and the completed crops back in them."""

import csv
import io
import re
import sys
from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np
from PIL import Image, ImageCms

import blend
import faces
import masks
import utils

RECORD = "align.csv"
BOX = ["left", "top", "right", "bottom"]
MATRIX = ["m00", "m01", "m02", "m10", "m11", "m12"]
SETTINGS = ["size", "faces", "landmarks"]
HOLE = ["mask", "seen"]  # the mask image of the photo, and how a face under a hole was seen; older records lack them
COLUMNS = ["source", "output", "status", "face", *BOX, *MATRIX, *HOLE, *SETTINGS]
GREY = "1", "L", "LA", "La"  # modes of Pillow without colours
OTHER = 16  # grey levels, the mean difference from which a photo is another one


def read_record(path):
    """Read align.csv: a dict from source to its rows, the latest word on it.

    Raises UserError on any other file, on a link, and on a record of crops that lie elsewhere.
    """
    records = {}
    try:
        utils.inside(path.parent, path.name)
        with open(path, **utils.TABLE) as file:
            reader = csv.DictReader(file)
            if reader.fieldnames not in (COLUMNS, [name for name in COLUMNS if name not in HOLE]):
                raise ValueError("other columns")
            for row in reader:
                row = dict.fromkeys(HOLE, "") | row
                if row["landmarks"] not in faces.LANDMARKS:  # the last column: a row cut short, as by a full disk
                    continue
                if None in row or not re.fullmatch(r"([^\0]*\.png)?", row["output"]):
                    raise ValueError(f"an odd row, of {row['source']}")
                if row["output"]:
                    utils.inside(path.parent, row["output"])
                if row["face"] in ("", "0"):
                    records[row["source"]] = []
                records.setdefault(row["source"], []).append(row)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, csv.Error, cli.UserError) as error:
        raise cli.UserError(f"{path}: not a record of align.py's ({error}); choose another OUTPUT") from error
    return records


def write_record(path, records):
    """Write align.csv anew, sorted by source, so that a crash leaves the old one or the new one."""
    with utils.writing(path, "x", **utils.TABLE) as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for source in sorted(records):
            writer.writerows(records[source])


def record_above(path):
    """The nearest folder above a file that holds a record, or None."""
    return next((folder for folder in Path(path).absolute().parents if (folder / RECORD).exists()), None)


class Origin(NamedTuple):
    """Where a crop was cut out."""

    source: Path  # the photo
    mask: Path | None  # a mask image of it
    matrix: np.ndarray  # (2, 3), from its pixels (x, y, 1), upright, to the crop's
    size: int  # of the crop, pixels


def origins(paths):
    """Where crops come from: a dict from those of `paths` that an align.csv in a folder above tells of to `Origin`.

    A record that can't be used, or a row of it, is told of, and its crops have no origin.
    """
    found, records = {}, {}
    for path in paths:
        folder = record_above(path)
        if folder is None:
            continue
        try:
            if folder not in records:
                records[folder] = {}
                rows = read_record(folder / RECORD).values()
                records[folder] = {row["output"]: row for some in rows for row in some if row["output"]}
            row = records[folder].get(path.absolute().relative_to(folder).as_posix())
            if row:
                found[path] = origin(row, folder / RECORD)
        except cli.UserError as error:
            print(f"photos are not mended: {error}", file=sys.stderr)
    return found


def origin(row, record):
    """The `Origin` in a row of a record; raises UserError if its numbers cannot be those of a crop."""
    try:
        matrix, size = np.array([float(row[name]) for name in MATRIX]).reshape(2, 3), int(row["size"])
        if not np.isfinite(matrix).all() or not 1e-4 < abs(np.linalg.det(matrix[:, :2])) < 1e4 or not 0 < size <= 4096:
            raise ValueError("a matrix that no crop has")
    except ValueError as error:
        raise cli.UserError(f"{record}: of {row['source']} ({error}); run align.py again, with --overwrite") from error
    return Origin(Path(row["source"]), Path(row["mask"]) if row["mask"] else None, matrix, size)


def to_model(origin, size):
    """The (2, 3) matrix from the photo's pixels to those of its crop resized to `size`."""
    zoom = size / origin.size
    return np.column_stack([zoom * origin.matrix[:, :2], zoom * (origin.matrix[:, 2] + 0.5) - 0.5])


class Part(NamedTuple):
    """A completed crop."""

    origin: Origin
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
        now = faces.warp(layers, to_model(part.origin, size), size)
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
    filled, outside = blend.into_photo(pixels_of(image, grey), hidden, crops, matrices, seed)
    with utils.writing(path) as file:
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
    found, photos = origins(paths), {}
    for path, *rest in zip(paths, holes.masks, crops, completed, strict=True):
        if path in found:
            photos.setdefault((found[path].source, found[path].mask), []).append(Part(found[path], *rest))
    names, outside = [utils.shorten(source.stem) for source, _ in photos], []
    if len({name.casefold() for name in names}) < len(names):
        names = [f"{number:04d}_{name}" for number, name in enumerate(names)]
    for name, parts in zip(names, photos.values(), strict=True):
        try:
            with utils.naming(folder):
                folder.mkdir(exist_ok=True)
            outside.append(put_back(folder / f"{name}.png", parts, holes.kind, seed))
        except cli.UserError as error:
            print(f"skipped {error}", file=sys.stderr)
    return len(outside), float(np.mean(outside)) if outside else 0.0
