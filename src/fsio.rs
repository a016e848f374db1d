//! The only writer: every byte that larder puts on a disk goes through here.
//!
//! Content reaches its final name in one way: it is appended to a [`Partial`], or put together in an
//! [`Assembly`], on the target's file system, its length and digests are compared ([`Partial::prove`]), it is synced, renamed
//! ([`Proven::persist`]), and, before anything is told or built upon it, the directory is synced, once
//! for many files ([`sync_dir`]). A kill at any instant leaves the old state or the new.

use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use fs_err::os::unix::fs::{self as unix_fs, OpenOptionsExt as _};
use rustix::fs::{FileType, Stat};

mod access;
mod assembly;
mod cached;
mod direct;
mod fold;
mod holes;
mod journal;
mod links;
mod lock;
mod overwrite;
mod owner;
mod partial;
mod priority;
mod read;
mod space;
mod sweep;
mod twin;

pub use access::{default_file_mode, is_read_only, may_read, may_write};
pub use assembly::{Assembly, Earlier, Prefix, Unfit};
pub use cached::PageCache;
pub use fold::folds_names;
pub use holes::holes;
pub use journal::journaled_bytes;
pub use links::{hops, led_to};
pub use lock::FileLock;
pub use overwrite::Overwrite;
pub use owner::{Owner, OwnerError, running_as};
pub use partial::{Copying, Partial, Pass, ProofError, Proven, Unproven, hash_file, hash_file_by};
pub use priority::be_idle;
pub use read::{ContentReader, PIECE, PieceBuffer, unreadable_parts};
pub use space::{Space, free_space, longest_file};
pub use sweep::{DEAD_AFTER, sweep};
pub use twin::{Sharing, share};

use crate::artifact::Found;

/// Creates `dir` and its missing parents, owned by `owner` where one is given.
///
/// Existing directories are left as they are.
pub fn create_dir_all(dir: &Path, owner: Option<Owner>) -> io::Result<()> {
    create_dirs(dir, owner, None, sync_dir)
}

/// Like [`create_dir_all`], with these permission bits for every folder it makes, whatever the umask.
pub fn create_dir_all_with_mode(dir: &Path, mode: u32, owner: Option<Owner>) -> io::Result<()> {
    create_dirs(dir, owner, Some(mode), sync_dir)
}

fn create_dirs(
    dir: &Path,
    owner: Option<Owner>,
    mode: Option<u32>,
    sync: fn(&Path) -> io::Result<()>,
) -> io::Result<()> {
    // A bare file name has the empty path for a parent: the working directory, which is there.
    if dir.as_os_str().is_empty() || dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_dirs(parent, owner, mode, sync)?;
    }
    match fs_err::create_dir(dir) {
        // Another process may have been faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => return Ok(()),
        result => result?,
    }
    if let Some(mode) = mode {
        fs_err::set_permissions(dir, std::fs::Permissions::from_mode(mode))?;
    }
    give_to(dir, owner)?;
    match dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => sync(parent),
        None => Ok(()),
    }
}

/// Puts `bytes` at `path` so that readers see the old content or the new, never a mixture.
///
/// The temporary file has the final name inside its own, ends in `.tmp`, and lies beside the target,
/// or in `staging` where the target's folder belongs to another program that looks at every name in it.
pub fn write_atomic(path: &Path, bytes: &[u8], options: &WriteOptions<'_>) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    create_dir_all(parent, options.owner)?;
    let folder = options.staging.unwrap_or(parent);
    create_dir_all(folder, options.owner)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{:x}.tmp", unique()));
    let written = (|| {
        // A secret must not be readable for others even while it is written.
        let mut file = fs_err::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(options.mode.unwrap_or(0o666))
            .open(&temporary)?;
        // While it is held, nobody sweeps it away. Without locks on this file system, its age protects it.
        let _ = file.file().try_lock();
        file.write_all(bytes)?;
        if let Some(mode) = options.mode {
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        }
        give_to(&temporary, options.owner)?;
        file.sync_all()?;
        rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = remove_file(&temporary);
    }
    written
}

/// How [`write_atomic`] writes.
#[derive(Debug, Clone, Copy, Default)]
pub struct WriteOptions<'a> {
    /// Permission bits; the umask's choice where absent.
    pub mode: Option<u32>,
    /// Who owns the file.
    pub owner: Option<Owner>,
    /// Folder on the same file system for the temporary file.
    pub staging: Option<&'a Path>,
}

/// Adds a line to a file of ours. A kill leaves the line, none of it, or a torn one that the next line is glued to.
///
/// Not synced: for notes whose loss costs only work.
pub fn append_line(path: &Path, line: &str) -> io::Result<()> {
    let mut options = fs_err::OpenOptions::new();
    options.append(true).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    options.open(path)?.write_all(format!("{line}\n").as_bytes())
}

/// Makes `link` a symbolic link to `target`, replacing a link that is there; the change is atomic.
///
/// Refuses to replace anything that is not a link.
pub fn symlink_atomic(target: &Path, link: &Path, owner: Option<Owner>) -> io::Result<()> {
    let parent = link.parent().unwrap_or(Path::new("."));
    create_dir_all(parent, owner)?;
    match fs_err::symlink_metadata(link) {
        Ok(found) if !found.file_type().is_symlink() => {
            let message = format!("{} is not a link; it is left as it is", link.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, message));
        }
        Ok(_) if fs_err::read_link(link)? == target => return Ok(()),
        _ => {}
    }
    let name = link.file_name().unwrap_or_default().to_string_lossy();
    let temporary = parent.join(format!(".{name}.{:x}.tmp", unique()));
    unix_fs::symlink(target, &temporary)?;
    let placed = (|| {
        if let Some(owner) = owner {
            owner.apply_to_link(&temporary)?;
        }
        rename(&temporary, link)
    })();
    if placed.is_err() {
        let _ = remove_file(&temporary);
    }
    placed
}

/// Makes `link` a symbolic link to `target`, replacing any file or link that is there.
///
/// The temporary lies in `options.staging`, so that no kill leaves a stray name beside the link. What
/// is replaced must be of no use or set aside already. Readers see the old state or the new, but a
/// power cut may undo the change until [`sync_dir`] was called for the link's folder and for those above
/// it that did not exist.
pub fn symlink_staged(target: &Path, link: &Path, options: &WriteOptions<'_>) -> io::Result<()> {
    let parent = link.parent().unwrap_or(Path::new("."));
    create_dirs(parent, options.owner, None, |_| Ok(()))?;
    let folder = options.staging.unwrap_or(parent);
    create_dir_all(folder, options.owner)?;
    let temporary = folder.join(format!(".link.{:x}.tmp", unique()));
    unix_fs::symlink(target, &temporary)?;
    let placed = (|| {
        if let Some(owner) = options.owner {
            owner.apply_to_link(&temporary)?;
        }
        #[expect(clippy::disallowed_methods, reason = "fsio is where files are renamed; the caller syncs many at once")]
        fs_err::rename(&temporary, link)
    })();
    if placed.is_err() {
        let _ = remove_file(&temporary);
    }
    placed
}

/// Gives `path` a second name at `aside`, so that replacing `path` afterwards loses nothing.
///
/// On file systems without hard links the file is renamed instead, and `path` is gone until replaced.
pub fn set_aside(path: &Path, aside: &Path, owner: Option<Owner>) -> io::Result<()> {
    create_dir_all(aside.parent().unwrap_or(Path::new(".")), owner)?;
    match fs_err::hard_link(path, aside) {
        Ok(()) => sync_dir(aside.parent().unwrap_or(Path::new("."))),
        Err(_) => rename(path, aside),
    }
}

/// Moves a file of ours that cannot be used any more out of the way, replacing an older one there.
pub fn set_aside_broken(path: &Path, aside: &Path) -> io::Result<()> {
    rename(path, aside)
}

/// Renames within one file system and makes the change durable on both sides.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "the one place that renames")]
    fs_err::rename(from, to)?;
    let (from, to) = (from.parent().unwrap_or(Path::new(".")), to.parent().unwrap_or(Path::new(".")));
    sync_dir(to)?;
    if from == to { Ok(()) } else { sync_dir(from) }
}

/// Renames many files of one folder into another, one right after the other, then makes all of it durable.
///
/// Stops at the first failure; renames before it stand.
pub(crate) fn rename_together(renames: &[(PathBuf, PathBuf)]) -> io::Result<()> {
    let outcome = renames.iter().try_for_each(|(from, to)| {
        #[expect(clippy::disallowed_methods, reason = "renames that are synced together below")]
        fs_err::rename(from, to)
    });
    let mut folders: Vec<&Path> =
        renames.iter().flat_map(|(from, to)| [to.parent(), from.parent()]).flatten().collect();
    folders.sort_unstable();
    folders.dedup();
    folders.into_iter().try_for_each(sync_dir)?;
    outcome
}

/// Sets the times of `path` to now, without touching its content.
pub fn touch(path: &Path) -> io::Result<()> {
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).map_err(|error| {
        io::Error::new(io::Error::from(error).kind(), format!("cannot touch {}: {error}", path.display()))
    })
}

/// Removes one file or link of ours.
pub fn remove_file(path: &Path) -> io::Result<()> {
    #[expect(clippy::disallowed_methods, reason = "the one place that removes files")]
    fs_err::remove_file(path)
}

/// Removes folders that are empty, from `dir` upwards, up to and without `top`; the first that is not ends it.
pub fn remove_empty_dirs(dir: &Path, top: &Path) {
    for folder in dir.ancestors().take_while(|folder| folder.starts_with(top) && *folder != top) {
        if fs_err::remove_dir(folder).is_err() {
            return;
        }
    }
}

/// Makes changes of names in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    fs_err::File::open(dir)?.sync_all()
}

/// Looks at the content behind `path`, following links; `None` where nothing is there.
///
/// A link that leads nowhere is `None` too; use `symlink_metadata` to tell them apart.
pub fn find(path: &Path) -> io::Result<Option<Found>> {
    match rustix::fs::stat(path).map_err(io::Error::from) {
        Ok(stat) => Ok(FileType::from_raw_mode(stat.st_mode).is_file().then(|| found(path.to_owned(), &stat))),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot look at {}: {error}", path.display()))),
    }
}

/// Looks at `path` itself, whatever it is, and not at what a link leads to; `None` where nothing is there.
pub fn find_itself(path: &Path) -> io::Result<Option<Found>> {
    match rustix::fs::lstat(path).map_err(io::Error::from) {
        Ok(stat) => Ok(Some(found(path.to_owned(), &stat))),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(io::Error::new(error.kind(), format!("cannot look at {}: {error}", path.display()))),
    }
}

/// What `stat` says of the content behind `path`.
pub fn found(path: PathBuf, stat: &Stat) -> Found {
    Found {
        path,
        size: stat.st_size.cast_unsigned(),
        mtime_ns: stat.st_mtime.saturating_mul(1_000_000_000).saturating_add_unsigned(stat.st_mtime_nsec),
        inode: stat.st_ino,
        device: stat.st_dev,
        owner: (stat.st_uid, stat.st_gid),
    }
}

/// Bytes that a file takes on its disk.
pub fn allocated(metadata: &std::fs::Metadata) -> u64 {
    metadata.blocks().saturating_mul(512)
}

/// Whether an error means that nothing is there, as opposed to "cannot look".
pub fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// The closest existing folder at or above `path`.
pub fn existing_ancestor(path: &Path) -> PathBuf {
    // Above a bare file name is the empty path: the working directory.
    let here = |ancestor: &Path| if ancestor.as_os_str().is_empty() { PathBuf::from(".") } else { ancestor.to_owned() };
    path.ancestors().map(here).find(|ancestor| ancestor.exists()).unwrap_or_else(|| PathBuf::from("/"))
}

/// Opens a file of ours to read and write, creating it where it is missing.
///
/// A link in its place is an error: who owns the folder could point it at any file, and root would
/// write there and give it away.
fn open_own(path: &Path) -> io::Result<fs_err::File> {
    let mut options = fs_err::OpenOptions::new();
    options.create(true).truncate(false).read(true).write(true);
    options.custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    options.open(path).map_err(|error| {
        let is_link = fs_err::symlink_metadata(path).is_ok_and(|found| found.is_symlink());
        let refused = || format!("{} is a link, which larder does not follow here; remove it", path.display());
        if is_link { io::Error::other(refused()) } else { error }
    })
}

/// Makes an empty file at `path` that belongs to `owner`; does nothing where something is there.
pub fn create_file(path: &Path, owner: Owner) -> io::Result<()> {
    match fs_err::OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => owner.apply(path),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

fn give_to(path: &Path, owner: Option<Owner>) -> io::Result<()> {
    owner.map_or(Ok(()), |owner| owner.apply(path))
}

/// A number that no other temporary name of this or another process has right now.
fn unique() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/lock");
        write_atomic(&path, b"one", &WriteOptions::default()).unwrap();
        write_atomic(&path, b"two", &WriteOptions { mode: Some(0o600), ..WriteOptions::default() }).unwrap();
        assert_eq!(fs_err::read(&path).unwrap(), b"two");
        assert_eq!(fs_err::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let names: Vec<_> = fs_err::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["lock"]);
        assert!(write_atomic(&path.join("below-a-file"), b"x", &WriteOptions::default()).is_err());
        assert_eq!(fs_err::read(&path).unwrap(), b"two");
    }

    #[test]
    fn links_are_replaced_and_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("a/link");
        symlink_atomic(Path::new("../x"), &link, None).unwrap();
        symlink_atomic(Path::new("../y"), &link, None).unwrap();
        assert_eq!(fs_err::read_link(&link).unwrap(), Path::new("../y"));
        let file = dir.path().join("file");
        write_atomic(&file, b"precious", &WriteOptions::default()).unwrap();
        assert!(symlink_atomic(Path::new("x"), &file, None).is_err());
        assert_eq!(fs_err::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn setting_aside_keeps_the_bytes_when_the_name_is_reused() {
        let dir = tempfile::tempdir().unwrap();
        let (path, aside) = (dir.path().join("model"), dir.path().join(".larder/aside/model"));
        write_atomic(&path, b"old", &WriteOptions::default()).unwrap();
        set_aside(&path, &aside, None).unwrap();
        write_atomic(&path, b"new", &WriteOptions::default()).unwrap();
        assert_eq!(fs_err::read(&aside).unwrap(), b"old");
        assert_eq!(fs_err::read(&path).unwrap(), b"new");
    }
}
