"""Kills workers at random moments, and checks that the others end in one line and that all go on.

    python benchmarks/faults.py --kills 20

Trains a tiny DCGAN by several workers on this machine, again and again. Each time one of them, drawn at random, is
killed at a random moment: while they meet, build the networks, train, save or evaluate. The others must end within 60
seconds with status 2 and one line that names the lost worker, no checkpoint may be lost, and the next start must go on
from the newest. Prints a Markdown table.
"""

import argparse
import random
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from worker_processes import Workers, write_images

import checkpoint

FLAGS = "--dataset images --checkpoint_dir mine --image_size 16 --z_dim 5 --gf_dim 8 --df_dim 8".split()
FLAGS += "--batch_size 12 --epoch 1000000 --eval_every 20 --join_timeout 30".split()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20, help="the kill comes before so many have passed")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draws, good = random.Random(args.seed), 0
    print(
        "| killed | at s | others ended after s | newest checkpoint before, after | what they said | as it should be |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        write_images(Path(home, "images"), 60, np.random.default_rng(0))
        for _ in range(args.kills):
            victim, moment = draws.randrange(args.workers), draws.uniform(2, args.seconds)
            row, fine = kill(Path(home), args.workers, victim, moment)
            good += fine
            print(f"| {' | '.join(map(str, row))} | {'yes' if fine else 'NO'} |", flush=True)
    print(f"\n{good} of {args.kills} as they should be")
    return int(good < args.kills)


def kill(home, count, victim, moment):
    """Start workers, kill one at a moment, and return a row of the table, and whether all was as it should be."""
    before = checkpoint.find(home / "mine")[:1]
    workers = Workers(home, count, *FLAGS)
    time.sleep(moment)
    workers.processes[victim].kill()
    start = time.monotonic()
    statuses = workers.wait(60)
    ended = time.monotonic() - start
    after = checkpoint.find(home / "mine")[:1]
    others = [i for i in range(count) if i != victim]
    said = [workers.said(i) for i in others]
    fine = all(statuses[i] == 2 for i in others)
    name = f"worker {victim} ({workers.addresses[victim]})"
    fine &= all(len(lines) == 1 and re.search(f"(lost|_timeout 30:) {re.escape(name)}", lines[0]) for lines in said)
    steps = [int(path[0].rpartition("-")[2]) if path else 0 for path in (before, after)]
    fine &= steps[0] <= steps[1]
    fine &= all(line.endswith(f"step {steps[0]}") for line in workers.said(0, "out") if "resumes from" in line)
    texts = " / ".join(dict.fromkeys(line for lines in said for line in lines))
    return (f"worker {victim}", f"{moment:.1f}", f"{ended:.1f}", f"{steps[0]}, {steps[1]}", texts), fine


if __name__ == "__main__":
    sys.exit(main())
