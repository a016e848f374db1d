//! Judging what lies at a path by its name, length, links and, where those leave it open, first bytes.

use std::collections::HashSet;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use globset::{GlobBuilder, GlobMatcher};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use walkdir::WalkDir;

use crate::artifact::{File, Found};
use crate::digest::{Digests, Sha256};
use crate::fsio::{self, Proven};
use crate::stores::{Defect, FileState, StoreError};

/// Wrong content up to this length is read to say what it is; no model is this small.
const PEEK_BELOW: u64 = 4096;
/// The git-lfs specification keeps pointers below this length.
const POINTER_BELOW: u64 = 1024;

/// Bytes of names that the system tells at once; one name is much shorter.
const LISTING_BUFFER: usize = 32 << 10;

/// Endings that downloaders give to files they have not finished.
const UNFINISHED_ENDINGS: [&str; 7] = ["aria2", "part", "partial", "incomplete", "tmp", "crdownload", "download"];

/// Looks at the file at `path`, links followed, which must have the length of `file` where that is known.
///
/// Never answers [`FileState::Staged`]. Makes one system call for a file that is in order.
pub(super) fn look_at(path: PathBuf, file: &File) -> FileState {
    let seen = rustix::fs::stat(&path);
    tell(path, seen, file)
}

fn tell(path: PathBuf, seen: rustix::io::Result<Stat>, file: &File) -> FileState {
    match seen.map_err(io::Error::from) {
        Ok(stat) => judge(path, &stat, file),
        Err(error) if fsio::is_absent(&error) || is_loop(&error) => look_at_link(path, &error),
        Err(error) => unreadable(path, &error),
    }
}

fn is_loop(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// What cannot be followed is either nothing at all, or a link that leads nowhere.
fn look_at_link(path: PathBuf, error: &io::Error) -> FileState {
    match std::fs::read_link(&path) {
        Ok(target) => {
            FileState::Wrong { defect: Defect::Dangling { target: target.display().to_string() }, found: None }
        }
        Err(_) if fsio::is_absent(error) => FileState::Missing,
        Err(_) => unreadable(path, error),
    }
}

pub(super) fn unreadable(path: PathBuf, error: &io::Error) -> FileState {
    let is_denied = error.kind() == io::ErrorKind::PermissionDenied;
    FileState::Unreadable { path, is_denied, reason: reason(error) }
}

/// The system's words without the number that std appends.
pub(super) fn reason(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

fn judge(path: PathBuf, stat: &Stat, file: &File) -> FileState {
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return FileState::Wrong { defect: Defect::NotAFile, found: None };
    }
    if let Err(error) = fsio::may_read(&path, stat) {
        return unreadable(path, &error);
    }
    let found = fsio::found(path, stat);
    match defect_of(&found, file) {
        Ok(None) => FileState::Present(found),
        Ok(Some(defect)) => FileState::Wrong { defect, found: Some(Box::new(found)) },
        Err(error) => unreadable(found.path, &error),
    }
}

fn defect_of(found: &Found, file: &File) -> io::Result<Option<Defect>> {
    match right_size(file) {
        Some(expected) if expected == found.size => Ok(None),
        _ if found.size == 0 => Ok(Some(Defect::Empty)),
        Some(expected) => {
            let what = if found.size < PEEK_BELOW { not_content(&found.path, found.size)? } else { None };
            Ok(Some(what.unwrap_or(Defect::Size { expected, actual: found.size })))
        }
        None if is_page(file) => Ok(None),
        None => match not_content(&found.path, found.size) {
            // It is here; which bytes of it the disk cannot read, only who reads all of it can tell.
            Err(error) if is_of_the_disk(&error) => Ok(None),
            other => other,
        },
    }
}

fn is_of_the_disk(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// The length that `file` must have; some digests say it too.
fn right_size(file: &File) -> Option<u64> {
    let by_sha256 = || file.digests.sha256 == Some(Sha256::of(b""));
    let by_git = || file.digests.git_sha1.is_some_and(|digest| digest.to_string() == EMPTY_GIT_BLOB);
    file.size.or_else(|| (by_sha256() || by_git()).then_some(0))
}

/// Git's blob id of no bytes at all.
const EMPTY_GIT_BLOB: &str = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391";

fn is_page(file: &File) -> bool {
    let name = file.path.file_name().to_ascii_lowercase();
    [".html", ".htm", ".xhtml"].iter().any(|ending| name.ends_with(ending))
}

/// Recognises what servers and git leave in the place of content, by the first bytes.
fn not_content(path: &Path, size: u64) -> io::Result<Option<Defect>> {
    let mut first = Vec::with_capacity(64);
    std::fs::File::open(path)?.take(64).read_to_end(&mut first)?;
    let text = String::from_utf8_lossy(&first).trim_start_matches(['\u{feff}', ' ', '\t', '\r', '\n']).to_lowercase();
    if size < POINTER_BELOW && text.starts_with("version https://git-lfs.github.com/spec/") {
        return Ok(Some(Defect::LfsPointer));
    }
    let is_html = text.starts_with("<!doctype html") || text.starts_with("<html");
    Ok(is_html.then_some(Defect::Html))
}

/// Another downloader's trace beside `path` that shows it is not finished with the file.
///
/// aria2 allocates the whole length at once, so only its control file tells; the others keep the
/// unfinished bytes under the longer name, which matters only while the file itself is not known good.
fn unfinished_evidence(path: &Path, endings: &[&str]) -> Option<String> {
    let name = path.file_name()?.to_string_lossy();
    endings.iter().find_map(|ending| {
        let trace = path.with_file_name(format!("{name}.{ending}"));
        rustix::fs::access(&trace, rustix::fs::Access::EXISTS).ok()?;
        Some(format!("{name}.{ending} lies beside it"))
    })
}

/// [`look_at`] for folders that other downloaders write into.
pub(super) fn look_beside(path: &Path, file: &File) -> FileState {
    unless_unfinished(look_at(path.to_owned(), file), path, file)
}

/// What `state` says of the file at `path`, or that another downloader is not finished with it.
fn unless_unfinished(state: FileState, path: &Path, file: &File) -> FileState {
    let endings = match &state {
        FileState::Present(_) if file.size.is_some() => &UNFINISHED_ENDINGS[..1],
        FileState::Unreadable { .. } => return state,
        _ => &UNFINISHED_ENDINGS[..],
    };
    let Some(evidence) = unfinished_evidence(path, endings) else {
        return state;
    };
    let found = match state {
        FileState::Present(found) => Some(Box::new(found)),
        FileState::Wrong { found, .. } => found,
        _ => None,
    };
    FileState::Wrong { defect: Defect::Unfinished { evidence }, found }
}

/// A folder in which many files are looked at: the way to it is gone once, and it is listed once.
#[derive(Debug)]
pub(super) struct CrowdedFolder {
    path: PathBuf,
    open: OwnedFd,
    /// Names of the files that aria2 has not finished, by their control files.
    controlled: HashSet<Vec<u8>>,
}

impl CrowdedFolder {
    /// Opens and lists the folder at `path`.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let open = rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let controlled = controlled_by_aria2(&open)?;
        Ok(Self { path, open, controlled })
    }

    /// [`look_beside`] for a `file` of this folder.
    pub(super) fn look(&self, file: &File) -> FileState {
        let name = file.path.file_name();
        let state = tell(self.path.join(name), rustix::fs::statat(&self.open, name, AtFlags::empty()), file);
        match &state {
            FileState::Present(_) if file.size.is_some() && !self.controlled.contains(name.as_bytes()) => state,
            _ => unless_unfinished(state, &self.path.join(name), file),
        }
    }
}

fn controlled_by_aria2(folder: &OwnedFd) -> io::Result<HashSet<Vec<u8>>> {
    let mut buffer = Vec::with_capacity(LISTING_BUFFER);
    let mut entries = RawDir::new(folder, buffer.spare_capacity_mut());
    let mut names = HashSet::new();
    while let Some(entry) = entries.next() {
        names.extend(entry?.file_name().to_bytes().strip_suffix(b".aria2").map(<[u8]>::to_vec));
    }
    Ok(names)
}

/// Refuses content that was not proven to be `file`.
pub(super) fn admit(store: &str, file: &File, content: &Proven) -> Result<(), StoreError> {
    let refused = |reason: Box<dyn std::error::Error + Send + Sync>| StoreError::Io {
        store: store.to_owned(),
        what: format!("The content for {} is not that file", file.path),
        source: io::Error::new(io::ErrorKind::InvalidData, reason),
    };
    if let Some(size) = file.size.filter(|size| *size != content.size()) {
        return Err(refused(format!("{} bytes were proven, {size} are right", content.size()).into()));
    }
    file.digests.check(content.digests()).map_err(|mismatch| refused(Box::new(mismatch)))?;
    if is_proof(&file.digests, content.digests()) {
        Ok(())
    } else {
        Err(refused("none of the digests it must have was measured".into()))
    }
}

fn is_proof(expected: &Digests, measured: &Digests) -> bool {
    !expected.proves_content() || expected.same_content(measured)
}

/// Whether nobody can miss what lies at `path`: no bytes, an LFS pointer, or an error page for `file`.
///
/// Links and folders are never worthless here, because what they stand for is not looked into.
pub(super) fn is_worthless(path: &Path, file: &File) -> bool {
    let Ok(metadata) = fs_err::symlink_metadata(path) else {
        return false;
    };
    let size = metadata.len();
    let is_debris = || size < PEEK_BELOW && !is_page(file) && not_content(path, size).is_ok_and(|what| what.is_some());
    metadata.is_file() && (size == 0 || is_debris())
}

/// A free name below `<staging>/replaced/<unix time>/` for what lay at `path` in the store.
pub(super) fn aside_path(staging: &Path, path: &Path) -> PathBuf {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let replaced = staging.join("replaced");
    let mut aside = replaced.join(now.to_string()).join(path);
    // Two replacements within one second must not overwrite each other.
    for number in 1.. {
        if fs_err::symlink_metadata(&aside).is_err() {
            break;
        }
        aside = replaced.join(format!("{now}-{number}")).join(path);
    }
    aside
}

/// Files below `root` whose relative path matches `glob`, links followed, sorted by path.
///
/// Does not enter folders called `not_into`. Empty and unfinished files and links to nothing do not
/// count; a folder that may not be read is an error, because nobody knows what it holds.
pub(super) fn matching(root: &Path, glob: &str, not_into: &str) -> io::Result<Vec<Found>> {
    let matcher = matcher(glob)?;
    let walk = WalkDir::new(root.join(literal_start(glob))).follow_links(true).sort_by_file_name();
    let mut all = Vec::new();
    for entry in walk.into_iter().filter_entry(|entry| entry.file_name() != not_into) {
        match entry {
            Ok(entry) => all.extend(match_entry(root, &matcher, entry.path())?),
            Err(error) => ignorable(error)?,
        }
    }
    Ok(all)
}

fn matcher(glob: &str) -> io::Result<GlobMatcher> {
    let refused = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, reason);
    if glob.starts_with('/') || glob.split('/').any(|part| part == "..") {
        return Err(refused(format!("the pattern {glob:?} leads out of the store")));
    }
    let built = GlobBuilder::new(glob).literal_separator(true).build();
    built.map(|glob| glob.compile_matcher()).map_err(|error| refused(error.to_string()))
}

/// The folders of `glob` before the first special character: nothing elsewhere can match.
pub(super) fn literal_start(glob: &str) -> &str {
    let literal = &glob[..glob.find(['*', '?', '[', '{', '\\']).unwrap_or(glob.len())];
    literal.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn match_entry(root: &Path, matcher: &GlobMatcher, path: &Path) -> io::Result<Option<Found>> {
    let relative = path.strip_prefix(root).unwrap_or(path);
    let Some(name) = relative.to_str().and_then(|name| name.parse().ok()) else {
        return Ok(None);
    };
    let is_unfinished = path.extension().is_some_and(|ending| UNFINISHED_ENDINGS.iter().any(|known| ending == *known));
    if is_unfinished || !matcher.is_match(relative) {
        return Ok(None);
    }
    match look_beside(path, &File::named(name)) {
        FileState::Present(found) => Ok(Some(found)),
        FileState::Unreadable { path, reason, .. } => {
            let message = format!("{} cannot be read: {reason}", path.display());
            Err(io::Error::new(io::ErrorKind::PermissionDenied, message))
        }
        _ => Ok(None),
    }
}

/// Lets the walk go on where a link leads nowhere or in a circle.
fn ignorable(error: walkdir::Error) -> io::Result<()> {
    let is_circle = error.loop_ancestor().is_some();
    let gone = |error: &io::Error| fsio::is_absent(error) || is_loop(error);
    if is_circle || error.io_error().is_some_and(gone) { Ok(()) } else { Err(error.into()) }
}

/// Fewer files than this are looked at faster than threads are started.
const WORTH_THREADS: usize = 4096;

/// Looks at each of `items`, on several processors where there are many; the answers come in order.
pub(super) fn at_each<T: Sync, R: Send>(items: &[T], look: impl Fn(&T) -> R + Sync) -> Vec<R> {
    in_parts(items, |part| part.iter().map(&look).collect())
}

/// Looks at `items`, on several processors in parts where there are many; the answers come in order.
pub(super) fn in_parts<T: Sync, R: Send>(items: &[T], look: impl Fn(&[T]) -> Vec<R> + Sync) -> Vec<R> {
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    if items.len() < WORTH_THREADS {
        return look(items);
    }
    let look = &look;
    std::thread::scope(|scope| {
        let parts = items.chunks(items.len().div_ceil(processors()));
        let threads: Vec<_> = parts.map(|part| scope.spawn(move || look(part))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Vec<R>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().flat_map(join).collect()
    })
}
