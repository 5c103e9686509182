"""Workers of one training step, each held to a core of this machine: what working together costs; for speed.py.

Each worker is a process of this file. It makes the step, and times as many of them as a line of its input says.
"""

import contextlib
import operator
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cli

from worker_processes import free_addresses, tf_config

from training import cluster


def main():
    """One worker: seconds a step, for each count of steps that is asked for."""
    batch_size, precision = int(sys.argv[1]), sys.argv[2]
    with cli.quiet_tensorflow():
        from speed import our_step

        from training.workers import join

        team = join(cluster.place(), 300)
        with team.strategy.scope():
            step = our_step(batch_size, precision)
        step()  # compiles it
    print("ready", flush=True)
    for line in sys.stdin:  # until the parent kills this process
        start = time.monotonic()
        for _ in range(int(line)):
            loss = step()
            team.any(False, False)  # as a run asks the others after each step
        float(loss)
        print((time.monotonic() - start) / int(line), flush=True)


def table(count, batch_size, precision, blocks, steps):
    """Print a Markdown table of one worker, of `count` that work apart, and of as many that work together."""

    def start(core, environment):
        process = subprocess.Popen(
            [sys.executable, __file__, str(batch_size), precision],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )  # fmt: skip
        stack.callback(process.kill)
        return process

    def measure(processes):
        """The mean of their seconds a step, all at the same time, and the bytes that each sends in it."""
        before = loopback_bytes()
        for process in processes:
            print(steps, file=process.stdin, flush=True)
        seconds = statistics.mean(float(process.stdout.readline()) for process in processes)
        return seconds, (loopback_bytes() - before) / steps / len(processes)

    cores = sorted(os.sched_getaffinity(0))[:count]
    if len(cores) < count:
        raise SystemExit(f"--workers {count}: needs as many cores, and there are {len(cores)}")
    with contextlib.ExitStack() as stack:
        apart = [start(core, {"TF_CONFIG": ""}) for core in cores]
        addresses = free_addresses(count)
        together = [start(core, tf_config(addresses, i)) for i, core in enumerate(cores)]
        for process in apart + together:
            while (line := process.stdout.readline()) != "ready\n":
                if not line:
                    raise SystemExit("a worker ended; see above why")
        kinds = {"one worker": apart[:1], f"{count} apart": apart, f"{count} together": together}
        rounds = []
        for _ in range(blocks):
            rounds.append({name: measure(processes) for name, processes in kinds.items()})
            print(*(f"{name}: {times[0]:.3f} s" for name, times in rounds[-1].items()), sep=", ", file=sys.stderr)
    print(f"\n{batch_size} images a worker, {precision}, each worker on one core\n")
    print("| | seconds a step | images/s | times one worker | share of transfer and waiting | MB sent a step |")
    print("|---|---|---|---|---|---|")
    for name, processes in kinds.items():
        rates = [len(processes) * batch_size / times[name][0] for times in rounds]
        cells = [f"{statistics.median(times[name][0] for times in rounds):.3f}", f"{statistics.median(rates):.1f}"]
        alone = [batch_size / times["one worker"][0] for times in rounds]
        cells += [f"{statistics.median(map(operator.truediv, rates, alone)):.2f}", "", ""]
        if processes is together:
            shares = [1 - times[f"{count} apart"][0] / times[name][0] for times in rounds]
            sent = statistics.median(times[name][1] for times in rounds)
            cells[-2:] = f"{statistics.median(shares):.1%}", f"{sent / 1e6:.1f}"
        print(f"| {name} | {' | '.join(cells)} |")


def loopback_bytes():
    """How many bytes this machine has sent to itself."""
    (line,) = [line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:")]
    return int(line.split()[1])


if __name__ == "__main__":
    main()
