//! The list of all files of a commit, which clients use to tell whole snapshots from partial ones.

use std::collections::BTreeMap;
use std::io::Write;

use serde::Serialize;

use crate::artifact::{Artifact, File};
use crate::digest::{ContentHasher, GitSha1, Sha256};

#[derive(Serialize)]
struct TreeFile<'a> {
    format_version: u32,
    files: BTreeMap<&'a str, TreeEntry>,
}

#[derive(Serialize)]
struct TreeEntry {
    size: u64,
    blob_id: GitSha1,
    #[serde(skip_serializing_if = "Option::is_none")]
    lfs_sha256: Option<Sha256>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lfs_size: Option<u64>,
}

/// The text of `trees/<commit>.json`; `None` unless `artifact` is the whole repository and every field is known.
///
/// With a list of more files than the snapshot has, offline loads fail; without one they take what is there.
pub(super) fn tree_text(artifact: &Artifact) -> Option<Vec<u8>> {
    if !(artifact.whole && artifact.complete) {
        return None;
    }
    let entry = |file| Some((entry_path(file), entry(file)?));
    let files = artifact.files.iter().map(entry).collect::<Option<_>>()?;
    let mut text = Vec::new();
    // One space of indentation, as the clients write it.
    let style = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, style);
    TreeFile { format_version: 1, files }.serialize(&mut serializer).ok()?;
    Some(text)
}

fn entry_path(file: &File) -> &str {
    file.path.as_str()
}

fn entry(file: &File) -> Option<TreeEntry> {
    let size = file.size?;
    if file.lfs? {
        let sha256 = file.digests.sha256?;
        let blob_id = pointer_id(sha256, size)?;
        Some(TreeEntry { size, blob_id, lfs_sha256: Some(sha256), lfs_size: Some(size) })
    } else {
        Some(TreeEntry { size, blob_id: file.digests.git_sha1?, lfs_sha256: None, lfs_size: None })
    }
}

/// The git blob id of the LFS pointer: its text is fixed by length and digest alone.
fn pointer_id(sha256: Sha256, size: u64) -> Option<GitSha1> {
    let mut pointer = Vec::new();
    write!(pointer, "version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n").ok()?;
    let mut hasher = ContentHasher::new().with_git_sha1(pointer.len() as u64);
    hasher.update(&pointer);
    hasher.finish().git_sha1
}
