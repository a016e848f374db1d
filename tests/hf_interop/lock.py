"""Holds a lock as the client does, from the line it prints until its input ends."""

import sys

from huggingface_hub.utils import WeakFileLock

with WeakFileLock(sys.argv[1], timeout=float(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
