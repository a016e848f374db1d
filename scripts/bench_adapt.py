"""How many connections a large file gets, where more of them are faster, and where they are slower.

    fetch-limited     each connection is limited: eight are eight times as fast as one
    fetch-collapse    all connections together are slower the more there are

The server is this program itself, so that it can count: the table shows the rate and the number of connections beside
each other, as the server saw them.
"""

import argparse
import hashlib
import http.server
import os
import statistics
import threading
import time
from typing import Callable

from bench_parts import MIB, RESULTS, Contestant, Lab, fresh, run, sweep

PIECE = 256 << 10
# MiB per second of one connection that is alone.
ALONE = 24.0
SIZE = 256


class Server(http.server.ThreadingHTTPServer):
    """One file from memory. `rate` says how many MiB per second each of so many connections gets."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, content: bytes, rate: Callable[[int], float]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.rate, self.lock = content, rate, threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Counts anew."""
        self.open = self.most = self.requests = 0
        # Bytes that were sent while so many answers were under way.
        self.sent: dict[int, int] = {}

    def enter(self) -> None:
        with self.lock:
            self.open, self.requests = self.open + 1, self.requests + 1
            self.most = max(self.most, self.open)

    def leave(self) -> None:
        with self.lock:
            self.open -= 1

    def count(self, sent: int) -> int:
        with self.lock:
            self.sent[self.open] = self.sent.get(self.open, 0) + sent
            return self.open

    def usual(self) -> int:
        """The number of answers that were under way while most bytes were sent."""
        return max(self.sent, key=self.sent.__getitem__, default=0)


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.begin()

    def do_GET(self) -> None:
        start, end = self.begin()
        self.server.enter()
        try:
            self.send(start, end)
        except OSError:
            self.close_connection = True  # The other side has enough.
        finally:
            self.server.leave()

    def begin(self) -> tuple[int, int]:
        size, asked = len(self.server.content), self.headers.get("Range")
        start, end = 0, size
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            start, end = int(first), min(int(last) + 1, size) if last else size
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"one"')
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{size}")
        self.end_headers()
        return start, end

    def send(self, start: int, end: int) -> None:
        due = time.monotonic()
        for at in range(start, end, PIECE):
            piece = memoryview(self.server.content)[at : min(at + PIECE, end)]
            self.wfile.write(piece)
            now = self.server.count(len(piece))
            due = max(due, time.monotonic() - 0.05) + len(piece) / MIB / self.server.rate(now)
            time.sleep(max(0.0, due - time.monotonic()))

    def log_message(self, *_: object) -> None:
        pass


def contestants(options: argparse.Namespace, address: str, sha256: str) -> list[Contestant]:
    lab = Lab(options.larder, options.work / "adapt-client", "folder")
    pins = f'size = {SIZE * MIB}\nsha256 = "{sha256}"\n'
    entry = '[[artifact]]\nname = "files"\nstore = "models"\n[[artifact.file]]\npath = "big.bin"\n'
    lab.define(f'{entry}source = "{address}/big.bin"\n{pins}')
    out = options.work / "adapt-out"

    def clean() -> None:
        fresh(options.work, lab.store, lab.folder / "state", out)()
        sweep(options.work)
        out.mkdir()

    made = {out / "big.bin": SIZE * MIB}
    aria2 = ["aria2c", "--no-conf", "--console-log-level=error", "--summary-interval=0", f"--checksum=sha-256={sha256}"]
    aria2 += ["-x8", "-s8", "-d", str(out), f"{address}/big.bin"]
    curl = ["curl", "-sSf", "-o", str(out / "big.bin"), f"{address}/big.bin"]
    ours = {lab.store / "big.bin": SIZE * MIB}
    return [
        Contestant("larder apply (proves)", lab.command("apply", "--yes"), lab.env, clean, ours),
        Contestant("aria2c -x8 -s8 --checksum (proves)", aria2, {}, clean, made),
        Contestant("curl -o", curl, {}, clean, made),
    ]


def measure(options: argparse.Namespace, title: str, target: str, rate: Callable[[int], float]) -> None:
    content = os.urandom(SIZE * MIB)
    server = Server(content, rate)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    print(f"\n### {title}\n\nTarget: {target}. {options.rounds} rounds.\n")
    columns = ["command", "MiB/s, median (min to max)", "connections: most", "for most of the bytes", "requests"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for contestant in contestants(options, address, hashlib.sha256(content).hexdigest()):
        rates, most, usual, requests = [], [], [], []
        for _ in range(options.rounds):
            server.clear()
            rates.append(SIZE / run(contestant).wall)
            most.append(server.most)
            usual.append(server.usual())
            requests.append(server.requests)
        middle = statistics.median(rates)
        cells = [contestant.name, f"**{middle:.0f}** ({min(rates):.0f} to {max(rates):.0f})"]
        cells += [str(max(most)), str(statistics.median_low(usual)), str(statistics.median_low(requests))]
        print("| " + " | ".join(cells) + " |", flush=True)
        RESULTS.append({"title": title, "command": contestant.name, "rates": rates, "most": most, "usual": usual})
    server.shutdown()


def limited(options: argparse.Namespace) -> None:
    title = f"{SIZE} MiB where each connection gets {ALONE:.0f} MiB/s"
    measure(options, title, "as many connections as are of use, up to eight", lambda _: ALONE)


def collapse(options: argparse.Namespace) -> None:
    title = f"{SIZE} MiB where one connection gets {2 * ALONE:.0f} MiB/s, and all of n together that divided by n"
    measure(options, title, "one connection, after a short try with two", lambda n: 2 * ALONE / max(n, 1) ** 2)


MEASUREMENTS = {"fetch-limited": limited, "fetch-collapse": collapse}
