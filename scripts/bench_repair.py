"""One rotten bit in a large file, measured: see scripts/bench.

    repair       finding and mending it, beside what other tools must do: hash all of it, fetch all of it, hash again
"""

import argparse
import os
from pathlib import Path

from bench_parts import MIB, Contestant, Lab, Serve, compare, run


def repair(options: argparse.Namespace) -> None:
    size = options.scrub_one * MIB
    there, here = (Lab(options.larder, options.work / "repair" / name, "folder") for name in ("there", "here"))
    big, copy = there.store / "big.bin", here.store / "big.bin"
    sha256 = filled(big, size)
    server = Serve(there)
    there.define(pinned(size, sha256, "local"))
    there.call("verify")
    with server as endpoint:
        here.define(pinned(size, sha256, f"{endpoint}/blobs/sha256/{sha256}"))
        here.call("apply", "--yes")
        here.call("verify")
        before = server.sent()
        rounds = []

        def rot() -> None:
            rounds.append(size // 3 + 4097 * len(rounds))
            flip(copy, rounds[-1])

        mend = 'larder="$0 --inventory $1"; $larder verify; $larder repair --yes'
        again = 'curl -sSf -o "$3" "$2" && openssl dgst -sha256 "$3"'
        peer = options.work / "repair/again.bin"
        url = f"{endpoint}/blobs/sha256/{sha256}"
        compare(
            f"one flipped bit in a file of {options.scrub_one} MiB, found and mended",
            [
                Contestant("larder verify, larder repair", ["sh", "-c", mend, *here.command()[::2], url], here.env, rot),
                Contestant("openssl, curl, openssl", ["sh", "-c", f'openssl dgst -sha256 "$1"; {again}', "sh", str(copy), url, str(peer)], {}),
            ],
            options.rounds,
            "at most 8 MiB come over the network",
        )
        run(Contestant("larder", here.command("verify", "--full"), here.env))
        theirs = len(rounds) * size
        each = (server.sent() - before - theirs) / len(rounds) / MIB
        print(f"\nFor each repair {each:.2f} MiB came over the network, of {options.scrub_one} MiB.")
    peer.unlink(missing_ok=True)


def filled(path: Path, size: int) -> str:
    import hashlib

    path.parent.mkdir(parents=True, exist_ok=True)
    sha256 = hashlib.sha256()
    with open(path, "wb") as file:
        for _ in range(size // (8 * MIB)):
            piece = os.urandom(8 * MIB)
            sha256.update(piece)
            file.write(piece)
    return sha256.hexdigest()


def pinned(size: int, sha256: str, source: str) -> str:
    head = f'[[artifact]]\nname = "big"\nstore = "models"\nsource = "{source}"\n'
    return f'{head}[[artifact.file]]\npath = "big.bin"\nsize = {size}\nsha256 = "{sha256}"\n'


def flip(path: Path, offset: int) -> None:
    """Flips one bit and gives the file its time back, as a disk that rots does."""
    times = path.stat()
    with open(path, "r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, offset)[0] ^ 1
        os.pwrite(file.fileno(), bytes([byte]), offset)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


MEASUREMENTS = {"repair": repair}
