"""Fetching, measured beside the programs that people use for it: see scripts/bench.

    fetch-big    one large file from nginx on loopback
    fetch-link   the same through a link of 1 Gbit/s and 20 ms
    fetch-many   200 files of 10 MiB, and the same as a repository of the hub

larder proves what it fetches. Of the others, the rows that say so prove it too.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

from bench_parts import COMMIT, MIB, READY, ROOT, Contestant, Lab, apart, compare, fresh, hf_download, sweep

LINK_BITS = 1e9
LINK_ROUND_TRIP = 0.020
SERVER_ADDRESS, CLIENT_ADDRESS = "10.77.0.1", "10.77.0.2"
REPOSITORY = "bench/many"
MANY_SIZE = 10 * MIB


class Remote(NamedTuple):
    """A file that the server has, below its root."""

    path: str
    size: int
    sha256: str


class Place(NamedTuple):
    """Where server and clients run: what their commands begin with, and the server's address."""

    server: list[str]
    client: list[str]
    address: str


LOOPBACK = Place([], [], "127.0.0.1")


# ── What is fetched ─────────────────────────────────────────────────────────────────────────────


def make_files(root: Path, sizes: dict[str, int]) -> list[Remote]:
    """Files of random bytes, made once, and their digests."""
    record = root / READY
    if record.exists():
        files = [Remote(*one) for one in json.loads(record.read_text())]
        if {file.path: file.size for file in files} == sizes:
            return files
    shutil.rmtree(root, ignore_errors=True)
    apart(lambda: record_files(root, sizes))
    return [Remote(*one) for one in json.loads(record.read_text())]


def record_files(root: Path, sizes: dict[str, int]) -> None:
    files = [make_file(root, path, size) for path, size in sizes.items()]
    (root / READY).write_text(json.dumps(files))


def make_file(root: Path, path: str, size: int) -> Remote:
    """Random bytes, so that no layer on the way can make them fewer."""
    target, sha256 = root / path, hashlib.sha256()
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as file:
        for start in range(0, size, MIB):
            chunk = os.urandom(min(MIB, size - start))
            sha256.update(chunk)
            file.write(chunk)
    return Remote(path, size, sha256.hexdigest())


# ── The server and the link ─────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def nginx(work: Path, files: Path, remotes: list[Remote], place: Place) -> Iterator[str]:
    """nginx with `files` as plain files and as a repository of the hub; its address is the value."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if program is None:
        sys.exit("nginx is not installed; scripts/test-parts installs it")
    folder = work / "nginx"
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    write_hub(folder / "hub", remotes)
    (folder / "nginx.conf").write_text(nginx_conf(folder, files, remotes, f"{place.address}:{port}"))
    command = [*place.server, program, "-e", "stderr", "-p", str(folder), "-c", str(folder / "nginx.conf")]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(place, port, folder / "log")
        yield f"http://{place.address}:{port}"
    finally:
        server.terminate()
        server.wait()


def nginx_conf(folder: Path, files: Path, remotes: list[Remote], listen: str) -> str:
    temporary = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    resolve = f"/{REPOSITORY}/resolve/{COMMIT}/"
    digests = "\n".join(f'  {resolve}{remote.path} "{remote.sha256}";' for remote in remotes)
    api = f"/api/models/{REPOSITORY}"
    answers = {api: "revision", f"{api}/revision/main": "revision", f"{api}/revision/{COMMIT}": "revision"}
    answers |= {f"{api}/tree/{COMMIT}": "tree", f"{api}/tree/main": "tree"}
    locations = "\n".join(
        f"  location = {path} {{ default_type application/json; alias {folder}/hub/{name}.json; }}"
        for path, name in answers.items()
    )
    return f"""daemon off; pid {folder}/pid; worker_processes auto; {"user root;" if os.geteuid() == 0 else ""}
events {{ worker_connections 1024; }}
http {{
 access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000; default_type application/octet-stream;
 {" ".join(f"{name}_temp_path {folder}/{name};" for name in temporary)}
 map_hash_max_size 16384; map_hash_bucket_size 256;
 map $uri $sha256 {{
  default "";
{digests}
 }}
 server {{
  listen {listen} backlog=1024; root {files};
{locations}
  location {resolve} {{
   alias {files}/; add_header X-Repo-Commit {COMMIT}; add_header X-Linked-Etag '"$sha256"';
  }}
 }}
}}
"""


def write_hub(folder: Path, remotes: list[Remote]) -> None:
    """The hub's answers about the repository."""
    folder.mkdir(parents=True, exist_ok=True)
    siblings = [{"rfilename": remote.path} for remote in remotes]
    about = {"id": REPOSITORY, "modelId": REPOSITORY, "sha": COMMIT, "private": False, "gated": False}
    (folder / "revision.json").write_text(json.dumps({**about, "tags": [], "siblings": siblings}))
    (folder / "tree.json").write_text(json.dumps([tree_entry(remote) for remote in remotes]))


def tree_entry(remote: Remote) -> dict:
    lfs = {"oid": remote.sha256, "size": remote.size, "pointerSize": 134}
    return {"type": "file", "oid": remote.sha256[:40], "size": remote.size, "path": remote.path, "lfs": lfs}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(place: Place, port: int, log: Path) -> None:
    """Until the server takes connections, as a client sees it."""
    ask = f"import socket; socket.create_connection(({place.address!r}, {port}), 1)"
    for _ in range(100):
        if subprocess.run([*place.client, "python3", "-c", ask], capture_output=True).returncode == 0:
            return
        time.sleep(0.05)
    sys.exit(f"nginx does not answer:\n{log.read_text()}")


@contextlib.contextmanager
def link() -> Iterator[Place]:
    """Two network namespaces and a link between them, all of it gone afterwards."""
    number = os.getpid()
    ends = [(f"larder-bench-s{number}", f"lbs{number}"), (f"larder-bench-c{number}", f"lbc{number}")]
    devices = [device for _, device in ends]
    command = [sys.executable, str(ROOT / "scripts/bench_link.py"), *devices, str(LINK_BITS), str(LINK_ROUND_TRIP)]
    line = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    made = []
    try:
        if line.stdout.readline() != b"ready\n":
            sys.exit("the link cannot be made: it needs root and /dev/net/tun")
        for (space, device), address in zip(ends, (SERVER_ADDRESS, CLIENT_ADDRESS)):
            ip("netns", "add", space)
            made.append(space)
            ip("link", "set", device, "netns", space)
            ip("-n", space, "addr", "add", f"{address}/30", "dev", device)
            ip("-n", space, "link", "set", device, "up")
            ip("-n", space, "link", "set", "lo", "up")
        server, client = (["ip", "netns", "exec", space] for space, _ in ends)
        yield Place(server, client, SERVER_ADDRESS)
    finally:
        line.stdin.close()
        line.wait()
        for space in made:
            ip("netns", "del", space)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


# ── The programs ────────────────────────────────────────────────────────────────────────────────


def larder(options: argparse.Namespace, name: str, layout: str) -> Lab:
    return Lab(options.larder, options.work / name, layout)


def from_urls(address: str, remotes: list[Remote]) -> str:
    """A manifest of files with an address each, every one with its digest."""
    head = '[[artifact]]\nname = "files"\nstore = "models"\n'
    return head + "".join(
        f'[[artifact.file]]\npath = "{remote.path}"\nsource = "{address}/{remote.path}"\n{pins(remote)}'
        for remote in remotes
    )


def pins(remote: Remote) -> str:
    return f'size = {remote.size}\nsha256 = "{remote.sha256}"\n'


def aria2(client: list[str], *words: str) -> list[str]:
    return [*client, "aria2c", "--no-conf", "--console-log-level=error", "--summary-interval=0", *words]


def rclone() -> tuple[str, str]:
    """The program and its version: the newest that scripts/bench could install."""
    own = Path(os.environ["LARDER_TEST_PARTS"]) / "rclone/bin/rclone"
    program = str(own) if own.exists() else "rclone"
    said = subprocess.run([program, "version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]
    version = said.removeprefix("rclone v")
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < (1, 75):
        print(f"\n**rclone is only {version}; 1.75 or newer is faster, and could not be installed.**")
    return program, version


def single_file(options: argparse.Namespace, place: Place, address: str, remote: Remote) -> list[Contestant]:
    """Who fetches one file, each into a place of its own that is empty before."""
    lab = larder(options, "fetch-client", "folder")
    lab.define(from_urls(address, [remote]))
    out = options.work / "fetch-out"
    url, target = f"{address}/{remote.path}", out / remote.path
    program, version = rclone()

    def clean() -> None:
        fresh(options.work, lab.store, lab.folder / "state", out)()
        sweep(options.work)
        out.mkdir()

    curl = f'curl -sSf -o "{target}" "{url}"'
    made = {target: remote.size}
    peer = lambda name, argv: Contestant(name, argv, {}, clean, made)
    shell = lambda name, text: peer(name, [*place.client, "sh", "-c", text])
    checksum = f"--checksum=sha-256={remote.sha256}"
    streams = ["--multi-thread-streams", "4", "--multi-thread-cutoff", "1M", "--http-url", address]
    copy = [*place.client, program, "--config", "/dev/null", "copy", f":http:{remote.path}", str(out), *streams]
    return [
        Contestant(
            "larder apply (proves)",
            [*place.client, *lab.command("apply", "--yes")],
            lab.env,
            clean,
            {lab.store / remote.path: remote.size},
        ),
        peer("aria2c -x8 -s8 --checksum (proves)", aria2(place.client, "-x8", "-s8", checksum, "-d", str(out), url)),
        shell("curl -o, openssl dgst -sha256 (proves)", f'{curl} && openssl dgst -sha256 "{target}"'),
        shell("curl -o", curl),
        peer(f"rclone {version} copy :http, 4 streams", copy),
        Contestant("curl to nowhere: the way itself", [*place.client, "curl", "-sSf", "-o", "/dev/null", url]),
    ]


def many_files(options: argparse.Namespace, address: str, remotes: list[Remote]) -> list[Contestant]:
    lab = larder(options, "fetch-client", "folder")
    lab.define(from_urls(address, remotes))
    out, listed = options.work / "fetch-out", options.work / "fetch-list"
    entry = lambda remote: f"{address}/{remote.path}\n  out={remote.path}\n  checksum=sha-256={remote.sha256}\n"
    listed.write_text("".join(map(entry, remotes)))
    clean = cleaner(options, lab.store, lab.folder / "state", out)
    in_ours, in_theirs = ({folder / remote.path: remote.size for remote in remotes} for folder in (lab.store, out))
    fetch = aria2([], "-j8", "-i", str(listed), "-d", str(out))
    return [
        Contestant("larder apply, plain folder (proves)", lab.command("apply", "--yes"), lab.env, clean, in_ours),
        Contestant("aria2c -j8, checksums (proves)", fetch, {}, clean, in_theirs),
    ]


def repository(options: argparse.Namespace, address: str, remotes: list[Remote]) -> list[Contestant]:
    lab = larder(options, "fetch-hub-client", "hf-cache")
    lab.env["HF_ENDPOINT"] = address
    lab.declare([("files", f"{REPOSITORY}@{COMMIT}")])
    lab.call("lock", "--update", "files")
    clean = cleaner(options, lab.store, lab.folder / "state", options.work / "hf-latest")
    download = hf_download(options, "hf-latest", address, REPOSITORY)
    snapshot = f"models--{REPOSITORY.replace('/', '--')}/snapshots/{COMMIT}"
    in_ours, in_theirs = (
        {cache / snapshot / remote.path: remote.size for remote in remotes}
        for cache in (lab.store, options.work / "hf-latest/hub")
    )
    return [
        Contestant("larder apply, hub cache (proves)", lab.command("apply", "--yes"), lab.env, clean, in_ours),
        download._replace(before=clean, made=in_theirs),
    ]


def cleaner(options: argparse.Namespace, *folders: Path) -> Callable[[], None]:
    away = fresh(options.work, *folders)

    def clean() -> None:
        away()
        sweep(options.work)  # Otherwise the disk fills up.

    return clean


# ── The measurements ────────────────────────────────────────────────────────────────────────────


def big(options: argparse.Namespace) -> None:
    one_file(options, LOOPBACK, "nginx on loopback", "≤ 0.30 × aria2c, ≤ 0.60 × curl and openssl, ≤ 1.0 × curl")


def over_link(options: argparse.Namespace) -> None:
    if os.geteuid() != 0:
        print("\n**fetch-link was left out: its network namespaces need root.**")
        return
    with link() as place:
        full = LINK_BITS / 8 / MIB
        one_file(options, place, "nginx behind 1 Gbit/s, 20 ms", f"≥ 0.95 of the link's {full:.0f} MiB/s")


def one_file(options: argparse.Namespace, place: Place, where: str, target: str) -> None:
    source = options.work / "fetch-big"
    remotes = make_files(source, {"big.bin": options.large * MIB})
    with nginx(options.work, source, remotes, place) as address:
        contestants = single_file(options, place, address, remotes[0])
        compare(f"one file of {options.large} MiB from {where}", contestants, options.rounds, target, options.large)
        contestants[0].before()


def many(options: argparse.Namespace) -> None:
    source = options.work / "fetch-many"
    remotes = make_files(source, {f"part-{number:03}.bin": MANY_SIZE for number in range(options.many)})
    mib = sum(remote.size for remote in remotes) // MIB
    with nginx(options.work, source, remotes, LOOPBACK) as address:
        for who, what, target in (
            (many_files, "files from nginx on loopback", "≤ 0.6 × aria2c"),
            (repository, "files of a hub repository, from the same nginx", "≤ 0.5 × hf"),
        ):
            contestants = who(options, address, remotes)
            compare(f"{options.many} {what}, 10 MiB each", contestants, options.rounds, target, mib)
            contestants[0].before()


MEASUREMENTS = {"fetch-big": big, "fetch-link": over_link, "fetch-many": many}
