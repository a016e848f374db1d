//! Texts that must or must not stand in the platform's sources.

use std::path::{Path, PathBuf};

use crate::conditions::paths::{Unreadable, expand};
use crate::conditions::{Finding, reason};
use crate::manifest::{Condition, Requirement};

/// One finding for each file that the condition's glob names.
pub(super) fn look(condition: &Condition, home: &Path) -> Vec<Finding> {
    let (Requirement::TextPresent { file, .. } | Requirement::TextAbsent { file, .. }) = &condition.require else {
        return Vec::new();
    };
    let unknown = |what: String| vec![Finding::unknown(subject(condition, None), what, &condition.why, &condition.fix)];
    match expand(file, home) {
        Ok(found) if found.is_empty() => unknown(format!("there is no {}, so it cannot be judged", file.display())),
        Ok(found) => found.iter().map(|path| look_at_file(condition, path)).collect(),
        Err(Unreadable { path, error }) => {
            unknown(format!("{} may not be looked into: {}", path.display(), reason(&error)))
        }
    }
}

fn subject(condition: &Condition, path: Option<&PathBuf>) -> String {
    match path {
        Some(path) => format!("{} in {}", condition.name, path.display()),
        None => condition.name.clone(),
    }
}

fn look_at_file(condition: &Condition, path: &PathBuf) -> Finding {
    let subject = subject(condition, Some(path));
    let lines = match read_lines(path) {
        Ok(lines) => lines,
        Err(what) => return Finding::unknown(subject, what, &condition.why, &condition.fix),
    };
    let verdict = match &condition.require {
        Requirement::TextPresent { text, .. } => present(&lines, text),
        Requirement::TextAbsent { text, around, within, .. } => absent(&lines, text, around, *within),
        Requirement::OnlyPackages { .. } => Ok(String::new()),
    };
    match verdict {
        Ok(what) => Finding::ok(subject, what, &condition.why),
        Err(what) => Finding::fault(subject, what, &condition.why, &condition.fix),
    }
}

fn read_lines(path: &Path) -> Result<Vec<String>, String> {
    let is_file = fs_err::metadata(path).map_err(|error| format!("it cannot be looked at: {}", reason(&error)))?;
    if !is_file.is_file() {
        return Err("it is not a file".to_owned());
    }
    let bytes = fs_err::read(path).map_err(|error| format!("it cannot be read: {}", reason(&error)))?;
    let is_python = path.extension().is_some_and(|extension| extension == "py");
    // What is commented out in Python does not hold, and what a comment warns of is not done.
    let code = |line: &str| if is_python { line.split('#').next().unwrap_or("").to_owned() } else { line.to_owned() };
    Ok(String::from_utf8_lossy(&bytes).lines().map(code).collect())
}

fn present(lines: &[String], text: &str) -> Result<String, String> {
    match lines.iter().position(|line| line.contains(text)) {
        Some(at) => Ok(format!("line {} has {text:?}", at + 1)),
        None => Err(format!("no line has {text:?}")),
    }
}

fn absent(lines: &[String], text: &str, around: &str, within: usize) -> Result<String, String> {
    for (at, _) in lines.iter().enumerate().filter(|(_, line)| line.contains(around)) {
        let above = at.saturating_sub(within);
        if let Some(offset) = lines[above..=at].iter().position(|line| line.contains(text)) {
            return Err(format!("line {} has {text:?}, around {around:?} in line {}", above + offset + 1, at + 1));
        }
    }
    match lines.iter().position(|line| line.contains(around)) {
        Some(at) => Ok(format!("no {text:?} around {around:?} in line {}", at + 1)),
        None => Ok(format!("{around:?} does not occur")),
    }
}
