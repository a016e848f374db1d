//! What memory a program took in its life, at most.

use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

/// Runs `command` to its end; how it ended, and the most memory of its own it ever had, in KiB.
///
/// Without the program's code, which the page cache holds: an unoptimised build has four times as much of it. Looked at
/// all the time, because the kernel keeps a maximum only of both together.
pub(crate) fn run(command: &mut Command) -> (ExitStatus, u64) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut most = 0;
    loop {
        most = own_memory(child.id()).unwrap_or(0).max(most);
        if let Some(status) = child.try_wait().unwrap() {
            return (status, most);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn own_memory(process: u32) -> Option<u64> {
    let status = fs_err::read_to_string(Path::new("/proc").join(process.to_string()).join("status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?.trim().strip_suffix(" kB")?.parse().ok()
}
