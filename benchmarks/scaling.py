"""How much faster several machines train than one: a model, from what one step takes and what one transfer takes.

    python benchmarks/scaling.py --seconds 0.575 --images 64

Each worker computes a step on its own images; then all add up their gradients around a ring: of n workers each sends
2 (n - 1) / n times the gradients' bytes, in 2 (n - 1) rounds (Patarasuk and Yuan 2009, section 3). Prints a Markdown
table: images/s, and how many times those of one worker they are.
"""

import argparse

SUMS = 3, 6  # in a step: of the gradients of its three updates; and of few numbers, which only wait


def seconds_a_step(workers, seconds, megabytes, gigabits, rounds_ms, waiting):
    """What a step takes: one worker's, the share of it that all wait for the slowest, and the transfer."""
    if workers == 1:
        return seconds
    sent = 2 * (workers - 1) / workers * megabytes * 8e6
    rounds = sum(SUMS) * 2 * (workers - 1)
    return seconds * (1 + waiting) + sent / (gigabits * 1e9) + rounds * rounds_ms / 1e3


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seconds", type=float, required=True, help="one worker's step alone")
    add("--images", type=int, required=True, help="of each worker in a step")
    add("--megabytes", type=float, default=58.3, help="of gradients in a step (%(default)s)")
    add("--rounds_ms", type=float, default=0.5, help="what a round of a ring takes beside its bytes (%(default)s)")
    add("--waiting", type=float, default=0.03, help="share of a step that the slowest takes longer (%(default)s)")
    add("--used", type=float, default=0.67, help="share of what a network can carry that is used (%(default)s)")
    add("--most_gigabits", type=float, default=5.7, help="that a worker can send, whatever the network (%(default)s)")
    args = parser.parse_args()
    networks = 1, 10, 100
    print(f"| workers | images a step | {' | '.join(f'{gigabits} Gbit/s' for gigabits in networks)} |")
    print("|---" * (2 + len(networks)) + "|")
    for workers in (1, 2, 4, 8, 16, 32, 64):
        cells = []
        for gigabits in networks:
            rate = min(gigabits * args.used, args.most_gigabits)
            step = seconds_a_step(workers, args.seconds, args.megabytes, rate, args.rounds_ms, args.waiting)
            cells.append(f"{workers * args.images / step:,.0f} ({workers * args.seconds / step:.1f})")
        print(f"| {workers} | {workers * args.images} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
