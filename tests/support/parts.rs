//! Finds the real programs that `scripts/test-parts` installs.

use std::path::{Path, PathBuf};

#[path = "skip.rs"]
pub(crate) mod skip;

/// The program at `relative` below the folder of test parts, for example `hf-latest/bin/python`.
///
/// Where it is missing: fails if `CI` is set, else says so where output is not captured, and gives `None`.
pub(crate) fn part(relative: &str) -> Option<PathBuf> {
    let path = folder().join(relative);
    if path.exists() {
        return Some(path);
    }
    skip::skipped(&format!("{} is missing; install it with scripts/test-parts", path.display()));
    None
}

fn folder() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "tests are told by the environment where their parts are")]
    let told = std::env::var_os("LARDER_TEST_PARTS").filter(|value| !value.is_empty());
    Path::new(env!("CARGO_MANIFEST_DIR")).join(told.unwrap_or_else(|| "target/test-parts".into()))
}
