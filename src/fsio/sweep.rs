//! What killed larders leave: temporary files that nobody will give their final name.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::{is_absent, remove_file};

/// Between its making and its locking, a temporary file looks dead: nobody is so slow.
pub const DEAD_AFTER: Duration = Duration::from_secs(600);

/// Removes temporary files of larders that were killed from the folder `staging`; returns how many.
///
/// Who writes one holds a lock on it, which ends with the process: one that can be locked, that is named like ours and
/// whose entry is older than `dead_after` is nobody's. What is done with the folder otherwise stays; a folder that
/// is not there has nothing.
pub fn sweep(staging: &Path, dead_after: Duration) -> io::Result<usize> {
    let entries = match fs_err::read_dir(staging) {
        Err(error) if is_absent(&error) => return Ok(0),
        entries => entries?,
    };
    let mut swept = 0;
    for entry in entries {
        let entry = entry?;
        if is_temporary(&entry.file_name().to_string_lossy()) && is_dead(&entry.path(), dead_after)? {
            match remove_file(&entry.path()) {
                Err(error) if !is_absent(&error) => return Err(error),
                // Another larder may have been faster.
                _ => swept += 1,
            }
        }
    }
    Ok(swept)
}

/// `.NAME.NUMBER.tmp`, or `twin.NUMBER.tmp`, with a hexadecimal number.
fn is_temporary(name: &str) -> bool {
    let Some((front, number)) = name.strip_suffix(".tmp").and_then(|rest| rest.rsplit_once('.')) else { return false };
    let is_number = (1..=16).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_number && (front == "twin" || (front.len() > 1 && front.starts_with('.')))
}

fn is_dead(path: &Path, dead_after: Duration) -> io::Result<bool> {
    let stat = match rustix::fs::lstat(path) {
        Err(error) if is_absent(&error.into()) => return Ok(false),
        stat => stat?,
    };
    // The time of the entry's last change: nobody can set it, and a link to an old file is new.
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(stat.st_ctime.max(0).unsigned_abs());
    let is_old = SystemTime::now().duration_since(changed).is_ok_and(|age| age >= dead_after);
    match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
        rustix::fs::FileType::Symlink => Ok(is_old),
        rustix::fs::FileType::RegularFile if is_old => {
            let file = fs_err::File::open(path)?;
            Ok(file.file().try_lock().is_ok())
        }
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsio::{WriteOptions, symlink_atomic, write_atomic};

    #[test]
    fn only_what_is_named_like_ours_is_old_and_is_nobodys_goes() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| write_atomic(&dir.path().join(name), b"x", &WriteOptions::default()).unwrap();
        let (dead, alive) = (".store.toml.1f.tmp", ".blob.2e.tmp");
        let others = ["model.tmp", "x.1f.tmp", ".store.toml.xyz.tmp", "a.partial", "store.toml"];
        [dead, alive, "twin.3d.tmp"].into_iter().chain(others).for_each(write);
        symlink_atomic("nowhere".as_ref(), &dir.path().join(".link.4c.tmp"), None).unwrap();
        let held = fs_err::File::open(dir.path().join(alive)).unwrap();
        held.file().try_lock().unwrap();
        assert_eq!(sweep(dir.path(), DEAD_AFTER).unwrap(), 0, "they may be being written");
        assert_eq!(sweep(dir.path(), Duration::ZERO).unwrap(), 3);
        drop(held);
        assert_eq!(sweep(dir.path(), Duration::ZERO).unwrap(), 1, "its writer is gone");
        let left = fs_err::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, others.len());
        assert_eq!(sweep(&dir.path().join("none"), Duration::ZERO).unwrap(), 0);
    }
}
