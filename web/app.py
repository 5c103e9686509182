"""The server of paint.py's page: photos come in, events and pictures go out.

A page is known by the stream of events that it holds open (GET /events). Its photo lives in memory alone, and goes when
the page does. Who may ask: see `security`.
"""

import asyncio
import concurrent.futures
import contextlib
import functools
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import cli

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from photos import geometry
from web import preview, queue, requests, security, session

STATIC = Path(__file__).resolve().parent / "static"
PAGES, PHOTOS = 100, 20  # open pages, and those of them with a photo, at most
UNUSED = 30 * 60  # seconds after which a photo is dropped
AWAY = 20  # seconds that a page may be without its stream
WATCH = 0.2  # seconds between two looks at whether anybody still waits for an answer


class Site:
    """All open pages, and what they ask."""

    def __init__(self, directory):
        """directory: of the model."""
        self.pages, self.searches = {}, queue.Searches(directory)
        self.threads, self.bodies = concurrent.futures.ThreadPoolExecutor(2), requests.Bodies()

    @contextlib.asynccontextmanager
    async def running(self, app):
        """What the server does beside answering: load the model, drop unused photos; it ends without waiting."""
        asyncio.get_running_loop().set_exception_handler(report_fault)
        # TensorFlow's code goes there
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as tempfile.tempdir:
            tasks = [asyncio.create_task(work) for work in (self.searches.load(self.pages), self.drop_unused())]
            yield
            self.close()
            for task in tasks:
                task.cancel()
            for threads in (self.searches.thread, self.threads):
                threads.shutdown(wait=False, cancel_futures=True)
        tempfile.tempdir = None

    def close(self):
        """Stop all searches and end all streams."""
        for page in self.pages.values():
            page.stop()
            page.events.put_nowait(None)

    async def drop_unused(self):
        """Drop photos that nobody has used for long."""
        while True:
            await asyncio.sleep(15)
            for page in self.with_photo():
                if time.monotonic() - page.used > UNUSED and not page.job:
                    self.drop(page)

    def with_photo(self):
        """The pages that have a photo, the one that was used last at the end."""
        return sorted((page for page in self.pages.values() if page.photo), key=lambda page: page.used)

    def drop(self, page):
        """Drop a page's photo, and report it."""
        page.open()
        page.events.put_nowait(dict(gone=True))

    def forget(self, page, visits):
        """Forget a page that has no stream any more, and has had none since so many `visits`."""
        if not page.streams and page.visits == visits:
            self.pages.pop(page.id, None)
            page.open()

    def find_page(self, request, photo=True):
        """The page of a request; raises HTTPException without one, and without a photo where that is needed."""
        page = self.pages.get(request.path_params["page"])
        if page is None:
            raise HTTPException(410, "This page was gone for too long: load it again.")
        if photo and page.photo is None:
            raise HTTPException(410, "The photo was dropped, as it was not used for long: open it again.")
        page.used = time.monotonic()
        return page

    def find_answer(self, page, asked):
        """The edit, what shows it, and z and G(z) of the answer that `requests.parse_answer` names."""
        edit, show = page.edits.get(asked["fill"], (None, None))
        if edit is None or asked["answer"] >= len(edit.answers):
            raise HTTPException(410, "This answer is no longer there: fill again.")
        return edit, show, *edit.answers[asked["answer"]]

    async def run(self, function, *args):
        """What a function returns that takes its time, without TensorFlow."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *args)

    async def run_for(self, request, page, function, *args):
        """The same of one that calls its last argument now and then, which ends it once nobody waits for it."""
        photo, gone = page.photo, threading.Event()

        def check(*_):
            if gone.is_set():
                raise HTTPException(410, "This page was closed, or has another photo.")

        work = asyncio.ensure_future(self.run(function, *args, check))
        while not (await asyncio.wait([work], timeout=WATCH))[0]:
            if page.photo is not photo or await request.is_disconnected():
                gone.set()
        return await work

    async def render(self, request, page, asked):
        """The edit that `requests.parse_answer` names and what `session.render` makes of its answer.

        A page has one rendering under way, and none for a request that was given up; it keeps the last.
        """
        edit, *_ = self.find_answer(page, asked)
        photo, details = page.photo, (edit, asked["answer"], asked["detail"], self.searches.completer)
        async with page.rendering:
            if page.photo is not photo or await request.is_disconnected():
                raise HTTPException(410, "This page was closed, or has another photo.")
            if page.rendered[0] != asked:
                page.rendered = asked, await self.run_for(request, page, session.render, photo, *details)
            return edit, page.rendered[1]

    async def flatten(self, request, page, asked):
        """The layers up to the answer that `requests.parse_answer` names; none where it is None."""
        return session.layers_up_to(*await self.render(request, page, asked)) if asked else []

    async def events(self, request):
        """The stream of events: of a new page, or of one that lost its stream."""
        self.searches.wanted.set()
        page = self.pages.get(request.query_params.get("page"))
        if page is None:
            if len(self.pages) >= PAGES:
                raise HTTPException(503, f"{PAGES} pages are open: close one.")
            page = queue.Page(self.searches)
            self.pages[page.id] = page
        else:
            page.renew_events()
        loop = asyncio.get_running_loop()
        loop.call_later(AWAY, self.forget, page, page.visits)

        async def stream(events):
            page.streams, page.visits = page.streams + 1, page.visits + 1
            try:
                known = dict(page=page.id, photo=page.photo is not None, job=page.job and page.job.number)
                event = known | self.searches.state()
                while event is not None:
                    yield f"data: {json.dumps(event)}\n\n" if event else ": alive\n\n"
                    event = {}  # after ten seconds, so that a dead connection shows
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(10):
                            event = await events.get()
            finally:
                page.streams -= 1
                if not page.streams:
                    page.stop()
                    loop.call_later(AWAY, self.forget, page, page.visits)

        return StreamingResponse(stream(page.events), media_type="text/event-stream")

    async def upload(self, request):
        """Open the photo that is the request's body; answers its size and the outlines of its faces."""
        page = self.find_page(request, photo=False)
        async with self.bodies.read(request, session.MAX_BYTES) as data:
            await self.searches.ready.wait()
            if self.searches.detector is None:
                raise HTTPException(503, self.searches.failure)
            photo = await self.run(session.open_photo, data)
            kind = session.kind_of(data)
        if await request.is_disconnected():
            raise HTTPException(410, "This page was closed.")
        page.events.put_nowait(dict(opened=True))
        faces = await self.run(session.find_faces, photo, self.searches.detector)
        if page.id not in self.pages:
            raise HTTPException(410, "This page was closed.")
        page.open(photo, faces)
        for other in self.with_photo()[:-PHOTOS]:
            self.drop(other)
        height, width = photo.pixels.shape[:2]
        size = session.OUTLINE_SIZE
        outlines = [preview.corners(geometry.affine(face.landmarks, size), size) for face in faces]
        seen = dict(width=width, height=height, faces=outlines, transparent=photo.alpha is not None, kind=kind)
        return JSONResponse(seen)

    async def photo(self, request):
        """The photo as it was opened."""
        photo = self.find_page(request).photo
        return await self.run(picture_response, photo, preview.as_picture, photo)

    async def close_photo(self, request):
        """Forget the photo."""
        self.find_page(request, photo=False).open()
        return JSONResponse({})

    async def transparent(self, request):
        """What is transparent in the photo, as a stroke's mask."""
        return await self.run(mask_response, self.find_page(request).photo.hidden)

    async def open_mask(self, request):
        """What the mask that is the request's body hides of the photo, as a stroke's mask."""
        photo, name = self.find_page(request).photo, request.query_params.get("name", "mask")[:200]
        async with self.bodies.read(request, session.MAX_BYTES) as data:
            return await self.run(mask_response, await self.run(session.open_mask, data, name, photo))

    async def save_mask(self, request):
        """What is painted, as the mask that complete.py takes: white on black, of the photo's size."""
        async with self.bodies.read(request, requests.JSON_BYTES) as data:
            strokes = requests.parse_mask(data)
        hole = await self.run(session.painted, strokes, self.find_page(request).photo)
        return Response(await self.run(session.save_mask, hole), media_type="image/png")

    async def fill(self, request):
        """Queue the search that fills what is painted; answers its number."""
        async with self.bodies.read(request, requests.JSON_BYTES) as data:
            asked = requests.parse_fill(data)
        page = self.find_page(request)
        if page.job:
            raise HTTPException(409, "A search is running: stop it first.")
        if self.searches.completer is None:
            raise HTTPException(503, self.searches.failure or "The model is still loading.")
        job = page.job = queue.Job(page, asked["marked"])
        try:
            if asked["near"]:
                *_, job.near, _ = self.find_answer(page, asked["near"])
            layers = await self.flatten(request, page, asked["base"])
            job.edit = await self.run(session.start_edit, job.photo, asked["strokes"], layers)
        except BaseException:
            page.job = None
            raise
        self.searches.add(job)
        return JSONResponse(dict(fill=job.number), 202)

    async def stop(self, request):
        """Stop the page's search; the best that it has found so far is its last answer."""
        self.find_page(request).stop()
        return JSONResponse({})

    async def patch(self, request):
        """The hole as one of the answers fills it: a picture of the rectangle around it that is empty beside it."""
        page = self.find_page(request)
        photo = page.photo  # the page may drop it while this renders
        edit, rendered = await self.render(request, page, requests.parse_query(request))
        return await self.run(picture_response, photo, preview.cut_out, rendered, edit.hole)

    async def quick_patch(self, request):
        """The same in fewer pixels, which takes little time; the rectangle is that of the search's pictures."""
        page, asked = self.find_page(request), requests.parse_query(request)
        edit, show, _, generated = self.find_answer(page, asked)

        def draw():
            if generated is None:
                return show(edit)
            completer = self.searches.completer
            blended = completer.blend(edit.images, generated, edit.holes, asked["detail"])
            return show(edit, blended, completer.refiner)

        return await self.run(picture_response, page.photo, draw)

    async def save(self, request):
        """The whole photo with one of the answers, or as it was, as a file of the kind that is asked for."""
        page, kind = self.find_page(request), requests.parse_kind(request)
        photo, asked = page.photo, requests.parse_query(request) if "fill" in request.query_params else None
        layers = await self.flatten(request, page, asked)
        file = await self.run_for(request, page, session.save, photo, layers, kind)
        return Response(file, media_type=f"image/{kind.lower()}")


def picture_response(photo, function, *args):
    """The response that shows the Pillow image that a function makes, in a photo's colours."""
    picture = function(*args)
    if picture.mode == "RGBA":
        return Response(preview.encode(picture, "PNG", photo, compress_level=1), media_type="image/png")
    return Response(preview.encode(picture, "JPEG", photo, quality=95, subsampling=0), media_type="image/jpeg")


def mask_response(hidden):
    """The response that holds boolean (H, W) as a stroke's mask: white, and transparent beside it."""
    return Response(session.save_mask(hidden, transparency=0), media_type="image/png")


def report_fault(loop, context):
    """What asyncio finds wrong beside all requests, in a line, once."""
    print_once(f"paint.py: {context['message']}: {context.get('exception')}")


@functools.cache
def print_once(line):
    """Print a line on standard error, if it is a new one."""
    print(line, file=sys.stderr)


async def report_error(request, error):
    """An error as the page reads it; a UserError has no status of its own."""
    status, headers = getattr(error, "status_code", 422), getattr(error, "headers", None)
    return JSONResponse({"error": getattr(error, "detail", str(error))}, status, headers)


def make_app(site, hosts=None, token=None, cookie="paint"):
    """The ASGI app of a `Site`; for the others see `security.restrict_access`."""
    routes = [Route("/events", site.events)]
    for name, handler, method in (
        ("photo", site.upload, "PUT"), ("photo", site.photo, "GET"), ("photo", site.close_photo, "DELETE"),
        ("transparent", site.transparent, "GET"), ("mask", site.open_mask, "PUT"), ("mask", site.save_mask, "POST"),
        ("fills", site.fill, "POST"), ("stop", site.stop, "POST"), ("patch", site.patch, "GET"),
        ("preview", site.quick_patch, "GET"), ("mended", site.save, "GET"),
    ):  # fmt: skip
        routes.append(Route(f"/pages/{{page}}/{name}", handler, methods=[method]))
    routes.append(Mount("/", StaticFiles(directory=STATIC, html=True)))
    handlers = dict.fromkeys((HTTPException, cli.UserError), report_error)
    app = Starlette(routes=routes, lifespan=site.running, exception_handlers=handlers)
    return security.restrict_access(app, hosts, token, cookie)
