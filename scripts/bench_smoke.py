"""Smoke tests, measured beside the reference classes in Python: see scripts/bench.

    smoke-tiny   larder smoke of a tiny Stable Diffusion 3.5 and Stable Audio Open, beside diffusers
    steps        one step of a transformer of about 300 million parameters, beside torch

Python comes with torch, diffusers and transformers in the versions of generators/tests/reference/requirements.txt,
installed once below target/bench (6 GB: torch brings the libraries for GPUs along).
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from bench_parts import READY, RESULTS, ROOT, Contestant, Lab, compare, spread

REFERENCE = ROOT / "scripts/bench_reference.py"
# Nothing here may be looked up on the network.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
# Two implementations in single precision are at most this far apart, as a part of the largest number.
NEAR = 1e-4


def python(options: argparse.Namespace) -> Path:
    """The interpreter that has the reference classes."""
    home = options.work / "torch"
    program = home / "bin/python"
    if not (home / READY).exists():
        pinned = (ROOT / "generators/tests/reference/requirements.txt").read_text().splitlines()
        wanted = [line for line in pinned if line and line[0] != "#"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        # The wheels are too large for many a /tmp.
        temporary = options.work / "tmp"
        temporary.mkdir(exist_ok=True)
        install = [program, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
        subprocess.run([*install, *wanted], check=True, env={**os.environ, "TMPDIR": str(temporary)})
        (home / READY).touch()
    return program


def optimised(package: str, name: str) -> Path:
    """An example of ours, built as the program itself."""
    build = ["cargo", "build", "--release", "--locked", "--quiet", "-p", package, "--example", name]
    subprocess.run(build, check=True, cwd=ROOT)
    return (ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release/examples" / name).resolve()


# ── Tiny generators, from the start of the process to the file ──────────────────────────────────


def tiny(options: argparse.Namespace) -> None:
    made = options.work / "smoke-tiny/made"
    # Built as the tests are: all that it does is to write files.
    write = ["cargo", "run", "--locked", "--quiet", "--example", "tiny_generators", made]
    subprocess.run(write, check=True, cwd=ROOT)
    program = python(options)
    for title, name, smoke, command, ending in (
        ("Stable Diffusion 3.5", "pictures", "stable-diffusion-3-any-size", "picture", "png"),
        ("Stable Audio Open", "sounds", "stable-audio-any-size", "sound", "wav"),
    ):
        lab = smoke_lab(options, made / name, smoke)
        theirs = options.work / f"smoke-tiny/theirs.{ending}"
        smoked = lab.command("smoke", "--level", "generate", "--out", str(lab.folder / "out"))
        argv = [str(program), str(REFERENCE), command, str(made / name), str(theirs)]
        contestants = [
            Contestant(f"larder smoke --level generate: every check, and a {command}", smoked, lab.env),
            Contestant(f"diffusers: a {command}", argv, OFFLINE),
        ]
        compare(f"a tiny {title}, from the start of the process", contestants, options.rounds, "larder ≤ 0.2 × diffusers")


def smoke_lab(options: argparse.Namespace, model: Path, smoke: str) -> Lab:
    """A lab whose only artifact is the model in this folder, where it lies."""
    lab = Lab(options.larder, options.work / f"smoke-tiny/{model.name}", "folder")
    lab.store = model
    entry = '[[artifact]]\nname = "tiny"\nstore = "models"\nsource = "local"\n'
    files = sorted(path.relative_to(model) for path in model.rglob("*") if path.is_file() and ".larder" not in path.parts)
    lab.define(entry + f'smoke = "{smoke}"\n' + "".join(f'[[artifact.file]]\npath = "{path}"\n' for path in files))
    return lab


# ── Steps of a transformer of medium size ───────────────────────────────────────────────────────


def steps(options: argparse.Namespace) -> None:
    """Processes in turn; each runs its steps after one that is not counted. A round's time is the median of its steps."""
    program, ours = python(options), optimised("larder-generators", "steps")
    folder = options.work / "steps"
    if not (folder / READY).exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{subprocess.check_output([program, REFERENCE, 'make', folder], text=True).strip()} parameters")
        (folder / READY).touch()
    threads = os.cpu_count() or 1
    env = {**os.environ, **OFFLINE, "RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    commands = {
        "generators/ in candle": [ours, folder, str(options.steps)],
        "torch": [program, REFERENCE, "step", folder, str(options.steps)],
    }
    seconds: dict[str, list[list[float]]] = {name: [] for name in commands}
    for number in range(options.rounds):
        for name in sorted(commands, reverse=number % 2 == 1):
            said = subprocess.run(commands[name], env=env, check=True, text=True, stdout=subprocess.PIPE).stdout.split()
            distance, *walls = map(float, said)
            if not distance <= NEAR:
                sys.exit(f"{name} computes something else: {distance} of the largest number away")
            seconds[name].append(walls)
    title = "one step of a transformer of about 300 million parameters, single precision"
    target = "≤ 1.5 × torch"
    print(f"\n### {title}\n\nTarget: {target}. {options.rounds} rounds of {options.steps} steps, {threads} threads, load {os.getloadavg()[0]:.1f} after them.\n")
    print("| program | seconds a step: median of the rounds (min to max) | best step | candle ÷ this, rounds (min to max) | candle ÷ this, best ÷ best |")
    print("|---|---|---|---|---|")
    own = seconds["generators/ in candle"]
    for name, rounds in seconds.items():
        medians, best = [statistics.median(walls) for walls in rounds], min(map(min, rounds))
        cells = [name, spread(medians, " s"), f"{best:.2f} s"]
        if rounds is own:
            cells += ["–", "–"]
        else:
            ratios = [statistics.median(ours) / theirs for ours, theirs in zip(own, medians)]
            cells += [spread(ratios, ""), f"{min(map(min, own)) / best:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
    RESULTS.append({"title": title, "target": target, "steps": seconds})


MEASUREMENTS = {"smoke-tiny": tiny, "steps": steps}
