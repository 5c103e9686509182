"""What is missing of a photo, copied from the rest of it: PatchMatch (Barnes et al. 2009)."""

import numpy as np

import utils
from completion import compositing

RADIUS = 3  # pixels around one that PatchMatch compares
HOLE, WHOLE = 100000, 2**19  # pixels, hidden and all, up to which it works at the photo's own resolution
LARGE, QUICK = 2**22, 20000  # pixels of what is large, and is to take but seconds, too, and hidden ones at once there
SIDE, DIRECTIONS = 3, 8  # of patches: their pixels, and their principal components that are compared for detail


def fill(pixels, hidden, known, at_once=HOLE, check=lambda *_: None):
    """Fill what is `hidden`, boolean (H, W), of uint8 (H, W, 1 or 3) with what it shows where `known`, boolean (H, W).

    What `pixels` holds elsewhere is ignored; what is neither stays as it is. Where more than `at_once` pixels are
    hidden, or the photo is large, it is filled at a lower resolution, and then gets the detail of what looks most
    alike. Equal inputs give equal results. check: see `compositing.harmonic`; it is called before each of these.
    """
    import cv2

    check()
    at_once = min(at_once, QUICK) if hidden.size > LARGE else at_once
    shrink = int(np.ceil(max(hidden.sum() / at_once, hidden.size / WHOLE) ** 0.5))
    if shrink < 2:
        return fill_at_once(pixels, hidden, known)
    padding = [(0, -side % shrink) for side in hidden.shape]
    shown = np.pad(np.where(known[..., None], pixels, np.uint8(0)), [*padding, (0, 0)])
    share, gone = (np.pad(x.astype(np.float32), padding) for x in (known, hidden))
    size = share.shape[1] // shrink, share.shape[0] // shrink
    share, gone, small = (cv2.resize(x, size, interpolation=cv2.INTER_AREA) for x in (share, gone, shown))
    small = small.reshape(*share.shape, -1) / np.maximum(share, 1e-6)[..., None]
    small = fill_at_once(utils.to_bytes(small), (share < 0.5) & (gone > 0), share >= 0.5)
    check()
    large = with_detail(small, shown, share, gone, shrink)
    return np.where(hidden[..., None], large[: hidden.shape[0], : hidden.shape[1]], pixels)


def fill_at_once(pixels, hidden, known):
    """`fill` at the photo's own resolution; where no patch is whole there is nothing to copy, so smoothly."""
    import cv2
    import patchmatch

    if not hidden.any() or not known.any():
        return pixels
    side = 2 * RADIUS + 1
    whole = cv2.erode(known.astype(np.uint8), np.ones((side, side)), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    if whole.any():
        rgb = np.broadcast_to(np.where(known[..., None], pixels, np.uint8(0)), (*hidden.shape, 3))
        filled = patchmatch.inpaint(rgb, hidden, global_mask=~(hidden | known), patch_size=RADIUS)
    else:
        filled = utils.to_bytes(compositing.harmonic(pixels.astype(np.float64), hidden, known))
    return np.where(hidden[..., None], filled[..., : pixels.shape[2]], pixels)


def with_detail(small, shown, share, gone, shrink):
    """Enlarge uint8 (h, w, C) by `shrink`; blocks with a hole get the detail of blocks that are all known: uint8.

    shown: the known part of the photo, uint8 (H, W, C); share, gone: (h, w), how much of each of its blocks is known,
    and hidden. Detail is the difference between the photo and what is enlarged; it comes from the middle of the patch
    that is most like that in `small`.
    """
    import cv2
    import scipy.spatial

    large = cv2.resize(small, shown.shape[1::-1]).reshape(shown.shape)
    whole, rest = np.flatnonzero(share > 1 - 1e-6), np.flatnonzero(gone)
    if not len(whole):
        return large
    patches = np.pad(small.astype(np.float32), [(SIDE // 2, SIDE // 2)] * 2 + [(0, 0)], mode="edge")
    patches = np.lib.stride_tricks.sliding_window_view(patches, (SIDE, SIDE), (0, 1)).reshape(share.size, -1)
    axes = np.linalg.svd(patches[whole[:: len(whole) // 4096 + 1]], full_matrices=False)[2][:DIRECTIONS].T
    tree = scipy.spatial.cKDTree(patches[whole] @ axes)
    points, places = np.unique(patches[rest] @ axes, axis=0, return_inverse=True)  # on a plain ground most are equal
    alike = whole[tree.query(points, eps=1)[1][places.ravel()]]
    large_blocks, shown_blocks = (x.reshape(len(share), shrink, -1, shrink, x.shape[2]) for x in (large, shown))
    (y, x), (alike_y, alike_x) = (np.unravel_index(each, share.shape) for each in (rest, alike))
    detail = shown_blocks[alike_y, :, alike_x].astype(np.int16) - large_blocks[alike_y, :, alike_x]
    large_blocks[y, :, x] = np.clip(large_blocks[y, :, x] + detail, 0, 255)
    return large
