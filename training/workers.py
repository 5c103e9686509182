"""Several workers that train one model: how they meet, what they exchange, and how a lost one is reported.

    team = join(cluster.place(), timeout=300)     # before TensorFlow has computed anything
    with team.strategy.scope(): ...               # networks made here are the same on all workers

The chief alone writes. A single worker is a team of one, for which all of this does nothing. Values travel by
TensorFlow's collective operations.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import sys
import textwrap
import time

import cli

import numpy as np
import tensorflow as tf
from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
from tensorflow.python.eager import context

import checkpoint
import ops
from training import cluster

LINGER_SECONDS = 12  # a worker that has lost another stays so long, or the rest would take it for the lost one
LOST = tuple(
    getattr(tf.errors, f"{name}Error")
    for name in ("Unavailable", "DeadlineExceeded", "Aborted", "Cancelled", "FailedPrecondition", "Internal", "Unknown")
)


def join(place, timeout):
    """Meet the other workers, and return the `Team`; TensorFlow must not have computed anything yet.

    Raises UserError, naming the missing, if not all have come within `timeout` seconds. From then on SIGTERM ends the
    process by SystemExit, until a run defers it.
    """
    ops.grow_memory()
    if place.count == 1:
        return Team(ops.strategy(), place.index, place.addresses)
    addresses = place.addresses or slurm_addresses(place.index)
    own = addresses[place.index]
    cluster.check_port(own)
    print(f"worker {place.index} of {place.count}, {own}: waits for the others", flush=True)
    limit_waiting(place.count, timeout)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": addresses}), task_type="worker", task_id=place.index, rpc_layer="grpc"
    )
    sigint, sigterm = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    if sigint != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python handles no signal while TensorFlow waits
    try:
        return Team(tf.distribute.MultiWorkerMirroredStrategy(resolver), place.index, addresses)
    except (tf.errors.OpError, RuntimeError) as error:
        missing = cluster.absent(addresses, place.index)
        time.sleep(LINGER_SECONDS)
        reason = textwrap.shorten(cli.reason(error), 150)
        why = f"{own}: the workers could not meet ({reason}); see that the network is open"
        if missing:
            why = f"--join_timeout {timeout}: {' and '.join(missing)} did not come, or left again; see there why"
        raise cli.UserError(f"{why}, and start all again") from error
    finally:
        signal.signal(signal.SIGINT, sigint)
        if sigterm != signal.SIG_IGN:  # TensorFlow has made it do nothing
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def limit_waiting(count, timeout):
    """Let TensorFlow wait so many seconds for the workers to meet, instead of an hour.

    There is no public way; but its strategy does not change what has been configured before.
    """
    jobs, shared = [coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=count)], context.context()
    options = dict(cluster_register_timeout_in_ms=1000 * timeout, coordinated_jobs=jobs)
    shared.configure_coordination_service("standalone", service_leader="/job:worker/replica:0/task:0", **options)
    shared._coordination_service_config.cluster_register_with_barrier = True  # else the chief waits for an hour


def slurm_addresses(index):
    """The addresses of the tasks of this step of Slurm, in their order; raises UserError if they cannot be found.

    Each step has 16 ports of its own from 20000 on, by its number and the job's, as steps can share machines.
    """
    try:
        job, step = (int(os.environ.get(f"SLURM_{name}_ID", 0)) for name in ("JOB", "STEP"))
        port = 20000 + 16 * ((job + 37 * step) % 750)
        # Slurm itself gives each task its GPUs; the resolver would ask nvidia-smi, and needs as many as there are tasks
        options = dict(port_base=port, gpus_per_node=2**16, gpus_per_task=1, auto_set_gpu=False)
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(**options)
        addresses = resolver.cluster_spec().as_dict()["worker"]
    except (RuntimeError, ValueError, AssertionError) as error:
        raise cli.UserError(f"Slurm: {cli.reason(error)}; start the workers by srun, or set TF_CONFIG") from error
    # the resolver has node10 before node2, Slurm after it
    addresses.sort(key=lambda text: [part.zfill(10) if part.isdigit() else part for part in re.split(r"(\d+)", text)])
    host = os.environ.get("SLURMD_NODENAME")
    if host and addresses[index].rpartition(":")[0] != host:
        remedy = "start with srun --distribution=block, or unset SLURM_STEP_NUM_TASKS to train alone"
        raise cli.UserError(f"Slurm: task {index} runs on {host}, against block distribution; {remedy}")
    return addresses


class Team:
    """The workers that train together, seen by one of them.

    All of them must call `any`, `gather`, `compare`, `copy_from_chief` and `barrier` in the same order.
    """

    def __init__(self, strategy, index=0, addresses=("",)):
        """`strategy` runs a step on all of them; of their `addresses` the one at `index` is this worker's."""
        self.strategy, self.index, self.addresses = strategy, index, addresses
        self.count, self.chief = len(addresses), index == 0
        self.total = tf.function(lambda values: strategy.reduce("SUM", strategy.run(lambda: values), axis=None))

    def share(self, batch):
        """This worker's part of the batch of all: of n workers the i-th takes the i-th n-th."""
        size = len(batch) // self.count
        return batch[self.index * size : (self.index + 1) * size]

    def any(self, *flags):
        """For each flag, whether any worker has it set: a list of truth values, the same on all."""
        if self.count == 1:
            return list(map(bool, flags))
        return [bool(value) for value in self.total(tf.constant(flags, tf.float32)).numpy()]

    def gather(self, value):
        """The value, one that JSON can hold, of each worker: a list in their order."""
        if self.count == 1:
            return [value]

        def collect(values):
            return self.strategy.gather(self.strategy.run(lambda: tf.constant(values, tf.int32)), axis=0).numpy()

        text = list(json.dumps(value).encode())
        sizes = collect([len(text)])
        texts = np.split(collect(text), np.cumsum(sizes)[:-1])
        return [json.loads(bytes(text.tolist())) for text in texts[:: len(texts) // self.count]]

    def compare(self, settings):
        """Raise UserError, naming it, at the first value of the dict `settings()` that is not the same on all."""
        if self.count == 1:
            return
        given = self.gather(settings())
        for name, i in itertools.product(given[0], range(1, self.count)):
            if given[i][name] != given[0][name]:
                found = [f"{given[k][name]} for worker {k} ({self.addresses[k]})" for k in (i, 0)]
                remedy = "start all with the same images, model and flags, --precision too"
                raise cli.UserError(f"{name}: {', '.join(found)}; {remedy}")

    def copy_from_chief(self, variables):
        """Give variables the chief's values."""
        if self.count == 1:
            return

        def chiefs_value(variable):
            replica, value = tf.distribute.get_replica_context(), tf.convert_to_tensor(variable)
            return replica.all_reduce("SUM", tf.where(replica.replica_id_in_sync_group == 0, value, 0))

        for variable in variables:
            results = self.strategy.run(chiefs_value, (variable,))
            variable.assign(self.strategy.experimental_local_results(results)[0])

    def barrier(self):
        """Wait until all are here; the chief, which comes last and needs the others no longer, ignores a lost one."""
        with contextlib.suppress(*([tf.errors.OpError] if self.chief else [])):
            self.gather(None)

    @contextlib.contextmanager
    def report_lost_workers(self, directory):
        """Raise UserError where a worker is lost inside; it names the checkpoint in `directory` to resume from."""
        try:
            yield
        except LOST as error:
            if self.count == 1:
                raise
            lost = " and ".join(cluster.absent(self.addresses, self.index)) or self.find_worker(str(error))
            if not lost and self.chief:
                raise
            lost = lost or f"worker 0 ({self.addresses[0]}; {textwrap.shorten(cli.reason(error), 150)})"
            time.sleep(LINGER_SECONDS)
            remedy = f"start all again with the same command: they resume from {checkpoint.newest(directory)}"
            raise cli.UserError(f"lost {lost}, or the network to it; {remedy}") from error

    def find_worker(self, message):
        """The other worker that a message of TensorFlow is about, or None if it names none."""
        found = [int(task) for task in re.findall(r"/job:worker/(?:replica:\d+/)?task:(\d+)", message)]
        lost = [task for task in found if task != self.index and task < self.count]
        return f"worker {lost[-1]} ({self.addresses[lost[-1]]})" if lost else None
