"""How well holes in faces are filled: the DCGAN's completions beside simple baselines'.

    python benchmarks/holes.py --dataset data/mine/aligned --images data/test/aligned --checkpointDir checkpoints/mine

Prints a Markdown table of four numbers of 8-bit pixels inside the hole: PSNR in dB; SSIM; sharpness, 1 = as sharp as
the truth; and identity, the distance of dlib's face descriptors of the completed and the true face (0.6 and more are
usually two people). They are means over faces drawn from `--images`, aligned by align.py, which the training faces of
`--dataset` must not hold. Masks and searches are complete.py's own by default, for the faces in sorted order.
`--groups` adds a table of the PCA and the default for each group of faces, which share their file names up to the last
hyphen. The PCA takes minutes, and the search from candidates an hour without a GPU, if not left out by `--brief`.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import dlib
import numpy as np

import utils
from completion import compositing, masks, metrics, prior
from completion.completer import Completer
from photos import detection, geometry
from training.dataset import ImageFolder

MASKS = {"center": {}, "random": {"fraction": 0.8}, "left": {}}
RADIUS = 3  # pixels around the hole that Telea's method looks at
COMPONENTS = 1000
NOISE = 10, 10  # times the variance the components leave: the best of 1, 3, 10, 30, on 64 other faces
DETAILS = 0, 0.5, 0.75, 1
BATCH, SEED = 64, 0  # complete.py's defaults


def telea(images, holes):
    """OpenCV's inpainting (Telea 2004): extends the known pixels along the hole's edge inwards."""
    pairs = zip(utils.to_uint8(images), (holes.masks == 0).astype(np.uint8), strict=True)
    filled = [cv2.inpaint(*pair, RADIUS, cv2.INPAINT_TELEA).reshape(images.shape[1:]) for pair in pairs]
    return utils.to_float(filled)


def searched(completer, images, holes):
    """G(z) as complete.py finds them, batch by batch."""
    found = []
    for i in range(0, len(images), BATCH):
        part = slice(i, i + BATCH)
        *_, last = completer.complete(images[part], holes.of(part), numbers=range(len(images))[part])
        found.append(last.generated)
    return np.concatenate(found)


def completions(pca, completer, images, holes, brief):
    """Yield the name of each method that there is, and the images completed by it, the default last.

    `brief` leaves out the search from candidates, unless it is the default.
    """
    yield f"Telea's inpainting, radius {RADIUS}", telea(images, holes)
    mean = np.broadcast_to(pca.mean.reshape(images[0].shape), images.shape)
    yield "mean training face", compositing.blend(images, mean, holes.masks)
    probable = prior.gaussian_blend(images, images, holes.masks, pca, detail=0, noise=NOISE)
    yield f"PCA, {len(pca.variances):,} components", compositing.blend(images, probable, holes.masks)
    if not completer:
        return
    plain, poisson = (replace(completer, blending=blending) for blending in ("none", "poisson"))
    if not (completer.encoder and brief):
        generated = searched(replace(completer, encoder=None), images, holes)
        yield "candidates, --blend none", plain.blend(images, generated, holes)
        yield "candidates, --blend poisson", poisson.blend(images, generated, holes)
    if completer.encoder:
        generated = searched(replace(completer, settings={"iterations": 0}), images, holes)
        yield "encoder, --nIter 0 --blend poisson", poisson.blend(images, generated, holes)
        if completer.prior:
            yield "encoder, --nIter 0", completer.blend(images, generated, holes)
        generated = searched(completer, images, holes)
        yield "encoder, --blend poisson", poisson.blend(images, generated, holes)
    for detail in DETAILS if completer.prior else ():
        yield f"--detail {detail:g}", completer.blend(images, generated, holes, detail)
    if completer.prior:
        yield "the default", completer.blend(images, generated, holes)


def describer():
    """A function that makes dlib's face descriptors (N, 128) of aligned faces, uint8 (N, H, W, C).

    Where the landmarks are is known of aligned faces, so that a hole filled badly does not shift them.
    """
    model = detection.find_predictor().with_name("dlib_face_recognition_resnet_model_v1.dat")
    network = dlib.face_recognition_model_v1(str(model))
    points = [dlib.point(round(float(x)), round(float(y))) for x, y in 256 * geometry.MINMAX_TEMPLATE]
    landmarks = dlib.full_object_detection(dlib.rectangle(0, 0, 255, 255), points)

    def describe(images):
        large = [
            cv2.resize(np.repeat(x, 3 // x.shape[-1], -1), (256, 256), interpolation=cv2.INTER_CUBIC) for x in images
        ]
        return np.array([network.compute_face_descriptor(x, landmarks) for x in large])

    return describe


def scores(filled, truths, holes, describe, persons):
    """PSNR, SSIM, sharpness and identity of each image, (N, 4); `persons` are the descriptors of the true faces."""
    pixels = utils.to_uint8(filled)
    identity = np.linalg.norm(describe(pixels) - persons, axis=1)
    triples = zip(pixels, truths, holes.masks[..., 0] == 0, strict=True)
    rest = [[measure(*triple) for measure in (metrics.psnr, metrics.ssim, metrics.sharpness)] for triple in triples]
    return np.column_stack([rest, identity])


def print_table(rows):
    """Print a Markdown table; `rows` are dicts from a hole to the scores (N, 4) of images, by the row's name."""
    header = ["", *next(iter(rows.values()))]
    lines = [header, ["---"] * len(header)]
    for name, kinds in rows.items():
        cells = ["{:.2f} / {:.3f} / {:.2f} / {:.3f}".format(*np.nanmean(values, 0)) for values in kinds.values()]
        lines.append([name, *cells])
    for cells in lines:
        print(f"| {' | '.join(cells)} |")
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="training faces")
    parser.add_argument("--images", required=True, help="faces that were not trained on")
    parser.add_argument("--count", type=int, default=200, help="how many of those are drawn (%(default)s)")
    parser.add_argument("--checkpointDir", help="the model; without it only the baselines are measured")
    parser.add_argument("--brief", action="store_true", help="no search from candidates if there is an encoder")
    parser.add_argument("--groups", action="store_true", help="tell groups of faces apart")
    args = parser.parse_args()

    completer = Completer.load(args.checkpointDir, seed=SEED) if args.checkpointDir else None
    size, _, channels = completer.dcgan.image_shape if completer else (64, 64, 3)
    paths = utils.find_images(args.images)
    chosen = np.random.default_rng(0).choice(len(paths), min(args.count, len(paths)), replace=False)
    paths = [paths[i] for i in sorted(chosen)]
    truths = np.stack([utils.read_image(path, size, channels) for path in paths])
    pca = prior.fit(ImageFolder(args.dataset, size, channels, cache_mb=2**20).blocks, components=COMPONENTS)

    rows, describe = {}, describer()
    persons = describe(truths)
    for kind, options in MASKS.items():
        made = [masks.make(kind, size, seed=(SEED, number), **options) for number in range(len(truths))]
        holes, label = masks.holes(kind, made), " ".join([kind, *map(str, options.values())])
        for method, filled in completions(pca, completer, utils.to_float(truths), holes, args.brief):
            rows.setdefault(method, {})[label] = scores(filled, truths, holes, describe, persons)
    print(f"\nPSNR / SSIM / sharpness / identity of {len(truths)} faces\n")
    print_table(rows)
    if args.groups:
        names = np.array([path.stem.rpartition("-")[0] for path in paths])
        compared = [name for name in rows if name.startswith("PCA")] + list(rows)[-1:]
        print_table(
            {
                f"{group}, {method}": {kind: values[names == group] for kind, values in rows[method].items()}
                for group in sorted({*names})
                for method in compared
            }
        )


if __name__ == "__main__":
    main()
