//! Writes the tiny generators of the tests as model repositories have theirs: `tiny_generators FOLDER`.
//!
//! FOLDER/pictures is a Stable Diffusion 3.5 and FOLDER/sounds a Stable Audio Open, in the folders of diffusers. Their
//! parts do their work, so that `larder smoke` finds nothing wrong: scripts/bench measures with them.

#![expect(clippy::unwrap_used, reason = "the generators are made as for tests: what is not there ends it")]

use std::path::PathBuf;

use larder::fsio::{self, WriteOptions};

#[expect(dead_code, reason = "tests use the rest")]
#[path = "../tests/support/tiny_generators.rs"]
mod tiny_generators;

use tiny_generators::Tiny;

fn main() -> std::io::Result<()> {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    let folder = folder.ok_or_else(|| std::io::Error::other("Name the folder to write to"))?;
    for (name, tiny) in [("pictures", Tiny::pictures()), ("sounds", Tiny::sounds())] {
        for (path, bytes) in tiny.files() {
            fsio::write_atomic(&folder.join(name).join(path), &bytes, &WriteOptions::default())?;
        }
    }
    Ok(())
}
