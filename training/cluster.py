"""Which workers take part in a run, by TF_CONFIG or Slurm, and which of them can be reached.

A process that trains is a worker; the first one is the chief.
"""

import json
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cli

EXAMPLE = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
PROBE_SECONDS = 3


class Place(NamedTuple):
    """Which of how many workers this process is, and the "host:port" of each, or None if Slurm knows them."""

    index: int
    count: int
    addresses: list | None


def place():
    """This process's place, by TF_CONFIG or Slurm's variables, or else alone; raises UserError if they are invalid."""
    text = os.environ.get("TF_CONFIG", "").strip()
    found = read_tf_config(text) if text else read_slurm()
    if found.count > 1:  # a lost worker is reported in one line; TensorFlow would log many
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    return found


def read_slurm():
    """The place by the variables that Slurm sets in a step, that is, below srun; without them, alone."""
    try:
        count = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
        index = int(os.environ["SLURM_PROCID"]) if count > 1 else 0
        if not 0 <= index < count:
            raise ValueError
    except (KeyError, ValueError) as error:
        raise cli.UserError("SLURM_STEP_NUM_TASKS, SLURM_PROCID: are invalid; start the workers by srun") from error
    return Place(index, count, None if count > 1 else [""])


def read_tf_config(text):
    """The place by a TF_CONFIG; raises UserError if it is not as TensorFlow documents it.

    Its jobs may be "chief", of one task, and "worker"; without a chief, worker 0 is.
    """
    try:
        config = json.loads(text)
        jobs, task = config.get("cluster", {}), config.get("task", {})
        if not jobs:
            return Place(0, 1, [""])
        if set(jobs) - {"chief", "worker"} or len(jobs.get("chief", [])) > 1:
            raise ValueError("its jobs are not one chief and workers")
        tasks = [(job, i) for job in ("chief", "worker") for i in range(len(jobs.get(job, [])))]
        addresses = [jobs[job][i] for job, i in tasks]
        for address in addresses:
            well_formed = re.fullmatch(r"[^\s/,]+:[1-9]\d{0,4}", address) and int(address.rpartition(":")[2]) < 2**16
            if not well_formed or addresses.count(address) > 1:
                raise ValueError(f"{address[:80]!r} is not the address of one worker")
        if (task["type"], task["index"]) not in tasks:
            raise ValueError(f"it has no task {str(task)[:80]}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = f" ({error})" if type(error) is ValueError else ""
        raise cli.UserError(f"TF_CONFIG: is not like {EXAMPLE}{why}; correct it, or unset it") from error
    return Place(tasks.index((task["type"], task["index"])), len(tasks), addresses)


def check_port(address):
    """Raise UserError if something listens already at the port of this worker's own address."""
    try:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()
    except OSError as error:
        why = f"this worker cannot listen there ({error.strerror})"
        raise cli.UserError(f"{address}: {why}; choose another port") from error


def absent(addresses, index):
    """The other workers that do not answer, as "worker 1 (host:port)"; `index` is this one's."""

    def missed(i):
        host, _, port = addresses[i].rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS) as connection:
                if not connection.recv(1):  # gRPC's server speaks first; a frozen process accepts, and is silent
                    raise ConnectionResetError
        except (socket.gaierror, UnicodeError):
            return f"worker {i} ({addresses[i]}, an unknown name)"
        except OSError:
            return f"worker {i} ({addresses[i]})"

    others = [i for i in range(len(addresses)) if i != index]
    with ThreadPoolExecutor(max(1, len(others))) as pool:
        return list(filter(None, pool.map(missed, others)))
