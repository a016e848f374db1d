"""What the benchmarks share: running commands side by side, labs to measure in, and the table of what came out."""

import argparse
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Callable, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
COMMIT = "0123456789abcdef0123456789abcdef01234567"
MIB = 1 << 20
# Every run of every table, for the file that programs read.
RESULTS: list[dict] = []
# Says that what it lies beside was made to its end; another name where a new form replaces an older one.
READY = "ready-2"
# No command that is measured takes longer.
LIMIT = 600


class Run(NamedTuple):
    """One finished process: seconds, CPU seconds, greatest resident set in MiB."""

    wall: float
    cpu: float
    rss: float


class Contestant(NamedTuple):
    """A command, what puts the disk into the same state before each run, and what must be there after it."""

    name: str
    argv: list[str]
    env: dict[str, str] = {}
    before: Callable[[], None] = lambda: None
    made: dict[Path, int] = {}
    good: tuple[int, ...] = (0,)
    # Processor time that another process has used for it so far, where that is to count too.
    other_end: Callable[[], float] = lambda: 0.0


def run(contestant: Contestant) -> Run:
    """Runs it to its end; its output goes to a file that is shown if it fails."""
    contestant.before()
    elsewhere = contestant.other_end()
    log = ROOT / "target/bench/output"
    with open(log, "wb") as out:
        start = time.perf_counter()
        environment = {**os.environ, **contestant.env}
        process = subprocess.Popen(
            contestant.argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True
        )
        stop = threading.Timer(LIMIT, os.killpg, (process.pid, signal.SIGKILL))
        stop.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        finally:
            stop.cancel()
        wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in contestant.good:
        sys.exit(f"{contestant.argv} ended with {process.returncode}:\n{log.read_text()[-2000:]}")
    for path, size in contestant.made.items():
        if not path.exists() or path.stat().st_size != size:
            sys.exit(f"{contestant.argv} did not make {path} of {size} bytes:\n{log.read_text()[-2000:]}")
    elsewhere = contestant.other_end() - elsewhere
    return Run(wall, usage.ru_utime + usage.ru_stime + elsewhere, usage.ru_maxrss / 1024)


def compare(title: str, contestants: list[Contestant], rounds: int, target: str, mib: int = 0) -> None:
    """Runs all in turn and prints a table; the first one is larder, the ratios are larder's to the others'.

    With `mib`, what each of them moves, the table also has rates, and processor time for each GiB.
    """
    for contestant in contestants:
        run(contestant)  # Warms caches; not counted.
    runs: dict[str, list[Run]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        # Who comes after whom changes, because what one leaves behind may hinder the next.
        first = number % len(contestants)
        for contestant in contestants[first:] + contestants[:first]:
            runs[contestant.name].append(run(contestant))
    print(f"\n### {title}\n\nTarget: {target}. {rounds} rounds, load {os.getloadavg()[0]:.1f} after them.\n")
    moved = ["MiB/s, best", "CPU s per GiB"] if mib else []
    columns = ["command", "wall, median (min to max)", "CPU s", *moved, "peak memory"]
    columns += ["larder ÷ this, wall (min to max)", "larder ÷ this, best ÷ best", "larder ÷ this, CPU"]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    larder = runs[contestants[0].name]
    for contestant in contestants:
        print("| " + " | ".join([contestant.name, *row(runs[contestant.name], larder, mib)]) + " |", flush=True)
    RESULTS.append({"title": title, "target": target, "mib": mib, "runs": as_objects(runs)})


def children_cpu(pid: int) -> float:
    """Processor time of all that this process has started, once the last of them has ended: seconds."""
    ticks = os.sysconf("SC_CLK_TCK")
    while Path(f"/proc/{pid}/task/{pid}/children").read_text().strip():
        time.sleep(0.01)
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[13]) + int(fields[14])) / ticks


def row(own: list[Run], larder: list[Run], mib: int) -> list[str]:
    walls, cpu = [one.wall for one in own], statistics.median(one.cpu for one in own)
    cells = [spread(walls, " s"), f"{cpu:.3f}"]
    if mib:
        cells += [f"{mib / min(walls):.0f}", f"{cpu * 1024 / mib:.2f}"]
    cells.append(f"{max(one.rss for one in own):.0f} MiB")
    if own is larder:
        return [*cells, "–", "–", "–"]
    ratios = [ours.wall / theirs.wall for ours, theirs in zip(larder, own)]
    best = min(one.wall for one in larder) / min(walls)
    cpu_ratio = statistics.median(ours.cpu / max(theirs.cpu, 1e-3) for ours, theirs in zip(larder, own))
    return [*cells, spread(ratios, ""), f"{best:.2f}", f"{cpu_ratio:.2f}"]


def as_objects(runs: dict[str, list[Run]]) -> dict[str, list[dict[str, float]]]:
    return {name: [one._asdict() for one in own] for name, own in runs.items()}


def spread(values: list[float], unit: str) -> str:
    digits = 3 if statistics.median(values) < 1 else 2
    return f"**{statistics.median(values):.{digits}f}{unit}** ({min(values):.{digits}f} to {max(values):.{digits}f})"


def apart(work: Callable[[], None]) -> None:
    """Does the work in a process of its own: a child's peak memory begins with that of this one."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit("the files to measure with cannot be made")


class Lab:
    """An inventory with one store and its own facts, below target/bench."""

    def __init__(self, larder: Path, folder: Path, layout: str) -> None:
        self.larder, self.folder, self.store = larder, folder, folder / "store"
        folder.mkdir(parents=True, exist_ok=True)
        self.layout = layout
        self.env = {"LARDER_STATE": str(folder / "state"), "HOME": str(folder), "HF_HUB_OFFLINE": "0"}

    def command(self, *words: str) -> list[str]:
        return [str(self.larder), "--inventory", str(self.folder / "inventory.toml"), *words]

    def call(self, *words: str) -> None:
        run(Contestant("larder", self.command(*words), self.env))

    def declare(self, artifacts: list[tuple[str, str]], more: str = "") -> None:
        """Writes inventory and manifest for (name, hub repository) pairs, and a lock without files.

        What `more` says is said of each artifact; `{name}` in it is the artifact's name.
        """
        entry = '[[artifact]]\nname = "{}"\nsource = "hf:{}"\nstore = "models"\n'
        self.define("\n".join(entry.format(name, repo) + more.format(name=name) for name, repo in artifacts))

    def define(self, manifest: str, sources: str = "") -> None:
        """Writes inventory and manifest, and locks what the manifest alone says."""
        store = f'models = {{ layout = "{self.layout}", path = "{self.store}" }}'
        inventory = f'manifests = ["manifest.toml"]\n[stores]\n{store}\n[sources]\n{sources}\n'
        (self.folder / "inventory.toml").write_text(inventory)
        (self.folder / "manifest.toml").write_text(manifest)
        (self.folder / "inventory.lock").unlink(missing_ok=True)
        self.call("lock", "--offline")

    def fill_lock(self, files: dict[str, list[dict]]) -> None:
        """Adds revision and files, as `larder lock` writes them, to the entries of the lock."""
        path = self.folder / "inventory.lock"
        lock = json.loads(path.read_text())
        for artifact in lock["artifacts"]:
            del artifact["files"]
            artifact |= {"revision": COMMIT, "origin": "upstream", "complete": True, "whole": True}
        # One line for each file, as larder writes it.
        entries = ",\n".join(
            compact(one)[:-1] + ',"files":[\n  ' + ",\n  ".join(map(compact, files[one["name"]])) + "]}"
            for one in lock["artifacts"]
        )
        path.write_text(f'{{"version": 1, "revision": {lock["revision"]}, "artifacts": [\n{entries}\n]}}\n')

    def hub_file(self, repo: str, path: str, content: bytes, lfs: bool) -> dict:
        """Puts a file into the cache as the hub's own client does; returns the lock's line for it."""
        digest = hashlib.sha256(content).hexdigest() if lfs else git_sha1(content)
        folder = self.store / f"models--{repo.replace('/', '--')}"
        entry, blob = folder / "snapshots" / COMMIT / path, folder / "blobs" / digest
        entry.parent.mkdir(parents=True, exist_ok=True)
        blob.parent.mkdir(parents=True, exist_ok=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs/main").write_text(COMMIT)
        blob.write_bytes(content)
        entry.symlink_to(os.path.relpath(blob, entry.parent))
        digests = {"sha256" if lfs else "git-sha1": digest}
        return {"path": path, "size": len(content), "digests": digests, "lfs": lfs}


def compact(value: dict) -> str:
    return json.dumps(value, separators=(",", ":"))


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Serve:
    """`larder serve` while a block runs; prints what it took.

    `within` is what its command begins with, to run in another network; `options` are of `larder serve`.
    """

    def __init__(self, lab: Lab, within: list[str] = [], address: str = "127.0.0.1", options: list[str] = []) -> None:
        self.lab = lab
        self.command = [*within, *lab.command("serve", "--address", f"{address}:0", *options)]

    def __enter__(self) -> str:
        self.process = subprocess.Popen(
            self.command,
            stderr=subprocess.PIPE,
            env={**os.environ, **self.lab.env},
        )
        line = self.process.stderr.readline().decode()
        if " at http://" not in line:
            sys.exit(f"larder serve: {line}")
        self.address = line.rsplit(" at ", 1)[1].strip()
        return self.address

    def sent(self) -> int:
        """Bytes of answers since it began, as it counts them itself."""
        with urllib.request.urlopen(f"{self.address}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith("larder_serve_sent_bytes_total")))

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        _, status, usage = os.wait4(self.process.pid, 0)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        print(f"\n`larder serve` during all of these: {cpu:.2f} CPU s, peak memory {usage.ru_maxrss / 1024:.0f} MiB.")


def fresh(work: Path, *folders: Path) -> Callable[[], None]:
    """Moves away what the last run left, and lets the disk finish with it before the clock starts.

    Nothing is removed between runs: file systems are slow to use again what was removed a moment ago.
    """

    def clean() -> None:
        for folder in filter(Path.exists, folders):
            trash = work / "trash" / str(time.monotonic_ns())
            trash.mkdir(parents=True)
            folder.rename(trash / folder.name)
        os.sync()

    return clean


def sweep(work: Path) -> None:
    shutil.rmtree(work / "trash", ignore_errors=True)


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def ready(lab: Lab) -> bool:
    """Whether an earlier run made the files; otherwise clears the ground."""
    if (lab.folder / READY).exists():
        return True
    shutil.rmtree(lab.folder)
    lab.folder.mkdir()
    return False


def prove(lab: Lab) -> Lab:
    """Reads everything once: `status` then has as much to tell as it ever has."""
    lab.call("verify", "--full")
    (lab.folder / READY).touch()
    os.sync()
    return lab


def hf_download(
    options: argparse.Namespace, version: str, endpoint: str, repo: str, within: list[str] = []
) -> Contestant:
    home = options.work / version
    python = Path(os.environ["LARDER_TEST_PARTS"]) / version / "bin"
    env = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    what = "from importlib.metadata import version; print(version('huggingface_hub'))"
    number = subprocess.run([python / "python", "-c", what], capture_output=True, text=True, check=True).stdout.strip()
    return Contestant(f"hf download ({number})", [*within, str(python / "hf"), "download", repo], env, fresh(options.work, home))
