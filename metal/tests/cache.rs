//! What the page cache is said to hold.
#![expect(clippy::print_stderr, reason = "tests")]

use std::io::Write;

use larder_metal::cached_pages;

#[test]
fn a_file_that_was_just_written_is_in_the_cache_and_one_of_nothing_is_not() {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("cached");
    let mut file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    file.write_all(&[7; 1 << 20]).unwrap();
    let Some(pages) = cached_pages(&file, 0, 1 << 20) else {
        return eprintln!("SKIPPED: this kernel does not tell what its page cache holds (Linux 6.5)");
    };
    assert!((1..=256).contains(&pages), "{pages}");
    assert_eq!(cached_pages(&file, 1 << 30, 1 << 20), Some(0), "beyond its end");
    assert_eq!(cached_pages(&file, 0, 0), Some(0), "no bytes are no pages, though 0 means all to the kernel");
}
