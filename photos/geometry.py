"""From photo to crop and back: the mean face, the affine map to it, and how pixels follow that map."""

import cli

import numpy as np
from PIL import Image

# where the 68 landmarks (iBUG's order) lie in the mean face: published data of OpenFace (align_dlib.py, Carnegie
# Mellon University, Apache-2.0, https://github.com/cmusatyalab/openface)
TEMPLATE = np.array(
    """
    0.0792396913815 0.339223741112  0.0829219487236 0.456955367943  0.0967927109165 0.575648016728
    0.122141515615 0.691921601066   0.168687863544 0.800341263616   0.239789390707 0.895732504778
    0.325662452515 0.977068762493   0.422318282013 1.04329000149    0.531777802068 1.06080371126
    0.641296298053 1.03981924107    0.738105872266 0.972268833998   0.824444363295 0.889624082279
    0.894792677532 0.792494155836   0.939395486253 0.681546643421   0.96111933829 0.562238253072
    0.970579841181 0.441758925744   0.971193274221 0.322118743967   0.163846223133 0.249151738053
    0.21780354657 0.204255863861    0.291299351124 0.192367318323   0.367460241458 0.203582210627
    0.4392945113 0.233135599851     0.586445962425 0.228141644834   0.660152671635 0.195923841854
    0.737466449096 0.182360984545   0.813236546239 0.192828009114   0.8707571886 0.235293377042
    0.51534533827 0.31863546193     0.516221448289 0.396200446263   0.517118861835 0.473797687758
    0.51816430343 0.553157797772    0.433701156035 0.604054457668   0.475501237769 0.62076344024
    0.520712933176 0.634268222208   0.565874114041 0.618796581487   0.607054002672 0.60157671656
    0.252418718401 0.331052263829   0.298663015648 0.302646354002   0.355749724218 0.303020650651
    0.403718978315 0.33867711083    0.352507175597 0.349987615384   0.296791759886 0.350478978225
    0.631326076346 0.334136672344   0.679073381078 0.29645404267    0.73597236153 0.294721285802
    0.782865376271 0.321305281656   0.740312274764 0.341849376713   0.68499850091 0.343734332172
    0.353167761422 0.746189164237   0.414587777921 0.719053835073   0.477677654595 0.706835892494
    0.522732900812 0.717092275768   0.569832064287 0.705414478982   0.635195811927 0.71565572516
    0.69951672331 0.739419187253    0.639447159575 0.805236879972   0.576410514055 0.835436670169
    0.525398405766 0.841706377792   0.47641545769 0.837505914975    0.41379548902 0.810045601727
    0.380084785646 0.749979603086   0.477955996282 0.74513234612    0.523389793327 0.748924302636
    0.571057789237 0.74332894691    0.672409137852 0.744177032192   0.572539621444 0.776609286626
    0.5240106503 0.783370783245     0.477561227414 0.778476346951
    """.split(),
    np.float32,  # as OpenFace has it: the crops are to be bitwise identical
).reshape(68, 2)


MINMAX_TEMPLATE = (TEMPLATE - TEMPLATE.min(0)) / (TEMPLATE.max(0) - TEMPLATE.min(0))


LANDMARKS = {"innerEyesAndBottomLip": [39, 42, 57], "outerEyesAndNose": [36, 45, 33]}


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


def warp(pixels, matrix, size):
    """Crop uint8 (H, W, 3 or 4), RGB or RGBA, by a 2x3 matrix from photo to crop pixels: uint8 (size, size, 3 or 4).

    Bilinear, as OpenFace does it; where that would skip pixels, as the map shrinks the photo by more than two, the
    photo is averaged down first. Outside the photo an RGB crop is black, an RGBA one transparent. A transparent pixel
    gives no colour to any other, and a pixel of the crop is opaque only if all that contribute to it are.
    """
    import cv2

    shrink = abs(cv2.determinant(matrix[:, :2])) ** -0.5
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


def landmarks_by_hand(points, which, shape):
    """68 landmarks (68, 2) that have `points` (3, 2), pixels of a photo, where `affine` looks; the others are NaN.

    Raises UserError for points outside a photo of `shape` (H, W), and for such as no face has.
    """
    landmarks = np.full(TEMPLATE.shape, np.nan, np.float32)
    landmarks[LANDMARKS[which]] = points
    if np.min(points) < 0 or (np.max(points, 0) > np.array(shape[::-1])).any():
        raise cli.UserError(f"--points: lie outside of the photo's {shape[1]}x{shape[0]} pixels")
    turn = np.linalg.det(np.subtract(points[1:], points[0]))
    if turn <= 0:
        raise cli.UserError(
            "--points: give the point on the left of the picture first, then the right one, then the lower"
        )
    return landmarks


def bounds(matrix, size):
    """The dlib.rectangle of a photo that holds all of a crop of `size` pixels, by the crop's (2, 3) matrix."""
    import dlib

    corners = np.array([[0, 0], [0, size - 1], [size - 1, 0], [size - 1, size - 1]])
    places = np.linalg.solve(matrix[:, :2], (corners - matrix[:, 2]).T)
    return dlib.rectangle(*map(int, [*np.floor(places.min(1)), *np.ceil(places.max(1))]))
