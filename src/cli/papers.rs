//! What says what is wanted, gathered for a place that has nothing of it.

use std::path::{Path, PathBuf};

use super::error::CliError;
use super::lab::{Lab, manifest_files};
use crate::drive::Papers;
use crate::trust::signature_of;

/// Inventory and manifests, and where somebody signed them, the lock and the signatures as well; with `all`, the lock in
/// any case.
pub(super) fn papers(lab: &Lab, all: bool) -> Result<Papers, CliError> {
    let mut papers = Papers::default();
    let mut add = |place: PathBuf, from: &Path| -> Result<(), CliError> {
        papers.add(place, fs_err::read(from)?);
        Ok(())
    };
    add(PathBuf::from("inventory.toml"), &lab.inventory_path)?;
    let mut files: Vec<(PathBuf, PathBuf)> = manifest_files(&lab.inventory_path, &lab.inventory)?
        .into_iter()
        .map(|file| (place_of(lab, &file), file))
        .collect();
    if signature_of(&lab.lock_path).exists() || all && lab.lock_path.exists() {
        files.push((PathBuf::from("inventory.lock"), lab.lock_path.clone()));
    }
    for (place, file) in files {
        add(place.clone(), &file)?;
        let signature = signature_of(&file);
        if signature.exists() {
            add(signature_of(&place), &signature)?;
        }
    }
    Ok(papers)
}

/// Where a manifest lies beside the inventory, so that the inventory's patterns find it on the drive too.
fn place_of(lab: &Lab, manifest: &Path) -> PathBuf {
    let root = lab.inventory_path.parent().unwrap_or(Path::new(""));
    let below = manifest.strip_prefix(root).ok().filter(|below| below.is_relative());
    let is_plain = |below: &&Path| below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    let name = Path::new("manifests").join(manifest.file_name().unwrap_or_default());
    below.filter(is_plain).map_or(name, Path::to_owned)
}
