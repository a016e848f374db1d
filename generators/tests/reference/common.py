"""What all records share: weights by rule, inputs by rule, and how a record is written."""
import atexit
import filecmp
import json
import os
import shutil
import sys
import tempfile

import numpy as np
import torch
from safetensors.torch import save_file

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
GOLDEN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "golden")
# With --check, records are made aside, and compared with those that are kept.
CHECKING = "--check" in sys.argv
ROOT = tempfile.mkdtemp() if CHECKING else GOLDEN
if CHECKING:
    atexit.register(shutil.rmtree, ROOT)
MASK = (1 << 64) - 1
RECORDS = {}


def makes(function):
    """Registers a function that makes the record of its name."""
    RECORDS[function.__name__] = function
    return function


def uniform(name, count):
    """splitmix64 seeded by FNV-1a of the name: numbers in -1..1 with 24 bits, the same in every language."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = ((seed ^ byte) * 0x100000001B3) & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(8388608.0) - np.float32(1.0)


def filled(name, shape):
    """A weight: no zero-initialised gate stays zero, so that no branch is invisible."""
    fan = int(np.prod(shape[1:], dtype=np.int64))
    if len(shape) > 1:
        offset, scale = 0.0, np.float32(np.sqrt(3.0 / fan))
    else:
        offset, scale = (1.0 if name.endswith("weight") and "norm" in name else 0.0), np.float32(0.2)
    numbers = np.float32(offset) + scale * uniform(name, int(np.prod(shape, dtype=np.int64)))
    return torch.from_numpy(numbers.astype(np.float32).reshape(shape))


def fill(model, skip=()):
    """Overwrites every weight by the rule; returns names and shapes. `skip`: computed buffers kept as they are."""
    state = model.state_dict()
    names = [n for n, t in state.items() if t.is_floating_point() and not any(s in n for s in skip)]
    model.load_state_dict({n: filled(n, tuple(state[n].shape)) for n in names}, strict=False)
    return {n: list(state[n].shape) for n in names}


def rand(name, *shape):
    """An input: uniform in -1.7..1.7, so about unit variance."""
    return torch.from_numpy(uniform("input " + name, int(np.prod(shape))).reshape(shape)) * 1.7


def record(name, tensors, config=None, shapes=None, **extra):
    """Writes golden/<name>/."""
    folder = os.path.join(ROOT, name)
    os.makedirs(folder, exist_ok=True)
    kept = {k: (v.detach() if v.is_floating_point() else v).contiguous().clone() for k, v in tensors.items()}
    if kept:
        save_file(kept, os.path.join(folder, "golden.safetensors"))
    for file, content in {"config": config, "tensors": shapes, **extra}.items():
        if content is not None:
            with open(os.path.join(folder, file + ".json"), "w") as out:
                json.dump(content, out, sort_keys=True, separators=(",", ":"))
                out.write("\n")
    floats = [v for v in kept.values() if v.is_floating_point()]
    print(name, {k: tuple(v.shape) for k, v in kept.items()})
    assert name == "fp8" or all(torch.isfinite(v).all() for v in floats), name


def public(config):
    """A diffusers configuration without the keys that tell where it came from."""
    return {k: (list(v) if isinstance(v, tuple) else v) for k, v in dict(config).items() if not k.startswith("_")}


def files_of(root):
    """Paths below a folder, relative to it."""
    return {os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(root) for name in names}


def differences(whole):
    """What is not, byte for byte, as it is kept; `whole`: all records were made, so what was not made is one too."""
    made, kept = files_of(ROOT), files_of(GOLDEN)
    found = [f"{path}: not kept" for path in sorted(made - kept)]
    found += [f"{path}: no record makes it" for path in sorted(kept - made) if whole]
    same = lambda path: filecmp.cmp(os.path.join(ROOT, path), os.path.join(GOLDEN, path), shallow=False)
    found += [f"{path}: other bytes" for path in sorted(made & kept) if not same(path)]
    print(f"{len(made & kept)} files compared, {len(found)} differ")
    return found
