//! The hub's JSON: commits and trees of files.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::artifact::File;
use crate::digest::{Digests, GitSha1, ParseDigestError, Sha256, XetHash};
use crate::relpath::{RelPath, UnsafePath};
use crate::sources::body::ABSURD_LENGTH;

/// Why a list of files, as the hub sent it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ParseTreeError {
    /// Not JSON, or not of the hub's shape.
    #[error("the list of files is not what the hub's API promises")]
    Json(#[from] serde_json::Error),
    /// A name that must not become a path on this machine.
    #[error(transparent)]
    UnsafePath(#[from] UnsafePath),
    /// The name of a file's content is none.
    #[error("the content of {path} has no usable name")]
    Digest {
        /// The file.
        path: RelPath,
        /// What is wrong with it.
        #[source]
        source: ParseDigestError,
    },
    /// More than any disk holds.
    #[error("{path} is said to have {size} bytes")]
    Size {
        /// The file.
        path: RelPath,
        /// The length.
        size: u64,
    },
    /// Two entries for one path.
    #[error("{0} is listed twice")]
    Twice(RelPath),
    /// A path that is a file and a folder at the same time.
    #[error("{0} is listed as a file and as a folder")]
    FileAndFolder(String),
}

/// Reads a tree or paths-info answer of the hub: a JSON array of entries.
///
/// Folders, and kinds of entry that are not known yet, are left out. Files keep the server's order.
/// Fails where one name is unsafe, where a content name is malformed, and where a path comes twice.
pub fn parse_tree(bytes: &[u8]) -> Result<Vec<File>, ParseTreeError> {
    let entries: Vec<Entry> = serde_json::from_slice(bytes)?;
    let files: Vec<File> =
        entries.into_iter().filter(|entry| entry.kind == "file").map(file).collect::<Result<_, _>>()?;
    refuse_twins(&files)?;
    Ok(files)
}

/// Fails where two of `files` have the same path, or one would have to be a folder for another.
pub(super) fn refuse_twins(files: &[File]) -> Result<(), ParseTreeError> {
    let mut seen = BTreeSet::new();
    if let Some(file) = files.iter().find(|file| !seen.insert(file.path.as_str())) {
        return Err(ParseTreeError::Twice(file.path.clone()));
    }
    let folders = files.iter().flat_map(|file| file.path.as_str().match_indices('/').map(move |(at, _)| (file, at)));
    let mut folders = folders.map(|(file, at)| &file.path.as_str()[..at]);
    match folders.find(|folder| seen.contains(folder)) {
        Some(folder) => Err(ParseTreeError::FileAndFolder(folder.to_owned())),
        None => Ok(()),
    }
}

/// The commit in the hub's answer to a question about a revision; `None` where it names none in full.
pub fn parse_commit(bytes: &[u8]) -> Option<String> {
    let revision: Revision = serde_json::from_slice(bytes).ok()?;
    is_commit(&revision.sha).then_some(revision.sha)
}

/// Whether `revision` names a commit in full.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    oid: String,
    size: Option<u64>,
    lfs: Option<Lfs>,
    #[serde(rename = "xetHash")]
    xet: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Lfs {
    oid: String,
    size: Option<u64>,
}

fn file(entry: Entry) -> Result<File, ParseTreeError> {
    let path: RelPath = entry.path.parse()?;
    let refused = |source| ParseTreeError::Digest { path: path.clone(), source };
    // The outer oid of an LFS file is that of its pointer: it says nothing about the content.
    let (size, digests, lfs) = match entry.lfs {
        Some(lfs) => {
            let sha256: Sha256 = lfs.oid.parse().map_err(refused)?;
            (lfs.size.or(entry.size), Digests::sha256(sha256), true)
        }
        None => {
            let oid: GitSha1 = entry.oid.parse().map_err(refused)?;
            (entry.size, Digests { git_sha1: Some(oid), ..Digests::default() }, false)
        }
    };
    if let Some(size) = size.filter(|size| *size >= ABSURD_LENGTH) {
        return Err(ParseTreeError::Size { path, size });
    }
    // Nothing depends on this name, so nonsense counts as none.
    let xet: Option<XetHash> = entry.xet.and_then(|name| name.as_str()?.parse().ok()).filter(|_| lfs);
    Ok(File { size, digests, lfs: Some(lfs), xet, ..File::named(path) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OID: &str = "f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f";
    const SHA256: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn git(path: &str) -> String {
        format!(r#"{{"type":"file","path":{path:?},"oid":"{OID}","size":3}}"#)
    }

    #[test]
    fn lfs_files_are_named_by_their_content_not_by_their_pointer() {
        let lfs = format!(
            r#"{{"type":"file","path":"a/m.bin","oid":"{OID}","size":3,"lfs":{{"oid":"{SHA256}","size":3,"pointerSize":131}},"xetHash":"x"}}"#
        );
        let folder = r#"{"type":"directory","path":"a","oid":"x"}"#;
        let files = parse_tree(format!("[{folder},{lfs},{}]", git("config.json")).as_bytes()).unwrap();
        assert_eq!(files.len(), 2);
        assert_eq!(files[0].digests, Digests::sha256(SHA256.parse().unwrap()));
        assert_eq!((files[0].size, files[0].lfs), (Some(3), Some(true)));
        assert_eq!(files[1].digests.git_sha1, Some(OID.parse().unwrap()));
        assert_eq!((files[1].digests.sha256, files[1].lfs), (None, Some(false)));
    }

    #[test]
    fn the_name_in_xet_is_kept_and_nonsense_is_none() {
        let listed = |xet: &str| {
            let text = format!(
                r#"[{{"type":"file","path":"m.bin","oid":"{OID}","size":3,"lfs":{{"oid":"{SHA256}","size":3}}{xet}}}]"#
            );
            parse_tree(text.as_bytes()).unwrap().remove(0).xet.map(|name| name.to_string())
        };
        let name = "0123456789abcdef".repeat(4);
        assert_eq!(listed(&format!(r#","xetHash":"{name}""#)), Some(name.clone()));
        for nonsense in ["", r#","xetHash":null"#, r#","xetHash":"""#, r#","xetHash":7"#, r#","xetHash":"../../x""#] {
            assert_eq!(listed(nonsense), None, "{nonsense}");
        }
        let in_git = format!(r#"[{{"type":"file","path":"a","oid":"{OID}","size":3,"xetHash":"{name}"}}]"#);
        assert_eq!(parse_tree(in_git.as_bytes()).unwrap()[0].xet, None, "what lies in git does not lie in Xet");
    }

    #[test]
    fn bad_lists_are_refused_and_the_culprit_is_named() {
        let message = |text: &str| parse_tree(text.as_bytes()).unwrap_err().to_string();
        insta::assert_snapshot!(message(&format!("[{}]", git("../x"))), @r#""../x" cannot be used as a file name here: it has a part that is . or .."#);
        insta::assert_snapshot!(message(&format!("[{0},{0}]", git("x"))), @"x is listed twice");
        insta::assert_snapshot!(message(r#"[{"type":"file","path":"x","oid":"12"}]"#), @"the content of x has no usable name");
        insta::assert_snapshot!(message("{}"), @"the list of files is not what the hub's API promises");
        insta::assert_snapshot!(message(r#"[{"type":"file","path":"x","size":-1}]"#), @"the list of files is not what the hub's API promises");
    }

    #[test]
    fn only_full_commits_are_taken_for_commits() {
        assert_eq!(parse_commit(format!(r#"{{"sha":"{OID}","id":"a/b"}}"#).as_bytes()).as_deref(), Some(OID));
        assert_eq!(parse_commit(br#"{"sha":"main"}"#), None);
        assert_eq!(parse_commit(br#"{"sha":"../../../../../../../../../../../../../x"}"#), None);
    }
}
