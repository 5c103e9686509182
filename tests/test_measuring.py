"""The scripts that make the README's tables measure what they say."""

import re

import cv2
import numpy as np
import pytest
import skimage.metrics
from conftest import run

import blend
import checkpoint
import masks
import search
import utils


def table(done):
    """The rows of the Markdown table that a script printed, as {first cell: numbers}."""
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ")]
    return {name: [float(cell) for cell in cells] for name, *cells in rows if not re.search(r"[a-z-]", "".join(cells))}


def test_benchmark(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(4):
        utils.write_image(tmp_path / f"{i}.png", rng.integers(0, 256, (64, 64, 3), np.uint8))
    done = run("tests/benchmark.py", *"--blocks 2 --steps 1 --batch_size 2 --dataset".split(), tmp_path)
    rows = table(done)
    assert {"train(), float32", "step, float32", "step, mixed_bfloat16", "plain port to Keras, float32"} < rows.keys()
    limits = {name: rows[f"limit, {name}"][0] for name in ("float32", "bfloat16")}
    for name, (rate, relative, of_limit) in rows.items():
        for quotient, base in (
            (relative, rows["step, float32"][0]),
            (of_limit, limits["bfloat16" if "bfloat16" in name else "float32"]),
        ):  # of rates that are printed to a tenth, to a hundredth
            assert quotient == pytest.approx(rate / base, abs=0.006 + quotient * (0.05 / rate + 0.05 / base))


def test_baselines(tmp_path, tiny_dcgan):
    rng = np.random.default_rng(0)
    patterns = cv2.GaussianBlur(rng.normal(0, 200, (16, 16, 24)), (0, 0), 2).reshape(16, 16, 3, 8)
    faces = np.einsum("ni,hwci->nhwc", rng.normal(size=(43, 8)), patterns) + rng.normal(128, 5, (43, 16, 16, 3))
    faces = faces.clip(0, 255).astype(np.uint8)
    for i, face in enumerate(faces):
        path = tmp_path / ("training" if i < 40 else "test") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        utils.write_image(path, face)
    dcgan = tiny_dcgan()
    checkpoint.save(tmp_path / "model", dcgan.networks, {"step": 1}, {})
    checkpoint.write_config(tmp_path / "model", {"architecture": dcgan.architecture})
    flags = ["--dataset", tmp_path / "training", "--images", tmp_path / "test", "--checkpointDir", tmp_path / "model"]
    rows = table(run("tests/baselines.py", *flags))

    truths, training = faces[40:], faces[:40].reshape(40, -1) / 127.5 - 1
    images = utils.to_float(truths)
    mean = training.mean(0)
    _, spread, axes = np.linalg.svd(training - mean, full_matrices=False)
    variances, axes = spread[:20] ** 2 / 40, axes[:20]
    noise = 10 * (spread[20:] ** 2).sum() / 40 / (768 - 20)
    expected = {name: [] for name in rows}
    for kind, options in {"center": {}, "random": {"fraction": 0.8}, "left": {}}.items():
        holes = np.stack([masks.make(kind, 16, seed=(0, i), **options) for i in range(3)])
        *_, last = search.complete(dcgan, images, holes, range(3), seed=0)
        refined = search.refine(dcgan, images, holes, last.z, 10)
        pairs = {name: [] for name in rows}
        for i, (truth, image, hole) in enumerate(zip(truths, images, holes, strict=True)):
            known = np.broadcast_to(hole == 1, image.shape).ravel()
            seen = (axes.T * variances) @ axes[:, known]  # the covariance of all values with the known
            weights = np.linalg.solve(seen[known] + noise * np.eye(known.sum()), image.ravel()[known] - mean[known])
            filled = {
                "Telea's inpainting, radius 3": cv2.inpaint(truth, np.uint8(hole == 0), 3, cv2.INPAINT_TELEA) / 127.5
                - 1,
                "mean training face, blended": mean.reshape(image.shape),
                "PCA, 20 components, blended": (mean + seen @ weights).reshape(image.shape),
                "DCGAN, --blend none": last.generated[i],
                "DCGAN, the default": last.generated[i],
                "DCGAN, --refine 10": refined[i],
            }
            for name, fill in filled.items():
                if name not in ("Telea's inpainting, radius 3", "DCGAN, --blend none"):
                    fill = blend.poisson(image, np.float32(fill), hole)
                whole = utils.to_uint8(np.where(hole == 1, image, fill))
                pairs[name].append((whole, truth, hole[..., 0] == 0))
        for name, each in pairs.items():
            psnr = [skimage.metrics.peak_signal_noise_ratio(truth[hole], whole[hole]) for whole, truth, hole in each]
            ssim = [
                skimage.metrics.structural_similarity(
                    *pair, channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
                )[1][hole].mean()
                for *pair, hole in each
            ]
            expected[name] += [np.mean(psnr), np.mean(ssim)]
    assert len(rows) == 6
    for name, row in rows.items():
        assert row[::2] == pytest.approx(expected[name][::2], abs=0.02), name
        assert row[1::2] == pytest.approx(expected[name][1::2], abs=0.002), name
