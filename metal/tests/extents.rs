//! What was allocated and not written is told, and nothing that was written.
#![expect(clippy::print_stderr, clippy::disallowed_methods, reason = "tests")]

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::AsRawFd as _;

use larder_metal::unwritten;

const MIB: u64 = 1 << 20;

#[test]
fn what_was_allocated_and_not_written_is_told() {
    let dir = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    let path = dir.join(format!("extents-{}", std::process::id()));
    let mut file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    if unwritten(&file, 9).is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "in CI every test runs: the file system of {} does not tell",
            dir.display()
        );
        return eprintln!("SKIPPED: the file system of {} does not tell", dir.display());
    }
    assert_eq!(unwritten(&file, 9).unwrap(), [], "an empty file");
    // SAFETY: the file is open, and no memory is passed.
    let allocated = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, 400 * MIB as libc::off_t) };
    assert_eq!(allocated, 0, "{}", std::io::Error::last_os_error());
    let covered = |file: &File| unwritten(file, usize::MAX).unwrap().iter().map(|part| part.end - part.start).sum();
    let all: u64 = covered(&file);
    assert_eq!(all, 400 * MIB);
    // Many pieces, which no single answer holds; written a moment ago, and not on the disk yet.
    for number in 0..150 {
        file.seek(SeekFrom::Start(number * 2 * MIB)).unwrap();
        file.write_all(&[7; 4096]).unwrap();
    }
    let left: u64 = covered(&file);
    assert_eq!(left, 400 * MIB - 150 * 4096);
    assert_eq!(unwritten(&file, 20).unwrap().len(), 20, "no more than asked for");
    // Reading it does not make it written.
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut bytes = vec![1; 4 * MIB as usize];
    file.read_exact(&mut bytes).unwrap();
    assert!(bytes[4096..2 * MIB as usize].iter().all(|byte| *byte == 0));
    let left: u64 = covered(&file);
    assert_eq!(left, 400 * MIB - 150 * 4096);
}

#[test]
fn what_takes_no_room_at_all_is_a_hole_and_no_extent() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hole-{}", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len(8 * MIB).unwrap();
    assert!(unwritten(&file, 9).is_none_or(|found| found.is_empty()));
}
