"""The searches of paint.py's page: one thread does all that needs TensorFlow, one search after the other."""

import asyncio
import base64
import concurrent.futures
import contextlib
import ctypes
import secrets
import sys
import threading
import time
import traceback

import cli

from web import preview, session

FILLS = 8  # of a photo that are kept, the latest
FRAMES = 0.1  # seconds between two pictures of a search, at least
PATIENCE = 3  # seconds that the model waits for a page to open first


def give_memory_back():
    """Return to the system what is free, of which glibc would keep a photo's worth, and then another one's."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX: threads share what is kept
        ctypes.CDLL(None).mallopt(-3, 2**22)  # M_MMAP_THRESHOLD: what is larger is not kept
        ctypes.CDLL(None).malloc_trim(0)


class Page:
    """One open page: the events on their way to it, its photo, and what was filled in that."""

    def __init__(self, searches):
        self.searches = searches  # `Searches`
        self.id, self.events, self.streams = secrets.token_urlsafe(16), asyncio.Queue(), 0
        self.photo, self.fills, self.job, self.used, self.count = None, {}, None, 0.0, 0

    def take(self, photo):
        """Let a photo, or None, take the place of the one before."""
        self.stop()
        self.photo, self.fills, self.used = photo, {}, time.monotonic()
        give_memory_back()

    def stop(self):
        """Stop its search, if there is one."""
        if self.job:
            self.searches.stop(self.job)

    def renew_events(self):
        """Let what is still to be told go to a new stream, and end the one before."""
        before, self.events = self.events, asyncio.Queue()
        while not before.empty():
            self.events.put_nowait(before.get_nowait())
        before.put_nowait(None)


class Job:
    """A search that a page has asked for; it is the page's own until it is done."""

    def __init__(self, page):
        page.count += 1
        self.page, self.number, self.stop = page, page.count, threading.Event()
        self.photo, self.fill, self.marked, self.near = page.photo, None, (), None


class Searches:
    """What finds and completes faces, and the searches that wait for it."""

    def __init__(self, directory):
        """directory: of the model, which is loaded when the first page opens, or after a while."""
        give_memory_back()
        self.directory, self.queue, self.waiting = directory, asyncio.Queue(), []
        self.thread = concurrent.futures.ThreadPoolExecutor(1)
        self.wanted, self.ready = asyncio.Event(), asyncio.Event()  # a page is open; faces can be found
        self.seer = self.model = self.failure = None

    def add(self, job):
        """Queue a `Job`; the first of those that wait is searched."""
        self.waiting.append(job)
        self.queue.put_nowait(job)
        self.tell_places()

    async def load(self, pages):
        """Load what finds faces, then the model, in the thread that searches, and tell the pages, a dict."""
        with contextlib.suppress(asyncio.TimeoutError):  # the page comes first
            await asyncio.wait_for(self.wanted.wait(), PATIENCE)
        loop = asyncio.get_running_loop()
        try:
            self.seer = await loop.run_in_executor(self.thread, session.Seer.load)
            self.ready.set()
            self.model = await loop.run_in_executor(self.thread, session.Model.load, self.directory)
        except Exception as error:
            self.failure = str(error) if isinstance(error, cli.UserError) else cli.reason(error)
            print(f"paint.py: error: {self.failure}", file=sys.stderr)
        self.ready.set()
        for page in pages.values():
            page.events.put_nowait(self.state())

    def state(self):
        """What a page is told first, and once the model is loaded."""
        detail = self.model is None or self.model.covariance is not None
        return dict(ready=self.model is not None, failure=self.failure, detail=detail, bytes=session.BYTES)

    async def run(self):
        """Do one job after the other, for ever."""
        while True:
            await self.do(await self.queue.get())

    async def do(self, job):
        """Search, unless the job was stopped before its turn."""
        if job in self.waiting:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self.thread, self.search, job, loop)
            self.finish(job)

    def stop(self, job):
        """Stop a job; one that waits is done at once."""
        job.stop.set()
        if job in self.waiting[1:]:
            self.finish(job)

    def finish(self, job):
        """A job is done: its page may ask for the next."""
        self.waiting.remove(job)
        job.page.job, job.page.used = None, time.monotonic()
        give_memory_back()
        job.page.events.put_nowait(dict(fill=job.number, done=True))
        self.tell_places()

    def tell_places(self):
        """Tell all that wait how many are before them."""
        for before, job in enumerate(self.waiting):
            if before:
                job.page.events.put_nowait(dict(fill=job.number, before=before))

    def search(self, job, loop):
        """Search one job's answers, and tell its page of all that comes; runs in the thread that searches."""

        def tell(**event):
            loop.call_soon_threadsafe(lambda: job.page.events.put_nowait(dict(fill=job.number, **event)))

        def frame(generated):
            picture = preview.encoded(show(fill, generated, self.model), "WEBP", job.photo, quality=90, method=0)
            tell(frame=base64.b64encode(picture).decode(), box=box)

        try:
            fill, last = job.fill, 0.0
            box, show = preview.previewer(job.photo, fill)
            frame(None)
            fill = session.with_faces(job.photo, fill, self.model, self.seer, job.marked)
            loop.call_soon_threadsafe(self.keep, job, fill)
            tell(faces=[preview.corners(matrix, self.model.dcgan.image_size) for matrix in fill.matrices])
            seed = session.ANSWERS * (job.number - 1)
            near = job.near if job.near is not None and len(job.near) == len(fill.matrices) else None
            for number, state in session.find_answers(fill, self.model, job.stop, seed, near):
                if state is None:
                    tell(answer=number, place=[side.start for side in fill.part[::-1]])
                    continue
                losses = {name: float(getattr(state, name).sum()) for name in ("contextual", "perceptual", "total")}
                tell(iteration=state.iteration, iterations=state.iterations, number=number, **losses)
                if not number and time.monotonic() - last > FRAMES:
                    frame(state.generated)
                    last = time.monotonic()
        except cli.UserError as error:
            tell(failed=str(error))
        except Exception as error:  # the next search may well do
            traceback.print_exc()
            tell(failed=f"The search failed: {cli.reason(error)}")

    def keep(self, job, fill):
        """Remember a fill, and forget the oldest of too many."""
        if job.page.photo is job.photo:
            job.page.fills[job.number] = fill
            for number in sorted(job.page.fills)[:-FILLS]:
                del job.page.fills[number]
