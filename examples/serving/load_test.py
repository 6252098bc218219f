"""Load a server on this machine with as many clients as given, each asking one sentence after the other.

python examples/serving/load_test.py --port 8000 --clients 1 8 32 --steps 5 --requests 200
"""

import argparse
import http.client
import json
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import List, Tuple

SENTENCES = [
    "Ein Mann schläft auf einer Bank.",
    "Zwei Hunde spielen im Schnee.",
    "Eine Frau mit rotem Hut steht vor einem Haus und lacht.",
    "Drei Kinder laufen über eine grüne Wiese, während ein Ball durch die Luft fliegt.",
]


def ask(port: int, number: int, count: int, steps: int) -> List[Tuple[int, float]]:
    """``count`` requests of one client; returns (status, seconds) of each."""
    connection, found = http.client.HTTPConnection("127.0.0.1", port, timeout=60), []
    for i in range(count):
        body = json.dumps({"sentences": [SENTENCES[(number + i) % len(SENTENCES)]], "options": {"steps": steps}})
        start = time.perf_counter()
        connection.request("POST", "/translate", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        found.append((answer.status, time.perf_counter() - start))
    return found


def load(port: int, clients: int, requests: int, steps: int) -> str:
    """A row of the table."""
    start = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        each = list(pool.map(lambda n: ask(port, n, max(requests // clients, 1), steps), range(clients)))
    wall = time.perf_counter() - start
    answers = [answer for one in each for answer in one]
    times = sorted(seconds * 1000 for status, seconds in answers if status == 200) or [float("nan")]
    failed = sum(status != 200 for status, _ in answers)
    cells = (
        clients,
        steps,
        f"{(len(answers) - failed) / wall:.1f}",
        f"{statistics.median(times):.0f}",
        f"{times[int(0.95 * len(times))]:.0f}",
    )
    return "| " + " | ".join(map(str, [*cells, failed])) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, nargs="+", default=[5])
    parser.add_argument("--requests", type=int, default=200, help="of all clients together, a row")
    args = parser.parse_args()
    try:
        ask(args.port, 0, 2, 1)  # warm up
    except OSError as error:
        parser.error(f"no server at port {args.port}: {error}")
    print("| clients | K | sentences/s | median ms | 95 % ms | failed |\n| ---: | ---: | ---: | ---: | ---: | ---: |")
    for steps in args.steps:
        for clients in args.clients:
            print(load(args.port, clients, args.requests, steps), flush=True)


if __name__ == "__main__":
    main()
