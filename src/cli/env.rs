//! The only place that reads the environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bucket::Credentials;

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// The home of the user who asked: under sudo that is not root's.
pub(super) fn home() -> PathBuf {
    let sudo_user = variable("SUDO_USER").filter(|_| crate::fsio::running_as().uid == 0);
    let of_sudo_user = sudo_user.and_then(|user| {
        let output = Command::new("getent").args(["passwd", &user]).output().ok()?;
        let line = String::from_utf8(output.stdout).ok()?;
        line.split(':').nth(5).map(PathBuf::from)
    });
    of_sudo_user.or_else(|| variable("HOME").map(PathBuf::from)).unwrap_or_else(|| PathBuf::from("/"))
}

/// Where the facts are kept: `$LARDER_STATE`, else below the XDG state folder.
pub(super) fn state_dir(home: &Path) -> PathBuf {
    let own = variable("LARDER_STATE").map(PathBuf::from);
    let xdg = || variable("XDG_STATE_HOME").map(|dir| PathBuf::from(dir).join("larder"));
    own.or_else(xdg).unwrap_or_else(|| home.join(".local/state/larder"))
}

/// The host's name, as the inventory's machines are called.
pub(super) fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    name.split('.').next().unwrap_or("localhost").to_owned()
}

/// Where programs keep their settings.
pub(super) fn config_dir(home: &Path) -> PathBuf {
    variable("XDG_CONFIG_HOME").map_or_else(|| home.join(".config"), PathBuf::from)
}

/// Whether standard output goes to systemd's journal.
pub(super) fn output_is_journal() -> bool {
    let told = variable("JOURNAL_STREAM");
    let own = rustix::fs::fstat(std::io::stdout()).ok().map(|found| format!("{}:{}", found.st_dev, found.st_ino));
    told.is_some() && told == own
}

/// Where an inventory is looked for.
pub(super) fn inventory_places(home: &Path) -> [PathBuf; 3] {
    let config = config_dir(home);
    [PathBuf::from("inventory.toml"), config.join("larder/inventory.toml"), PathBuf::from("/etc/larder/inventory.toml")]
}

/// `HF_ENDPOINT`, as Hugging Face's own tools read it.
pub(super) fn hub_endpoint() -> Option<String> {
    variable("HF_ENDPOINT")
}

/// `HF_TOKEN`, or the content of the token file.
pub(super) fn hub_token(home: &Path) -> Option<String> {
    let from_file = || {
        let hf_home = variable("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| variable("XDG_CACHE_HOME").map(|dir| PathBuf::from(dir).join("huggingface")));
        let default = hf_home.unwrap_or_else(|| home.join(".cache/huggingface")).join("token");
        let path = variable("HF_TOKEN_PATH").map_or(default, PathBuf::from);
        fs_err::read_to_string(crate::inventory::expand_home(&path, home)).ok()
    };
    let is_off = variable("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|value| is_true(&value));
    let token = variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN"));
    let token = token.or_else(|| if is_off { None } else { from_file() })?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

/// `AWS_ACCESS_KEY_ID` and what goes with it, where key and secret are set.
pub(super) fn aws_keys() -> Option<Credentials> {
    let word = |name| variable(name).map(|value| value.trim().to_owned());
    let (key, secret) = (word("AWS_ACCESS_KEY_ID")?, word("AWS_SECRET_ACCESS_KEY")?);
    Some(Credentials { key, secret, session: word("AWS_SESSION_TOKEN") })
}

/// The profile that Amazon's tools would use, where one is named.
pub(super) fn aws_profile() -> Option<String> {
    variable("AWS_PROFILE")
}

/// Where Amazon's tools keep credentials and settings.
pub(super) fn aws_files() -> [PathBuf; 2] {
    [("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"), ("AWS_CONFIG_FILE", "~/.aws/config")]
        .map(|(name, usual)| PathBuf::from(variable(name).unwrap_or_else(|| usual.to_owned())))
}

/// The region that Amazon's tools would use, where one is named.
pub(super) fn aws_region() -> Option<String> {
    variable("AWS_REGION").or_else(|| variable("AWS_DEFAULT_REGION"))
}

/// The server that Amazon's tools would ask, where one is named.
pub(super) fn aws_endpoint() -> Option<String> {
    variable("AWS_ENDPOINT_URL_S3").or_else(|| variable("AWS_ENDPOINT_URL"))
}

/// Whether Hugging Face's tools are told to stay off the network.
pub(super) fn hub_is_offline() -> bool {
    ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"].iter().filter_map(|name| variable(name)).any(|value| is_true(&value))
}

/// Whether Hugging Face's tools are told to leave Xet alone.
pub(super) fn xet_is_off() -> bool {
    variable("HF_HUB_DISABLE_XET").is_some_and(|value| is_true(&value))
}

fn is_true(value: &str) -> bool {
    ["1", "ON", "YES", "TRUE"].contains(&value.trim().to_ascii_uppercase().as_str())
}

/// What `tracing` shows, if the user sets it.
pub(super) fn log_filter() -> Option<String> {
    variable("LARDER_LOG")
}
