"""Scripts in processes that fork from one that has imported the packages: to import TensorFlow anew takes seconds.

All have the same hash seed, and end without what the interpreter does at its exit; the README's commands are tested in
processes of their own.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tensorflow", "keras", "cv2", "dlib", "scipy.ndimage", "scipy.sparse.linalg"])


def run(script, arguments, cwd):
    """Run a script with a list of arguments in a folder; returns its `subprocess.CompletedProcess`, with text."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdout", "stderr")]
        command = [str(script), *map(str, arguments)]
        process = CONTEXT.Process(target=become, args=(command, cwd, dict(os.environ), files))
        process.start()
        try:
            process.join()
        finally:
            process.kill()  # if this process is interrupted
        return subprocess.CompletedProcess(command, process.exitcode, *(file.read_text() for file in files))


def become(command, cwd, environment, files):
    """Be the process of a script, with this environment, and its standard output and error in these files."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for descriptor, file in enumerate(files, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), descriptor)
    sys.argv = command
    # a script finds what is beside it and the packages, not the tests
    sys.path[:] = [os.path.dirname(command[0]), *(p for p in sys.path if p.startswith((sys.prefix, sys.base_prefix)))]
    runpy.run_path(command[0], run_name="__main__")
