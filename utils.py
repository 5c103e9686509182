"""Files and pictures: what the scripts share to find, read and write images. Knows nothing of TensorFlow."""

import argparse
import contextlib
import fcntl
import json
import logging
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

# Pillow would only warn of what `open_image` refuses
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

ARCHITECTURE = ("image_size", "c_dim", "z_dim", "gf_dim", "df_dim", "ema")  # DCGAN's arguments, in config.json
CHATTER = "TF_CPP_MIN_LOG_LEVEL" in os.environ  # the user wants to read what TensorFlow says
FACES_AFTER = 1200  # steps of 64 images, until a model draws recognisable faces
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
SHIPPED = Path(__file__).resolve().parent / "checkpoints" / "faces-64"


class UserError(Exception):
    """A mistake a user can mend; its message is one line that names the flag or file and says what to do."""


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, but an error is one line without the usage text in front; the exit status stays 2."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}\n")

    def run(self, work, args):
        """Do `work(args)`, a script's, and return its exit status; what a user can mend ends it by `error`."""
        for action in self._actions:  # such as of a shell variable that is not set
            value = getattr(args, action.dest, None)
            if "" in (value if isinstance(value, list) else [value]):
                self.error(f"{'/'.join(action.option_strings) or action.metavar}: is empty")
        try:
            return work(args)
        except (UserError, OSError) as error:  # OSError: such as a disk that is full
            self.error(str(error))
        except KeyboardInterrupt:
            self.exit(130, f"{self.prog}: stopped\n")


def number(kind, low, high=math.inf, above=False):
    """An argparse `type` for an `int` or `float` from `low` (or `above` it) to `high`."""

    def parse(text):
        with contextlib.suppress(ValueError, OverflowError):  # the latter of whole numbers that no float can hold
            value = kind(text)
            if math.isfinite(value) and low <= value <= high and not (above and value == low):
                return value
        limits = f"{'above' if above else 'from'} {low}" + (f" to {high}" if high < math.inf else "")
        raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if kind is int else ''}number {limits}")

    return parse


@contextlib.contextmanager
def quiet_tensorflow():
    """Import TensorFlow and list its devices inside this, so that its start-up chatter does not bury our one line.

    What it wrote on standard error is shown after all if the block raises, or if TF_CPP_MIN_LOG_LEVEL is set.
    """
    show = CHATTER
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["KERAS_BACKEND"] = "tensorflow"
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    # the messages come from C++ before its logging is set up, and only the file descriptor catches them
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except Exception:
            show = True
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            if show:
                said.seek(0)
                sys.stderr.write(said.read().decode(errors="replace"))


@contextlib.contextmanager
def deferred_signals():
    """Yield a list that collects SIGINT, SIGTERM and SIGHUP as they come, so that a loop can leave at a safe place."""
    received, before = [], {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup's wish
            before[number] = signal.signal(number, lambda number, frame: received.append(number))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def find_images(directory):
    """The paths of all image files (by suffix) below `directory`, sorted: a seed draws the same ones everywhere."""
    return sorted(p for p in Path(directory).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def open_image(path):
    """Open one image file as everything here wants it: a Pillow image, loaded, upright by its EXIF tag, 8 bits deep.

    Its mode is whatever the file holds ("RGB", "L", "CMYK", "RGBA", "P", ...). Raises UserError, naming the file, for
    whatever is wrong with it, and for more than `PIL.Image.MAX_IMAGE_PIXELS` pixels, which Pillow only warns of.
    """
    try:
        with Image.open(path) as file:
            if file.width * file.height > Image.MAX_IMAGE_PIXELS:
                raise ValueError(f"{file.width}x{file.height} pixels are more than {Image.MAX_IMAGE_PIXELS} in all")
            image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I;16"):  # Pillow's own conversion to 8 bits would clip, not scale
            image = Image.fromarray((np.asarray(image, np.float64) / 257).round().astype(np.uint8))
        if image.mode in "IF":
            raise ValueError("32 bits deep")
        return image
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error on a damaged file
        raise UserError(f"{path}: not a readable image ({error})") from error


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


def read_image(path, size, channels):
    """Read one image file as the networks want it: upright, cropped to its centred square, resized to `size`.

    Returns uint8 (size, size, channels), `channels` 1 (grey) or 3 (RGB). Transparent pixels show white behind them.
    Raises UserError, naming the file, as `open_image` does.
    """
    image = fit(flatten(open_image(path), "white").convert("RGB" if channels == 3 else "L"), size)
    return np.asarray(image).reshape(size, size, channels)


def to_float(pixels):
    """uint8 pixels to float32 in [-1, 1], the generator's range."""
    return np.asarray(pixels, np.float32) / 127.5 - 1


def to_uint8(images):
    """Float images in [-1, 1] to uint8, rounded to nearest; values outside are clipped. Undoes `to_float` exactly."""
    return np.clip(np.round((np.asarray(images) + 1) * 127.5), 0, 255).astype(np.uint8)


def image_grid(images, columns=8):
    """Tile float images (N, H, W, C) in [-1, 1] row by row into one uint8 picture; places left over are black."""
    images = to_uint8(images)
    count, *shape = images.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, *shape), np.uint8)
    cells[:count] = images
    bands = cells.reshape(rows, columns, *shape).swapaxes(1, 2)  # (rows, height, columns, width, channels)
    return bands.reshape(rows * shape[0], columns * shape[1], shape[2])


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


@contextlib.contextmanager
def writing(path):
    """Raise UserError, naming the file, where what is done inside fails to write it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def write_image(path, pixels):
    """Write uint8 pixels (H, W, 1 or 3) as a picture; the suffix of `path` chooses the format.

    Raises UserError, naming the file, if that fails.
    """
    with writing(path):
        to_picture(pixels).save(path)


def write_film(path, frames):
    """Write uint8 pictures (H, W, 1 or 3) as a GIF that goes round and shows the first and the last for longer.

    Small ones are enlarged, each pixel to a square. Raises UserError, naming the file, if it cannot be written.
    """
    zoom = max(1, 256 // frames[0].shape[1])
    frames = [np.asarray(to_picture(frame.repeat(zoom, 0).repeat(zoom, 1))) for frame in frames]
    durations = [1000] + [100] * (len(frames) - 2) + [2000]  # ms
    with writing(path):
        iio.imwrite(path, frames, duration=durations, loop=0)


def make_directory(path, flag, empty=False):
    """Make a directory with its parents and check that it can be written, and is `empty` where that is asked for.

    Returns its path; raises UserError, naming `flag`, if it is not so.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot be written ({error.strerror}); choose another directory") from error
    if empty and any(path.iterdir()):
        raise UserError(f"{flag} {path}: is not empty; choose another directory, or remove it first")
    return path


def open_table(path, mode="r"):
    """Open a CSV file as text; names of files that are not UTF-8 survive in it."""
    return open(path, mode, newline="", encoding="utf-8", errors="surrogateescape")


def write_json(path, content):
    """Write a JSON file so that a crash leaves the old file or the new one, never half of it."""
    path = Path(path)
    draft = path.with_name(path.name + ".draft")
    try:
        draft.write_text(json.dumps(content, indent=2) + "\n")
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error


def find_checkpoints(checkpoint_dir):
    """The checkpoints in a directory, as TensorFlow names them (".../ckpt-STEP"), the newest first."""
    found = [path.with_suffix("") for path in Path(checkpoint_dir).glob("ckpt-*.index") if path.stem[5:].isdigit()]
    return [str(path) for path in sorted(found, key=lambda path: int(path.name[5:]), reverse=True)]


def lock(directory, flag):
    """Keep other processes out of a directory until this one ends, or the file that is returned is closed.

    Raises UserError, naming `flag`, if another one is in it.
    """
    file = open(Path(directory) / ".lock", "w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise UserError(f"{flag} {directory}: another process trains in it; wait for it, or choose another") from error
    except OSError:
        pass  # this file system knows no locks
    return file


def remove_checkpoint(path):
    """Delete the files of a checkpoint, its index first: without it the rest is no checkpoint."""
    for file in sorted(Path(path).parent.glob(f"{Path(path).name}.*"), reverse=True):
        file.unlink()


def remove_unfinished(checkpoint_dir):
    """Delete what a killed or failed save left behind: a checkpoint's index is the last of its files to be written."""
    for path in Path(checkpoint_dir).glob("ckpt-*"):
        if re.fullmatch(r"ckpt-\d+_temp", path.name):
            shutil.rmtree(path, ignore_errors=True)
        elif re.fullmatch(r"ckpt-\d+\.data-\d+-of-\d+", path.name) and not path.with_suffix(".index").exists():
            path.unlink()


def find_model(checkpoint_dir):
    """The checkpoint directory to use: the one asked for, else the user's own, else the shipped one.

    Raises UserError if it holds no model.
    """
    candidates = [Path(checkpoint_dir)] if checkpoint_dir else [Path("checkpoints/mine"), SHIPPED]
    for candidate in candidates:
        if find_checkpoints(candidate) or find_original(candidate):
            return candidate
    flag = f" {checkpoint_dir}: holds no model" if checkpoint_dir else ": no model found in checkpoints/mine"
    raise UserError(f"--checkpointDir{flag}; train one with train-dcgan.py, or name another folder")


def describe_model(checkpoint_dir, step):
    """A line that names the model in use, and where that has made few steps the one that came with this code."""
    advice = f" (from nothing faces take about {FACES_AFTER}; --checkpointDir checkpoints/faces-64 came with this code)"
    return f"model: {checkpoint_dir}, step {step}{advice if step < FACES_AFTER else ''}"


def find_original(checkpoint_dir):
    """The newest checkpoint of the original code, ".../DCGAN.model-STEP", or None; ours go first if both are there."""
    found = {path.name.removesuffix(".index") for path in Path(checkpoint_dir).glob("DCGAN.model-*")}
    steps = [int(name[12:]) for name in found if name[12:].isdigit()]
    if not steps or find_checkpoints(checkpoint_dir):
        return None
    return str(Path(checkpoint_dir) / f"DCGAN.model-{max(steps)}")


def read_config(checkpoint_dir):
    """The config.json of a checkpoint directory: "architecture" and "training", dicts, and the type of its "weights".

    Raises UserError, naming the file, if it is missing or damaged, or does not say how the networks are built.
    """
    path = Path(checkpoint_dir) / "config.json"
    try:
        config = json.loads(path.read_text())
        config["architecture"] = {name: config["architecture"][name] + 0 for name in ARCHITECTURE}  # numbers they are
        training, weights = dict(config.get("training", {})), config.get("weights", "float32")
        return {"architecture": config["architecture"], "training": training, "weights": weights}
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: is not as train-dcgan.py writes it ({error!r})") from error
