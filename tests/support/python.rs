//! The real Python clients, with nothing of the caller's environment.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The generations of `huggingface_hub` that are tested: the last without cache-wide blobs, and the newest.
pub(crate) const CLIENTS: [&str; 2] = ["hf-1.31", "hf-latest"];

/// A program of one of the clients, offline and at home in `home`, where the cache is `hub`.
pub(crate) fn client(program: &Path, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home).env("HF_HOME", home);
    for name in ["HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK", "NO_COLOR"] {
        command.env(name, "1");
    }
    command
}

/// Runs `command`, which must succeed; returns what it said.
#[track_caller]
pub(crate) fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

/// A script of `tests/hf_interop/`.
pub(crate) fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/hf_interop").join(name)
}
