"""From photo to crop and back: the mean face, the affine map to it, and how pixels follow that map."""

import cli

import numpy as np
from PIL import Image

# where the 68 landmarks (iBUG's order) lie in the mean face: published data of OpenFace (align_dlib.py, Carnegie
# Mellon University, Apache-2.0, https://github.com/cmusatyalab/openface)
TEMPLATE = np.array(
    """
    0.07923969 0.33922374 0.08292195 0.45695537 0.09679271 0.575648 0.12214152 0.6919216 0.16868787 0.80034125
    0.2397894 0.8957325 0.32566246 0.9770688 0.42231828 1.04329 0.5317778 1.0608037 0.6412963 1.0398192
    0.7381059 0.9722688 0.82444435 0.88962406 0.8947927 0.7924942 0.9393955 0.6815466 0.96111935 0.5622383
    0.97057986 0.44175893 0.97119325 0.32211873 0.16384622 0.24915174 0.21780355 0.20425586 0.29129934 0.19236732
    0.36746025 0.20358221 0.43929452 0.2331356 0.586446 0.22814165 0.6601527 0.19592384 0.73746645 0.18236099
    0.81323653 0.19282801 0.87075716 0.23529337 0.51534534 0.31863546 0.51622146 0.39620045 0.5171189 0.47379768
    0.5181643 0.5531578 0.43370116 0.60405445 0.47550124 0.6207634 0.5207129 0.6342682 0.5658741 0.6187966
    0.607054 0.60157675 0.25241873 0.33105227 0.29866302 0.30264637 0.35574973 0.30302066 0.40371898 0.3386771
    0.35250717 0.34998763 0.29679176 0.35047898 0.6313261 0.33413666 0.6790734 0.29645404 0.73597234 0.29472128
    0.7828654 0.32130527 0.7403123 0.3418494 0.6849985 0.34373432 0.35316777 0.7461892 0.41458777 0.71905386
    0.47767764 0.70683587 0.5227329 0.7170923 0.5698321 0.7054145 0.6351958 0.71565574 0.6995167 0.73941916
    0.63944715 0.8052369 0.57641053 0.83543664 0.52539843 0.8417064 0.47641546 0.83750594 0.4137955 0.8100456
    0.38008478 0.7499796 0.477956 0.7451323 0.5233898 0.7489243 0.5710578 0.7433289 0.6724091 0.74417704
    0.5725396 0.7766093 0.52401066 0.7833708 0.47756124 0.77847636
    """.split(),
    np.float32,  # as OpenFace has it, so that the crops are bitwise identical
).reshape(68, 2)
MINMAX_TEMPLATE = (TEMPLATE - TEMPLATE.min(0)) / (TEMPLATE.max(0) - TEMPLATE.min(0))
LANDMARKS = {"innerEyesAndBottomLip": [39, 42, 57], "outerEyesAndNose": [36, 45, 33]}
FLAT = 0.005  # what two sides between three landmarks span, by the sum of their squares, at least; 0.3 from the front


def affine(landmarks, size, which="innerEyesAndBottomLip"):
    """The 2x3 matrix from photo pixels (x, y, 1) to pixels of a crop of `size`: OpenFace's align_dlib.py.

    It takes three of the 68 landmarks (68, 2) to their places in the mean face, which is scaled so that its own
    bounding box fills the crop. Raises ValueError if the three lie on one line.
    """
    import cv2

    three = LANDMARKS[which]
    matrix = cv2.getAffineTransform(np.float32(landmarks)[three], size * MINMAX_TEMPLATE[three])
    if not cv2.determinant(matrix[:, :2]):
        raise ValueError("three landmarks on one line")
    return matrix


def resize_matrix(zoom, start=(0, 0)):
    """The 3x3 matrix that takes pixels (x, y, 1) of a picture to those of one `zoom` times as large, at their centres.

    zoom: a number, or one for x and one for y. start: where the larger picture begins in a whole one, whose pixels are
    meant then.
    """
    (x, y), (left, top) = np.broadcast_to(zoom, 2), start
    return np.array([[x, 0, x / 2 - 0.5 + left], [0, y, y / 2 - 0.5 + top], [0, 0, 1]])


def pixels_of_photo(matrix):
    """How many pixels of a photo, side by side, one of a crop covers, by the matrix from the photo to the crop."""
    return abs(np.linalg.det(matrix[:, :2])) ** -0.5


def warp(pixels, matrix, size):
    """Crop uint8 (H, W, 3 or 4), RGB or RGBA, by a 2x3 matrix from photo to crop pixels: uint8 (size, size, 3 or 4).

    Bilinear, as OpenFace does it; where that would skip pixels, as the map shrinks the photo by more than two, the
    photo is averaged down first. Outside the photo an RGB crop is black, an RGBA one transparent. A transparent pixel
    gives no colour to any other, and a pixel of the crop is opaque only if all that contribute to it are.
    """
    import cv2

    shrink = pixels_of_photo(matrix)
    factor = int(shrink) if shrink > 2 else 1
    matrix = matrix @ resize_matrix(factor)  # from pixels of the reduced photo

    def reduce(pixels):
        return np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels

    def crop(pixels, border=0):
        return cv2.warpAffine(pixels, matrix, (size, size), flags=cv2.INTER_LINEAR, borderValue=border)

    if pixels.shape[2] == 3:
        return crop(reduce(pixels))
    # "RGBa" is RGBA whose colours are multiplied by alpha, so that they count as much as they show
    shown = crop(np.asarray(Image.fromarray(pixels).convert("RGBa").reduce(factor)))
    result = np.array(Image.frombytes("RGBa", (size, size), shown.tobytes()).convert("RGBA"))
    hidden = crop(reduce(np.float32(pixels[..., 3] < 255)), border=1) > 0
    result[..., 3] -= hidden & (result[..., 3] == 255)  # where alpha was rounded up
    return result


def turn_matrix(degrees, shape):
    """The 2x3 matrix that turns a photo of `shape` (H, W) counter-clockwise, and the (width, height) to hold it."""
    import cv2

    height, width = shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1).round(12)
    size = (np.abs(matrix[:, :2]) @ [width, height]).round().astype(int)
    matrix[:, 2] += (size - [width, height]) / 2
    return matrix, tuple(size.tolist())


def landmarks_by_hand(points, which, shape):
    """68 landmarks (68, 2) that have `points` (3, 2), pixels of a photo, where `affine` looks; the others are NaN.

    The first two may be given in either order: no face is mirrored. Raises UserError for points outside a photo of
    `shape` (H, W), and for such as no face has.
    """
    landmarks = np.full(TEMPLATE.shape, np.nan, np.float32)
    if np.min(points) < 0 or (np.max(points, 0) > np.array(shape[::-1])).any():
        raise cli.UserError(f"--points: lie outside of the photo's {shape[1]}x{shape[0]} pixels")
    sides = np.subtract(points[1:], points[0])
    area = np.linalg.det(sides)
    if abs(area) <= FLAT * (sides**2).sum():
        raise cli.UserError("--points: lie on one line; give the two at the eyes, then the lower one")
    landmarks[LANDMARKS[which]] = points if area > 0 else [points[1], points[0], points[2]]
    return landmarks


def bounds(matrix, size):
    """The dlib.rectangle of a photo that holds all of a crop of `size` pixels, by the crop's (2, 3) matrix."""
    import dlib

    corners = np.array([[0, 0], [0, size - 1], [size - 1, 0], [size - 1, size - 1]])
    places = np.linalg.solve(matrix[:, :2], (corners - matrix[:, 2]).T)
    return dlib.rectangle(*map(int, [*np.floor(places.min(1)), *np.ceil(places.max(1))]))
