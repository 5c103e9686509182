"""The hole: masks say which pixels are known, float32 (size, size, 1), 1 = keep, 0 = fill. No TensorFlow."""

import numpy as np

import utils


def center(image_size, scale):
    """A square hole in the middle that leaves `scale` of the side, above 0 and below 0.5, known on each side of it.

    Raises utils.UserError if rounding to whole pixels leaves no hole or nothing known.
    """
    lower, upper = int(image_size * scale), int(image_size * (1 - scale))
    if not 0 < lower < upper:
        raise utils.UserError(
            f"--centerScale {scale}: leaves {'no hole' if lower else 'nothing known'} in {image_size} pixels; try 0.25"
        )
    mask = np.ones((image_size, image_size, 1), np.float32)
    mask[lower:upper, lower:upper] = 0
    return mask
