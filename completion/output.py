"""What complete.py leaves of a search and its result: pictures, a film, logs, and a table of measures."""

from pathlib import Path

import cli

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import ops
import utils
from completion import metrics

LOSSES = "contextual", "perceptual", "total", "current"


def complete(completer, images, samples, batch_size, out_dir, log_dir):
    """Complete `inputs.Images` batch by batch, each `samples` times, and write what comes of it to `out_dir`.

    TensorBoard's record goes to `log_dir`. Returns the completed images of each sample, lists of uint8 (size, size, C),
    and a line that sums up how good they are. Raises UserError where something cannot be written.
    """
    blended, completed, rows, zs = completer.blending != "none", [[] for _ in range(samples)], [], []
    for start in range(0, len(images.paths), batch_size):
        batch = images.of(slice(start, start + batch_size))
        folder = f"batch_{start // batch_size:02d}" if len(images.paths) > batch_size else ""
        results = []
        for sample in range(samples):
            place = Path(folder, f"sample_{sample:02d}" if samples > 1 else "")
            with ops.memory_and_disk("--batchSize, --log_dir"):
                last = complete_batch(completer, batch, sample, out_dir / place, log_dir / place)
            write_summary(last, batch, out_dir / place, blended)
            rows += write_results(last, batch, out_dir, f"_{sample}" if samples > 1 else "", blended)
            results.append(last.result)
            zs.append(last.z)
            completed[sample] += list(utils.to_uint8(last.result))
        if samples > 1:
            views = {"masked": batch.holes.show(utils.to_float(batch.pixels))}
            views |= {f"sample {i}": result for i, result in enumerate(results)}
            utils.write_image(out_dir / folder / "samples.png", utils.labelled_rows(views))
    with utils.atomic_write(out_dir / "z.npy") as file:
        np.save(file, np.concatenate(zs))
    return completed, write_table(rows, out_dir, blended)


def complete_batch(completer, batch, sample, folder, log_dir):
    """Complete a batch, with a progress bar; returns the last state of the search."""
    with tqdm(unit="step", desc=folder.name, dynamic_ncols=True) as bar:

        def progress(done, total):
            bar.total = total
            bar.update(done - bar.n)

        states = completer.complete(utils.to_float(batch.pixels), batch.holes, sample, progress, batch.numbers)
        return write_search(states, batch, folder, log_dir, bar.set_postfix)


def write_search(states, batch, folder, log_dir, report=lambda losses: None):
    """Write what a search comes to: grids of the images, a film, a log for each image, and TensorBoard's record.

    states: what `Completer.complete` yields; batch: `inputs.Images`; folder, log_dir: where pictures, and where the
    record go. report: is called with the mean losses of each state. Returns the last state. Raises UserError where
    something cannot be written, or is there already.
    """
    images = utils.to_float(batch.pixels)
    for name in ("logs", "hats_imgs", "completed"):
        with utils.report_write_errors(folder / name):
            try:
                (folder / name).mkdir(parents=True)
            except FileExistsError as error:
                message = f"--outDir {folder}: another run writes there; choose another directory"
                raise cli.UserError(message) from error
    utils.write_image(folder / "before.png", utils.image_grid(images))
    frames = [utils.image_grid(batch.holes.show(images))]
    utils.write_image(folder / "masked.png", frames[0])
    with tf.summary.create_file_writer(str(log_dir)).as_default():
        for state in states:
            name = f"{state.iteration:04d}.png"
            frames.append(utils.image_grid(state.completed))
            utils.write_image(folder / "completed" / name, frames[-1])
            utils.write_image(folder / "hats_imgs" / name, utils.image_grid(state.generated))
            losses = {loss: getattr(state, loss) for loss in LOSSES}
            for number, *values in zip(batch.numbers, *losses.values(), strict=True):
                path = folder / "logs" / f"hats_{number:02d}.log"
                utils.append(path, " ".join(f"{value:.6g}" for value in (state.iteration, *values)) + "\n")
            for loss, values in losses.items():
                tf.summary.scalar(loss, values.mean(), state.iteration)
            tf.summary.image("completed", frames[-1][None], state.iteration)
            report({loss: f"{values.mean():.4g}" for loss, values in losses.items()})
    utils.write_film(folder / "completion.gif", [*frames, utils.image_grid(state.result)])
    return state


def write_summary(last, batch, folder, blended):
    """Write the images of a batch before and after, below each other: `blended` or plain."""
    images = utils.to_float(batch.pixels)
    views = {"original": images} if batch.holes.truth_known else {}
    views |= {"masked": batch.holes.show(images), "generated": last.generated, "composite": last.completed}
    views |= {"blended": last.result} if blended else {}
    utils.write_image(folder / "summary.png", utils.labelled_rows(views))


def write_results(last, batch, out_dir, suffix, blended):
    """Write each completed image, blended to `final` and as it is to `plain`; returns their rows of metrics.csv."""
    rows = []
    for folder in ("final", "plain"):
        with utils.report_write_errors(out_dir / folder):
            (out_dir / folder).mkdir(exist_ok=True)
    for i, (number, path, truth) in enumerate(zip(batch.numbers, batch.paths, batch.pixels, strict=True)):
        name = f"{number:04d}_{utils.shorten(Path(path).stem)}{suffix}"
        result, plain = utils.to_uint8(last.result[i]), utils.to_uint8(last.completed[i])
        utils.write_image(out_dir / "final" / f"{name}.png", result)
        utils.write_image(out_dir / "plain" / f"{name}.png", plain)
        row = {"image": name, **{loss: getattr(last, loss)[i] for loss in LOSSES[:3]}}
        if batch.holes.truth_known:
            hole = batch.holes.masks[i, ..., 0] == 0
            row |= metrics.compare("plain", plain, truth, hole)
            row |= metrics.compare("blended", result, truth, hole) if blended else {}
        rows.append(row)
    return rows


def write_table(rows, out_dir, blended):
    """Write metrics.csv; returns a line that sums it up."""
    means = metrics.write(out_dir / "metrics.csv", rows)
    result = "blended" if blended else "plain"
    quality = f"contextual loss {means['contextual']:.0f}"
    if f"{result}_psnr_hole" in means:
        psnr, ssim, sharpness = (means[f"{result}_{name}_hole"] for name in ("psnr", "ssim", "sharpness"))
        quality = f"in the hole PSNR {psnr:.2f} dB, SSIM {ssim:.3f}, sharpness {sharpness:.2f}"
    return f"{out_dir / 'final'}: {len(rows)} completed; mean {quality}; each in {out_dir / 'metrics.csv'}"
