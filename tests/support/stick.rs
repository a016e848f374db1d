//! A drive as Windows formats it, by a program in the place of the kernel's driver: links, and nothing of owners and modes.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::skip;

/// A mounted drive in a sparse file; unmounted when dropped.
pub(crate) struct Stick(tempfile::TempDir);

impl Stick {
    /// An empty drive with NTFS; `None`, said loudly, where none can be made.
    pub(crate) fn make() -> Option<Self> {
        let parts = ["/usr/sbin/mkfs.ntfs", "/usr/bin/ntfs-3g", "/dev/fuse"];
        if !rustix::process::geteuid().is_root() || parts.iter().any(|part| !Path::new(part).exists()) {
            skip::skipped("an NTFS drive needs root and ntfs-3g; install it with scripts/test-parts");
            return None;
        }
        let script =
            "truncate -s 128M image && mkfs.ntfs -F -Q -q image && mkdir mnt && ntfs-3g $(losetup -f --show image) mnt";
        let stick = Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        let said = stick.0.path().join("said");
        // Who serves the drive stays: what it was told to write to must not be a pipe that somebody waits for.
        let script = format!("({script}) > {} 2>&1", said.display());
        let made = Command::new("sh").args(["-ec", &script]).current_dir(stick.0.path()).status().unwrap();
        assert!(made.success(), "{}", std::fs::read_to_string(&said).unwrap());
        Some(stick)
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("mnt")
    }
}

impl Drop for Stick {
    fn drop(&mut self) {
        let script = "umount mnt; losetup -j image | cut -d: -f1 | xargs -r losetup -d";
        let _ = Command::new("sh").args(["-c", script]).current_dir(self.0.path()).status();
    }
}
