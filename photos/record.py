"""align.csv, the record of what became of each photo, and of where its crops were cut out."""

import csv
import re
import sys
from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np

import utils
from photos import geometry, reading

RECORD = "align.csv"
BOX = ["left", "top", "right", "bottom"]
MATRIX = ["m00", "m01", "m02", "m10", "m11", "m12"]
SETTINGS = ["size", "faces", "landmarks"]
HOLE = ["mask", "seen"]  # the mask image of the photo, and how a face under a hole was seen; older records lack them
COLUMNS = ["source", "output", "status", "face", *BOX, *MATRIX, *HOLE, *SETTINGS]


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
                if row["landmarks"] not in geometry.LANDMARKS:  # the last column: a row cut short, as by a full disk
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
    with utils.atomic_write(path, "x", **utils.TABLE) as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for source in sorted(records):
            writer.writerows(records[source])


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


def find_crops(paths):
    """The `Crop` in each of some files, without its pixels; None where no align.csv in a folder above knows it.

    A record, or a row of it, that cannot be used is reported, and taken for none.
    """
    crops, rows = [], {None: {}}
    for path in paths:
        folder, crop = record_above(path), None
        try:
            if folder not in rows:
                rows[folder] = {}
                records = read_record(folder / RECORD).values()
                rows[folder] = {row["output"]: row for each in records for row in each}
            if rows[folder] and (row := rows[folder].get(path.absolute().relative_to(folder).as_posix())):
                crop = crop_of(row, folder)
        except cli.UserError as error:
            print(f"photos are not mended: {error}", file=sys.stderr)
        crops.append(crop)
    return crops


def crop_of(row, folder):
    """The `Crop` in a row of a folder's record; raises UserError if its numbers cannot be those of a crop."""
    try:
        matrix, size = np.array([float(row[name]) for name in MATRIX]).reshape(2, 3), int(row["size"])
        if not np.isfinite(matrix).all() or not 1e-4 < abs(np.linalg.det(matrix[:, :2])) < 1e4 or not 0 < size <= 4096:
            raise ValueError("a matrix that no crop has")
    except ValueError as error:
        where = f"{folder / RECORD}: of {row['source']}"
        raise cli.UserError(f"{where} ({error}); run align.py again, with --overwrite") from error
    mask = Path(row["mask"]) if row["mask"] else None
    return Crop(folder / row["output"], Path(row["source"]), mask, matrix, size)
