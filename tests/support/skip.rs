//! Says loudly that a test cannot run here.

use std::io::Write;

/// Says that a test cannot run here, past the capture of output; fails if `CI` is set.
pub(crate) fn skipped(reason: &str) {
    assert!(!in_ci(), "in CI every test runs: {reason}");
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {reason}");
}

fn in_ci() -> bool {
    #[expect(clippy::disallowed_methods, reason = "CI is told apart by its environment")]
    std::env::var_os("CI").is_some_and(|value| !value.is_empty())
}
