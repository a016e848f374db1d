"""Between machines, measured beside the programs that people use for it: see scripts/bench.

    copy-ssh     one large file over ssh on loopback, beside rsync -a and scp with the same cipher
    copy-noop    a store of 100,000 files that the other machine has already, beside rsync -a
    serve-rate   one large file from larder serve and from nginx, to hf download and to larder
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
from typing import Iterator
from urllib.parse import urlsplit

from bench_fetch import LOOPBACK, REPOSITORY, free_port, make_files, nginx
from bench_parts import COMMIT, MIB, Contestant, Lab, Serve, apart, compare, fresh, hf_download, sweep

CLIENTS = 200


@contextlib.contextmanager
def sshd(work: Path) -> Iterator[str]:
    """A server that lets this user in; the value is how to reach it as `bench`."""
    folder, port = work / "sshd", free_port()
    folder.mkdir(parents=True, exist_ok=True)
    for key in ("host", "user"):
        if not (folder / key).exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        "PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        "Subsystem sftp internal-sftp\nMaxStartups 100\n"
    )
    (folder / "ssh_config").write_text(
        f"Host *\n HostName 127.0.0.1\n Port {port}\n IdentityFile {folder}/user\n IdentitiesOnly yes\n BatchMode yes\n"
        f" StrictHostKeyChecking no\n UserKnownHostsFile {folder}/known_hosts\n LogLevel ERROR\n"
    )
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", folder / "sshd_config"], stderr=subprocess.DEVNULL)
    try:
        client = f"ssh -F {folder}/ssh_config"
        for _ in range(200):
            if subprocess.run([*client.split(), "bench", "true"], stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.05)
        else:
            sys.exit("sshd does not let this user in")
        yield client
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
    work = options.work / "copy"
    there, here = Lab(options.larder, work / "there", "folder"), Lab(options.larder, work / "here", "folder")
    size = options.copy * MIB
    [big] = make_files(there.store, {"big.bin": size})
    for lab in (there, here):
        lab.define(pinned({"big.bin": (size, big.sha256)}, "local"))
    there.call("verify", "--full")
    out = work / "out"
    again = fresh(options.work, out)

    def clean() -> None:
        again()
        out.mkdir()

    with sshd(work) as client:
        compare(
            f"{options.copy} MiB over ssh on loopback, arriving",
            [
                Contestant(
                    "larder copy (proven)",
                    copy_of(here, there, client),
                    here.env,
                    fresh(options.work, here.store, here.folder / "state"),
                    {here.store / "big.bin": size},
                ),
                Contestant(
                    "rsync -a",
                    ["rsync", "-a", "-e", client, f"bench:{there.store}/big.bin", f"{out}/"],
                    {},
                    clean,
                    {out / "big.bin": size},
                ),
                Contestant(
                    "scp",
                    ["scp", "-q", *client.split()[1:], f"bench:{there.store}/big.bin", f"{out}/big.bin"],
                    {},
                    clean,
                    {out / "big.bin": size},
                ),
            ],
            options.rounds,
            "larder ≤ 0.65 × rsync, ≤ 1.05 × scp",
            options.copy,
        )
    sweep(options.work)


def copy_noop(options: argparse.Namespace) -> None:
    work = options.work / "copy-noop"
    there, here = Lab(options.larder, work / "there", "folder"), Lab(options.larder, work / "here", "folder")
    files: dict[str, tuple[int, str]] = {}
    for number in range(100_000):
        content = b"%d" % number
        files[f"{number // 1000:03}/{number % 1000:03}"] = (len(content), hashlib.sha256(content).hexdigest())
    if not (work / "made").exists():
        apart(lambda: write_numbers(there.store, files))
        shutil.rmtree(here.store, ignore_errors=True)
        shutil.copytree(there.store, here.store)
        (work / "made").touch()
    for lab in (there, here):
        lab.define(pinned(files, "local"))
        lab.call("verify", "--full")
    with sshd(work) as client:
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
    work = options.work / "serve"
    there, here = Lab(options.larder, work / "there", "folder"), Lab(options.larder, work / "here", "folder")
    size = options.large * MIB
    remotes = make_files(there.store, {"big.bin": size})
    for lab in (there, here):
        lab.define(pinned({"big.bin": (size, remotes[0].sha256)}, f"hf:{REPOSITORY}@{COMMIT}"))
    there.call("verify", "--full")
    clean = fresh(options.work, here.store, here.folder / "state")
    made = {here.store / "big.bin": size}
    with nginx(work, there.store, remotes, LOOPBACK) as plain, Serve(there) as served:
        compare(
            f"one file of {options.large} MiB to hf download",
            [
                hf_download(options, "hf-latest", served, REPOSITORY)._replace(name="from larder serve"),
                hf_download(options, "hf-latest", plain, REPOSITORY)._replace(name="from nginx"),
            ],
            options.rounds,
            "larder serve ≤ 1.0 × nginx",
            options.large,
        )
        apply = here.command("apply", "--yes")
        compare(
            f"one file of {options.large} MiB to larder, proven",
            [
                Contestant("from larder serve", apply, here.env | {"HF_ENDPOINT": served}, clean, made),
                Contestant("from nginx", apply, here.env | {"HF_ENDPOINT": plain}, clean, made),
            ],
            options.rounds,
            "larder serve ≤ 1.05 × nginx",
            options.large,
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


MEASUREMENTS = {"copy-ssh": copy_ssh, "copy-noop": copy_noop, "serve-rate": serve_rate, "serve-many": serve_many}
