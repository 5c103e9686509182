"""What a request to the server of paint.py may say: sizes, numbers and strokes are checked before they are used."""

import asyncio
import contextlib
import json

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from web import session

SLOW = 300  # seconds that a request may take to come


BRUSH = 32767  # pixels, the widest that OpenCV draws


JSON_BYTES, POINTS, PAINT = 2**21, 10**5, 10**10  # of what is painted: bytes, points, points times the brush's area


async def body_of(request, limit):
    """The body of a request; raises HTTPException if it is larger than `limit` bytes, or too slow."""
    large = HTTPException(413, f"This file is too large: {limit >> 20} MB at most.")
    with contextlib.suppress(ValueError):
        if int(request.headers.get("content-length", "0")) > limit:
            raise large
    data = bytearray()

    async def read():
        async for chunk in request.stream():
            data.extend(chunk)
            if len(data) > limit:
                raise large

    try:
        await asyncio.wait_for(read(), SLOW)
    except ClientDisconnect as error:
        raise HTTPException(400, "The upload was broken off.") from error
    except asyncio.TimeoutError as error:
        raise HTTPException(408, f"The upload took more than {SLOW} seconds.") from error
    return bytes(data)


def number(value, low, high, kind=float):
    """A number of a request; raises ValueError if it is none between `low` and `high`."""
    if isinstance(value, bool) or not isinstance(value, int | kind) or not low <= value <= high:
        raise ValueError(f"{value!r:.40} is not a number from {low} to {high}")
    return kind(value)


def points(value, most=POINTS):
    """A list of x and y of a request, as such; raises ValueError if it is none."""
    if not isinstance(value, list) or not 0 < len(value) <= most:
        raise ValueError("not a list of points")
    if any(len(pair) != 2 for pair in value):
        raise ValueError("a point has an x and a y")
    return [[number(x, -1e6, 1e6) for x in pair] for pair in value]


def answer(value):
    """Which answer of a fill is meant, at which detail, or None; raises ValueError if it cannot be."""
    if value is None:
        return None
    return dict(
        fill=number(value["fill"], 1, 10**9, int),
        answer=number(value["answer"], 0, 99, int),
        detail=number(value["detail"], 0, 1),
    )


def asked(request):
    """The `answer` in the query of a request."""
    try:
        return answer({name: json.loads(text) for name, text in request.query_params.items()})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HTTPException(400, f"Not a request of this page: {error}") from error


def stroke(value):
    """A `session.Stroke` of a request; raises ValueError if it is none."""
    if value.get("transparent") is True:
        return session.Stroke(transparent=True)
    return session.Stroke(
        np.array(points(value["points"])), number(value["size"], 1, BRUSH), value.get("erases") is True
    )


async def wish_of(request):
    """What is to be filled: a dict of strokes, faces marked by hand, the base, and what the answers are to be near."""
    try:
        wish = json.loads(await body_of(request, JSON_BYTES))
        strokes = [stroke(one) for one in wish["strokes"]]
        if len(strokes) > POINTS or sum(len(one.points) * one.size**2 for one in strokes) > PAINT:
            raise HTTPException(422, "That is too much paint at once: fill a part of it first.")
        marked = [points(three, 3) for three in wish.get("marked", [])]
        if len(marked) > 20 or any(len(three) != 3 for three in marked):
            raise ValueError("a face is marked by three points")
        return dict(strokes=strokes, marked=marked, base=answer(wish.get("base")), near=answer(wish.get("near")))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HTTPException(400, f"Not a request of this page: {error}") from error
