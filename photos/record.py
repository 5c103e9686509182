"""align.csv, the record of what became of each photo, and of where its crops were cut out."""

import csv
import hashlib
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np

import utils
from completion import masks
from photos import geometry, reading

RECORD = "align.csv"
BOX = ["left", "top", "right", "bottom"]
MATRIX = ["m00", "m01", "m02", "m10", "m11", "m12"]
SETTINGS = ["size", "faces", "landmarks"]
# older records lack these: the photo's mask image, by how many pixels its hole grew, and how a face under it was seen
HOLE = ["mask", "grow", "seen"]
HASHES = ["source_hash", "mask_hash"]  # of the files' contents, see `file_hash`; older records lack them
COLUMNS = ["source", "output", "status", "face", *BOX, *MATRIX, *HOLE, *HASHES, *SETTINGS]


def file_hash(path):
    """A hash of what is in a file, 32 hexadecimal digits; of none, an empty text."""
    if not os.path.isfile(path or ""):
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def read_record(path):
    """Read align.csv: a dict from source to its rows, the latest word on it.

    The paths of photos and masks, which the file holds relative to its folder, are absolute in it. Raises UserError on
    any other file, on a link, and on a record of crops that lie elsewhere.
    """
    records, folder = {}, os.path.realpath(path.parent)
    try:
        utils.inside(path.parent, path.name)
        if path.is_fifo():  # which would wait for ever
            raise ValueError("it is no file")
        with open(path, **utils.TABLE) as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            if columns != [name for name in COLUMNS if name not in HOLE + HASHES or name in columns]:
                raise ValueError("other columns")
            for row in reader:
                row = dict.fromkeys(HOLE + HASHES, "") | row
                if row["landmarks"] not in geometry.LANDMARKS:  # the last column: a row cut short, as by a full disk
                    continue
                if None in row or not re.fullmatch(r"([^\0]*\.png)?", row["output"]):
                    raise ValueError(f"an odd row, of {row['source']}")
                if row["output"]:
                    utils.inside(path.parent, row["output"])
                for name in filter(row.get, ("source", "mask")):
                    row[name] = located(row[name], folder)
                if row["face"] in ("", "0"):
                    records[row["source"]] = []
                records.setdefault(row["source"], []).append(row)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, csv.Error, cli.UserError) as error:
        raise cli.UserError(
            f"{path}: not a record of align.py's ({error}); choose another OUTPUT of align.py"
        ) from error
    return records


def located(path, folder):
    """The absolute path of a photo or mask that a record in `folder` names: relative to it, or absolute in older ones.

    One that was moved together with the record is where its own folder is now, beside or above the record's.
    """
    place = os.path.normpath(os.path.join(folder, path))
    if not os.path.isabs(path) or os.path.exists(place):
        return place
    tail = os.path.join(*path.split(os.sep)[-2:])
    return next(filter(os.path.exists, (os.path.join(parent, tail) for parent in Path(folder).parents)), place)


def write_rows(file, path, rows):
    """Write rows to an open align.csv, whose path tells where photos and masks lie relative to it."""
    folder, writer = os.path.realpath(path.parent), csv.DictWriter(file, COLUMNS, extrasaction="ignore")
    for row in rows:
        places = {name: os.path.join(folder, row[name]) for name in ("source", "mask") if row.get(name)}
        writer.writerow(row | {name: os.path.relpath(place, folder) for name, place in places.items()})


def write_record(path, records):
    """Write align.csv anew, sorted by source, so that a crash leaves the old one or the new one."""
    with utils.atomic_write(path, "x", **utils.TABLE) as file:
        csv.DictWriter(file, COLUMNS).writeheader()
        write_rows(file, path, (row for source in sorted(records) for row in records[source]))


def record_above(path):
    """The nearest folder above a file that holds a record, or None."""
    return next((folder for folder in Path(path).absolute().parents if (folder / RECORD).exists()), None)


class Crop(NamedTuple):
    """An aligned face, and where it was cut out."""

    path: Path  # its PNG file
    source: Path  # the photo
    mask_file: Path | None  # the mask image of the photo
    matrix: np.ndarray  # (2, 3), from the photo's pixels (x, y, 1), upright, to the crop's
    size: int  # pixels
    pixels: np.ndarray | None = None  # uint8 (size, size, 3 or 4), see `geometry.warp`; None: they are in its file
    photo: reading.Photo | None = None  # None: it is to be read again
    grow: int = 0  # see `reading.read_photo`

    @property
    def origin(self):
        """What the photo is read from again: the arguments of `reading.read_photo`."""
        return self.source, self.mask_file, self.grow


def find_crops(paths):
    """The `Crop` in each of some files, without its pixels; None where no align.csv in a folder above knows it.

    A record, or a row of it, that cannot be used is reported, and taken for none.
    """
    crops, rows = [], {None: {}}
    folders = {folder: record_above(folder / RECORD) for folder in {path.parent for path in paths}}
    for path in paths:
        folder, crop = folders[path.parent], None
        try:
            if folder not in rows:
                rows[folder] = {}
                records = read_record(folder / RECORD).values()
                rows[folder] = {row["output"]: row for each in records for row in each}
            if rows[folder] and (row := rows[folder].get(path.absolute().relative_to(folder).as_posix())):
                crop = crop_of(row, folder)
        except cli.UserError as error:
            print(error, file=sys.stderr)
        crops.append(crop)
    return crops


def crop_of(row, folder):
    """The `Crop` in a row of a folder's record; raises UserError if its numbers cannot be those of a crop."""
    try:
        matrix, size = np.array([float(row[name]) for name in MATRIX]).reshape(2, 3), int(row["size"])
        grow = int(row["grow"] or 0)
        if not np.isfinite(matrix).all() or not 1e-4 < abs(np.linalg.det(matrix[:, :2])) < 1e4 or not 0 < size <= 4096:
            raise ValueError("a matrix or a size that no crop has")
        if not 0 <= grow <= masks.MOST_GROWTH:
            raise ValueError(f"a hole grown by {grow} pixels")
    except ValueError as error:
        where = f"{folder / RECORD}: the row of {row['source']} cannot be used ({error})"
        raise cli.UserError(f"{where}; run align.py again, with --overwrite") from error
    mask = Path(row["mask"]) if row["mask"] else None
    return Crop(folder / row["output"], Path(row["source"]), mask, matrix, size, grow=grow)
