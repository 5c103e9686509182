"""The server of paint.py's page: photos come in, searches and pictures go out, and no stranger gets near them.

A page is known by the stream of events that it holds open (GET /events). Its photo lives in memory alone, and goes when
the page does.
"""

import asyncio
import concurrent.futures
import contextlib
import json
import time
from pathlib import Path

import cli

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from web import preview, queue, requests, security, session

HOME = Path(__file__).resolve().parent / "static"
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".jpg": "image/jpeg",
    ".svg": "image/svg+xml",
}
PAGES, PHOTOS = 100, 20  # open pages, and those of them with a photo, at most
UNUSED = 30 * 60  # seconds after which a photo is dropped
AWAY = 5  # seconds that a page may be without its stream


class Site:
    """All open pages, and what they may ask."""

    def __init__(self, directory):
        """directory: of the model."""
        self.pages, self.searches = {}, queue.Searches(directory)
        self.others, self.uploads = concurrent.futures.ThreadPoolExecutor(2), asyncio.Semaphore(4)

    # what goes on

    @contextlib.asynccontextmanager
    async def running(self, app):
        """What the server does beside answering: load the model, search, drop what nobody uses."""
        works = self.searches.load(self.pages), self.searches.run(), self.drop_unused()
        tasks = [asyncio.create_task(work) for work in works]
        yield
        self.close()
        for task in tasks:
            task.cancel()
        self.searches.thread.shutdown(cancel_futures=True)

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
        """Drop a page's photo, and say so."""
        page.take(None)
        page.events.put_nowait(dict(gone=True))

    def forget(self, page):
        """Forget a page that has no stream any more."""
        if not page.streams:
            self.pages.pop(page.id, None)
            page.take(None)

    # what is asked

    def page_of(self, request, photo=True):
        """The page of a request; raises HTTPException without one, and without a photo where that is needed."""
        page = self.pages.get(request.path_params["page"])
        if page is None:
            raise HTTPException(410, "This page was gone for too long: load it again.")
        if photo and page.photo is None:
            raise HTTPException(410, "The photo was let go, as it was not used for long: open it again.")
        page.used = time.monotonic()
        return page

    async def run(self, function, *args):
        """What a function returns that takes its time, without TensorFlow."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self.others, function, *args)
        except cli.UserError as error:
            raise HTTPException(422, str(error)) from error

    async def events(self, request):
        """The stream of all that a page is to know; opens the page, or goes on with one that lost its stream."""
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
        loop.call_later(AWAY, self.forget, page)

        async def stream(events):
            page.streams, event = page.streams + 1, None
            try:
                known = dict(page=page.id, photo=page.photo is not None, job=page.job and page.job.number)
                yield sent(known | self.searches.state())
                while True:
                    event = event or asyncio.ensure_future(events.get())
                    done, _ = await asyncio.wait([event], timeout=10)
                    if done and event.result() is None:
                        return
                    yield sent(event.result()) if done else ": still there\n\n"  # so that a dead connection shows
                    event = None if done else event
            finally:
                if event:
                    event.cancel()
                page.streams -= 1
                if not page.streams:
                    page.stop()
                    loop.call_later(AWAY, self.forget, page)

        return StreamingResponse(stream(page.events), media_type="text/event-stream")

    async def upload(self, request):
        """Take the photo that is the request's body; answers its size and the outlines of its faces."""
        page = self.page_of(request, photo=False)
        async with self.uploads:
            data = await requests.body_of(request, session.BYTES)
            await self.searches.ready.wait()
            if self.searches.seer is None:
                raise HTTPException(503, self.searches.failure)
            photo = await self.run(session.open_photo, data, self.searches.seer)
        if page.id not in self.pages:
            raise HTTPException(410, "This page was closed.")
        page.take(photo)
        for other in self.with_photo()[:-PHOTOS]:
            self.drop(other)
        height, width = photo.pixels.shape[:2]
        faces = [preview.outline(seen.landmarks) for seen in photo.seen]
        return JSONResponse(dict(width=width, height=height, faces=faces, transparent=photo.alpha is not None))

    async def shown(self, request):
        """The photo as it was opened, for the page to show."""
        return await self.run(picture_of, preview.as_picture, self.page_of(request).photo)

    async def transparent(self, request):
        """What is transparent in the photo, opaque."""
        return await self.run(picture_of, preview.transparency, self.page_of(request).photo)

    async def fill(self, request):
        """Queue the search that fills what is painted; answers its number."""
        wish = await requests.wish_of(request)
        page = self.page_of(request)
        if page.job:
            raise HTTPException(409, "A search is going on: stop it first.")
        if self.searches.model is None:
            raise HTTPException(503, self.searches.failure or "The model is still loading.")
        job = page.job = queue.Job(page)
        try:
            base, job.marked = None, wish["marked"]
            if wish["base"]:
                base = await self.run(session.onto, job.photo, *self.answer_of(page, wish["base"]), self.searches.model)
            if wish["near"]:
                near, answer, _ = self.answer_of(page, wish["near"])
                job.near = near.answers[answer][0]
            job.fill = await self.run(session.begin, job.photo, wish["strokes"], base)
        except BaseException:
            page.job = None
            raise
        self.searches.add(job)
        return JSONResponse(dict(fill=job.number), 202)

    def answer_of(self, page, wish):
        """The fill, the number of the answer and the detail that a request names."""
        fill = page.fills.get(wish["fill"])
        if fill is None or wish["answer"] >= len(fill.answers):
            raise HTTPException(410, "This answer is no longer there: fill again.")
        return fill, wish["answer"], wish["detail"]

    async def stop(self, request):
        """Stop the page's search; what it has found so far is its last answer."""
        self.page_of(request).stop()
        return JSONResponse({})

    async def patch(self, request):
        """The hole as one of the answers fills it, a picture of the rectangle around it that is empty beside it."""
        page = self.page_of(request)
        answer = self.answer_of(page, requests.asked(request))
        return await self.run(picture_of, preview.patch, page.photo, *answer, self.searches.model)

    async def save(self, request):
        """The whole photo with one of the answers, or as it was, as a PNG file."""
        page, base = self.page_of(request), None
        photo = page.photo
        if request.query_params:
            base = await self.run(
                session.onto, photo, *self.answer_of(page, requests.asked(request)), self.searches.model
            )
        return Response(await self.run(session.save, photo, base), media_type="image/png")


def sent(event):
    """An event as the stream has it."""
    return f"data: {json.dumps(event)}\n\n"


def picture_of(function, photo, *args):
    """The response that shows the Pillow image that a function makes of a photo, in the photo's colours."""
    picture = function(photo, *args)
    if picture.mode == "RGBA":
        return Response(preview.encoded(picture, "PNG", photo, compress_level=1), media_type="image/png")
    return Response(preview.encoded(picture, "JPEG", photo, quality=95, subsampling=0), media_type="image/jpeg")


def file(name):
    """What answers one of the page's own files."""
    data, kind = (HOME / name).read_bytes(), TYPES[Path(name).suffix]

    async def send(request):
        return Response(data, media_type=kind)

    return send


async def told(request, error):
    """An error as the page reads it."""
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def make_app(site, hosts=None, token=None, cookie="paint"):
    """The ASGI app of a `Site`; for the others see `security.guarded`."""
    routes = [Route("/", file("index.html")), Route("/events", site.events)]
    routes += [Route(f"/{path.name}", file(path.name)) for path in sorted(HOME.iterdir()) if path.suffix in TYPES]
    for name, handler, method in (
        ("photo", site.upload, "PUT"), ("photo", site.shown, "GET"), ("transparent", site.transparent, "GET"),
        ("fills", site.fill, "POST"), ("stop", site.stop, "POST"), ("patch", site.patch, "GET"),
        ("mended", site.save, "GET"),
    ):  # fmt: skip
        routes.append(Route(f"/pages/{{page}}/{name}", handler, methods=[method]))
    app = Starlette(routes=routes, lifespan=site.running, exception_handlers={HTTPException: told})
    return security.guarded(app, hosts, token, cookie)
