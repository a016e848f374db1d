//! Finds the system's programs that `scripts/test-parts` installs.

use std::path::PathBuf;

#[path = "skip.rs"]
pub(crate) mod skip;

/// The program called `name`.
///
/// Where it is missing: fails if `CI` is set, else says so where output is not captured, and gives `None`.
pub(crate) fn tool(name: &str) -> Option<PathBuf> {
    let places = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"];
    let found = places.iter().map(|place| PathBuf::from(place).join(name)).find(|path| path.exists());
    if found.is_none() {
        skip::skipped(&format!("{name} is missing; install it with scripts/test-parts"));
    }
    found
}
