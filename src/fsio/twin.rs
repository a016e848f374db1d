//! Two files with one content that take the room of one.

use std::io::{self, Read, Write as _};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::{Owner, create_dir_all, existing_ancestor, find, remove_file, rename, unique};
use crate::artifact::Found;

/// How two files come to take the room of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// They share blocks until one of them is written: each stays a file of its own.
    Reflink,
    /// They are one file with two names: what is written to one is written to the other.
    Hardlink,
}

/// Replaces `copy` by a file that shares its room with `original`; gives what is there afterwards.
///
/// Both are read and compared byte by byte first; owner, permission bits and times of `copy` stay. The
/// exchange is one rename, so that readers see the one or the other. Fails, and changes nothing, where the
/// contents differ, where `copy` is no longer what was seen, where the file system cannot share, or where
/// hard links would give one owner another's file.
pub fn share(original: &Found, copy: &Found, staging: &Path, sharing: Sharing) -> io::Result<Found> {
    let metadata = fs_err::metadata(&copy.path)?;
    let is_the_same = |seen: &Found| find(&seen.path).is_ok_and(|now| now.as_ref() == Some(seen));
    let changed = |seen: &Found| io::Error::other(format!("{} has changed meanwhile", seen.path.display()));
    if !is_the_same(original) {
        return Err(changed(original));
    }
    create_dir_all(staging, Owner::of(existing_ancestor(staging).as_path()).ok())?;
    let temporary = staging.join(format!("twin.{:x}.tmp", unique()));
    let placed = (|| {
        match sharing {
            Sharing::Reflink => clone(original, &temporary, &metadata)?,
            Sharing::Hardlink => link(original, &temporary, &metadata)?,
        }
        // Comparing may take long: while it is held, nobody sweeps it away.
        let held = fs_err::File::open(&temporary)?;
        let _ = held.file().try_lock();
        if !is_equal(&temporary, &copy.path)? {
            return Err(io::Error::other("the contents differ"));
        }
        if !is_the_same(copy) {
            return Err(changed(copy));
        }
        rename(&temporary, &copy.path)
    })();
    if let Err(error) = placed {
        let _ = remove_file(&temporary);
        return Err(error);
    }
    find(&copy.path)?.ok_or_else(|| changed(copy))
}

fn clone(original: &Found, temporary: &Path, like: &std::fs::Metadata) -> io::Result<()> {
    let source = fs_err::File::open(&original.path)?;
    let mut file = fs_err::OpenOptions::new().write(true).create_new(true).open(temporary)?;
    rustix::fs::ioctl_ficlone(file.file(), source.file()).map_err(io::Error::from)?;
    Owner { uid: like.uid(), gid: like.gid() }.apply(temporary)?;
    file.set_permissions(std::fs::Permissions::from_mode(like.mode() & 0o7777))?;
    file.flush()?;
    file.file().set_times(std::fs::FileTimes::new().set_modified(like.modified()?).set_accessed(like.accessed()?))?;
    file.sync_all()
}

fn link(original: &Found, temporary: &Path, like: &std::fs::Metadata) -> io::Result<()> {
    let metadata = fs_err::metadata(&original.path)?;
    let of = |metadata: &std::fs::Metadata| (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777);
    if of(&metadata) != of(like) {
        return Err(io::Error::other("they differ in owner or permission bits"));
    }
    fs_err::hard_link(&original.path, temporary)
}

fn is_equal(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (fs_err::File::open(one)?, fs_err::File::open(other)?);
    let (mut left, mut right) = (Vec::new(), Vec::new());
    loop {
        left.clear();
        right.clear();
        (&mut one).take(1 << 20).read_to_end(&mut left)?;
        (&mut other).take(1 << 20).read_to_end(&mut right)?;
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}
