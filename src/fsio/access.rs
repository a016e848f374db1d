//! What this process may do with a path, asked without opening it.

use std::io;
use std::path::Path;
use std::sync::OnceLock;

use rustix::fs::{Access, AtFlags, CWD, Stat, StatVfsMountFlags, accessat, statvfs};

use super::running_as;

const READ_BY_ALL: u32 = 0o444;
const READ_BY_OWNER: u32 = 0o400;

/// Whether the file that `stat` describes, at `path`, may be read.
///
/// The system is asked only where the permission bits leave it open.
pub fn may_read(path: &Path, stat: &Stat) -> io::Result<()> {
    if stat.st_mode & READ_BY_ALL == READ_BY_ALL {
        return Ok(());
    }
    let own = running_as().uid;
    let is_ours = stat.st_uid == own && stat.st_mode & READ_BY_OWNER != 0;
    if own == 0 || is_ours { Ok(()) } else { ask(path, Access::READ_OK) }
}

/// Whether entries may be made in the folder `dir`.
///
/// The error's kind says why not: `ReadOnlyFilesystem`, `PermissionDenied`, …
pub fn may_write(dir: &Path) -> io::Result<()> {
    ask(dir, Access::WRITE_OK | Access::EXEC_OK)
}

/// Whether the file system that holds `path` was mounted read-only.
pub fn is_read_only(path: &Path) -> bool {
    statvfs(path).is_ok_and(|numbers| numbers.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn ask(path: &Path, access: Access) -> io::Result<()> {
    // The effective user counts: that is who opens files.
    accessat(CWD, path, access, AtFlags::EACCESS).map_err(io::Error::from)
}

/// The mode that a program which asks for nothing special gives a new file: `rw` less the umask.
pub fn default_file_mode() -> u32 {
    static MODE: OnceLock<u32> = OnceLock::new();
    // The only other way to learn the umask is to change it for a moment, for all threads.
    *MODE.get_or_init(|| 0o666 & !umask_of_this_process().unwrap_or(0o022))
}

fn umask_of_this_process() -> Option<u32> {
    let status = fs_err::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(line.trim(), 8).ok()
}
