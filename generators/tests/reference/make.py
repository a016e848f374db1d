"""Records what the reference classes compute on tiny checkpoints: golden/<name>/.

usage: python make.py [name ...]     (all without names; see README.md)
"""
import sys

import torch

from common import filled, record

RECORDS = {}


def makes(function):
    RECORDS[function.__name__] = function
    return function


@makes
def fp8():
    """All codes of F8_E4M3FN, plain and with a scale; and the rule that fills weights."""
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    scale = torch.tensor(0.0123)
    plain = codes.to(torch.float32)
    record("fp8", {"plain": plain, "scale": scale, "scaled": plain * scale, "fill": filled("a.weight", (3, 5))})


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.no_grad():
        for name in sys.argv[1:] or RECORDS:
            RECORDS[name]()
