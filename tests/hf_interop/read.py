"""What a program sees, offline, of a cache that larder wrote: argv is cache, commit, then the files."""

import sys
from pathlib import Path

from huggingface_hub import scan_cache_dir, snapshot_download, try_to_load_from_cache

cache, commit, *files = sys.argv[1:]
snapshot = Path(snapshot_download("acme/hand", cache_dir=cache, local_files_only=True))
assert snapshot == Path(cache) / "models--acme--hand" / "snapshots" / commit, snapshot
pinned = snapshot_download("acme/hand", revision=commit, cache_dir=cache, local_files_only=True)
assert Path(pinned) == snapshot, pinned
for name in files:
    found = try_to_load_from_cache("acme/hand", name, cache_dir=cache)
    assert isinstance(found, str) and Path(found).read_bytes() == (snapshot / name).read_bytes(), (name, found)

scanned = scan_cache_dir(cache)
assert not scanned.warnings, [str(warning) for warning in scanned.warnings]
assert not getattr(scanned, "incomplete_files", None), scanned.incomplete_files
(repo,) = [repo for repo in scanned.repos if repo.repo_id == "acme/hand"]
(revision,) = repo.revisions
assert revision.commit_hash == commit and revision.refs == {"main"}, revision
assert {str(file.file_path.relative_to(snapshot)) for file in revision.files} == set(files)
print("read", len(files))
