#!/usr/bin/env python3
"""Run a command and record the memory of its processes while it runs.

    scripts/watch_memory.py --output results/memory_training.json --every 60 -- fairseq-train DATA ...

Writes the command, its exit status and a curve of (seconds, MiB resident) points, and the growth from the first quarter's median to
the last's; the file is renewed at each point, so that it can be read meanwhile.  Linux only: it reads /proc.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from pathlib import Path


def family(root):
    """Ids of a process and its descendants."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def resident_mib(root):
    """Resident memory of a process and its descendants, in MiB; pages that they share count for each."""
    pages = 0
    for pid in family(root):
        try:
            pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def summary(command, curve, status):
    """The record: quarters of the curve are compared by their medians, so that a single peak is no growth."""
    quarter = max(1, len(curve) // 4)
    first, last = (statistics.median(mib for _, mib in part) for part in (curve[:quarter], curve[-quarter:]))
    return {
        "command": shlex.join(word.replace(f"{Path.cwd()}/", "") for word in command),
        "exit_status": status,
        "seconds": curve[-1][0],
        "first_quarter_median_mib": round(first, 1),
        "last_quarter_median_mib": round(last, 1),
        "peak_mib": max(mib for _, mib in curve),
        "curve": curve,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True, help="JSON file")
    parser.add_argument("--every", type=float, default=60, help="seconds between two points")
    parser.add_argument("command", nargs="+", help="after --: what to run")
    args = parser.parse_args()
    if not Path(args.output).resolve().parent.is_dir():
        parser.error(f"there is no folder for {args.output}")
    start, curve = time.time(), []
    try:
        process = subprocess.Popen(args.command)
    except OSError as error:
        parser.error(str(error))
    while True:
        status = process.poll()
        if status is None or not curve:
            curve.append((round(time.time() - start, 1), round(resident_mib(process.pid), 1)))
        Path(args.output).write_text(json.dumps(summary(args.command, curve, status), indent=1) + "\n")
        if status is not None:
            sys.exit(status)
        try:
            process.wait(args.every)
        except subprocess.TimeoutExpired:
            pass
        except KeyboardInterrupt:  # which the command got, too
            process.wait()


if __name__ == "__main__":
    main()
