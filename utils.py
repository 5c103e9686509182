"""Files and pictures: what the scripts share to find, read and write images. Knows nothing of TensorFlow."""

import collections
import contextlib
import fcntl
import glob
import itertools
import math
import os
import re
import shutil
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import cli

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

Image.MAX_IMAGE_PIXELS = 250 * 10**6
warnings.filterwarnings("ignore", module=r"PIL\.")  # of what `decode` refuses, and of each bad tag

IMAGE_SUFFIXES = ".avif .bmp .gif .jfif .jp2 .jpe .jpeg .jpg .mpo .pgm .png .ppm .tga .tif .tiff .webp".split()
HEIF_SUFFIXES, HEIF = [".heic", ".heif", ".hif"], "needs pip install pillow-heif"
try:
    import pillow_heif
except ImportError:
    pass
else:
    pillow_heif.register_heif_opener()
    IMAGE_SUFFIXES += HEIF_SUFFIXES
NO_IMAGES = f"holds no images ({', '.join(IMAGE_SUFFIXES)})"
TABLE = dict(newline="", encoding="utf-8", errors="surrogateescape")  # names that are not UTF-8 survive in it


def find_files(directory):
    """Yield the paths of all files below `directory`. Linked folders are searched, each one once and none above it."""
    waiting, seen = [directory], set(Path(os.path.realpath(directory)).parents)
    for top in waiting:
        for folder, folders, names in os.walk(top, onerror=lambda error: print(f"skipped {error}", file=sys.stderr)):
            place = Path(os.path.realpath(folder))
            if place in seen:
                folders.clear()
                continue
            seen.add(place)
            folders.sort()  # which of two links to a folder comes first
            waiting += filter(os.path.islink, (os.path.join(folder, name) for name in folders))
            yield from filter(os.path.isfile, (Path(folder, name) for name in names))


def find_images(directory, report=False):
    """The paths of all image files (by suffix) below `directory`, sorted: a seed draws the same ones everywhere.

    report: whether standard error tells of the files left out, but for hidden ones and align.py's record.
    """
    images, others = [], collections.Counter()
    for path in find_files(directory):
        suffix = path.suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            images.append(path)
        elif not path.name.startswith(".") and path.name != "align.csv":
            others[suffix or "without a suffix"] += 1
    if report and others:
        counts = (f"{count} {suffix}{f' ({HEIF})' * (suffix in HEIF_SUFFIXES)}" for suffix, count in others.items())
        print(f"skipped in {directory}: {', '.join(sorted(counts))}", file=sys.stderr)
    return sorted(images)


def open_image(path):
    """Open one image file, see `decode`; raises UserError, naming the file, for whatever is wrong with it."""
    try:
        if Path(path).is_fifo():  # which would wait for ever
            raise ValueError("it is no file")
        return decode(path)
    except FileNotFoundError as error:
        raise cli.UserError(f"{path}: no such file") from error
    except Exception as error:
        why = HEIF if Path(path).suffix.lower() in HEIF_SUFFIXES else getattr(error, "strerror", None) or error
        raise cli.UserError(f"{path}: not a readable image ({why})") from error


def decode(file, formats=None, limit=None):
    """An image as everything here wants it: a Pillow image, loaded, upright by its EXIF tag, 8 bits deep.

    file: a path or a binary file; formats: Pillow's names of those that it may have. Its mode is whatever it holds
    ("RGB", "L", "CMYK", "RGBA", "P", ...). Raises ValueError for more pixels than `limit`, by default
    `PIL.Image.MAX_IMAGE_PIXELS`, of which Pillow only warns; and anything from SyntaxError to struct.error, as Pillow
    does, on a damaged file.
    """
    limit = limit or Image.MAX_IMAGE_PIXELS
    try:
        image = Image.open(file, formats=formats)
    except Image.DecompressionBombError as error:  # from twice Pillow's limit
        raise ValueError(f"more than {limit:,} pixels in all; make it smaller") from error
    with image:
        if image.width * image.height > limit:
            raise ValueError(f"{image.width}x{image.height} pixels are more than {limit:,} in all; make it smaller")
        with open(os.devnull, "wb") as nowhere:  # for libtiff, which would tell each damaged line
            with cli.redirect_errors(nowhere) if image.format == "TIFF" else contextlib.nullcontext():
                image.load()
        try:
            image = ImageOps.exif_transpose(image)
        except MemoryError:
            raise
        except Exception:  # Pillow raises anything on damaged EXIF data
            image = image.copy()
    if image.mode.startswith("I;16"):  # Pillow's own conversion to 8 bits would clip, not scale
        info = {name: value for name, value in image.info.items() if name != "transparency"}  # of 16 bits
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().astype(np.uint8))
        image.info = info
    if image.mode in "IF":
        raise ValueError("32 bits deep")
    return image


def flatten(image, background):
    """A Pillow image with a colour behind what is transparent."""
    if not image.has_transparency_data:
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA"))


def fit(image, size):
    """Crop a Pillow image to its centred square and resize that to `size` pixels, with anti-aliasing.

    The filter's weights are positive: a pixel that contributes cannot be cancelled out by others.
    """
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def as_pixels(image, size, channels):
    """A Pillow image as the networks want it: cropped to its centred square, resized to `size`.

    Returns uint8 (size, size, channels), `channels` 1 (grey) or 3 (RGB). Transparent pixels show white behind them.
    """
    image = fit(flatten(image, "white").convert("RGB" if channels == 3 else "L"), size)
    return np.asarray(image).reshape(size, size, channels)


def read_image(path, size, channels):
    """`as_pixels` of an image file, upright; raises UserError, naming the file, as `open_image` does."""
    return as_pixels(open_image(path), size, channels)


def to_float(pixels):
    """uint8 pixels to float32 in [-1, 1], the generator's range."""
    return np.asarray(pixels, np.float32) / 127.5 - 1


def to_bytes(pixels):
    """Float pixels from 0 to 255 to uint8, rounded to nearest; values outside are clipped."""
    return np.clip(pixels.round(), 0, 255).astype(np.uint8)


def to_uint8(images):
    """Float images in [-1, 1] to uint8, rounded to nearest; values outside are clipped. Undoes `to_float` exactly."""
    return to_bytes((np.asarray(images) + 1) * 127.5)


def smoothstep(values):
    """From 0 at 0 and below to 1 at 1 and above."""
    values = np.clip(values, 0, 1)
    return values**2 * (3 - 2 * values)


def block_means(images, side):
    """The means of blocks of `side` x `side` pixels: (N, H, W, C) -> (N, H / side, W / side, C)."""
    count, height, width, channels = images.shape
    return images.reshape(count, height // side, side, width // side, side, channels).mean((2, 4))


def image_grid(images, columns=8):
    """Tile float images (N, H, W, C) in [-1, 1] row by row into one uint8 picture; places left over are black."""
    images = to_uint8(images)
    count, height, width, channels = images.shape
    columns = min(columns, count)
    cells = np.pad(images, [(0, -count % columns)] + [(0, 0)] * 3)
    bands = cells.reshape(-1, columns, height, width, channels).swapaxes(1, 2)
    return bands.reshape(-1, columns * width, channels)


def labelled_rows(views, columns=16):
    """One picture of several views of the same images: a row for each view, labelled, `columns` images wide.

    `views` is a dict from label to float images (N, H, W, C) in [-1, 1]; more images than `columns` go below in
    further blocks of rows. Images below 128 pixels are enlarged to that, each pixel to a square. Returns uint8.
    """
    rows = list(views.values())
    size, margin = rows[0].shape[1], 96
    zoom = max(1, 128 // size)
    blocks = []
    for start in range(0, len(rows[0]), columns):
        images = [image_grid(row[start : start + columns], columns) for row in rows]
        block = np.concatenate(images).repeat(zoom, 0).repeat(zoom, 1)
        width = min(columns, len(rows[0])) * size * zoom
        block = np.pad(block, ((0, 8), (margin, width - block.shape[1]), (0, 0)))
        picture = to_picture(block).convert("RGB")
        for i, label in enumerate(views):
            place = margin - 8, (i + 0.5) * size * zoom
            ImageDraw.Draw(picture).text(place, label, "white", ImageFont.load_default(14), anchor="rm")
        blocks.append(np.asarray(picture))
    return np.concatenate(blocks)


def captioned_grid(images, captions, columns=8):
    """`image_grid` with a caption below each image. Images below 64 pixels are enlarged to that. Returns uint8."""
    zoom = max(1, 64 // images.shape[1])
    images = np.pad(images.repeat(zoom, 1).repeat(zoom, 2), ((0, 0), (0, 18), (0, 4), (0, 0)), constant_values=-1)
    _, height, width, _ = images.shape
    picture = to_picture(image_grid(images, columns)).convert("RGB")
    for i, caption in enumerate(captions):
        place = (i % columns + 0.5) * width - 2, (i // columns + 1) * height - 9
        ImageDraw.Draw(picture).text(place, caption, "silver", ImageFont.load_default(11), anchor="mm")
    return np.asarray(picture)


def to_picture(pixels):
    """uint8 pixels (H, W, 1 or 3) as a Pillow image."""
    return Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)


def lock(descriptor, line):
    """Keep other processes away from an open file or folder until it is closed.

    Raises UserError(line), and closes it, if another one is there.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise cli.UserError(line) from error
    except OSError:
        pass  # this file system knows no locks


@contextlib.contextmanager
def report_write_errors(path):
    """Raise UserError, naming the file, where what is done inside fails to write it."""
    try:
        yield
    except OSError as error:
        raise cli.UserError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextlib.contextmanager
def atomic_write(path, mode="xb", **options):
    """Open a file to write it anew, which takes the place of the one there, or of a link, once it is whole.

    Raises UserError, naming the file and leaving nothing half-written, if that fails.
    """
    path = Path(path)
    draft = path.with_name(f".{os.getpid()}.draft")
    with report_write_errors(path):
        draft.unlink(missing_ok=True)  # of a process killed before that had the same number
        try:
            with open(draft, mode, **options) as file:
                yield file
            os.replace(draft, path)
        finally:
            draft.unlink(missing_ok=True)


def write_image(path, pixels):
    """Write uint8 pixels (H, W, 1 or 3) as a picture; the suffix of `path` chooses the format.

    Raises UserError, naming the file, if that fails.
    """
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if not kind:
        raise cli.UserError(f"{path}: is no picture by its name; let it end in .png")
    with atomic_write(path) as file:
        to_picture(pixels).save(file, kind)


def write_film(path, frames):
    """Write uint8 pictures (H, W, 1 or 3) as a GIF that goes round and shows the first and the last for longer.

    Small ones are enlarged, each pixel to a square. Raises UserError, naming the file, if it cannot be written.
    """
    zoom = max(1, 256 // frames[0].shape[1])
    frames = [np.asarray(to_picture(frame.repeat(zoom, 0).repeat(zoom, 1))) for frame in frames]
    durations = [1000] + [100] * (len(frames) - 2) + [2000]  # ms
    # into memory, as imageio itself tells of a full disk late, in many lines
    film = iio.imwrite("<bytes>", frames, extension=".gif", duration=durations, loop=0)
    with atomic_write(path) as file:
        file.write(film)


def write_arrays(path, arrays):
    """Write a dict of arrays to an .npz file; raises UserError, naming it, if that fails."""
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def read_arrays(path, shapes):
    """The arrays of finite floats in an .npz file, a dict as `shapes` is one, where None is any length up to 4,096.

    None without such a file. Raises UserError, naming the file, if it holds others; nothing in it is executed.
    """
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        limits = {f"{name}.npy": 2**10 + 8 * math.prod(side or 4096 for side in shapes[name]) for name in shapes}
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if sizes.keys() != limits.keys() or any(size > limits[name] for name, size in sizes.items()):
            raise ValueError(f"it does not hold {', '.join(shapes)} alone, or too much of them")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in shapes}
        for name, array in arrays.items():
            fits = len(array.shape) == len(shapes[name]) and array.dtype.kind == "f" and np.isfinite(array).all()
            sides = zip(array.shape, shapes[name], strict=True) if fits else ()
            if not fits or any(side != want if want else side > 4096 for side, want in sides):
                raise ValueError(f"{name}, {array.dtype} of shape {array.shape}, is not finite or does not fit")
    except Exception as error:  # zipfile and NumPy raise anything from RuntimeError to zlib.error on a damaged file
        raise cli.UserError(
            f"{path}: cannot be used ({error}); restore it, or remove it and run train-encoder.py"
        ) from error
    return arrays


def append(path, text):
    """Add text to a file; raises UserError, naming the file and leaving none that is empty, if that fails."""
    with report_write_errors(path):
        try:
            with open(path, "a") as file:
                file.write(text)
        except OSError:
            if path.is_file() and not path.stat().st_size:
                path.unlink()
            raise


def make_directory(path, flag, empty=False):
    """Make a directory with its parents and check that it can be written, and is `empty` where that is asked for.

    Returns its path; raises UserError, naming `flag`, if it is not so.
    """
    path = Path(path)
    with cli.named(flag):
        check_name(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise cli.UserError(f"{flag} {path}: cannot be written ({error.strerror}); choose another directory") from error
    if empty and any(path.iterdir()):
        raise cli.UserError(f"{flag} {path}: is not empty; choose another directory, or remove it first")
    return path


def unused_directory(name):
    """`name`, or else the first of name-2, name-3, ... that is not there yet, or is an empty folder."""
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    places = map(Path, itertools.chain([name], numbered))
    return next(place for place in places if not os.path.lexists(place) or place.is_dir() and not any(place.iterdir()))


def check_outside(path, flag, folders):
    """Raise UserError, naming `flag`, if a path to write to lies in one of some folders of images."""
    place = Path(os.path.realpath(path))
    for folder in folders:
        if os.path.isdir(folder) and place.is_relative_to(os.path.realpath(folder)):
            raise cli.UserError(f"{flag} {path}: lies in {folder}, among the images; choose a folder outside")


@contextlib.contextmanager
def removed_on_error(directory):
    """Remove a directory that is made inside this if it ends early, so that the same command can be tried again."""
    try:
        yield
    except (cli.UserError, SystemExit):
        shutil.rmtree(directory, ignore_errors=True)
        raise


def check_samples(directory, name):
    """Raise UserError if a --sample_dir holds pictures of another run of that name, which a new one would replace."""
    if any(re.fullmatch(rf"{re.escape(name)}_\d{{6,}}\.png", path.name) for path in Path(directory).iterdir()):
        raise cli.UserError(f"--sample_dir {directory}: holds another run's {name}_*.png; choose another")


def some(paths):
    """Paths in few words: the first, and how many more."""
    return f"{paths[0]}{f' and {len(paths) - 1} more' if paths[1:] else ''}"


def shorten(name, limit=200):
    """A name of a file cut to so many bytes: most systems take 255, and something is put around it."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= limit else encoded[:limit].decode(errors="ignore")


def folder_name(path):
    """What files of a run are called after its folder: its name, `shorten`ed, without what is no UTF-8."""
    return shorten(os.path.basename(os.path.realpath(path))).encode(errors="ignore").decode()


def check_files(prefix):
    """Raise OSError if what begins with a path is no file, such as a pipe, which would wait for ever."""
    for path in Path(prefix).parent.glob(f"{glob.escape(Path(prefix).name)}*"):
        if not path.is_file():
            raise OSError(f"{path.name} is no file")


def check_name(path):
    """Raise UserError if a path is no UTF-8, as TensorFlow reads and writes no others."""
    if any("\udc80" <= letter <= "\udcff" for letter in str(path)):
        raise cli.UserError(f"{path}: its name is no UTF-8; rename it, or choose another")


def inside(folder, name):
    """The path of the file `name` in `folder`; raises UserError if it lies elsewhere, or is reached through a link."""
    path, parts = Path(folder, name), os.fspath(name).split("/")
    below = list(itertools.accumulate(parts, os.path.join, initial=folder))[1:]
    if not any(parts) or parts[0] == "" or ".." in parts or any(map(os.path.islink, below)):
        raise cli.UserError(f"{path}: does not lie in {folder}, or is a link; remove it, or choose another folder")
    return path
