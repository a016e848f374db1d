"""Between machines, measured beside the programs that people use for it: see scripts/bench.

    copy-ssh     one large file over ssh on loopback, beside rsync -a and scp: with the same cipher, and with what each
                 of them takes by itself
    copy-noop    a store of 100,000 files that the other machine has already, beside rsync -a
    serve-rate   one large file from larder serve and from nginx, to hf download and to larder
    serve-token  one large file from larder serve with a token, to larder and to curl
    link-copy    copy-ssh through a link of 1 Gbit/s and 20 ms (needs root)
    link-serve   serve-rate through that link (needs root)
    serve-many   200 clients with ranges at once: the server's memory

larder proves what arrives; rsync and scp do not.
"""

import argparse
import contextlib
import hashlib
import http.client
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Callable, Iterator
from urllib.parse import urlsplit

from bench_fetch import LOOPBACK, REPOSITORY, Place, free_port, link, make_files, nginx
from bench_parts import COMMIT, MIB, Contestant, Lab, Serve, apart, children_cpu, compare, fresh, hf_download, sweep

CLIENTS = 200
# What larder asks for where nobody chose; OpenSSH by itself, and so rsync and scp, take ChaCha20-Poly1305.
SAME_CIPHER = " Ciphers aes128-gcm@openssh.com\n"


@contextlib.contextmanager
def sshd(work: Path, place: Place = LOOPBACK, more: str = "") -> Iterator[tuple[str, Callable[[], float]]]:
    """A server that lets this user in: how to reach it as `bench`, and the processor time of its sessions so far."""
    folder, port = work / "sshd", free_port()
    folder.mkdir(parents=True, exist_ok=True)
    for key in ("host", "user"):
        if not (folder / key).exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress {place.address}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        "Subsystem sftp internal-sftp\nMaxStartups 100\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\n HostName {place.address}\n Port {port}\n IdentityFile {folder}/user\n IdentitiesOnly yes\n BatchMode yes\n"
        f" StrictHostKeyChecking no\n UserKnownHostsFile {folder}/known_hosts\n LogLevel ERROR\n{more}"
    )
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    server = subprocess.Popen([*place.server, "/usr/sbin/sshd", "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
    try:
        client = f"ssh -F {folder}/ssh_config"
        for _ in range(200):
            if subprocess.run([*place.client, *client.split(), "bench", "true"], stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.05)
        else:
            sys.exit("sshd does not let this user in")
        yield client, lambda: children_cpu(server.pid)
    finally:
        server.terminate()
        server.wait()


def pinned(sizes: dict[str, tuple[int, str]], source: str) -> str:
    """A manifest of one artifact with these files."""
    entry = '[[artifact.file]]\npath = "{}"\nsize = {}\nsha256 = "{}"\n'
    files = "".join(entry.format(path, size, digest) for path, (size, digest) in sizes.items())
    return f'[[artifact]]\nname = "bench"\nstore = "models"\nsource = "{source}"\n{files}'


def copy_of(here: Lab, there: Lab, client: str) -> list[str]:
    remote = f"env HOME={there.folder} LARDER_STATE={there.folder}/state {' '.join(there.command())}"
    return here.command("copy", "--ssh", client, "--remote-larder", remote, "bench:", "--yes")


def copy_ssh(options: argparse.Namespace) -> None:
    target = "larder ≤ 0.65 × rsync, ≤ 1.05 × scp"
    copy_one(options, LOOPBACK, options.copy, "over ssh on loopback, arriving; CPU of both ends", target)


def link_copy(options: argparse.Namespace) -> None:
    if needs_root("link-copy"):
        return
    with link() as place:
        where = "over ssh behind 1 Gbit/s, 20 ms, arriving; CPU of both ends"
        copy_one(options, place, options.large, where, "larder ≤ 1.0 × both")


def copy_one(options: argparse.Namespace, place: Place, mib: int, where: str, target: str) -> None:
    """Who takes one file from another machine: all by one cipher, then each by what it takes itself."""
    for ciphers, how in ((SAME_CIPHER, "the same cipher"), ("", "each with its own cipher")):
        copy_by(options, place, mib, f"{where}; {how}", target, ciphers)


def copy_by(options: argparse.Namespace, place: Place, mib: int, where: str, target: str, ciphers: str) -> None:
    work = options.work / "copy"
    there, here = Lab(options.larder, work / "there", "folder"), Lab(options.larder, work / "here", "folder")
    size, out = mib * MIB, work / "out"
    name = f"{mib}.bin"
    big = make_files(there.store / str(mib), {name: size})[0]
    for lab in (there, here):
        lab.define(pinned({f"{mib}/{name}": (size, big.sha256)}, "local"))
    there.call("verify", "--full")
    again = fresh(options.work, here.store, here.folder / "state", out)

    def clean() -> None:
        again()
        sweep(options.work)
        out.mkdir()

    with sshd(work, place, ciphers) as (client, other_end):
        made, source = {out / name: size}, f"bench:{there.store}/{mib}/{name}"
        peer = lambda who, argv, made: Contestant(who, [*place.client, *argv], here.env, clean, made, other_end=other_end)
        compare(
            f"{mib} MiB {where}",
            [
                peer("larder copy (proven)", copy_of(here, there, client), {here.store / str(mib) / name: size}),
                peer("rsync -a", ["rsync", "-a", "-e", client, source, f"{out}/"], made),
                peer("scp", ["scp", "-q", *client.split()[1:], source, f"{out}/{name}"], made),
            ],
            options.rounds,
            target,
            mib,
        )
    sweep(options.work)


def needs_root(name: str) -> bool:
    if os.geteuid() == 0:
        return False
    print(f"\n**{name} was left out: its network namespaces need root.**")
    return True


def copy_noop(options: argparse.Namespace) -> None:
    work = options.work / "copy-noop"
    there, here = Lab(options.larder, work / "there", "folder"), Lab(options.larder, work / "here", "folder")
    files: dict[str, tuple[int, str]] = {}
    for number in range(100_000):
        content = b"%d" % number
        path = f"numbers/{number // 1000:03}/{number % 1000:03}"
        files[path] = (len(content), hashlib.sha256(content).hexdigest())
    if not (work / "made").exists():
        apart(lambda: write_numbers(there.store, files))
        shutil.rmtree(here.store, ignore_errors=True)
        shutil.copytree(there.store, here.store)
        (work / "made").touch()
    for lab in (there, here):
        # Nobody writes so many by hand: they are listed upstream, and locked.
        lab.declare([("numbers", "bench/numbers")], 'folder = "numbers"\n')
        entry = lambda path, size, digest: {"path": path, "size": size, "digests": {"sha256": digest}}
        lab.fill_lock({"numbers": [entry(path, *what) for path, what in files.items()]})
        lab.call("verify", "--full")
    with sshd(work) as (client, other_end):
        compare(
            "100,000 files that are there already, over ssh on loopback",
            [
                Contestant("larder copy", copy_of(here, there, client), here.env),
                Contestant("rsync -a", ["rsync", "-a", "-e", client, f"bench:{there.store}/", f"{here.store}/"]),
            ],
            options.rounds,
            "larder ≤ 0.5 × rsync",
        )


def write_numbers(store: Path, files: dict[str, tuple[int, str]]) -> None:
    for number, path in enumerate(files):
        target = store / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"%d" % number)


def serve_rate(options: argparse.Namespace) -> None:
    serve_one(options, LOOPBACK, "")


def link_serve(options: argparse.Namespace) -> None:
    if needs_root("link-serve"):
        return
    with link() as place:
        serve_one(options, place, " behind 1 Gbit/s, 20 ms")


def serve_one(options: argparse.Namespace, place: Place, where: str) -> None:
    """One file from larder and from nginx, to Python's client and to larder."""
    work = options.work / "serve"
    there, here = Lab(options.larder, work / "there", "folder"), Lab(options.larder, work / "here", "folder")
    size = options.large * MIB
    remotes = make_files(there.store, {"big.bin": size})
    for lab in (there, here):
        lab.define(pinned({"big.bin": (size, remotes[0].sha256)}, f"hf:{REPOSITORY}@{COMMIT}"))
    there.call("verify", "--full")
    clean = fresh(options.work, here.store, here.folder / "state")
    made = {here.store / "big.bin": size}
    network = ["--allow", "10.77.0.0/24"] if place.server else []
    with (
        nginx(work, there.store, remotes, place) as plain,
        Serve(there, place.server, place.address, network) as served,
    ):
        download = lambda who, address: hf_download(options, "hf-latest", address, REPOSITORY, place.client)._replace(
            name=who
        )
        compare(
            f"one file of {options.large} MiB to hf download{where}",
            [download("from larder serve", served), download("from nginx", plain)],
            options.rounds,
            "larder serve ≤ 1.0 × nginx",
            options.large,
        )
        apply = [*place.client, *here.command("apply", "--yes")]
        compare(
            f"one file of {options.large} MiB to larder, proven{where}",
            [
                Contestant("from larder serve", apply, here.env | {"HF_ENDPOINT": served}, clean, made),
                Contestant("from nginx", apply, here.env | {"HF_ENDPOINT": plain}, clean, made),
            ],
            options.rounds,
            "larder serve ≤ 1.05 × nginx",
            options.large,
        )
    sweep(options.work)


def serve_token(options: argparse.Namespace) -> None:
    work = options.work / "copy"
    there, here = Lab(options.larder, work / "there", "folder"), Lab(options.larder, work / "here", "folder")
    size, out, token = options.copy * MIB, work / "out", work / "token"
    path = f"{options.copy}/{options.copy}.bin"
    big = make_files(there.store / str(options.copy), {f"{options.copy}.bin": size})[0]
    there.define(pinned({path: (size, big.sha256)}, "local"))
    there.call("verify", "--full")
    token.write_text(secret := os.urandom(24).hex())
    again = fresh(options.work, here.store, here.folder / "state", out)

    def clean() -> None:
        again()
        sweep(options.work)
        out.mkdir()

    with Serve(there, options=["--token-file", str(token)]) as served:
        peer = f'peers = [{{ name = "there", url = "{served}", token-file = "{token}" }}]'
        here.define(pinned({path: (size, big.sha256)}, "local"), peer)
        curl = ["curl", "-sSf", "-H", f"Authorization: Bearer {secret}", f"{served}/files/bench/{path}", "-o"]
        compare(
            f"{options.copy} MiB over http with a token, on loopback",
            [
                Contestant("larder apply (proven)", here.command("apply", "--yes"), here.env, clean, {here.store / path: size}),
                Contestant("curl -o", [*curl, str(out / "big.bin")], {}, clean, {out / "big.bin": size}),
                Contestant("curl to nowhere: the way itself", [*curl, "/dev/null"]),
            ],
            options.rounds,
            "larder ≥ 1.0 GB/s, which is 954 MiB/s",
            options.copy,
        )
    sweep(options.work)


def serve_many(options: argparse.Namespace) -> None:
    work = options.work / "serve"
    lab = Lab(options.larder, work / "there", "folder")
    size = options.large * MIB
    [big] = make_files(lab.store, {"big.bin": size})
    lab.define(pinned({"big.bin": (size, big.sha256)}, f"hf:{REPOSITORY}@{COMMIT}"))
    print(f"\n### {CLIENTS} clients with ranges at once\n\nTarget: peak memory of the server ≤ 128 MiB.")
    failures: list[str] = []

    def client(host: str, number: int) -> None:
        start = number * 7919 * 4096 % (size - 16 * MIB)
        # One address may hold 128 connections.
        source = (f"127.0.0.{1 + number % 4}", 0)
        connection = http.client.HTTPConnection(host, timeout=120, source_address=source)
        connection.request("GET", "/files/bench/big.bin", headers={"Range": f"bytes={start}-{start + 16 * MIB - 1}"})
        answer = connection.getresponse()
        got = 0
        while piece := answer.read(256 << 10):
            got += len(piece)
        if (answer.status, got) != (206, 16 * MIB):
            failures.append(f"client {number}: {answer.status}, {got} bytes")

    with Serve(lab) as served:
        host = urlsplit(served).netloc
        threads = [threading.Thread(target=client, args=(host, number)) for number in range(CLIENTS)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wall = time.perf_counter() - start
    if failures:
        sys.exit("\n".join(failures))
    print(f"{CLIENTS} × 16 MiB in {wall:.2f} s, {CLIENTS * 16 / wall:.0f} MiB/s together.")


MEASUREMENTS = {
    "copy-ssh": copy_ssh,
    "copy-noop": copy_noop,
    "serve-rate": serve_rate,
    "serve-token": serve_token,
    "serve-many": serve_many,
    "link-copy": link_copy,
    "link-serve": link_serve,
}
