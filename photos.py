"""Whole photos: the record of the crops that were cut out of them, and the completed crops back in them."""

import csv
import re
import sys
from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np

import blend
import faces
import utils

RECORD = "align.csv"
BOX = ["left", "top", "right", "bottom"]
MATRIX = ["m00", "m01", "m02", "m10", "m11", "m12"]
SETTINGS = ["size", "faces", "landmarks"]
COLUMNS = ["source", "output", "status", "face", *BOX, *MATRIX, *SETTINGS]


def read_record(path):
    """Read align.csv: a dict from source to its rows, the latest word on it.

    Raises UserError on any other file, on a link, and on a record of crops that lie elsewhere.
    """
    records = {}
    try:
        utils.inside(path.parent, path.name)
        with open(path, **utils.TABLE) as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != COLUMNS:
                raise ValueError("other columns")
            for row in reader:
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
    return Origin(Path(row["source"]), matrix, size)


def to_model(origin, size):
    """The (2, 3) matrix from the photo's pixels to those of its crop resized to `size`."""
    zoom = size / origin.size
    return np.column_stack([zoom * origin.matrix[:, :2], zoom * (origin.matrix[:, 2] + 0.5) - 0.5])


def hidden_in_photo(image, kind, matrices, holes):
    """What is missing of a photo, boolean (H, W): what is transparent in it, or what the holes of its crops cover.

    holes: masks (size, size, 1), 1 = known, of crops to which `matrices` (2, 3) lead from the photo.
    """
    import cv2

    if kind == "alpha":
        return np.asarray(image.convert("RGBA"))[..., 3] < 255
    hidden = np.zeros(image.size[::-1], bool)
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    for matrix, mask in zip(matrices, holes, strict=True):
        hidden |= cv2.warpAffine(1 - mask[..., 0], matrix, image.size, flags=flags) > 0
    return hidden


def put_back(path, source, kind, matrices, holes, completed, seed=0):
    """Write a photo whose hole is filled from its completed crops to `path`, a PNG file, at its own size and upright.

    completed: uint8 (size, size, C) each; for the rest see `hidden_in_photo`. Nothing but the hole changes; a grey
    photo stays grey, and its colour profile and EXIF data stay. Returns the share of the hole that lies in no crop.
    Raises UserError if the photo can't be read or `path` not be written.
    """
    image = utils.open_image(source)
    hidden = hidden_in_photo(image, kind, matrices, holes)
    mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"

    def pixels(picture):
        return np.asarray(picture.convert(mode)).reshape(picture.height, picture.width, -1)

    crops = [pixels(utils.to_picture(crop)) for crop in completed]
    filled, outside = blend.into_photo(pixels(image), hidden, crops, matrices, seed)
    kept = {"exif": image.getexif()}
    if image.mode not in ("CMYK", "YCbCr", "LAB", "HSV") and "icc_profile" in image.info:
        kept["icc_profile"] = image.info["icc_profile"]
    with utils.writing(path) as file:
        utils.to_picture(filled).save(file, "PNG", **kept)
    return outside / max(1, hidden.sum())


def mend(folder, paths, kind, holes, completed, seed=0):
    """Put all completed crops that a record tells of back into their photos: `folder`/NAME.png, each photo once.

    paths, holes, completed: the file of each crop, its mask and the uint8 result. Returns how many photos were written
    and the mean share of their holes that lies in no crop. A photo that is gone is told of and left out.
    """
    found, photos = origins(paths), {}
    for number, path in enumerate(paths):
        if path in found:
            photos.setdefault(found[path].source, []).append(number)
    outside = []
    for source, numbers in photos.items():
        name = utils.shorten(source.stem)
        if sum(other.stem == source.stem for other in photos) > 1:
            name = f"{numbers[0]:04d}_{name}"
        matrices = [to_model(found[paths[number]], len(holes[number])) for number in numbers]
        parts = [[of[number] for number in numbers] for of in (holes, completed)]
        try:
            with utils.naming(folder):
                folder.mkdir(exist_ok=True)
            outside.append(put_back(folder / f"{name}.png", source, kind, matrices, *parts, seed))
        except cli.UserError as error:
            print(f"skipped {error}", file=sys.stderr)
    return len(outside), float(np.mean(outside)) if outside else 0.0
