//! The names of the cache: which folder, blob, reference and lock belong to an artifact.

use std::path::{Path, PathBuf};

use crate::artifact::{Artifact, File, HubRepo, Reference};
use crate::digest::Digests;
use crate::relpath::RelPath;

/// The places of one artifact's repository in one cache.
#[derive(Debug)]
pub(super) struct RepoPlaces {
    /// `models--owner--name`.
    pub(super) folder: String,
    /// The folder itself.
    pub(super) dir: PathBuf,
    /// The branch or tag by which programs ask for it.
    pub(super) ref_name: RelPath,
    /// The commit, where the artifact says which.
    pub(super) commit: Option<String>,
}

impl RepoPlaces {
    /// Finds the places of `artifact` below `cache`, or the reason why it can have none.
    pub(super) fn of(cache: &Path, artifact: &Artifact) -> Result<Self, String> {
        let Reference::Hub { repo, revision, .. } = &artifact.source else {
            return Err(format!("its source {} is no Hugging Face repository", artifact.source));
        };
        let asked = revision.as_deref().unwrap_or("main");
        let commit = artifact.revision.clone().or_else(|| is_commit(asked).then(|| asked.to_owned()));
        if let Some(odd) = commit.as_ref().filter(|commit| !is_commit(commit)) {
            return Err(format!("its revision {odd:?} is not a commit of 40 hexadecimal digits"));
        }
        let folder = folder_name(repo);
        let ref_name = if names_commit(asked, commit.as_deref()) { "main" } else { asked };
        let ref_name = ref_name.parse().map_err(|_| format!("the revision {asked:?} cannot be a file name"))?;
        Ok(Self { dir: cache.join(&folder), folder, ref_name, commit })
    }

    /// Where content lies under the name that the hub gives it.
    pub(super) fn blob(&self, name: &str) -> PathBuf {
        self.dir.join("blobs").join(name)
    }

    /// Where the snapshots of all commits lie.
    pub(super) fn snapshots(&self) -> PathBuf {
        self.dir.join("snapshots")
    }

    /// The folder that programs read for `commit`.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.snapshots().join(commit)
    }

    /// The file that says which commit the reference means.
    pub(super) fn ref_file(&self) -> PathBuf {
        self.ref_name.under(&self.dir.join("refs"))
    }

    /// How messages call that file.
    pub(super) fn ref_label(&self) -> String {
        format!("refs/{}", self.ref_name)
    }

    /// Where clients keep the list of all files of `commit`.
    pub(super) fn tree_file(&self, commit: &str) -> PathBuf {
        self.dir.join("trees").join(format!("{commit}.json"))
    }
}

fn folder_name(repo: &HubRepo) -> String {
    format!("{}--{}", repo.kind.plural(), repo.id.replace('/', "--"))
}

/// Whether `text` is a whole commit id, as clients recognise it.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether the source pins a commit, whole or shortened, and so names no branch or tag.
fn names_commit(asked: &str, commit: Option<&str>) -> bool {
    is_commit(asked) || (asked.len() >= 7 && commit.is_some_and(|commit| commit.starts_with(asked)))
}

/// The blob's name: the ETag that the hub sends for `file`, as far as `digests` tell it.
///
/// Files in git are named by their git blob id, files in LFS by SHA-256.
pub(super) fn blob_name(file: &File, digests: &Digests) -> Option<String> {
    let sha256 = digests.sha256.map(|digest| digest.to_string());
    let git_sha1 = digests.git_sha1.map(|digest| digest.to_string());
    match file.lfs {
        Some(true) => sha256,
        Some(false) => git_sha1.or(sha256),
        None => sha256.or(git_sha1),
    }
}

/// Every name under which a client may have kept the content of `file`, the likeliest first.
pub(super) fn blob_names(file: &File) -> impl Iterator<Item = String> {
    let first = blob_name(file, &file.digests);
    let git = file.digests.git_sha1.map(|digest| digest.to_string());
    let sha = file.digests.sha256.map(|digest| digest.to_string());
    let others: Vec<String> = [sha, git].into_iter().flatten().filter(|name| Some(name) != first.as_ref()).collect();
    first.into_iter().chain(others)
}

/// What the snapshot's link to the blob `name` says: relative, so that the cache can be moved.
pub(super) fn link_target(path: &RelPath, name: &str) -> PathBuf {
    let up = "../".repeat(path.parts().count() + 1);
    PathBuf::from(format!("{up}blobs/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_climb_one_more_step_per_folder() {
        let target = |path: &str| link_target(&path.parse().unwrap(), "b");
        assert_eq!(target("config.json"), Path::new("../../blobs/b"));
        assert_eq!(target("text_encoder/model/x"), Path::new("../../../../blobs/b"));
    }

    #[test]
    fn commits_are_no_references() {
        let commit = "0123456789abcdef0123456789abcdef01234567";
        assert!(names_commit(commit, None));
        assert!(names_commit(&commit[..8], Some(commit)));
        assert!(!names_commit("v1.0", Some(commit)));
        assert!(!names_commit("deadbeef", Some(commit)), "a branch may look like hexadecimal digits");
    }
}
