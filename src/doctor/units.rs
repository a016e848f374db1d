//! systemd's unit files, as far as they say what a service reads.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::doctor::Machine;

/// What `[Service]` of a unit and its drop-ins say, later lines over earlier ones.
#[derive(Debug, Default, Clone)]
pub(super) struct Unit {
    pub(super) name: String,
    pub(super) file: PathBuf,
    pub(super) user: Option<String>,
    pub(super) working_directory: Option<String>,
    pub(super) starts: Vec<String>,
    pub(super) environment: BTreeMap<String, String>,
}

/// Folders of units, the most important first.
const FOLDERS: [&str; 4] =
    ["/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"];

/// Every service of the machine's own systemd, each as it counts.
pub(super) fn services(machine: Machine<'_>) -> Vec<Unit> {
    let mut found: BTreeMap<String, PathBuf> = BTreeMap::new();
    for folder in FOLDERS {
        for path in files_in(&machine.at(folder), ".service") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.entry(name).or_insert(path);
        }
    }
    found.into_iter().filter_map(|(name, file)| read(machine, &name, file)).collect()
}

fn read(machine: Machine<'_>, name: &str, file: PathBuf) -> Option<Unit> {
    // A unit that is masked is a link to /dev/null: it is empty and never runs.
    let text = fs_err::read_to_string(&file).ok().filter(|text| !text.is_empty())?;
    let mut unit = Unit { name: name.to_owned(), file, ..Unit::default() };
    unit.take(machine, &text);
    let mut drop_ins: BTreeMap<std::ffi::OsString, PathBuf> = BTreeMap::new();
    for folder in FOLDERS {
        for path in files_in(&machine.at(&format!("{folder}/{name}.d")), ".conf") {
            drop_ins.entry(path.file_name().unwrap_or_default().to_owned()).or_insert(path);
        }
    }
    for path in drop_ins.into_values() {
        unit.take(machine, &fs_err::read_to_string(path).unwrap_or_default());
    }
    Some(unit)
}

fn files_in(folder: &Path, end: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs_err::read_dir(folder) else { return Vec::new() };
    let paths = entries.filter_map(Result::ok).map(|entry| entry.path());
    paths.filter(|path| path.to_string_lossy().ends_with(end)).collect()
}

impl Unit {
    fn take(&mut self, machine: Machine<'_>, text: &str) {
        for (key, value) in service_lines(text) {
            match key.as_str() {
                "User" => self.user = Some(value).filter(|user| !user.is_empty()),
                "WorkingDirectory" => self.working_directory = Some(value).filter(|folder| !folder.is_empty()),
                "ExecStart" if value.is_empty() => self.starts.clear(),
                "ExecStart" => self.starts.push(value),
                "Environment" if value.is_empty() => self.environment.clear(),
                "Environment" => self.environment.extend(words(&value).iter().filter_map(|word| assignment(word))),
                "EnvironmentFile" => self.take_file(machine, &value),
                _ => {}
            }
        }
    }

    fn take_file(&mut self, machine: Machine<'_>, value: &str) {
        let text = machine.read(value.trim_start_matches('-')).unwrap_or_default();
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
        let unquoted = |value: String| value.trim().trim_matches(['"', '\'']).to_owned();
        self.environment.extend(lines.filter_map(assignment).map(|(name, value)| (name, unquoted(value))));
    }
}

fn assignment(word: &str) -> Option<(String, String)> {
    word.split_once('=').map(|(name, value)| (name.trim().to_owned(), value.to_owned()))
}

/// Keys and values of `[Service]`; lines that end in a backslash go on.
fn service_lines(text: &str) -> Vec<(String, String)> {
    let (mut lines, mut section, mut open) = (Vec::new(), String::new(), String::new());
    for line in text.lines() {
        let line = line.trim();
        if line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(start) = line.strip_suffix('\\') {
            open.push_str(start);
            open.push(' ');
            continue;
        }
        let whole = std::mem::take(&mut open) + line;
        if whole.starts_with('[') {
            section = whole;
        } else if let Some((key, value)) = whole.split_once('=').filter(|_| section == "[Service]") {
            lines.push((key.trim().to_owned(), value.trim().to_owned()));
        }
    }
    lines
}

/// Words as systemd splits them: quotes keep blanks together, `%%` is a percent sign.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut is_open) = (Vec::new(), String::new(), None, false);
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        match (letter, quote) {
            ('\\', _) => word.extend(letters.next()),
            (letter, Some(end)) if letter == end => quote = None,
            ('"' | '\'', None) => (quote, is_open) = (Some(letter), true),
            (letter, None) if letter.is_whitespace() => {
                if is_open || !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                is_open = false;
            }
            (letter, _) => word.push(letter),
        }
    }
    if is_open || !word.is_empty() {
        words.push(word);
    }
    words.into_iter().map(|word| word.replace("%%", "%")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_read_as_systemd_reads_them() {
        let text = "[Unit]\nUser=nobody\n[Service]\n# User=root\nEnvironment=A=1 \"B=two words\" \\\n  C=50%%\nEnvironment='D=\"x\"'\nUser=lab\n";
        let mut unit = Unit::default();
        unit.take(Machine { root: Path::new("/nowhere"), home: Path::new("/") }, text);
        assert_eq!(unit.user.as_deref(), Some("lab"));
        let says = |name: &str| unit.environment.get(name).map(String::as_str);
        assert_eq!(
            [says("A"), says("B"), says("C"), says("D")],
            [Some("1"), Some("two words"), Some("50%"), Some("\"x\"")]
        );
        unit.take(Machine { root: Path::new("/nowhere"), home: Path::new("/") }, "[Service]\nEnvironment=\nUser=\n");
        assert!(unit.environment.is_empty() && unit.user.is_none());
    }
}
