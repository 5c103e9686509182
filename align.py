#!/usr/bin/env python3
"""Turn photos into aligned faces: find the face, and map its eyes and mouth to where every crop has them.

./align.py data/mine/raw data/mine/aligned
./align.py holiday.jpg friends/ faces --faces all --size 128
./align.py torn.jpg faces --mask torn-mask.png
"""

import argparse
import os
import sys

import cli

from photos import alignment, geometry


def parse_args():
    """The parser and the parsed arguments: those after -- are files, also if they begin with a dash."""
    parser = cli.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(**alignment.Settings()._asdict())
    add = parser.add_argument
    add("inputs", metavar="INPUT", nargs="+", help="photo, or folder of photos, searched in all subfolders")
    add("output", metavar="OUTPUT", help="folder for the crops, which mirrors the subfolders, and the record align.csv")
    add("--size", type=cli.number(int, 1, 4096), help="side of the crops in pixels (%(default)s)")
    add("--landmarks", choices=geometry.LANDMARKS, help="what is aligned (%(default)s)")
    text = "the largest face, the only one (a photo that shows several is skipped), or all, numbered (%(default)s)"
    add("--faces", choices=alignment.FACES, help=text)
    text = "double the photo N times to find faces below 80 pixels (%(default)s)"
    add("--upsample", type=cli.number(int, 0, 4), metavar="N", help=text)
    hole = parser.add_argument_group("holes, where they are not transparent")
    add = hole.add_mutually_exclusive_group().add_argument
    add("--mask", metavar="FILE", help="mask image as large as the one photo, white = missing")
    text = "folder that holds a mask image of the same name for each photo"
    add("--maskDir", dest="mask_dir", metavar="DIR", help=text)
    text = "pixels by which the hole of a mask grows, as JPEG spreads damage (%(default)s)"
    hole.add_argument("--grow", type=alignment.growth, metavar="N", help=text)
    text = (
        "where the three landmarks of the one photo are, in pixels, if its face is not found: the inner corners of "
        "both eyes, and the middle of the lower lip's lower edge"
    )
    hole.add_argument("--points", type=alignment.point, nargs=3, metavar="X,Y", help=text)
    add = parser.add_argument
    add("--predictor", metavar="FILE", help="dlib's 68-point predictor (the one in face_recognition_models)")
    add("--workers", type=cli.number(int, 1), metavar="N", help="processes (all cores: %(default)s)")
    add("--overwrite", action="store_true", help="redo photos already aligned")
    words = sys.argv[1:]
    if "--" in words:  # which parse_intermixed_args does not understand
        start = words.index("--")
        words[start:] = [os.path.join(".", word) if word.startswith("-") else word for word in words[start + 1 :]]
    return parser, parser.parse_intermixed_args(words)


def align(args):
    """Align the photos of INPUT to OUTPUT."""
    settings = alignment.Settings(*(getattr(args, name) for name in alignment.Settings._fields))
    alignment.align_photos(args.inputs, args.output, settings)


if __name__ == "__main__":
    parser, args = parse_args()
    sys.exit(parser.run(align, args))
