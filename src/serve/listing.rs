//! A repository's files as the hub lists them: files and folders with their git ids.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sha1::{Digest as _, Sha1};

use crate::digest::GitSha1;
use crate::serve::catalog::{ContentId, HubFile};

pub(crate) type Snapshot = BTreeMap<String, HubFile>;

/// One line of a listing.
pub(crate) enum Entry<'a> {
    File { path: &'a str, file: &'a HubFile },
    Folder { path: String, id: GitSha1 },
}

impl Entry<'_> {
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Entry::File { path, file } => file_json(path, file),
            Entry::Folder { path, id } => json!({"type": "directory", "oid": id, "size": 0, "path": path}),
        }
    }

    fn path(&self) -> &str {
        match self {
            Entry::File { path, .. } => path,
            Entry::Folder { path, .. } => path,
        }
    }
}

/// Files and folders below `folder` (`""` is the top), in the order of their paths; `None` where there is no such folder.
pub(crate) fn list<'a>(snapshot: &'a Snapshot, folder: &str, recursive: bool) -> Option<Vec<Entry<'a>>> {
    let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
    let mut entries: Vec<Entry<'a>> = Vec::new();
    let mut folders = BTreeMap::new();
    for (path, file) in below(snapshot, &prefix) {
        let inner = &path[prefix.len()..];
        for (end, _) in inner.match_indices('/').take(if recursive { usize::MAX } else { 1 }) {
            folders.entry(path[..prefix.len() + end].to_owned()).or_insert(());
        }
        if recursive || !inner.contains('/') {
            entries.push(Entry::File { path, file });
        }
    }
    if entries.is_empty() && folders.is_empty() && !folder.is_empty() {
        return None;
    }
    entries.extend(folders.into_keys().map(|path| Entry::Folder { id: tree_id(snapshot, &format!("{path}/")), path }));
    entries.sort_by(|a, b| a.path().cmp(b.path()));
    Some(entries)
}

/// The file or folder at exactly `path`.
pub(crate) fn entry<'a>(snapshot: &'a Snapshot, path: &str) -> Option<Entry<'a>> {
    if let Some((path, file)) = snapshot.get_key_value(path) {
        return Some(Entry::File { path, file });
    }
    let prefix = format!("{path}/");
    below(snapshot, &prefix).next()?;
    Some(Entry::Folder { path: path.to_owned(), id: tree_id(snapshot, &prefix) })
}

fn below<'a>(snapshot: &'a Snapshot, prefix: &str) -> impl Iterator<Item = (&'a str, &'a HubFile)> {
    let prefix = prefix.to_owned();
    let from = snapshot.range(prefix.clone()..);
    from.map(|(path, file)| (path.as_str(), file)).take_while(move |(path, _)| path.starts_with(&prefix))
}

fn file_json(path: &str, file: &HubFile) -> Value {
    let mut entry = json!({"type": "file", "oid": git_id(file), "size": file.size, "path": path});
    if let ContentId::Lfs(digest) = file.id {
        entry["lfs"] =
            json!({"oid": digest, "size": file.size, "pointerSize": pointer(file).map_or(0, |text| text.len())});
    }
    if let Some(name) = file.in_xet() {
        entry["xetHash"] = json!(name);
    }
    entry
}

/// The same file as `siblings` of a repository's description tell it.
pub(crate) fn sibling(path: &str, file: &HubFile, with_blobs: bool) -> Value {
    let mut entry = json!({"rfilename": path});
    if with_blobs {
        entry["size"] = json!(file.size);
        entry["blobId"] = json!(git_id(file));
        if let ContentId::Lfs(digest) = file.id {
            let pointer_size = pointer(file).map_or(0, |text| text.len());
            entry["lfs"] = json!({"sha256": digest, "size": file.size, "pointerSize": pointer_size});
        }
    }
    entry
}

/// The text that stands for the file in git.
fn pointer(file: &HubFile) -> Option<String> {
    match file.id {
        ContentId::Lfs(digest) => {
            Some(format!("version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {}\n", file.size))
        }
        ContentId::Git(_) => None,
    }
}

/// What git names the file by: for an LFS file, its pointer.
fn git_id(file: &HubFile) -> GitSha1 {
    match file.id {
        ContentId::Git(id) => id,
        ContentId::Lfs(_) => blob_id(pointer(file).unwrap_or_default().as_bytes()),
    }
}

fn blob_id(content: &[u8]) -> GitSha1 {
    object_id("blob", content)
}

fn object_id(kind: &str, content: &[u8]) -> GitSha1 {
    let mut state = Sha1::new();
    state.update(format!("{kind} {}\0", content.len()));
    state.update(content);
    GitSha1::from_bytes(state.finalize().into())
}

/// Git's id of a folder: exact where all its files are known and none is executable.
fn tree_id(snapshot: &Snapshot, prefix: &str) -> GitSha1 {
    // Git sorts folders as if their names ended in a slash, which the order of full paths does by itself.
    let mut content = Vec::new();
    let mut last_folder = None;
    for (path, file) in below(snapshot, prefix) {
        match path[prefix.len()..].split_once('/') {
            None => push(&mut content, "100644", &path[prefix.len()..], git_id(file)),
            Some((name, _)) if last_folder == Some(name) => {}
            Some((name, _)) => {
                push(&mut content, "40000", name, tree_id(snapshot, &format!("{prefix}{name}/")));
                last_folder = Some(name);
            }
        }
    }
    object_id("tree", &content)
}

fn push(content: &mut Vec<u8>, mode: &str, name: &str, id: GitSha1) {
    content.extend_from_slice(mode.as_bytes());
    content.push(b' ');
    content.extend_from_slice(name.as_bytes());
    content.push(0);
    content.extend_from_slice(id.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::digest::Sha256;
    use crate::serve::catalog::Item;

    fn file(content: &[u8], lfs: bool) -> HubFile {
        let size = content.len() as u64;
        let id = if lfs { ContentId::Lfs(Sha256::of(content)) } else { ContentId::Git(blob_id(content)) };
        let item = Item { name: "x".into(), size: Some(size), ..Item::default() };
        HubFile { item: Arc::new(item), size, id, xet: None }
    }

    /// Ids of the same files in a repository of git's own (`git ls-tree -r -t`), and of the pointer (`git hash-object`).
    #[test]
    fn ids_are_those_of_git() {
        let names = ["a.txt", "sub/b.txt", "sub/deep/c.txt", "sub.txt", "sub-x/d.txt"];
        let snapshot: Snapshot = names.iter().map(|name| ((*name).to_owned(), file(name.as_bytes(), false))).collect();
        assert_eq!(tree_id(&snapshot, "").to_string(), "ce7a81388853f01bcc58cfe4446a6357fa488aa1");
        assert_eq!(tree_id(&snapshot, "sub/").to_string(), "1a640c640ead18458803ed9472f62ad0fa4e5b9f");
        let large: Snapshot = [("m.bin".to_owned(), file(b"hello", true))].into();
        assert_eq!(git_id(&large["m.bin"]).to_string(), "d1ca116d6733584c13cb8bb50b21d5b5b81ee28f");
    }

    #[test]
    fn a_listing_has_the_folders_too() {
        let names = ["a", "b/c", "b/d/e"];
        let snapshot: Snapshot = names.iter().map(|name| ((*name).to_owned(), file(b"", false))).collect();
        let paths = |folder: &str, recursive: bool| -> Option<Vec<String>> {
            Some(list(&snapshot, folder, recursive)?.iter().map(|entry| entry.path().to_owned()).collect())
        };
        assert_eq!(paths("", false).unwrap(), ["a", "b"]);
        assert_eq!(paths("", true).unwrap(), ["a", "b", "b/c", "b/d", "b/d/e"]);
        assert_eq!(paths("b", false).unwrap(), ["b/c", "b/d"]);
        assert_eq!(paths("a", false), None);
        assert_eq!(paths("c", true), None);
        assert!(matches!(entry(&snapshot, "b/d"), Some(Entry::Folder { .. })));
        assert!(entry(&snapshot, "b/").is_none());
    }
}
