//! Small file systems of their own: images on loop devices, and memory. Needs root.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system; unmounted and removed when dropped.
pub(crate) struct Disk {
    dir: tempfile::TempDir,
    kind: Kind,
}

/// The kinds that are made here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Ext4,
    /// Cannot reserve room.
    Ext2,
    Xfs,
    /// In memory, with so many inodes.
    Memory {
        inodes: u64,
    },
}

impl Disk {
    /// An empty file system.
    pub(crate) fn make(kind: Kind) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        fs_err::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        larder::fsio::create_dir_all(&dir.path().join("mnt"), None).unwrap();
        let disk = Self { dir, kind };
        let image = disk.image().display().to_string();
        match kind {
            Kind::Ext4 => {
                run("truncate", &["-s", "160M", &image]);
                run("mkfs.ext4", &["-q", "-F", &image]);
            }
            Kind::Ext2 => {
                run("truncate", &["-s", "160M", &image]);
                run("mkfs.ext2", &["-q", "-F", &image]);
            }
            Kind::Xfs => {
                run("truncate", &["-s", "320M", &image]);
                run("mkfs.xfs", &["-q", &image]);
            }
            Kind::Memory { .. } => {}
        }
        disk.mount();
        disk
    }

    /// Where it is mounted.
    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub(crate) fn mount(&self) {
        let (path, image) = (self.path().display().to_string(), self.image().display().to_string());
        match self.kind {
            Kind::Memory { inodes } => {
                run("mount", &["-t", "tmpfs", "-o", &format!("size=256m,nr_inodes={inodes}"), "tmpfs", &path]);
            }
            _ => run("mount", &["-o", "loop", &image, &path]),
        }
    }

    pub(crate) fn remount(&self, option: &str) {
        run("mount", &["-o", &format!("remount,{option}"), &self.path().display().to_string()]);
    }

    pub(crate) fn unmount(&self) {
        run("umount", &[&self.path().display().to_string()]);
    }

    /// Takes all room but `left` bytes with one file, which is returned.
    pub(crate) fn fill(&self, left: u64) -> PathBuf {
        let path = self.path().join("filler");
        let mut file = fs_err::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let mut piece = vec![0_u8; 1 << 20];
        loop {
            let free = larder::fsio::free_space(&self.path()).unwrap().bytes;
            // At the end one byte after the other block: the last room is smaller than a piece.
            piece.truncate(if free <= left + (1 << 20) { 4096 } else { piece.len() });
            if free <= left && left > 0 {
                break;
            }
            match file.write_all(&piece) {
                Ok(()) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                Err(error) => panic!("{error}"),
            }
        }
        file.sync_all().ok();
        path
    }

    /// Makes empty files until there are no more inodes; they are returned.
    pub(crate) fn use_up_inodes(&self) -> Vec<PathBuf> {
        let name = |number| self.path().join(format!("filler-{number}"));
        let create = |path: &Path| fs_err::OpenOptions::new().create_new(true).write(true).open(path);
        (0..100_000).map(name).take_while(|path| create(path).is_ok()).collect()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Also after a failure, when a program may still be using it.
        let path = self.path();
        let unmounted = Command::new("umount").arg(&path).output().is_ok_and(|output| output.status.success());
        if !unmounted {
            let _ = Command::new("umount").arg("-l").arg(&path).output();
        }
    }
}

#[track_caller]
pub(crate) fn run(program: &str, args: &[&str]) {
    let mut command = Command::new(program);
    command.args(args).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}
