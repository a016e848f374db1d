//! The disk's class, as another program sees it.
#![expect(clippy::print_stderr, reason = "tests")]

use std::process::Command;

#[test]
fn threads_that_start_afterwards_are_idle_too() {
    larder_metal::read_when_idle().unwrap();
    let said = std::thread::spawn(|| {
        let thread = std::fs::read_link("/proc/thread-self").unwrap();
        let id = thread.file_name().unwrap().to_str().unwrap().to_owned();
        Command::new("ionice").args(["-p", &id]).output()
    });
    match said.join().unwrap() {
        Ok(output) => assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "idle"),
        Err(_) => eprintln!("SKIPPED: ionice is not installed"),
    }
}
