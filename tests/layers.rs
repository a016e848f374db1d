//! Modules import only from the floors below their own, and only the allowed ones print or read the environment.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;

/// Top-level modules of `src/`, from the ground up. `docs/architecture.md` says what each floor is for.
const FLOORS: &[&[&str]] = &[
    &["text"],
    &["digest", "relpath", "size", "span", "monitor"],
    &["artifact", "pace", "retry", "weights"],
    &["fsio"],
    &["manifest", "trust"],
    &["inventory", "lock", "facts"],
    &["bucket", "fleet"],
    &["stores", "sources", "ollama_api"],
    &["observe", "resolve", "conditions"],
    &["plan", "verify", "doctor", "adopt"],
    &["apply", "drive", "repair", "serve", "smoke", "nightly", "export", "dedupe", "prune", "push", "sweep"],
    &["demo"],
    &["report"],
    &["cli"],
];

fn rust_files(root: &Path) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = walkdir::WalkDir::new(root)
        .into_iter()
        .map(Result::unwrap)
        .filter(|entry| entry.path().extension().is_some_and(|end| end == "rs"))
        .map(|entry| {
            let name = entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            (name, fs_err::read_to_string(entry.path()).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// The names of our modules that a text imports: `crate::x`, and every member of `crate::{x, y}`.
fn imported(text: &str) -> Vec<String> {
    let word = |text: &str| {
        text.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("").to_owned()
    };
    text.split("crate::")
        .skip(1)
        .flat_map(|rest| match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or("").split(',').map(word).collect(),
            None => vec![word(rest)],
        })
        .filter(|name| !name.is_empty())
        .collect()
}

fn breaches(files: &[(String, String)]) -> Vec<String> {
    let floor: BTreeMap<&str, usize> =
        FLOORS.iter().enumerate().flat_map(|(level, names)| names.iter().map(move |name| (*name, level))).collect();
    let mut breaches = Vec::new();
    for (file, text) in files {
        let own = file.split(['/', '.']).next().unwrap();
        if matches!(own, "lib" | "main") {
            continue;
        }
        let Some(own_floor) = floor.get(own) else {
            breaches.push(format!("{file}: module `{own}` has no floor"));
            continue;
        };
        if text.contains("super::super::") {
            breaches.push(format!("{file}: write crate::…, not super::super::"));
        }
        for used in imported(text).iter().filter(|used| *used != own) {
            if floor.get(used.as_str()).is_none_or(|level| level >= own_floor) {
                breaches.push(format!("{file}: `{own}` may not use `{used}`"));
            }
        }
    }
    breaches
}

#[test]
fn imports_point_downwards() {
    let breaches = breaches(&rust_files(Path::new("src")));
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn a_planted_breach_is_reported() {
    let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
    let found = breaches(&[
        file("fsio/lock.rs", "use crate::serve::Server;"),
        file("stores.rs", "use crate::{artifact::File, plan};"),
        file("brandnew.rs", ""),
        file("cli.rs", "use crate::apply::apply;"),
    ]);
    assert_eq!(
        found,
        [
            "fsio/lock.rs: `fsio` may not use `serve`",
            "stores.rs: `stores` may not use `plan`",
            "brandnew.rs: module `brandnew` has no floor",
        ]
    );
}

#[test]
fn only_the_command_line_prints() {
    let prints = |text: &str| {
        ["println!", "eprintln!", "print!(", "io::stdout", "io::stderr", "env::var"]
            .iter()
            .any(|word| text.contains(word))
    };
    let talkative: Vec<String> = rust_files(Path::new("src"))
        .into_iter()
        .filter(|(file, text)| !file.starts_with("cli") && prints(text))
        .map(|(file, _)| file)
        .collect();
    assert!(talkative.is_empty(), "these print or read the environment: {talkative:?}");
}
