//! A drive that larder packed: its lock says what its contents are.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::propose::{Proposal, ProposedFile};
use super::{Known, Seen, StoreSurvey, authority};
use crate::artifact::{Artifact, File, Reference};
use crate::digest::{ContentName, GitSha1, Sha256};
use crate::lock::Lock;

/// Looks at every content on the drive at `root`, by its name and length: who takes it proves it.
///
/// What the drive's lock knows and the manifests do not becomes a proposal, as far as its contents are there.
pub fn survey_drive(root: &Path, known: &mut Known) -> (StoreSurvey, Vec<Proposal>) {
    let mut found = StoreSurvey { store: "drive".to_owned(), root: root.to_owned(), ..StoreSurvey::default() };
    let place = root.join("inventory.lock");
    let lock = match Lock::read(&place) {
        Ok(lock) => lock.unwrap_or_default(),
        Err(error) => {
            found.unreadable.push(Seen { path: "inventory.lock".to_owned(), size: 0, what: error.to_string() });
            Lock::default()
        }
    };
    let mut said: HashMap<ContentName, (String, Option<u64>)> = HashMap::new();
    for artifact in &lock.artifacts {
        for file in &artifact.files {
            for name in file.digests.names() {
                said.entry(name).or_insert_with(|| (format!("{}/{}", artifact.name, file.path), file.size));
            }
        }
    }
    let here = contents(root, (known, &said), &mut found);
    leftovers(root, &mut found);
    let is_here = |file: &File| file.digests.names().any(|name| here.contains(&name));
    let proposals = lock.artifacts.iter().filter(|artifact| artifact.files.iter().any(is_here));
    let proposals = proposals.filter_map(|artifact| propose(artifact, known)).collect();
    (found, proposals)
}

/// Judges each content by its name; returns those of the right length.
fn contents(
    root: &Path,
    (known, said): (&Known, &HashMap<ContentName, (String, Option<u64>)>),
    found: &mut StoreSurvey,
) -> HashSet<ContentName> {
    let mut here = HashSet::new();
    for (file, size) in files(&root.join("blobs"), found) {
        let path = format!("blobs/{file}");
        let Some(name) = content_name(&file) else {
            found.unknown.push(Seen { path, size, what: "its name is no digest".to_owned() });
            continue;
        };
        let whose = match &name {
            ContentName::Sha256(digest) => known.by_digest.get(digest),
            ContentName::GitSha1(_) => None,
        };
        match (whose, said.get(&name)) {
            (_, Some((item, Some(right)))) if *right != size => {
                let what = format!("{size} bytes, but {item} has {right}");
                found.leftovers.push(Seen { path, size, what });
                continue;
            }
            (Some(item), _) => found.known.push(Seen { path, size, what: item.clone() }),
            (None, Some((item, _))) if known.has_artifact(item) => {
                found.known.push(Seen { path, size, what: item.clone() });
            }
            (None, Some((item, _))) => {
                found.unknown.push(Seen { path, size, what: format!("{item}, says the drive's lock") });
            }
            (None, None) => {
                found.unknown.push(Seen { path, size, what: "no lock and no manifest knows it".to_owned() })
            }
        }
        here.insert(name);
    }
    here
}

fn leftovers(root: &Path, found: &mut StoreSurvey) {
    for (file, size) in files(&root.join(".larder"), found) {
        if file.ends_with(".partial") {
            let what = "not whole yet: larder copy --to this folder goes on with it".to_owned();
            found.leftovers.push(Seen { path: format!(".larder/{file}"), size, what });
        }
    }
}

/// Names and lengths of the files in a folder, in order.
fn files(folder: &Path, found: &mut StoreSurvey) -> Vec<(String, u64)> {
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(folder).min_depth(1).max_depth(1).sort_by_file_name() {
        match entry.and_then(|entry| entry.metadata().map(|metadata| (entry, metadata))) {
            Ok((entry, metadata)) if metadata.is_file() => {
                files.push((entry.file_name().to_string_lossy().into_owned(), metadata.len()));
            }
            Ok(_) => {}
            Err(error) if error.io_error().is_some_and(crate::fsio::is_absent) => {}
            Err(error) => {
                let path = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                found.unreadable.push(Seen { path, size: 0, what: error.to_string() });
            }
        }
    }
    files
}

fn content_name(file: &str) -> Option<ContentName> {
    let sha256 = file.strip_prefix("sha256-").and_then(|hex| hex.parse::<Sha256>().ok());
    let git_sha1 = file.strip_prefix("git-sha1-").and_then(|hex| hex.parse::<GitSha1>().ok());
    sha256.map(ContentName::Sha256).or(git_sha1.map(ContentName::GitSha1))
}

/// `None` for what is known already, by its name or by where it comes from.
fn propose(artifact: &Artifact, known: &mut Known) -> Option<Proposal> {
    let is_published = !matches!(artifact.source, Reference::Local | Reference::Unidentified);
    let source = (artifact.store.clone(), authority(&artifact.source));
    if known.names.contains(&artifact.name) || is_published && known.sources.contains_key(&source) {
        return None;
    }
    let file = |file: &File| {
        Some(ProposedFile {
            path: file.path.clone(),
            size: file.size?,
            sha256: file.digests.sha256,
            git_sha1: file.digests.git_sha1.filter(|_| file.digests.sha256.is_none()),
        })
    };
    let is_image = artifact.ollama.is_some();
    Some(Proposal {
        name: known.new_name(&artifact.name),
        store: artifact.store.clone(),
        source: artifact.source.clone(),
        manifest: artifact.ollama.as_ref().map(|manifest| manifest.digest),
        note: "as the lock of the drive says; its manifest lies there too".to_owned(),
        // An image's manifest says what its layers are.
        files: if is_image { Vec::new() } else { artifact.files.iter().filter_map(file).collect() },
    })
}
