//! Files and folders of this machine, or of a drive.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{BoxStream, StreamExt};
use walkdir::WalkDir;

use super::body::{empty_body, is_empty, size_change};
use super::{Body, ByteRange, Listing, Source, SourceError};
use crate::artifact::{File, Found, Reference, Remote};
use crate::digest::{ContentName, Digests};
use crate::fsio;
use crate::relpath::RelPath;

/// How much is read at a time.
const CHUNK: u64 = 1 << 20;
/// larder's own folder on a drive.
const OWN_FOLDER: &str = ".larder";

/// Files below `file:` references.
#[derive(Debug, Clone, Copy, Default)]
pub struct DirectorySource {}

impl DirectorySource {
    /// A source that reads from the disk only.
    pub fn new() -> Self {
        Self {}
    }
}

#[async_trait]
impl Source for DirectorySource {
    async fn list(&self, reference: &Reference) -> Result<Listing, SourceError> {
        let root = path(reference)?.clone();
        let files = blocking(move || list(&root)).await?;
        Ok(Listing { revision: None, files, ollama_manifest: None })
    }

    async fn check(&self, remote: &Remote) -> Result<(), SourceError> {
        let (path, size) = (path(&remote.reference)?.clone(), remote.size);
        blocking(move || open_file(&path, size).map(drop)).await
    }

    async fn open(&self, remote: &Remote, range: ByteRange) -> Result<Body, SourceError> {
        let (path, size) = (path(&remote.reference)?.clone(), remote.size);
        blocking(move || open(path, size, range)).await
    }
}

/// Where `root`, a drive in any of the usual arrangements, may hold a file: existing candidates of the right size.
///
/// Looked for under `blobs/sha256-<hex>`, `blobs/sha256/<hex>`, `blobs/git-sha1-<hex>`, and each of `paths`. The
/// content is not read, so each candidate has still to be proven. Fails only where nothing is found and
/// something could not be looked at.
pub fn find_in_drive(
    root: &Path,
    digests: &Digests,
    size: Option<u64>,
    paths: &[RelPath],
) -> Result<Vec<Found>, SourceError> {
    let blobs = root.join("blobs");
    let named = digests.names().map(|name| blobs.join(drive_name(&name)));
    let foldered = digests.sha256.map(|hex| blobs.join(format!("sha256/{hex}")));
    let places = named.chain(foldered).chain(paths.iter().map(|path| path.under(root)));
    let mut found: Vec<Found> = Vec::new();
    let mut unseen = None;
    for place in places {
        match fsio::find(&place) {
            Ok(Some(file)) if place.is_file() && size.is_none_or(|size| size == file.size) => found.push(file),
            Ok(_) => {}
            Err(source) => unseen = Some(SourceError::Io { what: place.display().to_string(), source }),
        }
    }
    match unseen {
        Some(error) if found.is_empty() => Err(error),
        _ => Ok(found),
    }
}

/// What a content is called below `blobs` on a drive: a name that every file system can hold.
pub fn drive_name(content: &ContentName) -> String {
    content.to_string().replace(':', "-")
}

fn path(reference: &Reference) -> Result<&PathBuf, SourceError> {
    match reference {
        Reference::Directory(path) => Ok(path),
        other => Err(SourceError::NoUpstream { what: other.to_string() }),
    }
}

/// Disks can take seconds to wake up; nothing else must wait for them.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => {
            Err(SourceError::Io { what: "A background read".to_owned(), source: std::io::Error::other(error) })
        }
    }
}

fn list(root: &Path) -> Result<Vec<File>, SourceError> {
    let metadata = fs_err::metadata(root).map_err(|error| refused(root, error))?;
    if metadata.is_file() {
        let name = root.file_name().unwrap_or_default();
        return Ok(vec![File { size: Some(metadata.len()), ..File::named(name_of(Path::new(name), root)?) }]);
    }
    let real_root = fs_err::canonicalize(root).map_err(|error| refused(root, error))?;
    let mut files = Vec::new();
    let walk = WalkDir::new(root).follow_links(true).sort_by_file_name();
    for entry in walk.into_iter().filter_entry(|entry| entry.depth() != 1 || entry.file_name() != OWN_FOLDER) {
        let entry = entry.map_err(|error| walk_refused(root, error))?;
        if entry.path_is_symlink() {
            stay_inside(entry.path(), &real_root)?;
        }
        if entry.file_type().is_file() {
            let relative = entry.path().strip_prefix(root).unwrap_or(entry.path());
            let size = entry.metadata().map_err(|error| walk_refused(root, error))?.len();
            files.push(File { size: Some(size), ..File::named(name_of(relative, entry.path())?) });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

/// A link on a drive must not pull in files from outside it.
fn stay_inside(link: &Path, real_root: &Path) -> Result<(), SourceError> {
    let target = fs_err::canonicalize(link).map_err(|error| refused(link, error))?;
    if target.starts_with(real_root) {
        return Ok(());
    }
    let reason = format!("the link leads out of {}", real_root.display());
    Err(SourceError::Protocol { what: link.display().to_string(), reason })
}

fn name_of(relative: &Path, whole: &Path) -> Result<RelPath, SourceError> {
    let what = || whole.display().to_string();
    let text = relative
        .to_str()
        .ok_or_else(|| SourceError::Protocol { what: what(), reason: "its name is not UTF-8".to_owned() })?;
    text.parse()
        .map_err(|error: crate::relpath::UnsafePath| SourceError::Protocol { what: what(), reason: error.to_string() })
}

fn refused(path: &Path, source: std::io::Error) -> SourceError {
    let what = path.display().to_string();
    if fsio::is_absent(&source) {
        SourceError::NotFound { what, whole: false }
    } else {
        SourceError::Io { what, source }
    }
}

fn walk_refused(root: &Path, error: walkdir::Error) -> SourceError {
    let path = error.path().unwrap_or(root).to_owned();
    if error.loop_ancestor().is_some() {
        let reason = "the link leads to a folder above itself".to_owned();
        return SourceError::Protocol { what: path.display().to_string(), reason };
    }
    refused(&path, error.into())
}

fn open_file(path: &Path, expected: Option<u64>) -> Result<(fs_err::File, u64), SourceError> {
    // Before opening: to open a pipe waits until somebody writes to it.
    let metadata = fs_err::metadata(path).map_err(|error| refused(path, error))?;
    if !metadata.is_file() {
        let reason = "it is not a regular file".to_owned();
        return Err(SourceError::Protocol { what: path.display().to_string(), reason });
    }
    if let Some(changed) = size_change(Some(metadata.len()), expected, &path.display().to_string()) {
        return Err(changed);
    }
    let file = fs_err::File::open(path).map_err(|error| refused(path, error))?;
    Ok((file, metadata.len()))
}

fn open(path: PathBuf, expected: Option<u64>, range: ByteRange) -> Result<Body, SourceError> {
    let (mut file, size) = open_file(&path, expected)?;
    if range.start > size {
        // The same answer as an HTTP server's.
        return Err(SourceError::Status { what: path.display().to_string(), status: 416, wait: None });
    }
    if is_empty(range) || range.start == size {
        return Ok(empty_body(range.start, Some(size)));
    }
    file.seek(SeekFrom::Start(range.start)).map_err(|error| refused(&path, error))?;
    let wanted = range.end.map_or(size, |end| end.min(size)) - range.start;
    let reader = Reader { file, path, wanted, got: 0 };
    let (start, total) = (range.start, Some(size));
    Ok(Body { start, total, ignores_range: false, etag: None, stream: reader.stream() })
}

struct Reader {
    file: fs_err::File,
    path: PathBuf,
    wanted: u64,
    got: u64,
}

impl Reader {
    fn stream(self) -> BoxStream<'static, Result<Bytes, SourceError>> {
        futures_util::stream::try_unfold(self, |mut reader| async {
            if reader.got == reader.wanted {
                return Ok(None);
            }
            blocking(move || {
                let bytes = reader.chunk()?;
                Ok(Some((bytes, reader)))
            })
            .await
        })
        .boxed()
    }

    fn chunk(&mut self) -> Result<Bytes, SourceError> {
        let most = (self.wanted - self.got).min(CHUNK);
        let mut bytes = Vec::with_capacity(most as usize);
        let read = (&mut self.file).take(most).read_to_end(&mut bytes).map_err(|error| refused(&self.path, error))?;
        self.got += read as u64;
        if read as u64 == most {
            return Ok(bytes.into());
        }
        // The file shrank while it was read; what came is passed on with the next attempt.
        Err(SourceError::CutShort { what: self.path.display().to_string(), expected: self.wanted, got: self.got })
    }
}
