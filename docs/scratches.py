#!/usr/bin/env python3
"""Damage photos: draw scratches over their faces, which complete.py is to mend.

.venv/bin/python docs/scratches.py photos out

Writes `out/damaged/NAME.png`, scratched, and `out/masks/NAME.png`, white where it is, for each photo with a face.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli

import numpy as np
from PIL import Image, ImageDraw

import utils
from photos import detection

ACROSS = 4  # scratches over each face
WIDTH = 0.045  # of a scratch, as a share of the face's


def scratched(size, boxes, rng):
    """A mask image, mode "L", of `size` (width, height): scratches across each of the boxes of faces, in white."""
    mask = Image.new("L", size)
    for box in boxes:
        for _ in range(ACROSS):
            angle = rng.uniform(0, np.pi)
            along, sideways = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            steps = np.linspace(-0.9, 0.9, 9)
            wobble = 0.25 * rng.uniform(-1, 1) + np.cumsum(rng.normal(0, 0.02, len(steps)))
            middle = [(box.left() + box.right()) / 2, (box.top() + box.bottom()) / 2]
            line = middle + box.width() * (steps[:, None] * along + wobble[:, None] * sideways)
            width = max(2, round(WIDTH * box.width() * rng.uniform(0.5, 1)))
            ImageDraw.Draw(mask).line([*map(tuple, line)], 255, width, "curve")
    return mask


def main(photos, out):
    """Scratch all photos of a folder, or one."""
    detector = detection.FaceDetector.load()
    for number, path in enumerate(utils.find_images(photos) if Path(photos).is_dir() else [Path(photos)]):
        try:
            photo = utils.flatten(utils.open_image(path), "white").convert("RGB")
        except cli.UserError as error:
            print(f"skipped {error}", file=sys.stderr)
            continue
        boxes = detector.find_faces(np.asarray(photo))
        if not boxes:
            print(f"skipped {path}: no face", file=sys.stderr)
            continue
        mask = scratched(photo.size, boxes[:1], np.random.default_rng(number))
        photo.paste("white", mask=mask)
        name = path.stem if not (Path(out) / f"masks/{path.stem}.png").exists() else f"{number:04d}_{path.stem}"
        for folder, picture in (("damaged", photo), ("masks", mask)):
            (Path(out) / folder).mkdir(parents=True, exist_ok=True)
            utils.write_image(Path(out) / folder / f"{name}.png", np.atleast_3d(np.asarray(picture)))


if __name__ == "__main__":
    main(*sys.argv[1:])
