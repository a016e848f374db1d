//! Runs a test of this binary again as a user without rights, because nothing is closed to root.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const QUESTION: &str = "LARDER_TEST_STRANGER";

/// Runs the ignored test called `look_as_a_stranger` as `nobody`; fails unless it passes.
///
/// `dir` must be open to everybody; a copy of this binary is left there. The test reads `question`
/// by [`question`].
pub(crate) fn must_agree(dir: &Path, question: &str) {
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(executable(dir))
        .args(["--exact", "look_as_a_stranger", "--ignored", "--nocapture"])
        .env(QUESTION, question)
        .output()
        .expect("setpriv of util-linux must run");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "as another user: {said}");
}

/// What the stranger is asked; `None` where the test was started by hand.
pub(crate) fn question() -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "the parent test asks by it")]
    std::env::var(QUESTION).ok()
}

/// This test binary, where another user can start it.
fn executable(dir: &Path) -> PathBuf {
    let copy = dir.join("stranger");
    if !copy.exists() {
        fs_err::copy(std::env::current_exe().expect("the name of this binary"), &copy).expect("a copy of this binary");
        fs_err::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).expect("rights on the copy");
    }
    copy
}
