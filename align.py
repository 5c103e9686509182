#!/usr/bin/env python3
"""Turn photos into aligned faces: find the face, and map its eyes and mouth to where every crop has them.

./align.py data/mine/raw data/mine/aligned
./align.py holiday.jpg friends/ faces --faces all --size 128
"""

import argparse
import collections
import concurrent.futures
import csv
import functools
import importlib.util
import itertools
import multiprocessing
import os
import re
import signal
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

import utils

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
    np.float32,  # as OpenFace has it: the crops are to be the same to the last bit
).reshape(68, 2)
MINMAX_TEMPLATE = (TEMPLATE - TEMPLATE.min(0)) / (TEMPLATE.max(0) - TEMPLATE.min(0))

LANDMARKS = {"innerEyesAndBottomLip": [39, 42, 57], "outerEyesAndNose": [36, 45, 33]}
BOX = ["left", "top", "right", "bottom"]
MATRIX = ["m00", "m01", "m02", "m10", "m11", "m12"]
SETTINGS = ["size", "faces", "landmarks"]
COLUMNS = ["source", "output", "status", "face", *BOX, *MATRIX, *SETTINGS]


def find_predictor():
    """The path of dlib's 68-point predictor in the installed face_recognition_models, which is not imported.

    Importing it needs pkg_resources, which newer Pythons lack. Raises UserError if it is not installed.
    """
    spec = importlib.util.find_spec("face_recognition_models")
    if spec is None:
        raise utils.UserError("the face predictor is missing: pip install face_recognition_models, or use --predictor")
    return Path(spec.submodule_search_locations[0]) / "models" / "shape_predictor_68_face_landmarks.dat"


@functools.cache
def load_models(predictor):
    """dlib's frontal face detector and the 68-point predictor in the file `predictor`, as (detector, predictor).

    Raises UserError, saying how to get a good one, if that file is missing, damaged or another kind of model.
    """
    import dlib

    try:
        model = dlib.shape_predictor(str(predictor))
        if model(np.zeros((8, 8), np.uint8), dlib.rectangle(0, 0, 7, 7)).num_parts != len(TEMPLATE):
            raise RuntimeError(f"it does not have {len(TEMPLATE)} points")
    except RuntimeError as error:
        why = str(error).splitlines()[0]
        raise utils.UserError(
            f"--predictor {predictor}: not a 68-point predictor of dlib's ({why}); "
            "pip install --force-reinstall face_recognition_models brings a good one"
        ) from error
    return dlib.get_frontal_face_detector(), model


def find_faces(pixels, detector, faces="largest", upsample=1):
    """The boxes (dlib.rectangle, photo pixels, right and bottom included) of the faces in uint8 RGB (H, W, 3).

    "largest" gives at most one, and doubles the photo, up to `upsample` times, only while nothing is found: faster,
    and with fewer false faces. "only" and "all" double it at once, and give every face, the surest first.
    """
    pixels = np.ascontiguousarray(pixels)  # of a strided array dlib reads whatever is in memory
    for times in range(upsample + 1) if faces == "largest" else [upsample]:
        if boxes := list(detector(pixels, times)):
            return [max(boxes, key=lambda box: box.area())] if faces == "largest" else boxes
    return []


def find_landmarks(pixels, box, predictor):
    """The 68 landmarks of the face in `box`, as float32 (68, 2) x, y in pixels of the photo."""
    points = predictor(np.ascontiguousarray(pixels), box).parts()
    return np.float32([(point.x, point.y) for point in points])


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


def warp(pixels, matrix, size):
    """Crop uint8 (H, W, 3 or 4), RGB or RGBA, by a 2x3 matrix from photo to crop pixels: uint8 (size, size, 3 or 4).

    Bilinear, as OpenFace does it; where that would skip pixels, as the map shrinks the photo by more than two, the
    photo is averaged down first. Outside the photo an RGB crop is black, an RGBA one transparent. A transparent pixel
    gives no colour to any other, and a pixel of the crop is opaque only if all that contribute to it are.
    """
    import cv2

    shrink = abs(cv2.determinant(matrix[:, :2])) ** -0.5
    factor = int(shrink) if shrink > 2 else 1
    # pixel i of the reduced photo has its centre at factor * i + (factor - 1) / 2 of the photo
    enlarge = np.array([[factor, 0, (factor - 1) / 2], [0, factor, (factor - 1) / 2], [0, 0, 1]])

    def reduce(pixels):
        return np.asarray(Image.fromarray(pixels).reduce(factor)) if factor > 1 else pixels

    def crop(pixels, border=0):
        return cv2.warpAffine(pixels, matrix @ enlarge, (size, size), flags=cv2.INTER_LINEAR, borderValue=border)

    if pixels.shape[2] == 3:
        return crop(reduce(pixels))
    # "RGBa" is RGBA whose colours are multiplied by alpha, so that they count as much as they show
    shown = crop(np.asarray(Image.fromarray(pixels).convert("RGBa").reduce(factor)))
    result = np.array(Image.frombytes("RGBa", (size, size), shown.tobytes()).convert("RGBA"))
    hidden = crop(reduce(np.float32(pixels[..., 3] < 255)), border=1) > 0
    result[..., 3] -= hidden & (result[..., 3] == 255)  # where alpha was rounded up
    return result


def align_photo(photo, detector, predictor, size=64, landmarks="innerEyesAndBottomLip", faces="largest", upsample=1):
    """Find the faces in a Pillow image and crop each: a list of (box, matrix, crop), see the functions above.

    Crops are RGB, or RGBA if any of the photo is transparent. With `faces` "only" several are all returned.
    """
    layers = None
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        if photo.getextrema()[3][0] < 255:
            layers = np.asarray(photo)
    pixels = np.asarray(utils.flatten(photo, "grey").convert("RGB"))
    results = []
    for box in find_faces(pixels, detector, faces, upsample):
        matrix = affine(find_landmarks(pixels, box, predictor), size, landmarks)
        results.append((box, matrix, warp(pixels if layers is None else layers, matrix, size)))
    return results


def align_file(source, stem, args, models):
    """Align one file and write its crops as drafts (OUTPUT/STEM.png.draft); returns its rows of the record.

    Raises UserError if OUTPUT cannot be written.
    """
    try:
        photo = utils.open_image(source)
        results = align_photo(photo, *models, args.size, args.landmarks, args.faces, args.upsample)
    except utils.UserError as error:
        return failure(source, args, f"unreadable: {error.__cause__}")
    except Exception as error:  # one odd photo, such as one too large for the memory, must not end the run
        return failure(source, args, f"unreadable: {type(error).__name__} {error}")
    if not results:
        return failure(source, args, "no face")
    if args.faces == "only" and len(results) > 1:
        return failure(source, args, "several faces")
    rows = []
    for number, (box, matrix, crop) in enumerate(results):
        output = f"{stem}_{number}.png" if args.faces == "all" else f"{stem}.png"
        draft = Path(args.output, output + ".draft")
        try:
            draft.parent.mkdir(parents=True, exist_ok=True)
            draft.write_bytes(png(crop))
        except OSError as error:
            raise utils.UserError(f"OUTPUT {draft}: cannot be written ({error.strerror})") from error
        corners = [box.left(), box.top(), box.right(), box.bottom()]
        row = dict(source=source, output=output, status="aligned", face=number) | settings(args)
        rows.append(row | dict(zip(BOX + MATRIX, corners + matrix.ravel().tolist(), strict=True)))
    return rows


def failure(source, args, status):
    """The rows of the record of a photo that gave no crop."""
    return [dict(source=source, status=" ".join(status.split())) | settings(args)]


def settings(args):
    return {name: getattr(args, name) for name in SETTINGS}


def png(pixels):
    """Encode uint8 (H, W, 3 or 4), RGB or RGBA, as a PNG file's bytes. OpenCV takes a quarter of Pillow's time."""
    import cv2

    order = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    return cv2.imencode(".png", cv2.cvtColor(pixels, order))[1].tobytes()


def align_files(tasks, args):
    """What a worker process does: `align_file` for each (source, stem) of a few; returns their rows, a list each."""
    import cv2

    cv2.setNumThreads(1)  # the photos are what is done in parallel
    return [align_file(source, stem, args, load_models(args.predictor)) for source, stem in tasks]


def in_parallel(tasks, args):
    """Yield the rows of each of the (source, stem) in the iterator `tasks`, as `args.workers` processes get them done.

    Only a few tasks are under way at any time, so that an end of `tasks` is the end soon after. Raises the UserError
    that a worker met, and one if a worker is killed.
    """
    context = multiprocessing.get_context("spawn")  # the one way that all systems have
    # Ctrl-C reaches all processes, and only this one is to act on it: what is ignored here, the others inherit
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in stops}
    with concurrent.futures.ProcessPoolExecutor(args.workers, context) as pool:
        waiting = {pool.submit(align_files, [], args): [] for _ in range(2 * args.workers)}
        for number, handler in before.items():
            signal.signal(number, handler)
        while waiting:
            done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                try:
                    answer = future.result()
                except concurrent.futures.process.BrokenProcessPool as error:
                    for worker in multiprocessing.active_children():
                        worker.kill()  # they ignore the SIGTERM by which the pool would end them
                    raise utils.UserError(
                        "a worker process was killed: is there too little memory? --workers 1 needs less; or take away "
                        f"the photo, one of {', '.join(source for some in waiting.values() for source, _ in some)}"
                    ) from error
                del waiting[future]
                if some := list(itertools.islice(tasks, 4)):
                    waiting[pool.submit(align_files, some, args)] = some
                yield from answer


def find_photos(inputs, output):
    """All photos among `inputs`, files and folders: a dict from absolute path to the path that OUTPUT mirrors.

    OUTPUT's own files are left out where it lies inside an INPUT. Raises UserError if an INPUT is missing or lies in
    OUTPUT, where a crop might take its place, and if there is no photo.
    """
    output, photos = Path(output).resolve(), {}
    for name in map(Path, inputs):
        place = name.resolve()
        if not name.exists():
            raise utils.UserError(f"INPUT {name}: no such file or folder")
        if place == output or output in place.parents:
            raise utils.UserError(f"INPUT {name}: lies in OUTPUT, where crops go; choose an OUTPUT apart from it")
        if not name.is_dir():
            photos.setdefault(os.path.abspath(name), name.name)
            continue
        own = name / output.relative_to(place) if place in output.parents else None
        found = [path for path in utils.find_images(name) if own not in path.parents]
        if not found and len(inputs) > 1:
            print(f"skipped {name}: a folder without images", file=sys.stderr)
        for path in found:
            photos.setdefault(os.path.abspath(path), path.relative_to(name).as_posix())
    if not photos:
        suffixes = ", ".join(sorted(utils.IMAGE_SUFFIXES))
        raise utils.UserError(f"INPUT {inputs[0]}{' ...' if inputs[1:] else ''}: no photo there ({suffixes})")
    return photos


def name_crops(photos):
    """Choose for each photo the name, path without suffix, of its crop in OUTPUT: a dict from source to name.

    The photo's own without its suffix (a.jpg: a); photos that would share one keep their suffix (a.jpg, a.png). Upper
    and lower case are one, as they are on some disks. Raises UserError for photos that would share even that.
    """
    users = collections.Counter(os.path.splitext(mirrored)[0].casefold() for mirrored in photos.values())
    names = {}
    for source, mirrored in photos.items():
        stem = os.path.splitext(mirrored)[0]
        names[source] = stem if users[stem.casefold()] == 1 else mirrored
    owners = {}
    for source, name in names.items():
        other = owners.setdefault(name.casefold(), source)
        if other != source:
            raise utils.UserError(f"INPUT {source} and {other}: would both be {name}.png; give each its own OUTPUT")
    return names


def crop_name(row):
    """The name of a photo's crops, as `name_crops` chose it, from a row of the record."""
    return re.sub(r"_\d+\.png$" if row["faces"] == "all" else r"\.png$", "", row["output"])


def read_record(path):
    """Read align.csv: a dict from source to its rows, the latest word on it. Raises UserError on any other file."""
    records = {}
    if path.exists():
        try:
            with utils.open_table(path) as file:
                reader = csv.DictReader(file)
                if reader.fieldnames != COLUMNS:
                    raise ValueError("other columns")
                for row in reader:
                    if row["landmarks"] not in LANDMARKS:  # the last column: a row cut short, as by a full disk
                        continue
                    if row["face"] in ("", "0"):
                        records[row["source"]] = []
                    records.setdefault(row["source"], []).append(row)
        except (OSError, ValueError, csv.Error) as error:
            raise utils.UserError(f"{path}: not a record of align.py's ({error}); choose another OUTPUT") from error
    return records


def write_record(path, records):
    """Write align.csv anew, sorted by source, so that a crash leaves the old one or the new one."""
    draft = path.with_name(path.name + ".draft")
    with utils.open_table(draft, "w") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for source in sorted(records):
            writer.writerows(records[source])
    os.replace(draft, path)


def plan(photos, records, output, args):
    """What is to do: a dict from source to the name of its crops. Photos aligned before are done, and keep their names.

    Raises UserError if OUTPUT holds crops made with other settings, or a file of another origin in a crop's place.
    """
    present = {path.relative_to(output).as_posix() for path in output.rglob("*.png")}
    done = {s for s, rows in records.items() if all(row["output"] in present for row in rows)}
    names = name_crops(photos)
    names |= {source: crop_name(rows[0]) for source, rows in records.items() if source in names and rows[0]["output"]}
    todo = {source: name for source, name in names.items() if args.overwrite or source not in done}
    for row in itertools.chain.from_iterable(records[source] for source in done - todo.keys()):
        for setting in SETTINGS:
            if row[setting] != str(getattr(args, setting)):
                raise utils.UserError(
                    f"--{setting} {getattr(args, setting)}: OUTPUT {output} holds crops of --{setting} {row[setting]}; "
                    "choose another OUTPUT, or --overwrite if all its photos are given"
                )
    owners = {row["output"]: source for source, rows in records.items() for row in rows}
    taken = {crop_name(dict(output=o, faces=args.faces)).casefold(): (o, owners.get(o)) for o in present}
    for source, name in todo.items():
        place, owner = taken.get(name.casefold(), ("", source))
        if owner != source and (owner or not args.overwrite):
            raise utils.UserError(
                f"OUTPUT {output / place}: is there already, made of {owner or 'something align.csv does not know'}; "
                f"choose another OUTPUT for {source}"
            )
    return todo


def align(args):
    output = Path(args.output)
    photos = find_photos(args.inputs, output)
    if args.predictor:
        load_models(args.predictor)  # a bad one is better told of before the work begins
    args.predictor = args.predictor or find_predictor()
    utils.make_directory(output, "OUTPUT")
    record = output / "align.csv"
    records = read_record(record)
    todo = plan(photos, records, output, args)
    counts = collections.Counter({"already done": len(photos) - len(todo)})
    write_record(record, records)

    args.workers = max(1, min(args.workers, len(todo)))
    with utils.deferred_signals() as received, utils.open_table(record, "a") as file:
        writer = csv.DictWriter(file, COLUMNS)
        tasks = itertools.takewhile(lambda task: not received, todo.items())
        with tqdm(total=len(todo), unit="photo", dynamic_ncols=True, disable=not todo) as bar:
            for rows in in_parallel(tasks, args) if todo else ():
                source, status = rows[0]["source"], rows[0]["status"]
                outputs = [row["output"] for row in rows if status == "aligned"]
                for row in records.pop(source, []):  # faces that are no longer found
                    if row["output"] and row["output"] not in outputs:
                        (output / row["output"]).unlink(missing_ok=True)
                # first the record, then the crop: a crop without a row would be taken for a stranger's
                writer.writerows(rows)
                file.flush()
                for name in outputs:
                    os.replace(output / (name + ".draft"), output / name)
                counts[status.partition(":")[0]] += 1
                counts["faces"] += len(outputs)
                if status != "aligned":
                    bar.write(f"skipped {source}: {status}", file=sys.stderr)
                bar.update()
    write_record(record, read_record(record))

    kinds = ["already done", "no face", "several faces", "unreadable"]
    summary = ", ".join(f"{counts[kind]} {kind}" for kind in kinds)
    print(f"{output}: {counts['faces']} faces aligned in {counts['aligned']} of {len(photos)} photos, {summary}")
    if received:
        print(f"stopped; the same command {'starts again' if args.overwrite else 'goes on from there'}")
        return 128 + received[0]
    if not counts["aligned"] + counts["already done"]:
        why = ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind])
        raise utils.UserError(f"INPUT {args.inputs[0]}: nothing was aligned ({why}); see above")


def parse_args():
    parser = utils.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("inputs", metavar="INPUT", nargs="+", help="photo, or folder of photos, searched in all subfolders")
    add("output", metavar="OUTPUT", help="folder for the crops, which mirrors the subfolders, and the record align.csv")
    add("--size", type=utils.number(int, 1), default=64, help="side of the crops in pixels (%(default)s)")
    add("--landmarks", choices=LANDMARKS, default="innerEyesAndBottomLip", help="what is aligned (%(default)s)")
    add(
        "--faces",
        choices=["largest", "only", "all"],
        default="largest",
        help="the largest face, the only one (a photo that shows several is skipped), or all, numbered (%(default)s)",
    )
    add(
        "--upsample",
        type=utils.number(int, 0, 4),
        default=1,
        metavar="N",
        help="double the photo N times to find faces below 80 pixels (%(default)s)",
    )
    add("--predictor", metavar="FILE", help="dlib's 68-point predictor (the one in face_recognition_models)")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    add("--workers", type=utils.number(int, 1), default=cores, metavar="N", help="processes (all cores: %(default)s)")
    add("--overwrite", action="store_true", help="redo photos already aligned")
    return parser, parser.parse_intermixed_args()


def main():
    parser, args = parse_args()
    return parser.run(align, args)


if __name__ == "__main__":
    sys.exit(main())
