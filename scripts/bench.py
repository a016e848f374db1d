"""Measures larder and the tools it is compared with, side by side: see scripts/bench.

Every round runs all contestants one after the other, so that a machine that changes its speed
changes it for all of them. A ratio is formed within a round; the median of the rounds is what counts.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import shutil
import subprocess
import sys
from pathlib import Path

import bench_adapt
import bench_copy
import bench_fetch
import bench_repair
import bench_smoke
from bench_parts import (
    COMMIT,
    MIB,
    RESULTS,
    ROOT,
    Contestant,
    Lab,
    Serve,
    apart,
    compare,
    drop_caches,
    fresh,
    hf_download,
    prove,
    ready,
    run,
    sweep,
)

# ── a. status against find ──────────────────────────────────────────────────────────────────────


def status(options: argparse.Namespace) -> None:
    plain, cache = plain_lab(options), cache_lab(options)
    for lab, what in (
        (plain, "100,000 files in a plain folder"),
        (cache, "a hub cache of 50,000 files (100,000 entries)"),
    ):
        contestants = against_find(lab)
        compare(f"`larder status`: {what}, warm", contestants, options.rounds, "larder ≤ 1.5 × find")
        if options.cold:
            cold = [contestant._replace(before=drop_caches) for contestant in contestants]
            compare(f"`larder status`: {what}, cold", cold, 3, "none; shown for completeness")


def against_find(lab: Lab) -> list[Contestant]:
    return [
        Contestant("larder status", lab.command("status"), lab.env),
        Contestant("find -printf", ["find", str(lab.store), "-printf", "%s %T@ %i\\n"]),
    ]


def plain_lab(options: argparse.Namespace) -> Lab:
    """100 artifacts of 1,000 files in 10 folders each, all of them proven once."""
    lab = Lab(options.larder, options.work / "plain", "folder")
    if ready(lab):
        return lab

    def make() -> None:
        lab.declare([(f"set-{one:03}", f"bench/set-{one:03}") for one in range(100)], 'folder = "{name}"\n')
        files: dict[str, list[dict]] = {}
        for one in range(100):
            name = f"set-{one:03}"
            files[name] = []
            for part in range(10):
                folder = lab.store / name / f"part-{part}"
                folder.mkdir(parents=True)
                for number in range(100):
                    content = f"{name} {part} {number}\n".encode() * 20
                    path = f"part-{part}/model-{number:05}-of-00100.safetensors"
                    (folder / path.split("/")[1]).write_bytes(content)
                    files[name].append(plain_file(name, path, content))
        lab.fill_lock(files)

    apart(make)
    return prove(lab)


def plain_file(name: str, path: str, content: bytes) -> dict:
    digests = {"sha256": hashlib.sha256(content).hexdigest()}
    return {"path": f"{name}/{path}", "size": len(content), "digests": digests}


def cache_lab(options: argparse.Namespace) -> Lab:
    """50 repositories of 1,000 files: a blob and a link for each, all of them proven once."""
    lab = Lab(options.larder, options.work / "cache", "hf-cache")
    if ready(lab):
        return lab

    def make() -> None:
        lab.declare([(f"repo-{one:02}", f"bench/repo-{one:02}") for one in range(50)])
        files = {}
        for one in range(50):
            repo = f"bench/repo-{one:02}"
            paths = [f"part-{number // 100}/file-{number:04}.json" for number in range(1000)]
            files[f"repo-{one:02}"] = [
                lab.hub_file(repo, path, f"{repo} {path}\n".encode() * 20, number % 2 == 0)
                for number, path in enumerate(paths)
            ]
        lab.fill_lock(files)

    apart(make)
    return prove(lab)


# ── b. plan against --version ───────────────────────────────────────────────────────────────────


def plan(options: argparse.Namespace) -> None:
    home = options.work / "home"
    home.mkdir(parents=True, exist_ok=True)
    env = {"HOME": str(home), "LARDER_STATE": str(home / "state")}
    whole = [str(options.larder), "--inventory", str(ROOT / "inventory.toml"), "plan", "--offline"]
    contestants = [
        Contestant("larder plan --offline, whole lab, nothing here", whole, env),
        Contestant("larder --version", [str(options.larder), "--version"], env),
    ]
    # So short that more rounds cost nothing and calm the medians.
    compare("`larder plan` on the lab's own lock", contestants, 4 * options.rounds, "at most 0.050 s more")


# ── c. a thousand small files ───────────────────────────────────────────────────────────────────


def small(options: argparse.Namespace) -> None:
    server = Lab(options.larder, options.work / "small", "hf-cache")
    if not ready(server):
        apart(lambda: make_small(server))
        prove(server)
    client = Lab(options.larder, options.work / "small-client", "hf-cache")
    with Serve(server) as endpoint:
        client.env["HF_ENDPOINT"] = endpoint
        client.declare([("small", "bench/small")])
        client.call("lock", "--update", "small")
        clean = fresh(options.work, client.store, client.folder / "state")
        lock_and_apply = 'rm "$2"; "$0" --inventory "$1" lock && exec "$0" --inventory "$1" apply --yes'
        both = ["sh", "-c", lock_and_apply, str(options.larder)]
        both += [str(client.folder / name) for name in ("inventory.toml", "inventory.lock")]
        contestants = [
            Contestant("larder apply", client.command("apply", "--yes"), client.env, clean),
            Contestant("larder lock, larder apply", both, client.env, clean),
            *(hf_download(options, version, endpoint, "bench/small") for version in ("hf-latest", "hf-1.31")),
        ]
        compare("1,000 small files (1 to 40 KiB) from `larder serve`", contestants, options.rounds, "larder ≤ 0.5 × hf")
        clean()
    sweep(options.work)


def make_small(lab: Lab) -> None:
    lab.declare([("small", "bench/small")])
    chance = random.Random(1)
    names = ("config.json", "tokenizer.json", "merges.txt", "vocab.json", "special_tokens_map.json")
    files = []
    for number in range(1000):
        path = f"model-{number // 5:03}/{names[number % 5]}"
        content = chance.randbytes(chance.randint(1 << 10, 40 << 10)).hex()[: 40 << 10].encode()
        files.append(lab.hub_file("bench/small", path, content[: chance.randint(1 << 10, 40 << 10)], False))
    lab.fill_lock({"small": files})


# ── d. one large file ───────────────────────────────────────────────────────────────────────────


def large(options: argparse.Namespace) -> None:
    server = Lab(options.larder, options.work / "large", "hf-cache")
    if not ready(server):
        apart(lambda: make_large(server, options.large << 20))
        prove(server)
    client = Lab(options.larder, options.work / "large-client", "hf-cache")
    out = options.work / "curl/model"
    with Serve(server) as endpoint:
        client.env["HF_ENDPOINT"] = endpoint
        client.declare([("large", "bench/large")])
        client.call("lock", "--update", "large")
        url = f"{endpoint}/bench/large/resolve/{COMMIT}/model.safetensors"
        curl = f'curl -sSf --create-dirs -o "{out}" "{url}"'

        def clean() -> None:
            fresh(options.work, client.store, client.folder / "state", out.parent, options.work / "hf-latest")()
            sweep(options.work)  # Few files, but each of them large.

        shell = lambda name, text: Contestant(name, ["sh", "-c", text], {}, clean)
        contestants = [
            Contestant("larder apply", client.command("apply", "--yes"), client.env, clean),
            shell("curl -o, openssl dgst -sha256", f'{curl} && openssl dgst -sha256 "{out}"'),
            shell("the same, synced to the disk", f'{curl} && sync "{out}" && openssl dgst -sha256 "{out}"'),
            hf_download(options, "hf-latest", endpoint, "bench/large")._replace(before=clean),
        ]
        compare(f"one file of {options.large} MiB from `larder serve`", contestants, options.rounds, "none yet; a baseline")
    clean()


def make_large(lab: Lab, size: int) -> None:
    """Random bytes, so that no layer on the way can make them fewer."""
    lab.declare([("large", "bench/large")])
    line = lab.hub_file("bench/large", "model.safetensors", b"", True)
    folder = lab.store / "models--bench--large"
    sha256 = hashlib.sha256()
    part = folder / "blobs/part"
    with open(part, "wb") as file:
        for _ in range(size // (8 * MIB)):
            chunk = os.urandom(8 * MIB)
            sha256.update(chunk)
            file.write(chunk)
    digest = sha256.hexdigest()
    part.rename(folder / "blobs" / digest)
    entry = folder / "snapshots" / COMMIT / "model.safetensors"
    entry.unlink()
    entry.symlink_to(f"../../blobs/{digest}")
    line |= {"size": size // (8 * MIB) * 8 * MIB, "digests": {"sha256": digest}}
    lab.fill_lock({"large": [line]})


# ── e. verification ─────────────────────────────────────────────────────────────────────────────


def verify_many(options: argparse.Namespace) -> None:
    """`verify --full` of many files: whole digests, several streams on each processor."""
    lab = verify_lab(options, "verify-many", options.scrub_many, 64)
    blobs = sorted(str(path) for path in (lab.store / "models--bench--many/blobs").iterdir())
    lab.call("verify")  # Chunk digests are taken by the first reading.
    peers = [
        Contestant("larder verify --full", lab.command("verify", "--full"), lab.env),
        Contestant("xargs -P2 sha256sum", in_pairs("sha256sum", blobs)),
        Contestant("xargs -P2 openssl dgst -sha256", in_pairs("openssl dgst -sha256", blobs)),
        Contestant("larder verify (chunks)", lab.command("verify"), lab.env),
    ]
    what = f"{options.scrub_many} MiB in {len(blobs)} files"
    compare(f"`larder verify --full`: {what}, warm", [warmed(peer, blobs) for peer in peers], options.rounds, "≤ 0.15 × sha256sum, ≤ 0.60 × openssl")
    per_gib(options.scrub_many)
    against_disk(options, peers[:3], blobs, what)
    fresh_again = [
        Contestant("larder verify --max-age 7d, nothing to read", lab.command("verify", "--max-age", "7d"), lab.env),
        Contestant("larder status", lab.command("status"), lab.env),
    ]
    compare("a second `larder verify` within --max-age", fresh_again, 4 * options.rounds, "as fast as status")


def scrub_one(options: argparse.Namespace) -> None:
    """`verify` of one long file whose chunk digests are known."""
    lab = verify_lab(options, "scrub-one", options.scrub_one, options.scrub_one)
    blobs = [str(path) for path in (lab.store / "models--bench--many/blobs").iterdir()]
    lab.call("verify")
    peers = [
        Contestant("larder verify (chunks)", lab.command("verify"), lab.env),
        Contestant("sha256sum", ["sha256sum", *blobs]),
        Contestant("openssl dgst -sha256", ["openssl", "dgst", "-sha256", *blobs]),
        Contestant("larder verify --full", lab.command("verify", "--full"), lab.env),
    ]
    what = f"one file of {options.scrub_one} MiB"
    compare(f"`larder verify`: {what}, warm", [warmed(peer, blobs) for peer in peers], options.rounds, "≤ 0.08 × sha256sum, ≤ 0.25 × openssl")
    per_gib(options.scrub_one)
    against_disk(options, peers[:3], blobs, what)


def verify_lab(options: argparse.Namespace, name: str, total: int, each: int) -> Lab:
    """A hub cache of random files of `each` MiB, `total` in all."""
    lab = Lab(options.larder, options.work / name, "hf-cache")
    wanted = lab.folder / f"{total}-{each}"
    if wanted.exists():
        return lab
    shutil.rmtree(lab.folder)
    lab.folder.mkdir()

    def make() -> None:
        lab.declare([("many", "bench/many")])
        blobs = lab.store / "models--bench--many/blobs"
        files = []
        for number in range(max(total // each, 1)):
            path = f"part-{number:04}.bin"
            line = lab.hub_file("bench/many", path, f"{number}".encode(), True)
            (blobs / line["digests"]["sha256"]).unlink()
            sha256 = hashlib.sha256()
            with open(blobs / "part", "wb") as file:
                for _ in range(each // 8):
                    chunk = os.urandom(8 * MIB)
                    sha256.update(chunk)
                    file.write(chunk)
            digest = sha256.hexdigest()
            (blobs / "part").rename(blobs / digest)
            entry = lab.store / f"models--bench--many/snapshots/{COMMIT}/{path}"
            entry.unlink()
            entry.symlink_to(f"../../blobs/{digest}")
            files.append(line | {"size": each // 8 * 8 * MIB, "digests": {"sha256": digest}})
        lab.fill_lock({"many": files})

    apart(make)
    wanted.touch()
    os.sync()
    return lab


def in_pairs(command: str, files: list[str]) -> list[str]:
    each = max(len(files) // 8, 1)
    return ["sh", "-c", f'printf "%s\\n" "$@" | xargs -P2 -n{each} {command}', "sh", *files]


def evict(files: list[str]) -> None:
    """Takes these files, and nothing else, out of the page cache."""
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warmed(contestant: Contestant, files: list[str]) -> Contestant:
    def warm() -> None:
        for path in files:
            with open(path, "rb", buffering=0) as file:
                buffer = bytearray(MIB)
                while file.readinto(buffer):
                    pass

    return contestant._replace(before=warm)


def per_gib(mib: int) -> None:
    print(f"\nCPU seconds per GiB: the column divided by {mib / 1024:g}.")


def against_disk(options: argparse.Namespace, peers: list[Contestant], files: list[str], what: str) -> None:
    """The same with these files evicted, against what fio reads from the same files; and what the cache keeps."""
    contestants = [peer._replace(before=lambda: evict(files)) for peer in peers]
    if shutil.which("fio"):
        read = ["fio", "--name=read", "--rw=read", "--direct=1", "--bs=1M", "--iodepth=8", "--ioengine=libaio", "--readonly"]
        read += ["--minimal", f"--opendir={Path(files[0]).parent}", "--file_service_type=sequential"]
        contestants.append(Contestant("fio, 8 readings of 1 MiB in flight", read, {}, lambda: evict(files)))
    else:
        print("\nfio is not installed (apt-get install fio): nothing says here how fast the disk is.")
    compare(f"{what}, cold", contestants, min(options.rounds, 3), "≥ 0.95 × fio, ≤ 0.55 CPU s per GiB")
    evict(files)
    before = cached()
    run(peers[0])
    print(f"\nThe page cache grew by {max(cached() - before, 0)} MiB while larder read all of it.")


def cached() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Cached:")) // 1024


def main() -> None:
    measurements = {"status": status, "plan": plan, "small": small, "large": large}
    measurements |= {"verify-many": verify_many, "scrub-one": scrub_one, **bench_fetch.MEASUREMENTS, **bench_copy.MEASUREMENTS, **bench_repair.MEASUREMENTS}
    measurements |= {**bench_adapt.MEASUREMENTS, **bench_smoke.MEASUREMENTS}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--larder", type=Path, required=True, help="the program to measure")
    parser.add_argument("--only", choices=measurements, action="append", help="this measurement; may be repeated")
    parser.add_argument("-n", "--rounds", type=int, default=5)
    parser.add_argument("--large", type=int, default=2048, metavar="MIB", help="size of the large file")
    parser.add_argument("--copy", type=int, default=4096, metavar="MIB", help="size of the file that copy-ssh copies")
    parser.add_argument("--many", type=int, default=200, metavar="FILES", help="how many files of 10 MiB fetch-many has")
    parser.add_argument("--scrub-many", type=int, default=4096, metavar="MIB", help="size of the many files together")
    parser.add_argument("--scrub-one", type=int, default=8192, metavar="MIB", help="size of the file that is scrubbed")
    parser.add_argument("--steps", type=int, default=3, help="how many steps each process of the measurement steps takes")
    parser.add_argument("--cold", action="store_true", help="also measure with empty caches (root)")
    parser.add_argument("--work", type=Path, default=ROOT / "target/bench", help="where the files to measure with go")
    options = parser.parse_args()
    options.larder, options.work = options.larder.resolve(), options.work.resolve()
    (ROOT / "target/bench").mkdir(parents=True, exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    # Who is told to end still ends the servers it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by a signal"))
    floor = run(Contestant("true", ["true"]))
    version = subprocess.run([options.larder, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{version}; {os.cpu_count()} CPUs; load {os.getloadavg()[0]:.1f} at the beginning.")
    print(f"Peak memory below {floor.rss:.0f} MiB cannot be told apart: that is what starting a process counts as.")
    for name in options.only or measurements:
        measurements[name](options)
    (options.work / "results.json").write_text(json.dumps(RESULTS, indent=1) + "\n")


if __name__ == "__main__":
    main()
