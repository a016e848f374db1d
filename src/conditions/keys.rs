//! Key files of cloud models: there, private, and ignored by git. Their content is never read.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::conditions::paths::{Unreadable, expand};
use crate::conditions::{Finding, reason};
use crate::manifest::CloudModel;

/// One finding for each key file, with the models that use it.
pub(super) fn look(models: &[CloudModel], home: &Path) -> Vec<Finding> {
    let mut keys: Vec<(&Path, Vec<&str>)> = Vec::new();
    for model in models {
        match keys.iter_mut().find(|(key, _)| *key == model.key) {
            Some((_, users)) => users.push(&model.name),
            None => keys.push((&model.key, vec![&model.name])),
        }
    }
    keys.into_iter().flat_map(|(key, users)| look_at_pattern(key, &users, home)).collect()
}

fn look_at_pattern(pattern: &Path, users: &[&str], home: &Path) -> Vec<Finding> {
    let why = format!("{} cannot be used without it; who can read it can spend the lab's money", users.join(", "));
    let subject = |path: &Path| format!("key {}", path.display());
    match expand(pattern, home) {
        Ok(found) if found.is_empty() => {
            let fix = "put the provider's key there, then chmod 600; or take these models out of the manifest";
            vec![Finding::fault(subject(pattern), "there is no such file", &why, fix)]
        }
        Ok(found) => found.iter().map(|path| look_at_file(path, subject(path), &why)).collect(),
        Err(Unreadable { path, error }) => {
            let what = format!("{} may not be looked into: {}", path.display(), reason(&error));
            vec![Finding::unknown(subject(pattern), what, &why, "run larder as the user of the platform")]
        }
    }
}

fn look_at_file(path: &Path, subject: String, why: &str) -> Finding {
    let metadata = match fs_err::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) => {
            let what = format!("it cannot be looked at: {}", reason(&error));
            return Finding::fault(subject, what, why, "replace it by a file with the provider's key");
        }
    };
    let mode = metadata.permissions().mode() & 0o7777;
    if !metadata.is_file() {
        return Finding::fault(subject, "it is not a file", why, "replace it by a file with the provider's key");
    }
    if metadata.len() == 0 {
        return Finding::fault(subject, "it is empty", why, "put the provider's key into it");
    }
    // 0600 or stricter: nothing for group and others, nothing to execute.
    if mode & 0o7177 != 0 {
        let what = format!("its mode is {mode:04o}, so others than its owner may use it");
        return Finding::fault(subject, what, why, format!("chmod 600 {}", path.display()));
    }
    match git_ignores(path) {
        Ignored::Yes => Finding::ok(subject, "there, private, ignored by git", why),
        Ignored::NotApplicable(because) => Finding::ok(subject, format!("there, private; {because}"), why),
        Ignored::No => {
            let what = "git does not ignore it: the next commit may publish it, or has";
            let fix =
                "add *.key to .gitignore and git rm --cached it; if it was ever pushed, have the provider replace it";
            Finding::fault(subject, what, why, fix)
        }
        Ignored::Unknown(what) => {
            let fix = "run larder as the user who owns the repository";
            Finding::unknown(subject, format!("git cannot say whether it is ignored: {what}"), why, fix)
        }
    }
}

enum Ignored {
    Yes,
    No,
    NotApplicable(&'static str),
    Unknown(String),
}

fn git_ignores(path: &Path) -> Ignored {
    let folder = path.parent().map_or_else(|| PathBuf::from("/"), Path::to_owned);
    let mut git = Command::new("git");
    git.arg("-C").arg(&folder).args(["check-ignore", "-q", "--"]).arg(path);
    // A repository named by the caller's environment is not the key's.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR"] {
        git.env_remove(variable);
    }
    let output = match git.env("LC_ALL", "C").output() {
        Ok(output) => output,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ignored::NotApplicable("git is not installed here");
        }
        Err(error) => return Ignored::Unknown(error.to_string()),
    };
    let complaint = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Ignored::Yes,
        Some(1) => Ignored::No,
        _ if complaint.contains("not a git repository") => Ignored::NotApplicable("not in a git repository"),
        _ => Ignored::Unknown(complaint.lines().next().unwrap_or("no reason given").to_owned()),
    }
}
