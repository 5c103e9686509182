"""The kinds of run: what a step of each is given, what it shows, and how what it learned is measured."""

import itertools

import numpy as np
import tensorflow as tf
from tqdm import tqdm

import checkpoint
import ops
import utils
from completion import masks
from completion.refiner import enlarge
from training import completions, quality
from training.loop import Run

EVALUATED_IMAGES, EVALUATED_PIXELS = 2048, 2**25  # at most, so that large images fit into memory


class GANRun(Run):
    """A run that trains a DCGAN; its samples are compared with real images."""

    LOSSES = "d_loss", "d_loss_real", "d_loss_fake", "g_loss"
    SHOWN = "d_loss", "g_loss"
    HISTOGRAMS = "z", "d", "d_"

    def __init__(self, dcgan, images, **options):
        """As `Run`; what the weights of a new run come from is kept with them."""
        super().__init__(dcgan, images, **options)
        self.config["pretrained_steps"] = dcgan.pretrained_steps

    def restore(self):
        """As `Run.restore`."""
        self.model.pretrained_steps = checkpoint.read_config(self.directory).get("pretrained_steps", 0)
        return super().restore()

    def inputs(self, batch):
        """The images, and a z for each."""
        z = ops.random_z((self.batch_size, self.model.z_dim), self.seed, "batch z", self.model.step)
        return {"images": batch, "z": self.team.share(z)}

    def write_as_chief(self, due, bar, stop):
        """As `Run.write_as_chief`; the moving average needs statistics of its own before it is sampled."""
        if due.samples or due.evaluation:
            self.model.recalibrate_batchnorm()
        return super().write_as_chief(due, bar, stop)

    def samples(self):
        """An 8x8 grid of G(z), of the same z each time, by the inference generator."""
        z = ops.random_z((64, self.model.z_dim), self.seed, "samples")
        return "G", utils.image_grid(self.model.inference_generator(z, training=False))

    def measure(self, stop):
        """Compare each generator's samples with images; see `Run.evaluate`: the inference generator's swd decides.

        swd: sliced Wasserstein distance, its mean over all levels; ms_ssim: how alike the samples are.
        """
        step, (real, z) = self.model.step, self.evaluation_set()
        generators = {name: net for name, net in self.model.networks.items() if name != "discriminator"}
        for name, network in generators.items():
            generated = utils.to_uint8(self.model.draw(z, network))
            distances = {}
            for side, distance in quality.sliced_wasserstein(real, generated):
                if stop:
                    return None
                distances[side] = distance
                tf.summary.scalar(f"swd/{name}_{side}", distance, step)
            swd, ms_ssim = float(np.mean(list(distances.values()))), quality.mean_ms_ssim(generated)
            tf.summary.scalar(f"swd/{name}", swd, step)
            tf.summary.scalar(f"ms_ssim/{name}", ms_ssim, step)
            levels = ", ".join(f"{side}: {distance:.1f}" for side, distance in distances.items())
            tqdm.write(f"step {step}, {name}: swd {swd:.2f} ({levels}), ms_ssim {ms_ssim:.3f}")
        return "swd", swd, {"swd": f"{swd:.2f}", "ms_ssim": f"{ms_ssim:.3f}"}

    def evaluation_set(self):
        """The images, uint8 (N, H, W, C), and z (N, z_dim) that are compared: the same each time."""
        count = min(EVALUATED_IMAGES, EVALUATED_PIXELS // self.model.image_size**2, len(self.images))
        chosen = ops.rng(self.seed, "evaluated images").choice(len(self.images), count, replace=False)
        z = ops.random_z((count, self.model.z_dim), self.seed, "evaluated z")
        return np.stack([self.images.read(i) for i in chosen]), z


class EncoderRun(Run):
    """A run that trains an encoder for one generator; it is evaluated on held-out images."""

    LOSSES = "e_loss", "e_loss_all", "e_loss_hole"
    SHOWN = "e_loss", "e_loss_hole"
    FALLING = True

    def __init__(self, encoder, images, held_out, name, **options):
        """As `Run`; `held_out` are images, uint8 (N, H, W, C), to evaluate on; `name` is that of its samples."""
        self.fingerprint = encoder.dcgan.fingerprint()
        self.held_out = utils.to_float(held_out)
        draws = ops.rng(options["seed"], "evaluated masks")
        drawn = (masks.draw(encoder.dcgan.image_size, draws) for _ in itertools.count())
        holes = (hole for hole in drawn if hole[0] != "full")  # which hides nothing
        self.holes = list(itertools.islice(holes, len(held_out)))
        super().__init__(encoder, images, **options)
        self.name = name
        self.config["fingerprint"] = self.fingerprint

    def restore(self):
        """As `Run.restore`; but of an encoder for another generator read the weights alone, and return False."""
        numbers = checkpoint.restore(self.directory, self.model.networks, ("fingerprint",))
        if numbers["fingerprint"] == self.fingerprint:
            return super().restore()
        tqdm.write(f"{self.directory}: is for another generator; a new run starts from its weights")
        return False

    def inputs(self, batch):
        """The images, the masked images and their masks; each hole is drawn anew in each step."""
        draws = ops.rng(self.seed, "masks", self.model.step)
        holes = [masks.draw(self.model.dcgan.image_size, draws) for _ in range(self.batch_size)]
        masked_images, drawn_masks = masks.mask_each(np.asarray(batch), self.team.share(holes))
        return {"images": batch, "masked": masked_images, "masks": drawn_masks}

    def numbers(self):
        """As `Run.numbers`, with the generator's fingerprint."""
        return super().numbers() | {"fingerprint": self.fingerprint}

    def samples(self):
        """Completions of 16 of the held-out images."""
        images = self.held_out[:16]
        masked, known = masks.mask_each(images, self.holes[:16])
        completed = np.where(known > 0, masked, self.model.dcgan.draw(self.model.guess(masked, known)))
        return "completed", utils.labelled_rows({"original": images, "known": masked, "completed": completed})

    def measure(self, stop):
        """Mean |G(E) - y| in the holes of the held-out images, in grey levels; see `Run.evaluate`."""
        errors = {}
        for i in range(0, len(self.held_out), 64):
            if stop:
                return None
            images, holes = self.held_out[i : i + 64], self.holes[i : i + 64]
            _, losses = self.model.losses(images, *masks.mask_each(images, holes), training=False)
            for (kind, _), loss in zip(holes, losses.numpy() * 127.5, strict=True):
                errors.setdefault(kind, []).append(loss)
        means = {kind: float(np.mean(values)) for kind, values in sorted(errors.items())}
        hole = float(np.mean(np.concatenate(list(errors.values()))))
        for name, value in {"hole": hole, **means}.items():
            tf.summary.scalar(f"error/{name}", value, self.model.step)
        kinds = ", ".join(f"{kind}: {value:.1f}" for kind, value in means.items())
        text = f"off by {hole:.2f} grey levels in the holes of {len(self.held_out)} images ({kinds})"
        tqdm.write(f"step {self.model.step}: {text}")
        return "hole", hole, {"hole": f"{hole:.2f}"}


class RefinerRun(Run):
    """A run that trains a refiner on `completions.CompletedFaces`; it is evaluated on held-out ones."""

    LOSSES = "r_loss", "r_loss_l1", "r_loss_features", "d_loss", "completed_l1"
    SHOWN = "r_loss_l1", "d_loss"
    FALLING = True

    def __init__(self, refiner, images, held_out, name, **options):
        """As `Run`; `held_out` are faces to evaluate on, uint8 as they are read; `name` is that of its samples."""
        self.held_out = held_out
        super().__init__(refiner, images, **options)
        self.name = name

    def inputs(self, batch):
        """The faces, the completed faces and the masks."""
        return completions.split(np.asarray(batch))

    def refined(self, held_out):
        """Faces of those held out, what is known of them, enlarged and refined: uint8 (N, 2 S, 2 S, C) each."""
        parts = completions.split(utils.to_float(held_out))
        images, known = parts["images"], parts["masks"]
        enlarged = enlarge(parts["completed"], self.model.size)
        drawn = self.model.refine(parts["completed"], images, known)
        views = images, images * known, *(np.where(known > 0, images, each) for each in (enlarged, drawn))
        return [utils.to_uint8(view) for view in views]

    def samples(self):
        """What is made of 16 of the held-out faces."""
        names = "original", "known", "completed", "refined"
        views = map(utils.to_float, self.refined(self.held_out[:16]))
        return "refined", utils.labelled_rows(dict(zip(names, views, strict=True)))

    def measure(self, stop):
        """Compare refined with true faces; see `Run.evaluate`: the sliced Wasserstein distance decides."""
        parts = []
        for i in range(0, len(self.held_out), 64):
            if stop:
                return None
            parts.append(self.refined(self.held_out[i : i + 64]))
        true, _, *views = map(np.concatenate, zip(*parts, strict=True))
        values = {}
        for name, view in zip(("completed", "refined"), views, strict=True):
            values[name] = float(np.mean([distance for _, distance in quality.sliced_wasserstein(true, view)]))
            tf.summary.scalar(f"swd/{name}", values[name], self.model.step)
        tqdm.write(f"step {self.model.step}: swd {values['refined']:.2f} (enlarged: {values['completed']:.2f})")
        return "swd", values["refined"], {"swd": f"{values['refined']:.2f}"}
