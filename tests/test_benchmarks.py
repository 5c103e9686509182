"""What makes the tables of measurements measures what they say."""

import importlib.util
import re
from functools import partial
from pathlib import Path

import cv2
import damaged_photos
import dlib
import holes as script
import numpy as np
import pytest
import skimage.metrics
import speed
from conftest import TINY

import checkpoint
import utils
from completion import compositing, masks, prior, search
from completion.completer import Completer
from completion.encoder import Encoder
from photos.geometry import MINMAX_TEMPLATE


@pytest.fixture
def table(monkeypatch, capsys):
    """A function that runs a benchmark, and returns the rows of its Markdown table, as {first cell: numbers}."""

    def table(module, *flags):
        monkeypatch.setattr("sys.argv", [f"{module.__name__}.py", *map(str, flags)])
        module.main()
        lines = [line for line in capsys.readouterr().out.splitlines() if line[:2] == "| "]
        rows = [line.strip("| ").replace(" / ", " | ").split(" | ") for line in lines]
        return {name: list(map(float, cells)) for name, *cells in rows if not re.search(r"[a-z-]", "".join(cells))}

    return table


@pytest.mark.slow
def test_speed(tmp_path, monkeypatch, table, two_replicas):
    rng = np.random.default_rng(0)
    for i in range(4):
        utils.write_image(tmp_path / f"{i}.png", rng.integers(0, 256, (64, 64, 3), np.uint8))
    monkeypatch.setattr(speed, "ARCHITECTURE", TINY | dict(image_size=64, z_dim=100, ema=0.9))
    # one strategy for all tests of a process, see `two_replicas`
    monkeypatch.setattr(speed.tf.distribute, "MirroredStrategy", lambda devices: two_replicas)
    monkeypatch.setattr(speed, "limit", partial(speed.limit, size=1024, count=1))
    rows = table(speed, *"--blocks 2 --steps 1 --batch_size 2 --dataset".split(), tmp_path)
    assert {"train(), float32", "step, float32", "step, mixed_bfloat16", "plain port to Keras, float32"} < rows.keys()
    limits = {name: rows[f"limit, {name}"][0] for name in ("float32", "bfloat16")}
    for name, (rate, relative, of_limit) in rows.items():
        for quotient, base in (
            (relative, rows["step, float32"][0]),
            (of_limit, limits["bfloat16" if "bfloat16" in name else "float32"]),
        ):  # of rates that are printed to a tenth, to a hundredth
            assert quotient == pytest.approx(rate / base, abs=0.006 + quotient * (0.05 / rate + 0.05 / base))


def blocks(images):
    """Stands for face descriptors, which take long: the means of blocks of pixels."""
    return utils.to_float(images).reshape(-1, 2, 8, 2, 8, 3).mean((2, 4)).reshape(-1, 12)


@pytest.mark.slow
def test_filled_holes(tmp_path, monkeypatch, table, tiny):
    rng = np.random.default_rng(0)
    patterns = cv2.GaussianBlur(rng.normal(0, 200, (16, 16, 24)), (0, 0), 2).reshape(16, 16, 3, 8)
    faces = np.einsum("ni,hwci->nhwc", rng.normal(size=(43, 8)), patterns) + rng.normal(128, 5, (43, 16, 16, 3))
    faces = faces.clip(0, 255).astype(np.uint8)
    for i, face in enumerate(faces):
        path = tmp_path / ("training" if i < 40 else "test") / f"group{i % 2}-{i}.png"
        path.parent.mkdir(exist_ok=True)
        utils.write_image(path, face)
    completer = tiny_completer(tmp_path / "model", tiny, faces[:40])
    flags = ["--dataset", tmp_path / "training", "--images", tmp_path / "test", "--checkpointDir", tmp_path / "model"]
    monkeypatch.setattr(script, "describer", lambda: blocks)
    rows = table(script, *flags, "--groups")

    truths, expected = faces[[40, 42, 41]], {}  # in the order of their names
    for kind, options in {"center": {}, "random": {"fraction": 0.8}, "left": {}}.items():
        holes = np.stack([masks.make(kind, 16, seed=(0, i), **options) for i in range(3)])
        filled = completed(truths, holes, kind, faces[:40], completer)
        for name, results in filled.items():
            images = np.where(holes == 1, truths, utils.to_uint8(results))
            each = [measured(x, truth, hole[..., 0] == 0) for x, truth, hole in zip(images, truths, holes, strict=True)]
            expected.setdefault(name, []).extend(np.mean(each, 0))
            if name in ("PCA, 20 components", "the default"):
                expected.setdefault(f"group0, {name}", []).extend(np.mean(each[:2], 0))
                expected.setdefault(f"group1, {name}", []).extend(each[2])
    assert set(rows) == set(expected) and len(rows) == 17
    brief = table(script, *flags, "--brief")
    assert brief == {name: row for name, row in rows.items() if not name.startswith(("group", "candidates"))}
    for name, row in rows.items():
        for column, tolerance in enumerate((0.02, 0.002, 0.01, 0.01)):
            assert row[column::4] == pytest.approx(expected[name][column::4], abs=tolerance), name


@pytest.mark.parametrize("seed", range(5))
def test_damage_beyond_the_face(seed):
    """A fold parts the photo, a torn corner takes one of the lower two, text is everywhere, a stamp is an island."""
    landmarks = 120 + 80 * MINMAX_TEMPLATE.astype(np.float32)
    kinds = ("fold", "torn corner", "text", "stamp")
    fold, torn, text, stamp = (
        damaged_photos.draw(kind, (320, 300), landmarks, np.random.default_rng(seed)) for kind in kinds
    )
    assert fold.any(0).all() and not fold[0].any() and not fold[-1].any()
    assert cv2.connectedComponents(np.uint8(~fold), connectivity=4)[0] == 3
    assert torn[-1, -1] and not torn[-1, 0] and not torn[0].any()  # the face is right of the photo's middle
    assert 0 < torn[120:200, 120:200].mean() < 0.5
    blocks = text[:300].reshape(5, 60, 5, 60).mean((1, 3))
    assert 0.1 < blocks.min() and blocks.max() < 0.6
    border = np.concatenate([stamp[0], stamp[:, 0], stamp[:, -1]])
    assert 0 < stamp[120:200, 120:200].mean() < 0.4 and not border.any()


def test_a_sheet_to_rate(tmp_path):
    truth, ours, other = (np.full((4, 6, 3), value, np.uint8) for value in (10, 20, 30))
    hidden = np.arange(24).reshape(4, 6) < 8
    for seed in range(4):
        path = tmp_path / f"{seed}.png"
        letter = damaged_photos.write_sheet(path, truth, hidden, (1, 2, 3), ours, other, np.random.default_rng(seed))
        above, below = np.asarray(utils.open_image(path)).reshape(2, 4, 2, 6, 3).swapaxes(1, 2)
        np.testing.assert_array_equal(above[0], truth)
        np.testing.assert_array_equal(above[1], np.where(hidden[..., None], np.uint8([1, 2, 3]), truth))
        assert (below["AB".index(letter)] == 20).all() and (below["BA".index(letter)] == 30).all()


def test_face_descriptors():
    """Those of dlib's other way, which cuts the face out itself."""
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    folder = Path(importlib.util.find_spec("face_recognition_models").submodule_search_locations[0])
    network = dlib.face_recognition_model_v1(str(folder / "models/dlib_face_recognition_resnet_model_v1.dat"))
    points = [dlib.point(*map(int, np.round(point))) for point in 256 * MINMAX_TEMPLATE]
    landmarks = dlib.full_object_detection(dlib.rectangle(0, 0, 255, 255), points)
    for image, found in zip(images, script.describer()(images), strict=True):
        large = cv2.resize(image, (256, 256), interpolation=cv2.INTER_CUBIC)
        chip = dlib.get_face_chip(large, landmarks, 150, 0.25)
        np.testing.assert_allclose(found, network.compute_face_descriptor(chip), atol=0.01)


def completed(truths, holes, kind, training, completer):
    """What each row of the table is about: truths completed by each method, a dict."""
    dcgan, encoder = completer.dcgan, completer.encoder
    images, known = utils.to_float(truths), masks.holes(kind, holes).masked(utils.to_float(truths))
    *_, last = search.complete(dcgan, images, holes, range(3), seed=0)
    start = encoder.guess(*known)
    *_, found = search.complete(dcgan, images, holes, range(3), seed=0, start=start)
    mean, pca = dense_pca(images, holes, utils.to_float(training).reshape(40, -1).astype(float))
    fills = {
        "mean training face": mean,
        "PCA, 20 components": pca,
        "candidates, --blend poisson": last.generated,
        "encoder, --nIter 0 --blend poisson": dcgan.draw(start),
        "encoder, --blend poisson": found.generated,
    }
    mended = {
        "encoder, --nIter 0": prior.gaussian_blend(images, dcgan.draw(start), holes, completer.prior),
        "the default": prior.gaussian_blend(images, found.generated, holes, completer.prior),
    }
    for detail in (0, 0.5, 0.75, 1):
        mended[f"--detail {detail}"] = prior.gaussian_blend(images, found.generated, holes, completer.prior, detail)
    for name, fill in mended.items():
        fills[name] = [compositing.kriging(*triple) for triple in zip(images, fill, holes, strict=True)]
    filled = {}
    for name, fill in fills.items():
        filled[name] = [compositing.poisson(*triple) for triple in zip(images, np.float32(fill), holes, strict=True)]
    filled["candidates, --blend none"] = last.generated
    pairs = zip(truths, holes, strict=True)
    telea = [cv2.inpaint(truth, np.uint8(hole == 0), 3, cv2.INPAINT_TELEA) for truth, hole in pairs]
    return filled | {"Telea's inpainting, radius 3": utils.to_float(telea)}


def dense_pca(images, holes, training):
    """The mean of training images, and the images completed by 20 of their principal components, all written out."""
    mean = training.mean(0)
    _, spread, axes = np.linalg.svd(training - mean, full_matrices=False)
    variances, axes = spread[:20] ** 2 / 40, axes[:20]
    noise = 10 * (spread[20:] ** 2).sum() / 40 / (768 - 20)
    pca = []
    for image, hole in zip(images, holes, strict=True):
        known = np.broadcast_to(hole == 1, image.shape).ravel()
        seen = (axes.T * variances) @ axes[:, known]  # the covariance of all values with the known
        weights = np.linalg.solve(seen[known] + noise * np.eye(known.sum()), image.ravel()[known] - mean[known])
        pca.append((mean + seen @ weights).reshape(image.shape))
    return np.broadcast_to(mean.reshape(images[0].shape), images.shape), np.array(pca)


def tiny_completer(directory, dcgan, faces):
    """What completes with a model in a new directory, its encoder, of random weights, and the prior of some faces."""
    checkpoint.save(directory, dcgan.networks, {"step": 1}, {})
    checkpoint.write_config(directory, {"architecture": dcgan.architecture})
    prior.save(directory, prior.fit(lambda: [utils.to_float(faces)]))
    Encoder(dcgan).export(directory)
    return Completer.load(directory)


def measured(image, truth, hole):
    """PSNR, SSIM, sharpness and identity, by scikit-image and a loop."""
    psnr = skimage.metrics.peak_signal_noise_ratio(truth[hole], image[hole])
    options = dict(channel_axis=-1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)
    ssim = skimage.metrics.structural_similarity(image, truth, **options)[1][hole].mean()
    differences = np.zeros(2)
    for k, x in enumerate((image, truth)):
        grey = x @ [0.299, 0.587, 0.114]
        for y, x in np.argwhere(hole):
            for j, i in ((y + 1, x), (y, x + 1)):
                if max(j, i) < len(hole) and hole[j, i]:
                    differences[k] += abs(grey[y, x] - grey[j, i])
    identity = np.linalg.norm(np.subtract(*blocks(np.stack([image, truth]))))
    return psnr, ssim, differences[0] / differences[1], identity
