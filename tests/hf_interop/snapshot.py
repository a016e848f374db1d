"""Has a whole repository from the hub that the environment names. Arguments: a revision, and its commit."""

import sys
from pathlib import Path

from huggingface_hub import snapshot_download

revision, commit = sys.argv[1:]
folder = Path(snapshot_download("acme/hand", revision=revision))
assert folder.name == commit, folder
files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
assert files == ["config.json", "model.safetensors", "onnx/quantized/config.json", "py/__init__.py",
                 "tokenizer.json", "tokenizer_config.json", "vocab.txt"], files
print("loaded", len(files))
