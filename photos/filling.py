"""The hole of a photo, filled: from its completed faces, and beside them with the photo's own texture."""

import functools

import numpy as np
import scipy.ndimage

import utils
from completion import compositing, patchmatch
from photos import geometry, reading, symmetry

MARGIN = 128  # pixels of a photo that are looked at around its hole; half the hole's longer side where that is more
SQUARE, CLEAN = 8, 0.7  # pixels of a side, grey levels: where grain is measured, and what is too little to see
SQUARES, TILE = 2**14, 1024  # how many are looked at; pixels of a side, after which drawn grain is repeated

# 64ths of a crop: how far known pixels go on into a hole, below which size they have texture, how far a face reaches
# beyond its outline and then fades, and how far from known pixels the photo's other side is taken, in a hole how deep
REACH, TEXTURE, BEYOND, FADE, NEAR, DEEP = 2, 0.6, 2, 3, 5, 18
PHOTO = 192  # of these, the longer side of a photo without a face
GAIN = 1.08  # of the texture's detail near known pixels, as the mean of two shapes is smoother than either

# in crops: the outline of a head, an ellipse, that of neck and body, and where brows reach, also beyond the crop
ANGLES = np.linspace(0, 2 * np.pi, 64)
HEAD = [0.5, 0.2] + [0.85, 1.15] * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1)
BODY = np.array([[0.15, 0.95], [0.85, 0.95], [1.1, 1.3], [1.3, 1.7], [1.3, 5], [-0.3, 5], [-0.3, 1.7], [-0.1, 1.3]])
BROWS = np.array([[0, -0.16], [1, -0.16], [1, 0.15], [0, 0.15]])


def into_photo(
    photo, hidden, crops, matrices, seed=0, void=None, texture=None, at_once=patchmatch.HOLE, refiner=None,
    check=lambda *_: None, predictor=None,
):  # fmt: skip
    """Fill the hole of a whole photo from its completed faces, and what lies beside them by PatchMatch.

    photo: uint8 (H, W, C); what it holds where boolean (H, W) `hidden` is ignored, and nothing else changes. void: the
    same of what is transparent and stays so. crops: completed faces, uint8 (size, size, C) each; matrices: (2, 3), from
    photo to crop pixels (x, y, 1). A pixel comes from the face in whose middle it lies most. Each is enlarged to the
    photo's resolution, joined without a seam (`harmonic`), and keeps the tone of what is known of it (`one_tone`).
    Beyond its outline it fades into what is `copied`; near known pixels these go on (`continued`), further in a face
    has grain (by `seed`). Returns the photo, how many hidden pixels lie in no crop, and what was copied: a `texture`
    for other crops. For the rest see `patchmatch.fill`, `refined` and `placed`.
    """
    import cv2

    result = photo.copy()
    if not hidden.any():
        return result, 0, texture
    part, all_known = around(hidden), ~hidden if void is None else ~(hidden | void)
    photo, hidden, known = photo[part].copy(), hidden[part], all_known[part]
    noise, done = grain(photo, ~known, seed), known.copy()
    y, x = np.nonzero(hidden)
    filled, inside = photo[hidden].astype(np.float64), np.zeros((len(x), 1))
    distance = cv2.distanceTransform(hidden.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[hidden]
    matrices = [matrix @ geometry.resize_matrix(1, (part[1].start, part[0].start)) for matrix in matrices]
    seen = seen_in_crops(photo, known, matrices, [len(crop) for crop in crops])
    if refiner and crops:
        crops, matrices = refined(photo, known, crops, matrices, refiner)
    units = [len(crop) / 64 * geometry.pixels_of_photo(matrix) for crop, matrix in zip(crops, matrices, strict=True)]
    unit = min(units, default=max(all_known.shape) / PHOTO)
    near = np.clip(2 - distance[:, None] / (REACH * unit), 0, 1)
    owners = owner_of_pixels(hidden, matrices, [len(crop) for crop in crops])
    for number, (crop, matrix) in enumerate(zip(crops, matrices, strict=True)):
        if not (owners == number).any():
            continue
        box = surrounding(owners == number, 1)  # one more, as that is what the face is joined to
        own, mine = owners[box] == number, owners[hidden] == number
        start = part[1].start + box[1].start, part[0].start + box[0].start
        matrix = matrix @ geometry.resize_matrix(1, (box[1].start, box[0].start))
        face, depth = placed(crop, matrix, own.shape, start, result, all_known, predictor)
        error = np.where(done[box][..., None], photo[box] - face, 0.0)
        face += compositing.harmonic(error, own, done[box], check=check)
        filled[mine] = 127.5 * compositing.one_tone(seen[number] / 127.5 - 1, face[own] / 127.5 - 1) + 127.5
        inside[mine] = utils.smoothstep((depth[own] + BEYOND) / FADE)
        done[box] |= own
        photo[hidden] = utils.to_bytes(filled)
    if texture is None:
        unsure = np.zeros_like(hidden)
        unsure[hidden] = ((inside < 1) | (near > 0))[:, 0]
        texture = copied(photo, unsure, known | (hidden & ~unsure), matrices, crops, at_once, check)
        texture = with_brows(texture, hidden, owners, part, result, all_known, crops, matrices, predictor, check)
    photo[hidden] = utils.to_bytes(inside * filled + (1 - inside) * texture[hidden])
    weight = np.zeros((*hidden.shape, 1), np.float32)
    weight[hidden] = near
    check()
    filled = continued(photo, texture, weight, known | hidden, unit)[hidden]
    filled += np.sqrt(1 - near**2) * inside * noise[y % len(noise), x % noise.shape[1]]
    result[part][hidden] = utils.to_bytes(filled)
    return result, int((owners < 0)[hidden].sum()), texture


def placed(crop, matrix, shape, start, photo, known, predictor):
    """A crop, and its `outline`, where it lies in the part of a photo of `shape` (H, W) at `start` (x, y).

    matrix: (2, 3), from the part's pixels to the crop's. predictor: if given, by which it gets the detail that the
    other side of the face shows where boolean (H, W) `known`, see `symmetry.detail`.
    """
    face, depth = (enlarged(values, matrix, shape) for values in (crop, outline(len(crop))))
    if predictor:
        to_crop = matrix @ geometry.resize_matrix(1, np.negative(start))
        face += symmetry.detail(face, photo, known, crop, to_crop, start, predictor)
    return face, depth


def seen_in_crops(photo, known, matrices, sizes):
    """What is `known`, boolean (H, W), of a photo where each of some crops lies in it: a list of uint8 (N, C)."""
    rgba = reading.with_alpha(photo, np.where(known, 255, 0)) if matrices else None
    crops = [geometry.warp(rgba, matrix, size) for matrix, size in zip(matrices, sizes, strict=True)]
    return [crop[crop[..., 3] == 255][:, : photo.shape[2]] for crop in crops]


def refined(photo, known, crops, matrices, refiner):
    """Completed crops at twice the size, and their matrices, where `known`, boolean (H, W), of a photo guides it."""
    size, channels = 2 * len(crops[0]), photo.shape[2]
    matrices = [(geometry.resize_matrix(2) @ [*matrix, [0, 0, 1]])[:2] for matrix in matrices]
    rgba = reading.with_alpha(photo, np.where(known, 255, 0))
    larger = np.stack([geometry.warp(rgba, matrix, size) for matrix in matrices])
    images, masks = larger[..., : refiner.c_dim], larger[..., 3:] == 255
    completed = np.broadcast_to(crops, (*np.shape(crops)[:3], refiner.c_dim))
    drawn = refiner.refine(*map(utils.to_float, (completed, images)), masks)
    if channels < refiner.c_dim:
        drawn = drawn.mean(-1, keepdims=True)
    return list(utils.to_uint8(drawn)), matrices


@functools.cache
def outline(size):
    """How deep in the face each pixel of a crop lies, in 64ths of it, below 0 beside it: float32 (size, size, 1).

    The outline is the mean face's jaw, and the crop's border.
    """
    import cv2

    jaw = size * geometry.MINMAX_TEMPLATE[:17]
    open_above = np.concatenate([jaw, [[jaw[-1, 0], -size], [jaw[0, 0], -size]]]).astype(np.float32)
    depth = [[cv2.pointPolygonTest(open_above, (x, y), True) for x in range(size)] for y in range(size)]
    y, x = np.indices((size, size)) + 0.5
    border = np.minimum(np.minimum(x, size - x), np.minimum(y, size - y))
    return (np.minimum(depth, border - BEYOND * size / 64) * 64 / size)[..., None].astype(np.float32)


def pixels_within(shape, matrices, crops, outline):
    """Which pixels of a photo of `shape` (H, W) lie within an outline (N, 2), in crops, of any face: boolean (H, W)."""
    import cv2

    drawn = np.zeros(shape, np.uint8)
    for matrix, crop in zip(matrices, crops, strict=True):
        corners = np.linalg.solve(matrix[:, :2], (len(crop) * outline - matrix[:, 2]).T).T
        cv2.fillPoly(drawn, [corners.round().astype(np.int32)], 1)
    return drawn > 0


def copied(photo, hidden, known, matrices, crops, at_once=patchmatch.HOLE, check=lambda *_: None):
    """A photo whose `hidden` part is filled by PatchMatch, see there, but heads and bodies each from their like.

    Otherwise a second face may grow in a missing shoulder, and the sea show through it. Each of them has to show a
    hundredth of what is missing there, else all of the photo is copied from. Of a hole that is deep, such as a torn
    corner, beside a single face, all but the rim is first taken from the photo's other side, as shoulders are alike.
    """
    import cv2

    heads, bodies = (pixels_within(hidden.shape, matrices, crops, each) for each in (HEAD, BODY))
    if len(crops) == 1:
        unit = len(crops[0]) / 64 * geometry.pixels_of_photo(matrices[0])
        distance = cv2.distanceTransform((~known).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE) / unit
        deep = hidden & scipy.ndimage.binary_propagation(distance > DEEP, mask=distance > NEAR)
        for part in (heads, ~heads) if deep.any() else ():
            mirrored, shown = symmetry.mirrored(photo, known & part, len(crops[0]), matrices[0])
            shown &= deep & part
            photo = np.where(shown[..., None], mirrored, photo)
            hidden, known = hidden & ~shown, known | shown
    for part in (bodies & ~heads, ~heads, bodies):
        missing, rest = hidden & part, known & part
        if 100 * rest.sum() > missing.sum() > 0:
            photo = patchmatch.fill(photo, missing, rest, at_once, check)
            hidden, known = hidden & ~missing, known | missing
    return patchmatch.fill(photo, hidden, known, at_once, check)


def with_brows(filled, hidden, owners, part, photo, known, crops, matrices, predictor, check=lambda *_: None):
    """A filled part of a photo, uint8 (h, w, C), where brows go on above the crops of faces whose other brow is seen.

    Where that part is `hidden`, boolean (h, w), and no other face's (`owner_of_pixels`), it gets the detail of the
    face's other side around the brows, which fades to what is around (`compositing.harmonic`). part: its slices in the
    photo; matrices: (2, 3), from its pixels to those of the crops. Without a predictor it stays as it is. For the rest
    see `symmetry.detail`.
    """
    result, corner = filled.copy(), (part[1].start, part[0].start)
    seen = hidden | known[part]
    for number, (crop, matrix) in enumerate(zip(crops, matrices, strict=True) if predictor else ()):
        own = hidden & np.isin(owners, (-1, number)) & pixels_within(hidden.shape, [matrix], [crop], BROWS)
        if not (own & (owners < 0)).any():
            continue
        box = surrounding(own, 1)
        start, own, rest = np.add(corner, (box[1].start, box[0].start)), own[box], seen[box]
        face = compositing.harmonic(result[box].astype(np.float64), ~rest, rest, check=check)  # what is transparent
        to_crop = matrix @ geometry.resize_matrix(1, np.negative(corner))
        added = symmetry.detail(face, photo, known, crop, to_crop, start, predictor)
        added += compositing.harmonic(np.where(own[..., None], 0.0, -added), own, rest & ~own, check=check)
        result[box] = utils.to_bytes(result[box] + added)
    return result


def continued(photo, texture, weight, valid, unit):
    """A filled photo (H, W, C) into which the pixels around go on, by a weight in [0, 1], (H, W, 1): float32.

    Shapes are there the mean of what the photo is filled with and of what goes on smoothly (`going_on`) from pixels
    whose weight is 0, if they are `valid`, boolean (H, W). Detail is `GAIN` times that of `texture`, (H, W, C). unit:
    pixels of the photo for a 64th of a crop.
    """
    photo, near = photo.astype(np.float32), weight > 0
    shapes = (photo + going_on(photo, near[..., 0], valid & ~near[..., 0], TEXTURE * unit)) / 2
    error = np.where(near, texture - shapes, 0)
    detail = GAIN * (error - smoothed(error, near, TEXTURE * unit))
    return photo + weight * (shapes + detail - photo)


def going_on(values, unknown, known, sigma):
    """`compositing.biharmonic`, float32 (H, W, C), of which only what a Gaussian of `sigma` leaves counts.

    values: float32 (H, W, C), which are returned where nothing known can be reached; the masks are boolean (H, W). At
    most about `compositing.EXACT` pixels are solved for.
    """
    import cv2

    shrink = max(1, int(sigma / 2), int(np.ceil((unknown.sum() / compositing.EXACT) ** 0.5)))
    size = [-(-side // shrink) for side in known.shape[::-1]]
    layers = np.float32(known), np.float32(unknown), np.where(known[..., None], values, 0)
    shares, inner, sums = (cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in layers)
    del layers
    means = sums.reshape(*shares.shape, -1) / np.where(shares > 0, shares, 1)[..., None]
    small = compositing.biharmonic(means, (inner > 0) & (shares == 0), shares > 0)
    reached = scipy.ndimage.binary_propagation(shares > 0, mask=shares + inner > 0)[..., None]
    large = cv2.resize(np.concatenate([small * reached, reached], 2).astype(np.float32), known.shape[::-1])
    return np.where(large[..., -1:] > 0.01, large[..., :-1] / np.maximum(large[..., -1:], 0.01), values)


def smoothed(values, where, sigma):
    """float32 (H, W, C) after heat has flown for as long as a Gaussian of `sigma` takes; it is 0 outside of `where`."""
    import cv2

    shrink = max(1, int(sigma / 2))  # what is left is as smooth
    size = [-(-side // shrink) for side in values.shape[1::-1]]
    inner, small = (cv2.resize(x.astype(np.float32), size, interpolation=cv2.INTER_AREA) for x in (where, values))
    for _ in range(16):
        small = inner[..., None] * cv2.GaussianBlur(small, (0, 0), sigma / shrink / 4).reshape(*inner.shape, -1)
    return where * cv2.resize(small, values.shape[1::-1]).reshape(values.shape)


def around(hidden):
    """The part of a photo in which `into_photo` works, around its hole: slices."""
    longer = max(side.stop - side.start for side in surrounding(hidden, 0))
    return surrounding(hidden, max(MARGIN, longer // 2))


def surrounding(hidden, margin):
    """The slices of the smallest rectangle that holds all of boolean (H, W) `hidden` and `margin` pixels around it."""
    spans = [np.flatnonzero(hidden.any(axis)) for axis in (1, 0)]
    return tuple(slice(max(0, int(span[0]) - margin), int(span[-1]) + 1 + margin) for span in spans)


def owner_of_pixels(hidden, matrices, sizes):
    """Which face each hidden pixel is filled from, (H, W): a number, or -1 where none reaches."""
    y, x = np.nonzero(hidden)
    owner, nearest = np.full(len(x), -1), np.full(len(x), 1.0)
    for number, (matrix, size) in enumerate(zip(matrices, sizes, strict=True)):
        places = matrix[:, :2] @ np.stack([x, y]) + matrix[:, 2:]
        distance = np.abs((places + 0.5) / size - 0.5).max(0) * 2  # 1 at the crop's border
        owner[distance < nearest] = number
        nearest = np.minimum(nearest, distance)
    owners = np.full(hidden.shape, -1)
    owners[y, x] = owner
    return owners


def enlarged(crop, matrix, shape):
    """A crop (size, size, C) where it lies in a photo of `shape` (H, W): float64 (H, W, C), repeated at its borders."""
    import cv2

    shrink = abs(np.linalg.det(matrix[:, :2])) ** 0.5  # crop pixels for each of the photo's
    crop = crop.astype(np.float32)
    if shrink > 1:
        crop = scipy.ndimage.gaussian_filter(crop, (shrink / 2, shrink / 2, 0))
    options = dict(flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
    return cv2.warpAffine(crop, matrix, shape[::-1], **options).reshape(*shape, -1).astype(np.float64)


def grain(photo, hidden, seed):
    """Noise like that of a photo around its hole: float64 (H, W, C), zeros where the photo is clean.

    It is to be repeated: no side is longer than `TILE`, and that of a clean photo is one pixel. What is beyond a curve
    of light is measured in squares of 8 x 8 known pixels; the flattest quarter of them shows noise and little else.
    Noise of that strength, and as alike between neighbours and channels, is drawn.
    """
    height, width = (side // SQUARE for side in hidden.shape)
    blocks = np.s_[: height * SQUARE, : width * SQUARE]
    whole = ~hidden[blocks].reshape(height, SQUARE, width, SQUARE).any((1, 3))
    rows, columns = np.nonzero(whole)
    rows, columns = (each[:: 1 + len(rows) // SQUARES] for each in (rows, columns))
    squares = photo[blocks].reshape(height, SQUARE, width, SQUARE, photo.shape[2])[rows, :, columns]
    squares = squares[((squares > 2) & (squares < 253)).all((1, 2, 3))].astype(np.float64)
    if len(squares) < 4:
        return np.zeros((1, 1, photo.shape[2]))
    y, x = np.indices((SQUARE, SQUARE)).reshape(2, -1)
    curves = np.linalg.qr(np.stack([x**0, x, y, x * x, x * y, y * y], 1).astype(np.float64))[0]
    noise = squares.reshape(len(squares), -1, photo.shape[2])
    noise = noise - curves @ (curves.T @ noise)
    strengths = (noise**2).mean((1, 2))
    noise = noise[strengths <= np.quantile(strengths, 0.25)]
    covariance = np.einsum("npc,npd->cd", noise, noise) / len(noise) / (SQUARE**2 - 6)
    if np.trace(covariance) / len(covariance) < CLEAN**2:
        return np.zeros((1, 1, photo.shape[2]))
    noise = noise.reshape(-1, SQUARE, SQUARE, photo.shape[2])
    alike = [(noise[:, 1:] * noise[:, :-1]).mean(), (noise[:, :, 1:] * noise[:, :, :-1]).mean()]
    alike = np.clip(np.mean(alike) / (noise**2).mean(), 0, 0.6)  # of neighbours; those of white noise are not
    side = (1 - np.sqrt(1 - 2 * alike**2)) / (2 * alike) if alike > 1e-3 else 0  # [side, 1, side] makes it so
    drawn = np.random.default_rng(seed).standard_normal((*np.minimum(hidden.shape, TILE), photo.shape[2]))
    for axis in (0, 1):
        drawn = scipy.ndimage.convolve1d(drawn, np.array([side, 1, side]) / np.sqrt(1 + 2 * side**2), axis)
    return drawn @ np.linalg.cholesky(covariance + 1e-9 * np.eye(len(covariance))).T
