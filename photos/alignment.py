"""Photos become aligned faces: one photo, or all of some folders in parallel, resumed where a run was stopped."""

import argparse
import collections
import contextlib
import itertools
import multiprocessing
import multiprocessing.connection
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

import utils
from completion import masks
from photos import detection, geometry, occlusion, reading, record

FACES = ["largest", "only", "all"]
STATUSES = ["already done", "no face", "several faces", "unreadable"]  # of photos without a new crop
MISTAKES = ["no fitting mask", "no fitting points"]  # further ones, told of where there are some
THREADS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OPENCV_FOR_THREADS_NUM"
# a face fits if it scores above the one, surely above the other, and leans by at most so many degrees
DOUBTFUL, SURE, MAX_TILT = 0.2, 0.8, 35
CLEAR, CLEARER = 0.45, 0.3  # what a face in a turned photo has to score, and how much more than the upright one
MEMORY = 2**30  # bytes of pixels of decoded photos that are kept for restoring


class Settings(NamedTuple):
    """How photos are aligned: align.py's flags."""

    size: int = 64
    landmarks: str = "innerEyesAndBottomLip"  # one of `geometry.LANDMARKS`
    faces: str = "largest"  # one of `FACES`
    upsample: int = 1
    mask: str | None = None
    mask_dir: str | None = None
    grow: int = masks.GROW
    points: list | None = None  # (3, 2)
    predictor: str | None = None
    workers: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    overwrite: bool = False


class Face(NamedTuple):
    """A face in a photo."""

    box: object  # dlib.rectangle, pixels of the photo, right and bottom included
    matrix: np.ndarray  # (2, 3), see `geometry.affine`
    crop: np.ndarray  # uint8 (size, size, 3), or 4 if any of the photo is missing
    seen: str  # if any is missing, how it was found: "inpainted", "grey", "mirrored", or some of them; or by "points"


def align_photo(photo, detector, settings):
    """Find the faces in a `reading.Photo` and crop them: a list of `Face`, and how many faces there are.

    detector: `detection.FaceDetector`; where `points` are given, no face is looked for. With `faces` "only" several are
    all returned. Raises UserError and ValueError for points that no face has.
    """
    size, hidden, results = settings.size, photo.hidden, []
    if settings.points:
        by_hand = geometry.landmarks_by_hand(settings.points, settings.landmarks, hidden.shape)
        found, count = [Found(by_hand, None, 0.0, "points")], 1
    else:
        found, count = find_faces(photo.pixels, hidden, photo.hole, detector, settings)
    layers = photo.rgba if hidden.any() else np.ascontiguousarray(np.broadcast_to(photo.pixels, (*hidden.shape, 3)))
    for places, box, _, seen in found:
        matrix = geometry.affine(places, size, settings.landmarks)
        crop = geometry.warp(layers, matrix, size)
        results.append(Face(box or geometry.bounds(matrix, size), matrix, crop, seen))
    return results, count


class Found(NamedTuple):
    """A face that is found in a photo."""

    landmarks: np.ndarray  # (68, 2), pixels of the photo
    box: object  # dlib.rectangle, or None where the photo was turned or shrunk
    score: float  # of the detector
    seen: str  # see `Face`


def find_faces(pixels, hidden, hole, detector, settings):
    """The faces taken, a list of `Found`, and how many there are, in uint8 (H, W, 1 or 3) and what is missing of it.

    hole: what of that is to be filled, boolean (H, W), and not a cut-out's own transparency. A large photo is looked at
    in the size of detection. Where no face is found, or only one that does not fit, it is looked at turned, too.
    """
    import cv2

    small, scale = detection.shrink(pixels)
    hidden, hole = (
        cv2.resize(part.astype(np.float32), small.shape[1::-1], interpolation=cv2.INTER_AREA) > 0
        for part in (hidden, hole)
    )
    found, count = take_faces(small, hidden, hole, detector, settings)
    if count <= 1:
        filled = next(occlusion.fillings(small, hidden))[1] if hidden.any() else small
        if not found or not fits(found[0], filled, detector):
            least = max([CLEAR, *(one.score + CLEARER for one in found)])
            found, count = find_turned(small, hidden, hole, filled, least, detector, settings) or (found, count)
    if scale < 1:
        found = [one._replace(landmarks=detection.enlarge(one.landmarks, scale), box=None) for one in found]
    return found, count


def find_turned(pixels, hidden, hole, filled, least, detector, settings):
    """As `find_faces`, in a photo turned by 90, 180 or 270 degrees, or else by one of the angles between; or None.

    That direction counts in which a face scores highest, at `least` so much, in uint8 RGB (H, W, 3) with what is hidden
    `filled`.
    """
    import cv2

    times = settings.upsample if max(hidden.shape) <= detection.DETECTION_SIZE / 2 else 0  # seven times takes long
    for angles in (90, 180, 270), (45, 135, 225, 315):
        turns = [geometry.turn_matrix(angle, hidden.shape) for angle in angles]
        scores = [best_score(cv2.warpAffine(filled, *turn), detector, times) for turn in turns]
        matrix, size = turns[np.argmax(scores)]
        if max(scores) >= least:
            hidden, hole = (cv2.warpAffine(np.float32(part), matrix, size) > 0 for part in (hidden, hole))
            found, count = take_faces(cv2.warpAffine(pixels, matrix, size), hidden, hole, detector, settings)
            back = cv2.invertAffineTransform(matrix)
            found = [one._replace(landmarks=one.landmarks @ back[:, :2].T + back[:, 2], box=None) for one in found]
            return found, count
    return None


def fits(face, pixels, detector):
    """Whether a `Found` in uint8 RGB is an upright face: it scores high, and higher than turned by 45 degrees."""
    import cv2

    try:
        u, _, v = np.linalg.svd(geometry.affine(face.landmarks, 1.0)[:, :2])
    except ValueError:
        return False
    if face.score < DOUBTFUL or (u @ v)[0, 0] < np.cos(np.radians(MAX_TILT)):
        return False
    if face.score > SURE:
        return True
    near = pixels[occlusion.around(face.box)]
    turned = (cv2.warpAffine(near, *geometry.turn_matrix(angle, near.shape[:2])) for angle in (45, 315))
    return max(best_score(one, detector) for one in turned) < face.score + CLEARER


def take_faces(pixels, hidden, hole, detector, settings):
    """As `find_faces`, in uint8 RGB, of upright faces alone."""
    if hidden.any():
        found = occlusion.find_faces_under(pixels, hidden, detector, settings.faces, settings.upsample, hole)
    else:
        found = detector.find_scored_faces(pixels, settings.faces, settings.upsample)
    results = []
    for one in found[:1] if settings.faces == "largest" else found:
        if hidden.any():
            seen = "+".join(dict.fromkeys(each.filling for each in one))
            results.append(Found(occlusion.landmarks_under(hidden, one, detector), one[0].box, one[0].score, seen))
        else:
            results.append(Found(detector.find_landmarks(pixels, one[0]), *one, ""))
    return results, len(found)


def best_score(pixels, detector, upsample=0):
    """The score of the face that is seen most clearly in uint8 RGB (H, W, 3), 0 if none is."""
    return max((score for _, score in detector.find_scored_faces(pixels, "largest", upsample)), default=0.0)


def align_file(output, settings, source, name, mask=None, keep=False):
    """Align one photo; returns its rows of the record and its `Crop`s.

    The rows hold the number of faces found, and each crop as a PNG file's bytes, too. name: of its crops, see
    `name_crops`; mask: its mask image; keep: whether the crops hold the photo.
    """
    models, found = detection.load_models(settings.predictor), 0
    grow = settings.grow if mask else None

    def row(status, **cells):
        cells |= {name: getattr(settings, name) for name in record.SETTINGS}
        return dict(source=source, status=" ".join(status.split()), found=found, mask=mask, grow=grow) | cells

    try:
        if settings.mask_dir and not mask:
            raise cli.UserError(f"--maskDir {settings.mask_dir}: holds no mask, or several, named {Path(source).stem}")
        photo = reading.read_photo(source, mask, settings.grow)
        detector = detection.FaceDetector(*models, None if photo.alpha is None else detection.pretrained_prior())
        faces, found = align_photo(photo, detector, settings)
        paths = [Path(output, crop_path(name, settings.faces, number)) for number in range(len(faces))]
        for path in paths:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.lstat(path)  # raises OSError for names that the file system does not take
    except cli.UserError as error:
        why = str(error).removeprefix(f"{source}: ")
        status = "unreadable" if why != str(error) else MISTAKES[why.startswith("--points")]
        return [row(f"{status}: {why}")], []
    except Exception as error:  # one odd photo, such as one too large for the memory, must not end the run
        return [row(f"unreadable: {type(error).__name__} {error}")], []
    if not faces or settings.faces == "only" and found > 1:
        return [row("several faces" if faces else "no face")], []
    rows, crops = [], []
    hashes = dict(zip(record.HASHES, map(record.file_hash, (source, mask)), strict=True))
    for number, (path, face) in enumerate(zip(paths, faces, strict=True)):
        numbers = [face.box.left(), face.box.top(), face.box.right(), face.box.bottom(), *face.matrix.ravel().tolist()]
        cells = dict(
            zip(record.BOX + record.MATRIX, numbers, strict=True), seen=face.seen, crop=png(face.crop), **hashes
        )
        rows.append(row("aligned", output=path.relative_to(output).as_posix(), face=number, **cells))
        origin = Path(source), mask and Path(mask), face.matrix, settings.size
        crops.append(record.Crop(path, *origin, face.crop, photo if keep else None, grow or 0))
    return rows, crops


def png(pixels):
    """Encode uint8 (H, W, 3 or 4), RGB or RGBA, as a PNG file's bytes. OpenCV takes a quarter of Pillow's time."""
    import cv2

    order = cv2.COLOR_RGB2BGR if pixels.shape[2] == 3 else cv2.COLOR_RGBA2BGRA
    return cv2.imencode(".png", cv2.cvtColor(pixels, order))[1].tobytes()


def work(connection, output, settings):
    """What a worker process does: it answers a task with what `align_file` returns or raises, until nobody asks."""
    with contextlib.suppress(EOFError, ConnectionError):
        connection.send(None)
        while True:
            task = connection.recv()
            try:
                answer = align_file(output, settings, *task)
            except Exception as error:
                answer = error
            connection.send(answer)
            del answer  # which may hold a photo


@contextlib.contextmanager
def inherited():
    """What workers inherit: as photos are what is done in parallel, each has one thread; a signal waits for ever.

    Ctrl-C reaches all processes of a terminal, and SIGTERM those of a job: only the one that started them is to act.
    """
    multiprocessing.resource_tracker.ensure_running()  # which would unblock the signals
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    environment = dict(os.environ)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


def in_parallel(tasks, output, settings):
    """Yield what `align_file` returns for each of its arguments, an iterator, as the worker processes get them done.

    Each has a connection of its own, which tells of its death even in the midst of an answer; a pool would hang. Raises
    what a worker met, and UserError if one is killed.
    """
    context = multiprocessing.get_context("spawn")  # the one way that all systems have
    processes, connections = [], []
    try:
        for _ in range(settings.workers):
            ours, theirs = context.Pipe()
            connections.append(ours)
            with theirs, inherited():
                process = context.Process(target=work, args=(theirs, output, settings))
                process.start()
                processes.append(process)
        busy = dict.fromkeys(connections)  # until they have started
        while busy:
            for connection in multiprocessing.connection.wait(busy):
                photo = busy.pop(connection)
                try:
                    answer = connection.recv()
                except (EOFError, OSError) as error:
                    raise cli.UserError(
                        "a worker process was killed: is there too little memory? --workers 1 needs less"
                        + (f"; or take away {photo}" if photo else "")
                    ) from error
                if task := next(tasks, None):
                    busy[connection] = task[0]
                    with contextlib.suppress(OSError):  # of a worker that has just been killed, which its answer tells
                        connection.send(task)
                if isinstance(answer, Exception):
                    raise answer
                if answer:
                    yield answer
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.join()


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
        if place.is_relative_to(output):
            raise cli.UserError(f"INPUT {name}: lies in OUTPUT, where crops go; choose an OUTPUT apart from it")
        if not name.is_dir():
            found.setdefault(os.path.abspath(name), name.name)
            continue
        inside = utils.find_images(name, report=True)
        parents = {path.parent for path in inside}
        own = {parent for parent in parents if Path(os.path.realpath(parent)).is_relative_to(output)}
        inside = [path for path in inside if path.parent not in own]
        if not inside and len(inputs) > 1:
            print(f"skipped {name}: a folder without images", file=sys.stderr)
        for path in inside:
            found.setdefault(os.path.abspath(path), path.relative_to(name).as_posix())
    if not found:
        raise cli.UserError(f"INPUT {inputs[0]}{' ...' if inputs[1:] else ''}: {utils.NO_IMAGES}")
    return found


def name_crops(sources):
    """Choose for each photo the name, path without suffix, of its crop in OUTPUT: a dict from source to name.

    The photo's own without its suffix (a.jpg: a); photos that would share one keep their suffix (a.jpg, a.png). Upper
    and lower case are one, as they are on some disks. Raises UserError for photos that would share even that.
    """
    names, owners = {source: os.path.splitext(mirrored)[0] for source, mirrored in sources.items()}, {}
    users = collections.Counter(map(str.casefold, names.values()))
    names = {source: name if users[name.casefold()] == 1 else sources[source] for source, name in names.items()}
    for source, name in names.items():
        other = owners.setdefault(name.casefold(), source)
        if other != source:
            raise cli.UserError(f"INPUT {source} and {other}: would both be {name}.png; give each its own OUTPUT")
    return names


def crop_path(name, faces, number=0):
    """The path in OUTPUT of a crop of the photo that `name_crops` gave this name."""
    return f"{name}_{number}.png" if faces == "all" else f"{name}.png"


def crop_name(row):
    """The name of a photo's crops, as `name_crops` chose it, from a row of the record."""
    return re.sub(r"_\d+\.png$" if row["faces"] == "all" else r"\.png$", "", row["output"])


def find_masks(sources, settings):
    """The mask images of photos: a dict from source to absolute path, without those that have none or several.

    Raises UserError where --mask or --points is for another number of photos than one, or there is no --maskDir.
    """
    for flag in ("mask", "points"):
        if getattr(settings, flag) is not None and len(sources) != 1:
            other = "; --maskDir takes a folder of masks" if flag == "mask" else ""
            raise cli.UserError(f"--{flag}: is for one photo, and INPUT holds {len(sources)}{other}")
    if settings.mask:
        with cli.named("--mask"):
            masks.read_hidden(settings.mask)  # a bad one is better reported before the work begins
        return {source: os.path.abspath(settings.mask) for source in sources}
    named, found = masks.by_name(settings.mask_dir, sources) if settings.mask_dir else None, {}
    for source, mirrored in sources.items() if named else ():
        with contextlib.suppress(cli.UserError):
            found[source] = os.path.abspath(masks.named_as(mirrored, named, settings.mask_dir))
    users = collections.defaultdict(list)
    for source, mask in found.items():
        users[mask].append(source)
    for mask, several in users.items():
        if len({os.path.splitext(sources[source])[0] for source in several}) > 1:  # a.jpg and a.png share theirs
            which = " and ".join(several)
            raise cli.UserError(f"--maskDir {mask}: would be the mask of {which}; put masks into the same subfolders")
    return found


def plan(sources, records, output, settings, hidden):
    """What is to do: a dict from source to the name of its crops. Photos aligned before are done, and keep their names.

    They are done again where photo or mask are another file now, or the hole grows otherwise, or points are given.
    hidden: their masks, as `find_masks` returns them. Raises UserError if OUTPUT holds crops of other settings or
    masks, or a link or a file of another origin in a crop's place.
    """
    present = {path.relative_to(output).as_posix() for path in output.rglob("*.png")}
    names = name_crops(sources)
    names |= {source: crop_name(rows[0]) for source, rows in records.items() if source in names and rows[0]["output"]}

    def is_done(source):
        return all(row["output"] in present for row in records[source])

    def is_kept(source):
        if settings.overwrite or settings.points or source not in records or not is_done(source):
            return False
        old = records[source][0]
        if old["mask"] and (old["grow"] or "0") != str(settings.grow):
            return False
        files = zip(record.HASHES, (source, hidden.get(source)), strict=True)
        return all(old[name] in ("", record.file_hash(file)) for name, file in files)

    todo = {source: name for source, name in names.items() if not is_kept(source)}
    for row in itertools.chain.from_iterable(records[s] for s in records if s not in todo and is_done(s)):
        wanted = {setting: str(getattr(settings, setting)) for setting in record.SETTINGS}
        wanted |= {"mask": hidden.get(row["source"], "")} if row["source"] in sources else {}
        for name, value in wanted.items():
            if row[name] != value:
                raise cli.UserError(
                    f"--{name} {value or 'none'}: OUTPUT {output} holds the crop of {row['source']} with --{name} "
                    f"{row[name] or 'none'}; choose another OUTPUT, or --overwrite if all its photos are given"
                )
    owners = {row["output"]: source for source, rows in records.items() for row in rows}
    taken = {crop_name(dict(output=o, faces=settings.faces)).casefold(): (o, owners.get(o)) for o in present}
    for source, name in todo.items():
        utils.inside(output, crop_path(name, settings.faces))
        place, owner = taken.get(name.casefold(), ("", source))
        if owner != source and (owner or not settings.overwrite):
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
    # first the record, then the crop: a crop without a row would not be known as one
    with utils.report_write_errors(output / record.RECORD), open(output / record.RECORD, "a", **utils.TABLE) as file:
        record.write_rows(file, output / record.RECORD, rows)
    for name, crop in crops.items():
        with utils.report_write_errors(output / name):
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            with utils.atomic_write(output / name) as file:
                file.write(crop)


@contextlib.contextmanager
def only_run(output):
    """Raise UserError if another run writes to the folder `output`, and keep others out of it inside this."""
    folder = os.open(output, os.O_RDONLY)
    utils.lock(folder, f"OUTPUT {output}: another align.py writes to it; wait for it, or choose another")
    try:
        yield
    finally:
        os.close(folder)


def align_photos(inputs, output, settings, keep=False):
    """Align the photos among `inputs`, files and folders, to the folder `output`, and print what became of them.

    Returns, where `keep` asks for it, a dict from the `record.Crop.origin` of each photo to its `Crop`s, with their
    photos as far as `MEMORY` reaches, or to the status of one without. Raises UserError if nothing could be aligned and
    `keep` does not ask, and SystemExit where a signal stopped it.
    """
    output = Path(output)
    sources = find_photos(inputs, output)
    sources = {source: sources[source] for source in masks.without_masks(sources, settings.mask_dir)}
    if settings.predictor:
        detection.load_models(settings.predictor)  # a bad one is better reported before the work begins
    hidden = find_masks(sources, settings)
    utils.make_directory(output, "OUTPUT")
    predictor, counts, kept, room = settings.predictor or detection.find_predictor(), collections.Counter(), {}, MEMORY
    with only_run(output), cli.deferred_signals() as received:
        records = record.read_record(output / record.RECORD)
        todo = plan(sources, records, output, settings, hidden)
        for draft in output.rglob(".[0-9]*.draft"):  # of a run that was killed
            draft.unlink()
        record.write_record(output / record.RECORD, records)
        settings = settings._replace(predictor=predictor, workers=min(settings.workers, len(todo)))
        counts["already done"] = len(sources) - len(todo)
        tasks = ((source, name, hidden.get(source), keep and room > 0) for source, name in todo.items())
        tasks = itertools.takewhile(lambda task: not received, tasks)
        with (
            tqdm(total=len(todo), unit="photo", dynamic_ncols=True, disable=not todo) as bar,
            contextlib.closing(in_parallel(tasks, output, settings)) as answers,
        ):
            for rows, cut in answers:
                store(output, rows, records.pop(rows[0]["source"], []))
                count(rows, counts, bar, keep or len(sources) == 1)
                last = rows[0]["status"]
                if keep:
                    room -= cut[0].photo.pixels.nbytes if cut and cut[0].photo else 0
                    cut = cut if room > 0 else [crop._replace(photo=None) for crop in cut]
                    kept[rows[0]["source"]] = cut or rows[0]["status"]
        if todo:
            record.write_record(output / record.RECORD, record.read_record(output / record.RECORD))

    told = STATUSES + [status for status in MISTAKES if counts[status]]
    summary = ", ".join(f"{counts[status]} {status}" for status in told)
    print(f"{output}: {counts['faces']} faces aligned in {counts['aligned']} of {len(sources)} photos, {summary}")
    if received:
        print(f"stopped; the same command {'starts again' if settings.overwrite else 'resumes'}")
        sys.exit(128 + received[0])
    if not keep and not counts["aligned"] + counts["already done"]:
        why = ", ".join(f"{counts[status]} {status}" for status in told if counts[status]) + "; see above"
        raise cli.UserError(f"INPUT {inputs[0]}: nothing was aligned ({last if len(sources) == 1 else why})")
    origins = {source: (Path(source), None, 0) for source in sources}
    origins |= {source: (Path(source), Path(mask), settings.grow) for source, mask in hidden.items()}
    return {origin: kept.get(source) for source, origin in origins.items()}


def count(rows, counts, bar, later):
    """Count what became of a photo, by its rows of the record, and report faces that are not cut out on the bar.

    later: whether it is reported later that none is.
    """
    source, status, found = (rows[0][key] for key in ("source", "status", "found"))
    counts[status.partition(":")[0]] += 1
    counts["faces"] += sum("crop" in row for row in rows)
    if status != "aligned":
        if not later:
            bar.write(f"skipped {source}: {status}", file=sys.stderr)
    elif found > len(rows):
        which = "one with a hole, or the largest," if rows[0]["seen"] else "the largest"
        bar.write(f"{source}: took {which} of {found} faces; --faces all takes them all", file=sys.stderr)
    bar.update()


growth = cli.number(int, 0, masks.MOST_GROWTH)  # an argparse `type` for pixels


def point(text):
    """An argparse `type` for "x,y"; returns two floats."""
    numbers = [cli.number(float, -1e6, 1e6)(word) for word in text.split(",")]
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y, two numbers of pixels")
    return numbers
