//! File systems that do not tell capitals from small letters.

use std::collections::HashSet;
use std::path::Path;

use super::existing_ancestor;

/// ext4 and f2fs set it on folders whose names are compared without case.
const CASEFOLD: u32 = 0x4000_0000;

/// File systems that compare names without case unless they were told otherwise: FAT, exFAT, SMB, and what FUSE
/// mounts from a block device, which is exFAT or NTFS.
const USUALLY_FOLDING: [u64; 5] = [0x4d44, 0x2011_bab0, 0x517b, 0xff53_4d42, 0xfe53_4d42];
const FUSE: u64 = 0x6573_5546;

/// Whether two names in `folder` that differ in case only are one and the same file.
///
/// Found out without writing: by the folder's own mark, by asking for a name that is there in other letters, and,
/// where there is none, by the kind of file system.
pub fn folds_names(folder: &Path) -> bool {
    let folder = existing_ancestor(folder);
    if is_marked(&folder) {
        return true;
    }
    let Ok(device) = device_of(&folder) else { return false };
    let same = folder.ancestors().take_while(|ancestor| device_of(ancestor).is_ok_and(|found| found == device));
    same.take(3).find_map(tell_by_names).unwrap_or_else(|| usually_folds(&folder))
}

fn device_of(folder: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    fs_err::metadata(folder).map(|found| found.dev())
}

fn is_marked(folder: &Path) -> bool {
    let Ok(folder) = fs_err::File::open(folder) else { return false };
    rustix::fs::ioctl_getflags(&folder).is_ok_and(|flags| flags.bits() & CASEFOLD != 0)
}

/// Asks for a name of `folder` in other letters; `None` where it has no name with letters.
fn tell_by_names(folder: &Path) -> Option<bool> {
    let names: HashSet<String> =
        fs_err::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    let in_other_letters = |name: &String| {
        let swapped: String = name
            .chars()
            .map(|c| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() })
            .collect();
        (swapped != *name && !names.contains(&swapped)).then_some(swapped)
    };
    let other = names.iter().find_map(in_other_letters)?;
    Some(fs_err::symlink_metadata(folder.join(other)).is_ok())
}

fn usually_folds(folder: &Path) -> bool {
    let Ok(found) = rustix::fs::statfs(folder) else { return false };
    let kind = u64::try_from(found.f_type).unwrap_or(0) & 0xffff_ffff;
    USUALLY_FOLDING.contains(&kind) || (kind == FUSE && is_of_a_block_device(folder))
}

/// Whether FUSE mounts a block device there.
fn is_of_a_block_device(folder: &Path) -> bool {
    let (Ok(table), Ok(folder)) = (fs_err::read_to_string("/proc/self/mountinfo"), fs_err::canonicalize(folder)) else {
        return false;
    };
    let mounted = table.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        folder.starts_with(point).then_some((point.len(), right.split(' ').next()?))
    });
    // Of mounts at one point, the last one is seen.
    mounted.max_by_key(|(depth, _)| *depth).is_some_and(|(_, kind)| kind == "fuseblk" || kind.ends_with("exfat"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fsio::{WriteOptions, write_atomic};

    #[test]
    fn this_file_system_tells_letters_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!folds_names(&dir.path().join("not/there/yet")));
        write_atomic(&dir.path().join("Name"), b"one", &WriteOptions::default()).unwrap();
        assert!(!folds_names(dir.path()));
        assert_eq!(tell_by_names(dir.path()), Some(false));
        write_atomic(&dir.path().join("nAME"), b"two", &WriteOptions::default()).unwrap();
        assert_eq!(tell_by_names(dir.path()), None, "both are there: they say nothing");
    }
}
