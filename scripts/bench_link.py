"""A network link of a given rate and latency between two network namespaces, for kernels without netem.

Two TUN devices and, between them, a line that carries one bit after the other and takes its time: packets
wait for those before them, then for the latency, and are dropped when too many wait, as a router would. Both
ends are the kernel's own TCP, with real round trips: a proxy that delays bytes would answer in their place.

Usage: bench_link.py DEVICE DEVICE BITS_PER_SECOND ROUND_TRIP_SECONDS
Makes the devices, says "ready", and forwards until its standard input ends.
"""

import collections
import fcntl
import os
import select
import struct
import sys
import time

TUNSETIFF, TUNSETOFFLOAD = 0x400454CA, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
# Checksums and segments are left to the other end, so that one read brings many packets.
OFFLOADS = 0x01 | 0x02 | 0x04
HEADER = 10
LARGEST = (1 << 16) + HEADER
# What a router holds before it drops: 50 ms of the link, at least a few of the largest pieces.
PATIENCE = 0.05


class Line:
    """One direction of the link."""

    def __init__(self, source: int, target: int, rate: float, delay: float) -> None:
        self.source, self.target, self.rate, self.delay = source, target, rate, delay
        self.free = 0.0
        self.on_the_way: collections.deque[tuple[float, bytes]] = collections.deque()

    def take(self) -> None:
        """Takes what the sender has, as far as it fits."""
        for _ in range(32):
            try:
                packet = os.read(self.source, LARGEST)
            except BlockingIOError:
                return
            now = time.monotonic()
            self.free = max(self.free, now)
            if self.free - now > PATIENCE + 4 * LARGEST * 8 / self.rate:
                continue
            self.free += (len(packet) - HEADER) * 8 / self.rate
            self.on_the_way.append((self.free + self.delay, packet))

    def give(self) -> float:
        """Hands over what has arrived; returns when the next will."""
        while self.on_the_way:
            due, packet = self.on_the_way[0]
            if due > time.monotonic():
                return due
            self.on_the_way.popleft()
            try:
                os.write(self.target, packet)
            except OSError:
                pass  # The device is down: lost, as on any link.
        return float("inf")


def device(name: str) -> int:
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(tun, TUNSETOFFLOAD, OFFLOADS)
    return tun


def main() -> None:
    os.nice(-15)  # A wire does not wait for a processor.
    one, other = device(sys.argv[1]), device(sys.argv[2])
    rate, delay = float(sys.argv[3]), float(sys.argv[4]) / 2
    lines = [Line(one, other, rate, delay), Line(other, one, rate, delay)]
    print("ready", flush=True)
    while True:
        wait = min(line.give() for line in lines) - time.monotonic()
        readable, _, _ = select.select([one, other, sys.stdin], [], [], max(0.0, min(wait, 1.0)))
        if sys.stdin in readable:
            return
        for line in lines:
            line.take()


if __name__ == "__main__":
    main()
