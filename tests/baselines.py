"""How well holes in faces are filled: the DCGAN's completions beside three simple baselines'.

    python tests/baselines.py --dataset data/mine/aligned --images data/test/aligned --checkpointDir checkpoints/mine

Prints a Markdown table of PSNR in dB and SSIM of 8-bit pixels inside the hole, the means over faces drawn from
`--images`, which the training faces of `--dataset` must not hold. The masks and searches are complete.py's own by
default, for the faces in sorted order. "Blended" is blend.poisson. The baselines are OpenCV's inpainting, the
mean of the training faces, and their PCA; they take minutes and 4 GB of memory, the DCGAN an hour without a GPU.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import scipy.linalg
from tqdm import tqdm

import blend
import masks
import metrics
import search
import utils
from dataset import ImageFolder
from model import DCGAN

MASKS = {"center": {}, "random": {"fraction": 0.8}, "left": {}}
RADIUS = 3  # pixels around the hole that Telea's method looks at
COMPONENTS = 1000
NOISE = 10  # times the variance the components leave, which is not white: the best of 1, 3, 10, 30, on 64 other faces
BATCH, SEED = 64, 0  # complete.py's defaults


def telea(image, mask):
    """OpenCV's inpainting (Telea 2004): extends the known pixels along the hole's edge inwards."""
    filled = cv2.inpaint(utils.to_uint8(image), (mask == 0).astype(np.uint8), RADIUS, cv2.INPAINT_TELEA)
    return utils.to_float(filled.reshape(image.shape))


def fit_pca(faces, components):
    """PCA of uint8 images: their mean (D,), axes (D, K), the variances along these (K,), and the mean of the others."""
    faces = faces.reshape(len(faces), -1)
    mean = (faces.mean(0) / 127.5 - 1).astype(np.float32)
    covariance = np.zeros((mean.size, mean.size), np.float32)
    for start in tqdm(range(0, len(faces), 2048), "covariance", leave=False):
        block = utils.to_float(faces[start : start + 2048]) - mean
        covariance += block.T @ block / len(faces)
    # randomized subspace iteration (Halko et al. 2011, algorithm 4.4), as an exact eigh takes far longer
    axes = np.random.default_rng(0).normal(size=(mean.size, components + 100)).astype(np.float32)
    for _ in tqdm(range(3), "PCA", leave=False):
        axes, _ = np.linalg.qr(covariance @ axes)
    variances, rotation = np.linalg.eigh(axes.T @ covariance @ axes)
    axes, variances = axes @ rotation[:, -components:], variances[-components:]
    return mean, axes, variances, (covariance.trace() - variances.sum()) / (mean.size - components)


def fill_pca(images, batch_masks, mean, axes, variances, rest):
    """The images mean + axes a, with the a that is expected given the known pixels.

    The posterior mean under Gaussian a and noise (Tipping and Bishop 1999), or least squares with a ridge.
    """
    filled, last = [], None
    for image, mask in zip(images, batch_masks, strict=True):
        known = np.broadcast_to(mask > 0, image.shape).ravel()
        if not np.array_equal(known, last):
            seen, last = axes[known], known
            factor = scipy.linalg.cho_factor(seen.T @ seen + np.diag(NOISE * rest / variances))
        a = scipy.linalg.cho_solve(factor, seen.T @ (image.ravel()[known] - mean[known]))
        filled.append((mean + axes @ a).reshape(image.shape))
    return np.stack(filled)


def fill_dcgan(dcgan, images, batch_masks):
    """G(z) as complete.py finds it by default, and the same with --refine 10."""
    plain, refined = [], []
    for start in range(0, len(images), BATCH):
        numbers = range(len(images))[start : start + BATCH]
        batch = images[start : start + BATCH], batch_masks[start : start + BATCH]
        *_, last = search.complete(dcgan, *batch, numbers, seed=SEED)
        plain.append(last.generated)
        refined.append(search.refine(dcgan, *batch, last.z, 10))
    return np.concatenate(plain), np.concatenate(refined)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="training faces")
    parser.add_argument("--images", required=True, help="faces that were not trained on")
    parser.add_argument("--count", type=int, default=200, help="how many of those are drawn (%(default)s)")
    parser.add_argument("--checkpointDir", help="the model; without it only the baselines are measured")
    args = parser.parse_args()

    dcgan = DCGAN.load(args.checkpointDir) if args.checkpointDir else None
    size, channels = (dcgan.image_size, dcgan.c_dim) if dcgan else (64, 3)
    paths = utils.find_images(args.images)
    chosen = np.random.default_rng(0).choice(len(paths), min(args.count, len(paths)), replace=False)
    truths = np.stack([utils.read_image(paths[i], size, channels) for i in sorted(chosen)])
    images = utils.to_float(truths)
    faces = ImageFolder(args.dataset, size, channels, cache_mb=2**20).images
    pca = fit_pca(faces, components := min(COMPONENTS, len(faces) // 2))

    rows = {}
    for kind, options in MASKS.items():
        numbers = range(len(images))
        batch_masks = np.stack([masks.make(kind, size, seed=(SEED, number), **options) for number in numbers])

        def blended(fills, batch_masks=batch_masks):
            return map(blend.poisson, images, fills, batch_masks)

        mean = np.broadcast_to(pca[0].reshape(images[0].shape), images.shape)
        results = {
            f"Telea's inpainting, radius {RADIUS}": map(telea, images, batch_masks),
            "mean training face, blended": blended(mean),
            f"PCA, {components:,} components, blended": blended(fill_pca(images, batch_masks, *pca)),
        }
        if dcgan:
            plain, refined = fill_dcgan(dcgan, images, batch_masks)
            results["DCGAN, --blend none"] = search.composite(images, batch_masks, plain).numpy()
            results["DCGAN, the default"] = blended(plain)
            results["DCGAN, --refine 10"] = blended(refined)
        for method, filled in results.items():
            pairs = zip(map(utils.to_uint8, filled), truths, batch_masks[..., 0] == 0, strict=True)
            scores = np.mean([(metrics.psnr(*pair), metrics.ssim(*pair)) for pair in pairs], 0)
            rows.setdefault(method, [method]).extend(f"{score:.{2 + i}f}" for i, score in enumerate(scores))

    kinds = [" ".join([kind, *map(str, options.values())]) for kind, options in MASKS.items()]
    header = [f"{len(images)} faces", *(f"{kind}: {name}" for kind in kinds for name in ("PSNR", "SSIM"))]
    for cells in (header, ["---"] * len(header), *rows.values()):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
