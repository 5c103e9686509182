"""Photos become aligned faces: one photo, or all of some folders in parallel, resumed where a run was stopped."""

import argparse
import collections
import concurrent.futures
import contextlib
import csv
import errno
import functools
import itertools
import multiprocessing
import multiprocessing.resource_tracker
import os
import re
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import cli

import numpy as np
from tqdm import tqdm

import checkpoint
import utils
from completion import masks, prior
from photos import detection, geometry, occlusion, record


class Face(NamedTuple):
    """A face in a photo."""

    box: object  # dlib.rectangle, pixels of the photo, right and bottom included
    matrix: np.ndarray  # (2, 3), see `affine`
    crop: np.ndarray  # uint8 (size, size, 3), or 4 if any of the photo is missing
    seen: (
        str  # how, if any is missing: "inpainted", "grey", "mirrored", or some of them; "points": it was not looked for
    )


def align_photo(
    photo,
    detector,
    predictor,
    size=64,
    landmarks="innerEyesAndBottomLip",
    faces="largest",
    upsample=1,
    mask=None,
    points=None,
    covariance=None,
):
    """Find the faces in a Pillow image and crop them: a list of `Face`, and how many faces there are.

    mask: an image file that hides a part of the photo; what is transparent is hidden, too. points: the places (3, 2) of
    the three landmarks of the one face; none is looked for then. For the rest see the functions above. With `faces`
    "only" several are all returned. Raises UserError as `masks.missing` does, and ValueError for points on one line.
    """
    hidden = masks.missing(photo, mask)
    pixels = layers = np.asarray(utils.flatten(photo, "grey").convert("RGB"))
    if hidden.any():
        layers = np.array(photo.convert("RGBA"))
        layers[hidden & (layers[..., 3] == 255), 3] = 0
    if points is not None:
        found = [geometry.landmarks_by_hand(points, landmarks, hidden.shape)]
    elif hidden.any():
        found = occlusion.find_faces_under(pixels, hidden, detector, faces, upsample)
    else:
        found = detection.find_faces(pixels, detector, faces, upsample)
    results = []
    for one in found[:1] if faces == "largest" else found:
        if points is not None:
            box, places, how = None, one, "points"
        elif hidden.any():
            box, places = one[0].box, occlusion.landmarks_under(hidden, one, covariance, detector, predictor)
            how = "+".join(dict.fromkeys(sighting.how for sighting in one))
        else:
            box, places, how = one, detection.find_landmarks(pixels, one, predictor), ""
        matrix = geometry.affine(places, size, landmarks)
        results.append(Face(box or geometry.bounds(matrix, size), matrix, geometry.warp(layers, matrix, size), how))
    return results, len(found)


FACES = ["largest", "only", "all"]


def align_file(source, stem, mask, args, models):
    """Align one file; returns its rows of the record, with the number of faces found, and each crop as a PNG file.

    mask: the mask image of the photo, or None.
    """
    found = 0

    def row(status, **cells):
        cells |= {name: getattr(args, name) for name in record.SETTINGS}
        return dict(source=source, status=" ".join(status.split()), found=found, mask=mask) | cells

    settings = dict(size=args.size, landmarks=args.landmarks, faces=args.faces, upsample=args.upsample)
    try:
        if args.maskDir and not mask:
            raise cli.UserError(f"--maskDir {args.maskDir}: holds no mask, or several, named {Path(source).stem}")
        photo = utils.open_image(source)
        if mask or photo.has_transparency_data:
            settings["covariance"] = covariance_of_faces()
        results, found = align_photo(photo, *models, mask=mask, points=args.points, **settings)
    except cli.UserError as error:
        return [row(f"unreadable: {error.__cause__ if str(error).startswith(f'{source}: ') else error}")]
    except Exception as error:  # one odd photo, such as one too large for the memory, must not end the run
        return [row(f"unreadable: {type(error).__name__} {error}")]
    if not results:
        return [row("no face")]
    if args.faces == "only" and found > 1:
        return [row("several faces")]
    rows = []
    for number, face in enumerate(results):
        output = output_of(stem, args, number)
        if too_long(Path(args.output, output)):
            return [row("unreadable: file name too long for a crop's")]
        corners = [face.box.left(), face.box.top(), face.box.right(), face.box.bottom()]
        places = dict(zip(record.BOX + record.MATRIX, corners + face.matrix.ravel().tolist(), strict=True))
        rows.append(row("aligned", output=output, face=number, seen=face.seen, crop=png(face.crop), **places))
    return rows


@functools.cache
def covariance_of_faces():
    """The prior of the model that came with this code, which tells where hidden landmarks are, or None."""
    if not checkpoint.holds_model(checkpoint.SHIPPED):
        return None
    size = checkpoint.read_config(checkpoint.SHIPPED)["architecture"]["image_size"]
    return prior.load(checkpoint.SHIPPED, (size, size, 3))


def too_long(path):
    """Whether the file system of `path` takes no names that long."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG
    return False


def png(pixels):
    """Encode uint8 (H, W, 3 or 4), RGB or RGBA, as a PNG file's bytes. OpenCV takes a quarter of Pillow's time."""
    import cv2

    order = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    return cv2.imencode(".png", cv2.cvtColor(pixels, order))[1].tobytes()


def align_files(tasks, args):
    """What a worker process does: `align_file` for each task of a few; returns their rows, a list each."""
    import cv2

    cv2.setNumThreads(1)  # the photos are what is done in parallel
    return [align_file(*task, args, detection.load_models(args.predictor)) for task in tasks]


@contextlib.contextmanager
def one_thread():
    """Processes started inside this use one thread each for linear algebra, as the photos are done in parallel."""
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def in_parallel(tasks, args):
    """Yield the rows of each (source, stem, mask) in the iterator `tasks`, as `args.workers` processes get them done.

    Only a few tasks are under way at any time, so that an end of `tasks` is the end soon after. Raises the UserError
    that a worker met, and one if a worker is killed.
    """
    context = multiprocessing.get_context("spawn")  # the one way that all systems have
    # Ctrl-C reaches all processes, and only this one is to act on it: what is blocked here, the others inherit
    multiprocessing.resource_tracker.ensure_running()  # which would unblock it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    with concurrent.futures.ProcessPoolExecutor(args.workers, context) as pool:
        with one_thread():
            waiting = {pool.submit(align_files, [], args): [] for _ in range(2 * args.workers)}
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        while waiting:
            done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                try:
                    answer = future.result()
                except concurrent.futures.process.BrokenProcessPool as error:
                    for worker in multiprocessing.active_children():
                        worker.kill()  # they block the SIGTERM by which the pool would end them
                    raise cli.UserError(
                        "a worker process was killed: is there too little memory? --workers 1 needs less; or take away "
                        f"the photo, one of {', '.join(source for some in waiting.values() for source, *_ in some)}"
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
    output, found = Path(os.path.realpath(output)), {}
    for name in map(Path, inputs):
        place = Path(os.path.realpath(name))  # Path.resolve raises RuntimeError on a loop of links
        if not name.exists():
            raise cli.UserError(f"INPUT {name}: no such file or folder")
        if place == output or output in place.parents:
            raise cli.UserError(f"INPUT {name}: lies in OUTPUT, where crops go; choose an OUTPUT apart from it")
        if not name.is_dir():
            found.setdefault(os.path.abspath(name), name.name)
            continue
        own = name / output.relative_to(place) if place in output.parents else None
        inside = [path for path in utils.find_images(name) if own not in path.parents]
        if not inside and len(inputs) > 1:
            print(f"skipped {name}: a folder without images", file=sys.stderr)
        for path in inside:
            found.setdefault(os.path.abspath(path), path.relative_to(name).as_posix())
    if not found:
        suffixes = ", ".join(sorted(utils.IMAGE_SUFFIXES))
        raise cli.UserError(f"INPUT {inputs[0]}{' ...' if inputs[1:] else ''}: no photo there ({suffixes})")
    return found


def name_crops(sources):
    """Choose for each photo the name, path without suffix, of its crop in OUTPUT: a dict from source to name.

    The photo's own without its suffix (a.jpg: a); photos that would share one keep their suffix (a.jpg, a.png). Upper
    and lower case are one, as they are on some disks. Raises UserError for photos that would share even that.
    """
    users = collections.Counter(os.path.splitext(mirrored)[0].casefold() for mirrored in sources.values())
    names = {}
    for source, mirrored in sources.items():
        stem = os.path.splitext(mirrored)[0]
        names[source] = stem if users[stem.casefold()] == 1 else mirrored
    owners = {}
    for source, name in names.items():
        other = owners.setdefault(name.casefold(), source)
        if other != source:
            raise cli.UserError(f"INPUT {source} and {other}: would both be {name}.png; give each its own OUTPUT")
    return names


def output_of(name, args, number=0):
    """The path in OUTPUT of a crop of the photo that `name_crops` gave this name."""
    return f"{name}_{number}.png" if args.faces == "all" else f"{name}.png"


def crop_name(row):
    """The name of a photo's crops, as `name_crops` chose it, from a row of the record."""
    return re.sub(r"_\d+\.png$" if row["faces"] == "all" else r"\.png$", "", row["output"])


def find_masks(sources, args):
    """The mask images of photos: a dict from source to absolute path, without those that have none or several.

    Raises UserError where --mask or --points is for another number of photos than one, or there is no --maskDir.
    """
    for flag in ("mask", "points"):
        if getattr(args, flag) is not None and len(sources) != 1:
            other = "; --maskDir takes a folder of masks" if flag == "mask" else ""
            raise cli.UserError(f"--{flag}: is for one photo, and INPUT holds {len(sources)}{other}")
    if args.mask:
        masks.read_hidden(args.mask)  # a bad one is better told of before the work begins
        return {source: os.path.abspath(args.mask) for source in sources}
    named, found = masks.by_name(args.maskDir) if args.maskDir else None, {}
    for source, mirrored in sources.items() if named else ():
        with contextlib.suppress(cli.UserError):
            found[source] = os.path.abspath(masks.named_as(mirrored, named, args.maskDir))
    for mask, users in collections.Counter(found.values()).items():
        if users > 1:
            which = " and ".join(source for source in found if found[source] == mask)
            raise cli.UserError(f"--maskDir {mask}: would be the mask of {which}; put masks into the same subfolders")
    return found


def plan(sources, records, output, args, hidden):
    """What is to do: a dict from source to the name of its crops. Photos aligned before are done, and keep their names.

    hidden: their masks, as `find_masks` returns them. Raises UserError if OUTPUT holds crops of other settings or
    masks, or a link or a file of another origin in a crop's place.
    """
    present = {path.relative_to(output).as_posix() for path in output.rglob("*.png")}
    done = {s for s, rows in records.items() if all(row["output"] in present for row in rows)}
    names = name_crops(sources)
    names |= {source: crop_name(rows[0]) for source, rows in records.items() if source in names and rows[0]["output"]}
    todo = {source: name for source, name in names.items() if args.overwrite or source not in done}
    for row in itertools.chain.from_iterable(records[source] for source in done - todo.keys()):
        if row["mask"] != hidden.get(row["source"], ""):
            raise cli.UserError(
                f"OUTPUT {output}: holds the crop of {row['source']} with {row['mask'] or 'no'} mask; "
                "choose another OUTPUT, or --overwrite"
            )
        for setting in record.SETTINGS:
            if row[setting] != str(getattr(args, setting)):
                raise cli.UserError(
                    f"--{setting} {getattr(args, setting)}: OUTPUT {output} holds crops of --{setting} {row[setting]}; "
                    "choose another OUTPUT, or --overwrite if all its photos are given"
                )
    owners = {row["output"]: source for source, rows in records.items() for row in rows}
    taken = {crop_name(dict(output=o, faces=args.faces)).casefold(): (o, owners.get(o)) for o in present}
    for source, name in todo.items():
        utils.inside(output, output_of(name, args))
        place, owner = taken.get(name.casefold(), ("", source))
        if owner != source and (owner or not args.overwrite):
            raise cli.UserError(
                f"OUTPUT {output / place}: is there already, made of {owner or 'something align.csv does not know'}; "
                f"choose another OUTPUT for {source}"
            )
    return todo


def store(output, rows, old):
    """Write one photo's rows of the record, and its crops to OUTPUT, where they replace those of its `old` rows.

    Raises UserError, naming the file, if one cannot be written.
    """
    crops = {row["output"]: row["crop"] for row in rows if "crop" in row}
    for row in old:  # faces that are no longer found
        if row["output"] and row["output"] not in crops:
            with utils.report_write_errors(output / row["output"]):
                (output / row["output"]).unlink(missing_ok=True)
    # first the record, then the crop: a crop without a row would be taken for a stranger's
    with utils.report_write_errors(output / record.RECORD), open(output / record.RECORD, "a", **utils.TABLE) as file:
        csv.DictWriter(file, record.COLUMNS, extrasaction="ignore").writerows(rows)
    for name, crop in crops.items():
        with utils.report_write_errors(output / name):
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            with utils.atomic_write(output / name) as file:
                file.write(crop)


def align(args):
    """Align the photos of INPUT to OUTPUT, and say what became of them; returns the exit status."""
    output = Path(args.output)
    sources = find_photos(args.inputs, output)
    if args.predictor:
        detection.load_models(args.predictor)  # a bad one is better told of before the work begins
    args.predictor = args.predictor or detection.find_predictor()
    hidden = find_masks(sources, args)
    utils.make_directory(output, "OUTPUT")
    records = record.read_record(output / record.RECORD)
    todo = plan(sources, records, output, args, hidden)
    counts = collections.Counter({"already done": len(sources) - len(todo)})
    for draft in output.rglob(".[0-9]*.draft"):  # of a run that was killed
        draft.unlink()
    record.write_record(output / record.RECORD, records)

    args.workers = max(1, min(args.workers, len(todo)))
    with cli.deferred_signals() as received:
        tasks = ((source, name, hidden.get(source)) for source, name in todo.items())
        tasks = itertools.takewhile(lambda task: not received, tasks)
        with tqdm(total=len(todo), unit="photo", dynamic_ncols=True, disable=not todo) as bar:
            for rows in in_parallel(tasks, args) if todo else ():
                source, status, found = (rows[0][key] for key in ("source", "status", "found"))
                store(output, rows, records.pop(source, []))
                counts[status.partition(":")[0]] += 1
                counts["faces"] += sum("crop" in row for row in rows)
                if status != "aligned":
                    bar.write(f"skipped {source}: {status}", file=sys.stderr)
                elif found > len(rows):
                    which = "one with a hole, or the largest," if rows[0]["seen"] else "the largest"
                    bar.write(f"{source}: took {which} of {found} faces; --faces all takes them all", file=sys.stderr)
                bar.update()
    record.write_record(output / record.RECORD, record.read_record(output / record.RECORD))

    kinds = ["already done", "no face", "several faces", "unreadable"]
    summary = ", ".join(f"{counts[kind]} {kind}" for kind in kinds)
    print(f"{output}: {counts['faces']} faces aligned in {counts['aligned']} of {len(sources)} photos, {summary}")
    if received:
        print(f"stopped; the same command {'starts again' if args.overwrite else 'goes on from there'}")
        return 128 + received[0]
    if not counts["aligned"] + counts["already done"]:
        why = ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind])
        raise cli.UserError(f"INPUT {args.inputs[0]}: nothing was aligned ({why}); see above")


def point(text):
    """An argparse `type` for "x,y"; returns two floats."""
    numbers = [cli.number(float, -1e6, 1e6)(word) for word in text.split(",")]
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y, two numbers of pixels")
    return numbers
