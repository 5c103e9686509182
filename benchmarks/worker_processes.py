"""Several workers on one machine, for the tests, the benchmark and faults.py."""

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

import utils

ROOT = Path(__file__).resolve().parents[1]


class Workers:
    """A run of train-dcgan.py by workers on this machine, each with its standard output and error in a file."""

    def __init__(self, home, count, *flags, script="train-dcgan.py"):
        """Start them in the folder `home`; `flags` are those of the script, or a list of them for each worker."""
        self.home, self.addresses, self.processes = Path(home), free_addresses(count), []
        for i in range(count):
            own = flags[i] if isinstance(flags[0], list) else flags
            with open(self.home / f"out{i}", "w") as out, open(self.home / f"err{i}", "w") as err:
                command = [sys.executable, ROOT / script, *map(str, own)]
                options = dict(cwd=home, stdout=out, stderr=err, env=os.environ | tf_config(self.addresses, i))
                self.processes.append(subprocess.Popen(command, **options))

    def wait(self, seconds):
        """Wait for all to end; returns their exit statuses. Kills those that have not ended by then."""
        end = time.monotonic() + seconds
        for process in self.processes:
            try:
                process.wait(max(0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        return [process.wait() for process in self.processes]

    def said(self, i, name="err"):
        """The lines that a worker wrote, without the progress bar's."""
        text = (self.home / f"{name}{i}").read_text().replace("\r", "\n")
        return [line for line in text.splitlines() if line.strip() and "step/s" not in line]


def write_images(folder, count, rng):
    """Random 16x16 images to train on, in a new folder."""
    folder.mkdir()
    for i in range(count):
        utils.write_image(folder / f"{i}.png", rng.integers(0, 256, (16, 16, 3), np.uint8))


def free_addresses(count):
    """Addresses on this machine that nothing listens on, below the ports that outgoing connections take."""
    addresses = set()
    while len(addresses) < count:
        port = random.SystemRandom().randrange(15000, 32000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            addresses.add(f"127.0.0.1:{port}")
    return sorted(addresses)


def tf_config(addresses, index):
    """The environment variable that tells a worker its place."""
    place = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    return {"TF_CONFIG": json.dumps(place)}
