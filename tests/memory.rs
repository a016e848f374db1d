//! What memory `larder apply` takes: a bound that holds however long files are, and however many come at once.
//!
//! `LARDER_MEMORY_MIB=512` for longer files.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests, which also measure")]

use std::path::Path;

use larder::artifact::File;
use larder::digest::{ContentHasher, Digests, Sha256};

#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/chance.rs"]
mod chance;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/machine.rs"]
mod machine;
#[path = "support/peak.rs"]
mod peak;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/sparse.rs"]
mod sparse;
#[expect(dead_code, reason = "other tests use the rest")]
#[path = "support/upstream.rs"]
mod upstream;

use chance::number;
use machine::Machine;
use upstream::Upstream;

/// Memory of its own: with 20 MiB of an optimised build's code it stays below 64 MiB. The files here are longer than that.
const MOST_KIB: u64 = 44 << 10;
const MIB: u64 = 1 << 20;

/// A file of holes with a number at its beginning, so that no two are the same.
struct Hole {
    path: String,
    len: u64,
    sha256: Sha256,
}

impl Hole {
    fn make(folder: &Path, number: u64, len: u64) -> Self {
        let path = format!("{number}.bin");
        sparse::hole(&folder.join(&path), &number.to_le_bytes(), len);
        let (digests, _) = larder::fsio::hash_file(&folder.join(&path), ContentHasher::new()).unwrap();
        Self { path, len, sha256: digests.sha256.unwrap() }
    }

    fn file(&self) -> File {
        File {
            size: Some(self.len),
            digests: Digests::sha256(self.sha256),
            lfs: Some(true),
            ..File::named(self.path.parse().unwrap())
        }
    }
}

/// Fetches so many files of so many MiB, each over up to eight connections from the beginning; the memory that took.
fn fetch(files: u64, mib: u64) -> u64 {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let holes: Vec<Hole> = (0..files).map(|number| Hole::make(folder.path(), number, mib * MIB)).collect();
    let files = holes.iter().map(|hole| (hole.file(), folder.path().join(&hole.path))).collect();
    let upstream = Upstream::of_repository(files);
    let inventory = format!(
        "manifests = [\"manifests/*.toml\"]\n[stores]\nplain = {{ layout = \"folder\", path = \"~/store\" }}\n\
         [sources]\nparallel = 8\nconnections = 8\nfirst-connections = 8\nhub = \"http://{}\"\n",
        upstream.address
    );
    let file = |hole: &Hole| {
        let Hole { path, len, sha256 } = hole;
        let source = format!("hf:lab/model/{path}");
        format!(
            "  [[artifact.file]]\n  path = \"{path}\"\n  source = \"{source}\"\n  size = {len}\n  sha256 = \"{sha256}\"\n"
        )
    };
    let files: String = holes.iter().map(file).collect();
    let machine = Machine::new(&inventory, &format!("[[artifact]]\nname = \"model\"\nstore = \"plain\"\n{files}"));
    machine.larder(&["lock"]).must_be(0);
    let (status, most) = peak::run(&mut machine.command(&["apply", "--yes"]));
    assert!(status.success());
    for hole in &holes {
        assert_eq!(fs_err::metadata(machine.path("store").join(&hole.path)).unwrap().len(), hole.len);
    }
    assert!(upstream.most_open() >= 7, "{} answers at once", upstream.most_open());
    println!("{} files of {mib} MiB: at most {} MiB of memory", holes.len(), most >> 10);
    most
}

#[test]
fn one_file_over_eight_connections_takes_no_more_memory_the_longer_it_is() {
    let long = number("LARDER_MEMORY_MIB", 160);
    for mib in [long, 2 * long] {
        let most = fetch(1, mib);
        assert!(most <= MOST_KIB, "{mib} MiB took {} MiB", most >> 10);
    }
}

#[test]
fn eight_files_at_once_share_the_memory_of_one() {
    // Long enough for all of them to be under way at the same time.
    let most = fetch(8, number("LARDER_MEMORY_MIB", 160) / 4);
    assert!(most <= MOST_KIB, "{} MiB", most >> 10);
}
