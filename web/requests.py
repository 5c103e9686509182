"""What is asked of the server of paint.py: sizes, numbers and strokes are checked before they are used."""

import asyncio
import base64
import contextlib
import json

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from web import session

BRUSH = 32767  # pixels, the widest line that OpenCV draws
FACES, MASKS = 20, 20  # that are marked by hand, and that are opened, at most
BODIES, UPLOAD, PAUSE = 2**28, 600, 20  # bytes in memory at once; seconds that a body takes, and a pause in it, at most
JSON_BYTES, PAINT = 2**23, 10**10  # of what is painted: bytes, and points times the brush's area, at most


class Bodies:
    """The bodies of requests that are in memory, `BODIES` bytes at most in all."""

    def __init__(self):
        self.size = 0

    @contextlib.asynccontextmanager
    async def read(self, request, limit):
        """A request's body while it is needed; raises HTTPException if it is larger than `limit` bytes or slow."""
        large = HTTPException(413, f"This file is too large: {limit >> 20} MB at most.")
        if int(request.headers.get("content-length", 0)) > limit:  # the web server has checked that it is a number
            raise large
        data, stream = bytearray(), request.stream()
        try:
            async with asyncio.timeout(UPLOAD):
                while chunk := await asyncio.wait_for(anext(stream, None), PAUSE):
                    data.extend(chunk)
                    self.size += len(chunk)
                    if len(data) > limit:
                        raise large
                    if self.size > BODIES:
                        raise HTTPException(503, "Too many photos are on their way: try again in a minute.")
            yield data
        except ClientDisconnect as error:
            raise HTTPException(400, "The upload was broken off.") from error
        except TimeoutError as error:
            raise HTTPException(408, "The upload was too slow: try again.") from error
        finally:
            self.size -= len(data)


@contextlib.contextmanager
def reported():
    """Raise HTTPException where what is parsed inside is nothing that the page asks."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HTTPException(400, f"Not a request of this page: {error}") from error


def parse_number(value, low, high, kind=float):
    """A number from `low` to `high`; raises ValueError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | kind) or not low <= value <= high:
        raise ValueError(f"{value!r:.40} is not a number from {low} to {high}")
    return kind(value)


def parse_points(value):
    """Points (N, 2), N at least 1, from a list of pairs; raises ValueError if it is none."""
    points = np.asarray(value)
    if points.dtype.kind not in "if" or points.ndim != 2 or points.shape[1] != 2 or not (abs(points) <= 1e6).all():
        raise ValueError("not a list of points")
    return points.astype(float)


def parse_stroke(value):
    """A `session.Stroke`; raises ValueError if it is none."""
    if "mask" in value:
        return session.Stroke(mask=base64.b64decode(value["mask"], validate=True))
    size = parse_number(value["size"], 1, BRUSH)
    return session.Stroke(parse_points(value["points"]), size, value.get("erases") is True)


def parse_answer(value):
    """Which answer of which edit is meant, and at which detail: a dict; raises ValueError if it is none."""
    return dict(
        fill=parse_number(value["fill"], 1, 10**9, int),
        answer=parse_number(value["answer"], 0, session.ANSWERS - 1, int),
        detail=parse_number(value["detail"], 0, 1),
    )


def parse_query(request):
    """`parse_answer` of a request's query; raises HTTPException if it is none."""
    with reported():
        return parse_answer({name: json.loads(request.query_params[name]) for name in ("fill", "answer", "detail")})


def parse_kind(request):
    """As what kind of file a photo is to be saved, one of `session.KINDS`; raises HTTPException if it is none."""
    kind = request.query_params.get("kind", "PNG")
    if kind not in session.KINDS:
        raise HTTPException(400, f"Not a request of this page: no {kind:.40} is saved")
    return kind


def parse_strokes(body):
    """The `session.Stroke`s of a request; raises ValueError or HTTPException if they are none, or too many."""
    strokes = [parse_stroke(stroke) for stroke in body["strokes"]]
    paint = sum(len(stroke.points) * stroke.size**2 for stroke in strokes)
    if paint > PAINT or sum(bool(stroke.mask) for stroke in strokes) > MASKS:
        raise HTTPException(422, "That is too much paint at once: fill a part of it first.")
    return strokes


def parse_mask(data):
    """What is painted: strokes."""
    with reported():
        return parse_strokes(json.loads(data))


def parse_fill(data):
    """What is to be filled, a dict: strokes, marked faces, and the answers that are its base and near it, or None."""
    with reported():
        body = json.loads(data)
        strokes = parse_strokes(body)
        marked = [parse_points(points) for points in body.get("marked", [])]
        if len(marked) > FACES or any(len(points) != 3 for points in marked):
            raise ValueError("a face is marked by three points")
        base, near = (None if body.get(name) is None else parse_answer(body[name]) for name in ("base", "near"))
        return dict(strokes=strokes, marked=marked, base=base, near=near)
