"""How well whole photos with damaged faces are mended, beside OpenCV's inpainting and PatchMatch alone.

    python benchmarks/damaged_photos.py portraits/ more/ out

Draws some kinds of holes (`HOLES`) over the face of each photo of the folders, as mask images; lets `complete.py
--photo` fill them; and prints a Markdown table. Found: photos whose face was found under the hole. Placed: those whose
three landmarks lie on average (and each of them) within 0.1 of the distance between the eyes of where the undamaged
photo has them. PSNR in dB, SSIM and sharpness are of 8-bit pixels in the hole, at the photo's own resolution; identity
is the distance of dlib's face descriptors of the mended and the true photo; edge is how much larger than in the true
photo the differences across the hole's edge are (median over photos). All five are of the photos whose face was
found. What is drawn and mended goes to the new folder `out`.

Numbers do not say whether an owner would take a photo back. To rate that blindly, `out/sheets` has a picture of each
photo: undamaged and damaged above; below, in random order, A and B: mended by complete.py, and by Telea's inpainting.
`out/sheets/key.csv` says which of them is complete.py's.
"""

import argparse
import csv
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import dlib
import numpy as np

import utils
from completion import metrics, patchmatch
from photos import detection, filling, geometry, record

# the color of the damage where it is shown, R, G, B
HOLES = {
    "strokes": (250, 250, 245),
    "stain": (120, 80, 45),
    "lower third": (128, 128, 128),
    "half": (20, 20, 20),
    "fold": (245, 240, 230),
    "torn corner": (255, 255, 255),
    "text": (255, 220, 40),
    "stamp": (170, 30, 50),
}
METHODS = {
    "Telea, radius 3": lambda photo, hidden: cv2.inpaint(photo, hidden.astype(np.uint8), 3, cv2.INPAINT_TELEA),
    "Navier-Stokes, radius 3": lambda photo, hidden: cv2.inpaint(photo, hidden.astype(np.uint8), 3, cv2.INPAINT_NS),
    "PatchMatch": lambda photo, hidden: patchmatch.fill(photo, hidden, ~hidden),
}
THREE = geometry.LANDMARKS["innerEyesAndBottomLip"]


def draw(kind, shape, landmarks, rng):
    """A hole over the face, boolean of `shape` (H, W): in the box of its 68 landmarks (68, 2).

    Three strokes across it, 7 % of its width wide; a round stain of a fifth of it over one eye; its lower third; its
    left or right half; or one of `draw_damage`.
    """
    hidden = np.zeros(shape, np.uint8)
    corner, size = landmarks.min(0), np.ptp(landmarks, 0)

    def place(x, y):
        return tuple(int(v) for v in (corner + size * [x, y]).round())

    if kind == "strokes":
        for _ in range(3):
            a, b, c = rng.random(3)
            line = [place(-0.1, a), place(0.5, b), place(1.1, c)]
            if rng.random() < 0.5:
                line = [place(a, -0.1), place(b, 0.5), place(c, 1.1)]
            cv2.polylines(hidden, [np.int32(line)], False, 1, max(1, round(0.07 * size[0])))
    elif kind == "stain":
        eye = landmarks[36:42] if rng.random() < 0.5 else landmarks[42:48]
        cv2.circle(hidden, eye.mean(0).astype(int).tolist(), round((0.2 * size.prod() / np.pi) ** 0.5), 1, -1)
    elif kind == "lower third":
        cv2.rectangle(hidden, place(0, 2 / 3), place(1, 1), 1, -1)
    elif kind == "half":
        start = 0.5 * (rng.random() < 0.5)
        cv2.rectangle(hidden, place(start, 0), place(start + 0.5, 1), 1, -1)
    else:
        draw_damage(kind, hidden, place, size[0], rng)
    return hidden > 0


def draw_damage(kind, hidden, place, width, rng):
    """Draw damage that reaches beyond a face `width` pixels wide into uint8 (H, W).

    A fold through the face, from side to side of the photo; a lower corner torn off up to a cheek; lines of text all
    over the photo; or a stamp on a cheek, two rings and a word. place(x, y): pixels of a point of the face's box.
    """
    reach = sum(hidden.shape)
    ragged = 0.006 * width * rng.standard_normal(2 * reach).cumsum()
    ragged -= ragged[reach]
    y, x = np.indices(hidden.shape)
    if kind == "fold":
        (middle_x, middle_y), slope = place(0.5, rng.uniform(0.15, 0.9)), rng.uniform(-0.4, 0.4)
        distance = y - middle_y - slope * (x - middle_x) - ragged[x - middle_x + reach]
        hidden[np.abs(distance) < 0.03 * width] = 1
    elif kind == "torn corner":
        side = 1 if place(0.5, 0)[0] > hidden.shape[1] / 2 else -1  # of the photo, where less is torn off
        cheek_x, cheek_y = place(0.5 + 0.3 * side, rng.uniform(0.6, 0.8))
        right, down = side * (x - cheek_x), y - cheek_y
        hidden[right + down > ragged[np.clip(right - down, -reach, reach - 1) + reach]] = 1
    elif kind == "text":
        thickness = max(1, round(0.025 * width))
        for top in np.arange(0.45 * rng.random(), hidden.shape[0] / width, 0.45):
            start = int(-width * rng.random()), int(top * width)
            cv2.putText(hidden, "SAMPLE PHOTO " * 20, start, cv2.FONT_HERSHEY_SIMPLEX, 0.011 * width, 1, thickness)
    else:
        middle_x, middle_y = place(*rng.uniform([0.1, 0.5], 0.9))
        thickness = max(1, round(0.03 * width))
        for radius in (0.42, 0.3):
            cv2.circle(hidden, (middle_x, middle_y), round(radius * width), 1, thickness)
        start = round(middle_x - 0.24 * width), round(middle_y + 0.07 * width)
        cv2.putText(hidden, "PAID", start, cv2.FONT_HERSHEY_SIMPLEX, 0.0065 * width, 1, thickness)


def edge(photo, hidden):
    """The mean difference between neighbours of which one lies in the hole."""
    grey = photo.astype(float).mean(-1)
    differences = [np.abs(np.diff(grey, axis=axis))[np.diff(hidden, axis=axis)] for axis in (0, 1)]
    return np.concatenate(differences).mean()


def read_photos(folders):
    """The photos of which dlib finds the face, by path: uint8 pixels (H, W, 3), dlib's shape, landmarks (68, 2)."""
    detector = detection.FaceDetector.load()
    found = {}
    for path in [path for folder in folders for path in utils.find_images(folder)]:
        pixels = np.asarray(utils.open_image(path).convert("RGB"))
        if boxes := detector.find_faces(pixels):
            found[path] = pixels, detector.predictor(pixels, boxes[0]), detector.find_landmarks(pixels, boxes[0])
    return found


def mend(kind, truths, folder, args):
    """Draw a hole into each photo and fill it; returns dicts from path to what is hidden and to `record.Crop`."""
    (folder / "masks").mkdir(parents=True)
    hidden = {}
    for number, (path, (pixels, _, landmarks)) in enumerate(truths.items()):
        hidden[path] = draw(kind, pixels.shape[:2], landmarks, np.random.default_rng((number, 1)))
        utils.write_image(folder / f"masks/{path.stem}.png", hidden[path][..., None] * np.uint8(255))
    flags = ["--photo", "--maskDir", folder / "masks", "--outDir", folder / "mended", "--log_dir", folder / "logs"]
    flags += ["--grow", "0"]  # the masks are exact, and the photos undamaged
    flags += ["--checkpointDir", args.checkpointDir] if args.checkpointDir else []
    start = time.time()
    script = Path(__file__).resolve().parents[1] / "complete.py"
    subprocess.run([sys.executable, script, *args.inputs, *flags], check=True)
    print(f"{kind}: {time.time() - start:.0f} s", flush=True)
    rows = record.read_record(folder / "mended/aligned" / record.RECORD)
    found = {row["source"]: record.crop_of(row, folder) for (row,) in rows.values() if row["output"]}
    return hidden, {path: found[str(path.absolute())] for path in truths if str(path.absolute()) in found}


def misplaced(crop, landmarks):
    """How far the three landmarks of a crop are from where they should be, in distances between the eyes: (3,)."""
    wanted = crop.size * geometry.MINMAX_TEMPLATE[THREE] - crop.matrix[:, 2]
    places = np.linalg.solve(crop.matrix[:, :2], wanted.T).T
    eyes = np.linalg.norm(landmarks[36:42].mean(0) - landmarks[42:48].mean(0))
    return np.linalg.norm(places - landmarks[THREE], axis=1) / eyes


def scores(pixels, truth, hidden, shape, describe):
    """PSNR, SSIM, sharpness, identity and edge of a mended photo."""
    assert not (pixels != truth).any(-1)[~hidden].any()
    part = filling.surrounding(hidden, 16)
    triple = pixels[part], truth[part], hidden[part]
    values = [measure(*triple) for measure in (metrics.psnr, metrics.ssim, metrics.sharpness)]
    values.append(np.linalg.norm(describe(pixels, shape) - describe(truth, shape)))
    return [*values, edge(pixels, hidden) / edge(truth, hidden)]


def write_sheet(path, truth, hidden, color, ours, other, rng):
    """Write the picture by which a photo is rated; returns whether A or B, below on the left or right, is ours."""
    damaged = np.where(hidden[..., None], np.uint8(color), truth)
    letter = rng.choice(["A", "B"])
    below = [ours, other] if letter == "A" else [other, ours]
    utils.write_image(path, np.concatenate([np.concatenate(row, 1) for row in ([truth, damaged], below)]))
    return letter


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("inputs", nargs="+", help="folders of photos of one person each")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--checkpointDir", help="the model (as of complete.py)")
    parser.add_argument("--kinds", nargs="+", choices=HOLES, default=[*HOLES], help="holes to draw (all)")
    args = parser.parse_args()

    model = detection.find_predictor().with_name("dlib_face_recognition_resnet_model_v1.dat")
    network = dlib.face_recognition_model_v1(str(model))

    def describe(pixels, shape):
        return np.array(network.compute_face_descriptor(np.ascontiguousarray(pixels), shape))

    truths, ours = read_photos(args.inputs), "complete.py --photo"
    rows, key = {name: {} for name in ["found", "placed (each landmark)", *METHODS, ours]}, []
    (args.out / "sheets").mkdir(parents=True)
    for kind in args.kinds:
        folder = args.out / kind.replace(" ", "-")
        hidden, found = mend(kind, truths, folder, args)
        errors = np.array([misplaced(crop, truths[path][2]) for path, crop in found.items()])
        rows["found"][kind] = f"{len(errors)} of {len(truths)}"
        rows["placed (each landmark)"][kind] = f"{(errors.mean(1) < 0.1).sum()} ({(errors.max(1) < 0.1).sum()})"
        values = {name: [] for name in [*METHODS, ours]}
        for number, (path, (truth, shape, _)) in enumerate(truths.items()):
            mended = {name: method(truth, hidden[path]) for name, method in METHODS.items()}
            (result,) = folder.glob(f"mended/photos/{path.stem}.*")
            mended[ours] = np.asarray(utils.open_image(result).convert("RGB"))
            sheet = args.out / f"sheets/{folder.name}-{path.stem}.png"
            rng = np.random.default_rng((number, 2))
            pair = mended[ours], mended["Telea, radius 3"]
            key.append([sheet.name, write_sheet(sheet, truth, hidden[path], HOLES[kind], *pair, rng)])
            for name in mended if path in found else ():
                values[name].append(scores(mended[name], truth, hidden[path], shape, describe))
        for name, each in values.items():
            psnr, ssim, sharp, who = np.nanmean(each, 0)[:4]
            rows[name][kind] = f"{psnr:.2f} / {ssim:.3f} / {sharp:.2f} / {who:.3f} / {np.median(each, 0)[4]:.2f}"
    with open(args.out / "sheets/key.csv", "w", newline="") as file:
        csv.writer(file).writerows([["sheet", "complete.py"], *key])
    print("\nPSNR / SSIM / sharpness / identity / edge\n")
    table = [["", *args.kinds], ["---"] * (len(args.kinds) + 1), *([name, *row.values()] for name, row in rows.items())]
    for cells in table:
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
