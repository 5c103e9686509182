"""The searches of paint.py's page: one thread does all that needs TensorFlow, one search after the other."""

import asyncio
import base64
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import itertools
import secrets
import sys
import threading
import time
import traceback

import cli

from completion import masks
from photos import detection
from web import preview, session

EDITS = 8  # of a photo that are kept, the latest
PATIENCE = 3  # seconds that the model waits for a page to open first


def free_memory():
    """Return free memory to the system: glibc would keep as much as a photo took, once for each thread."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(-8, 2)  # M_ARENA_MAX: threads share what is kept
        ctypes.CDLL(None).mallopt(-3, 2**22)  # M_MMAP_THRESHOLD: what is larger is not kept
        ctypes.CDLL(None).malloc_trim(0)


class Page:
    """An open page: the events on their way to it, its photo, and the edits of that."""

    def __init__(self, searches):
        self.searches = searches  # `Searches`
        self.id, self.events = secrets.token_urlsafe(16), asyncio.Queue()
        self.streams = self.visits = 0  # streams of events that are open, and all that were
        self.photo, self.faces, self.edits, self.job, self.used, self.jobs = None, [], {}, None, 0.0, 0
        self.rendering, self.rendered = asyncio.Lock(), (None, None)  # one answer at a time; which, and its pixels

    def open(self, photo=None, faces=()):
        """Replace the photo by another one, or by none."""
        self.stop()
        self.photo, self.faces, self.edits, self.used = photo, faces, {}, time.monotonic()
        self.rendered = None, None
        free_memory()

    def stop(self):
        """Stop its search, if there is one."""
        if self.job:
            self.searches.stop(self.job)

    def renew_events(self):
        """End the stream of events; those that were not sent go to the next one."""
        old, self.events = self.events, asyncio.Queue()
        while not old.empty():
            self.events.put_nowait(old.get_nowait())
        old.put_nowait(None)


class Job:
    """A search that a page has asked for; the page has no other until it is done."""

    def __init__(self, page, marked=()):
        page.jobs += 1
        self.page, self.number, self.stop = page, page.jobs, threading.Event()
        self.photo, self.faces, self.marked, self.edit, self.near = page.photo, page.faces, marked, None, None
        self.show = None  # of `preview.previewer`

    def report(self, **event):
        """Send its page an event."""
        self.page.events.put_nowait(dict(fill=self.number, **event))


class Searches:
    """What detects and completes faces, and the searches that wait for it."""

    def __init__(self, directory):
        """directory: of the model, which is loaded when the first page opens, or after a while."""
        free_memory()
        self.directory, self.waiting = directory, []
        self.thread = concurrent.futures.ThreadPoolExecutor(1)
        self.wanted, self.ready = asyncio.Event(), asyncio.Event()  # a page is open; faces can be detected
        self.detector = self.completer = self.failure = None
        self.started, self.seconds = 0.0, 0.0  # when the search that runs began, and how long the last one took

    def add(self, job):
        """Queue a `Job`; the first of those that wait is searched."""
        self.waiting.append(job)
        self.report_places()
        loop = asyncio.get_running_loop()
        search = loop.run_in_executor(self.thread, self.search, job, loop)
        search.add_done_callback(lambda _: self.finish(job))

    async def load(self, pages):
        """Load what detects faces, then the model, in the thread that searches; report it to the pages, a dict."""
        with contextlib.suppress(asyncio.TimeoutError):  # the page comes first
            await asyncio.wait_for(self.wanted.wait(), PATIENCE)
        loop = asyncio.get_running_loop()
        try:
            self.detector = await loop.run_in_executor(self.thread, detection.FaceDetector.load)
            self.ready.set()
            self.completer = await loop.run_in_executor(self.thread, session.load_completer, self.directory)
        except Exception as error:
            self.failure = str(error) if isinstance(error, cli.UserError) else cli.reason(error)
            print(f"paint.py: error: {self.failure}", file=sys.stderr)
        self.ready.set()
        for page in pages.values():
            page.events.put_nowait(self.state())

    def state(self):
        """What a page needs to know first, and once the model is loaded."""
        detail = self.completer is None or self.completer.prior is not None
        constants = dict(bytes=session.MAX_BYTES, grow=masks.GROW)
        return dict(ready=self.completer is not None, failure=self.failure, detail=detail) | constants

    def stop(self, job):
        """Stop a job; one that waits is done at once."""
        job.stop.set()
        if job in self.waiting[1:]:
            self.finish(job)

    def finish(self, job):
        """A job is done, if it was not before: its page may ask for the next."""
        if job not in self.waiting:
            return
        self.waiting.remove(job)
        job.page.job, job.page.used = None, time.monotonic()
        if job.show and not job.stop.is_set():
            self.seconds = time.monotonic() - self.started
        free_memory()
        job.report(done=True)
        self.report_places()

    def report_places(self):
        """Report to all that wait how many are before them, and in how many seconds it may be their turn."""
        left = self.seconds - (time.monotonic() - self.started)
        for before, job in enumerate(self.waiting[1:], 1):
            job.report(before=before, seconds=round(max(0, left) + (before - 1) * self.seconds))

    def search(self, job, loop):
        """Search one job's answers, and report all that comes to its page; runs in the thread that searches."""

        def report(**event):
            loop.call_soon_threadsafe(lambda: job.report(**event))

        def report_frame(edit, completed=None):
            picture = preview.encode(job.show(edit, completed), "WEBP", job.photo, quality=90, method=0)
            report(frame=base64.b64encode(picture).decode(), box=box)

        looks = itertools.count(1)

        def before_look():
            if job.stop.is_set():
                raise session.Stopped
            report(look=next(looks))

        if job.stop.is_set():  # before its turn
            return
        self.started = time.monotonic()
        try:
            box, job.show = preview.previewer(job.photo, job.edit)
            report_frame(job.edit)
            frontal = session.WatchedDetector(self.detector.frontal, before_look)
            detector = self.detector._replace(frontal=frontal)
            edit = session.with_faces(job.photo, job.edit, job.faces, self.completer, detector, job.marked)
            loop.call_soon_threadsafe(self.keep, job, edit)
            outlines = [preview.corners(matrix, self.completer.dcgan.image_size) for matrix in edit.matrices]
            report(faces=outlines, rim=session.shows_a_rim(job.photo, edit))
            completer = dataclasses.replace(self.completer, seed=session.ANSWERS * (job.number - 1))
            near = job.near if job.near is not None and len(job.near) == len(edit.matrices) else None
            for number, state in session.find_answers(edit, completer, job.stop, near):
                if state is None:
                    report(answer=number, box=box, place=[side.start for side in edit.part[::-1]])
                    continue
                losses = {name: float(getattr(state, name).sum()) for name in ("contextual", "perceptual", "total")}
                report(iteration=state.iteration, iterations=state.iterations, number=number, **losses)
                if not number and state.iteration < state.iterations:  # the answer itself follows the last
                    report_frame(edit, session.quick_blend(edit, state.generated, self.completer))
        except session.Stopped:
            pass
        except cli.UserError as error:
            report(failed=str(error))
        except Exception as error:  # the next search may succeed
            traceback.print_exc()
            report(failed=f"The search failed: {cli.reason(error)}")

    def keep(self, job, edit):
        """Keep an edit and what shows it, and drop the oldest of too many."""
        if job.page.photo is job.photo:
            job.page.edits[job.number] = edit, job.show
            for number in sorted(job.page.edits)[:-EDITS]:
                del job.page.edits[number]
