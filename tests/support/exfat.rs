//! A drive as shops sell them: no links, no owners, no modes, and capitals count for nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::skip;

/// A mounted drive of 512 MiB, in a sparse file; unmounted when dropped.
pub(crate) struct Exfat(tempfile::TempDir);

impl Exfat {
    /// An empty drive; `None`, said loudly, where none can be made.
    pub(crate) fn make() -> Option<Self> {
        let parts = ["/usr/sbin/mkfs.exfat", "/usr/sbin/mount.exfat-fuse", "/dev/fuse"];
        if !rustix::process::geteuid().is_root() || parts.iter().any(|part| !Path::new(part).exists()) {
            skip::skipped("an exFAT drive needs root, exfatprogs and exfat-fuse; install them with scripts/test-parts");
            return None;
        }
        let drive = Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        let script = "truncate -s 512M image && mkfs.exfat image && mkdir mnt && mount.exfat-fuse $(losetup -f --show image) mnt";
        let made = Command::new("sh").args(["-ec", script]).current_dir(drive.0.path()).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        Some(drive)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("mnt")
    }
}

impl Drop for Exfat {
    fn drop(&mut self) {
        let script = "umount mnt; losetup -j image | cut -d: -f1 | xargs -r losetup -d";
        let _ = Command::new("sh").args(["-c", script]).current_dir(self.0.path()).status();
    }
}
