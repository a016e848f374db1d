//! What goes wrong on real machines, done on purpose.

use std::io;
use std::path::{Path, PathBuf};

use crate::fsio::{self, Overwrite, WriteOptions};
use crate::verify::FaultKind;

/// One planted fault.
#[derive(Debug, Clone)]
pub struct Damage {
    /// In words.
    pub what: &'static str,
    /// Where.
    pub path: PathBuf,
    /// The artifact that suffers.
    pub artifact: &'static str,
    /// What a verification must call it.
    pub kind: FaultKind,
}

/// Plants four faults in the provisioned machine below `root/machine`.
pub fn plant(root: &Path) -> io::Result<Vec<Damage>> {
    let machine = root.join("machine");
    let snapshot = snapshot(&machine)?;
    let rotten = fs_err::canonicalize(snapshot.join("transformer/diffusion_pytorch_model-00001-of-00002.safetensors"))?;
    flip_bit(&rotten, 600_000, root)?;
    let short = machine.join("swarmui/clip/tiny_encoder.safetensors");
    let beginning = &fs_err::read(&short)?[..1000];
    fsio::write_atomic(&short, beginning, &WriteOptions::default())?;
    let deleted = largest_in(&machine.join("ollama/models/blobs"))?;
    fsio::remove_file(&deleted)?;
    let link = snapshot.join("tokenizer/vocab.json");
    fsio::remove_file(&fs_err::canonicalize(&link)?)?;
    let damage = |what, path, artifact, kind| Damage { what, path, artifact, kind };
    Ok(vec![
        damage("one bit flipped; length and time of change are as before", rotten, "tiny-diffusion", FaultKind::Rotted),
        damage("cut off after 1000 bytes", short, "tiny-encoder", FaultKind::Truncated),
        damage("blob deleted", deleted, "tiny-guard:1b", FaultKind::Missing),
        damage("link left behind without its blob", link, "tiny-diffusion", FaultKind::Dangling),
    ])
}

fn snapshot(machine: &Path) -> io::Result<PathBuf> {
    let snapshots = machine.join("huggingface/hub/models--demo--tiny-diffusion/snapshots");
    let first = fs_err::read_dir(&snapshots)?.next();
    first.ok_or_else(|| io::Error::other(format!("{} is empty", snapshots.display())))?.map(|entry| entry.path())
}

fn largest_in(dir: &Path) -> io::Result<PathBuf> {
    let mut files = Vec::new();
    for entry in fs_err::read_dir(dir)? {
        let entry = entry?;
        files.push((entry.metadata()?.len(), entry.path()));
    }
    let largest = files.into_iter().max();
    largest.map(|(_, path)| path).ok_or_else(|| io::Error::other(format!("{} is empty", dir.display())))
}

/// Flips one bit as a failing disk does: nobody notices by length or time of change.
fn flip_bit(path: &Path, at: u64, aside: &Path) -> io::Result<()> {
    let bytes = fs_err::read(path)?;
    let at = at.min(bytes.len() as u64 - 1);
    let gone = || io::Error::other(format!("{} is being changed by somebody else", path.display()));
    let found = fsio::find(path)?.ok_or_else(gone)?;
    let mut file = Overwrite::open(&found, aside, "before-the-damage", None)?.ok_or_else(gone)?;
    file.write(at, &[bytes[at as usize] ^ 1])?;
    file.finish()?;
    Ok(())
}
