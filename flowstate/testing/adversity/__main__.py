"""``python -m flowstate.testing.adversity --seeds 100000``: as many histories, on all cores. A fault ends it with its seed."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from functools import partial

from flowstate.clock import SystemClock
from flowstate.testing.adversity.answers import simulate_answers
from flowstate.testing.adversity.driver import _explore, in_pieces
from flowstate.testing.adversity.fault import Fault


def main() -> int:
    parser = argparse.ArgumentParser(prog="flowstate.testing.adversity", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many histories")
    parser.add_argument("--first", type=int, default=0, help="the first seed; one seed alone replays with --seeds 1")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    clock = SystemClock()
    began = told = clock.monotonic()
    counts = Counter[str]()
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    try:
        for piece in in_pieces(partial(_explore, settings={}), seeds, arguments.processes):
            counts += piece
            now = clock.monotonic()
            if now - told > 10:
                told = now
                print(f"{counts['seeds']} histories, {60 * counts['seeds'] / (now - began):.0f} a minute", flush=True)
        promises = sum((simulate_answers(seed) for seed in seeds), Counter[str]())
    except Fault as fault:
        print(f"FAULT {fault}", flush=True)
        return 1
    minutes = (clock.monotonic() - began) / 60
    print(f"{counts['seeds']} histories clean in {minutes:.1f} min: {_text(counts)}")
    print(f"{promises['seeds']} histories of answers clean: {_text(promises)}")
    return 0


def _text(counts: Counter[str]) -> str:
    return " ".join(f"{name}={count}" for name, count in sorted(counts.items()))


if __name__ == "__main__":
    sys.exit(main())
