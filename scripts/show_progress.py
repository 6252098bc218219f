#!/usr/bin/env python3
"""Read fairseq-train's log (--log-format simple) and show a line for each report, and errors."""

import re
import sys

TRAINING = ("num_updates", "loss", "rounding_accuracy", "mans_moved", "wps")
VALIDATION = ("num_updates", "loss", "rounding_accuracy", "bleu")
FAILURE = re.compile(r"^(\S+: error|Traceback|[\w.]*(Error|Exception)\b)")


def report(line):
    """What a user wants to see of a log line; None: nothing."""
    for tag, title, names in ((" | train_inner | ", "training  ", TRAINING), ("valid on ", "validation", VALIDATION)):
        if tag in line:
            values = dict(re.findall(r"(\w+)[= ]([-+.\de]+)", line.split(tag, 1)[1]))
            return f"{title} " + "  ".join(f"{name} {values[name]}" for name in names if name in values)
    return line.rstrip() if FAILURE.match(line) else None


def main():
    for line in sys.stdin:
        shown = report(line)
        if shown:
            print(shown, flush=True)


if __name__ == "__main__":
    main()
