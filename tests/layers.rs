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

/// The names of our modules that a text imports: `crate::x`, and every member of `crate::{x, y::{z, w}}`.
fn imported(text: &str, path: &str) -> Vec<String> {
    let word = |text: &str| {
        text.trim_start().split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("").to_owned()
    };
    text.split(path)
        .skip(1)
        .flat_map(|rest| match rest.strip_prefix('{') {
            Some(list) => members(list).into_iter().map(word).collect(),
            None => vec![word(rest)],
        })
        .filter(|name| !name.is_empty())
        .collect()
}

/// What stands between the commas of a list that has been opened, up to its end; lists within it are part of a member.
fn members(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut members) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                members.push(&list[start..at]);
                return members;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                members.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    members
}

/// A text without its tests, which are a module of their own.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod ").next().unwrap()
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
        let mut used_here = imported(text, "crate::");
        if !file.contains('/') {
            // Directly below the root, `super` is the root.
            used_here.extend(imported(without_tests(text), "super::"));
        }
        for used in used_here.iter().filter(|used| *used != own) {
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
        file("plan.rs", "use crate::{artifact::{File, Found}, serve};\nuse super::cli;"),
        file("plan/room.rs", "use super::{plan, Plan};\nuse crate::{\n    lock::Lock,\n    report::{table, text},\n};"),
        file("verify.rs", "use crate::lock::Lock;\n#[cfg(test)]\nmod tests {\n    use super::cli;\n}"),
    ]);
    assert_eq!(
        found,
        [
            "fsio/lock.rs: `fsio` may not use `serve`",
            "stores.rs: `stores` may not use `plan`",
            "brandnew.rs: module `brandnew` has no floor",
            "plan.rs: `plan` may not use `serve`",
            "plan.rs: `plan` may not use `cli`",
            "plan/room.rs: `plan` may not use `report`",
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

#[test]
fn unsafe_is_written_in_metal_and_where_weights_are_mapped() {
    let uses = |text: &str| text.lines().filter(|line| line.split("//").next().unwrap().contains("unsafe {")).count();
    let of = |folder: &str| -> Vec<(String, usize)> {
        let files = rust_files(Path::new(folder)).into_iter().map(|(file, text)| (file, uses(&text)));
        files.filter(|(_, count)| *count > 0).collect()
    };
    assert_eq!(of("src"), [], "the root has none");
    let mapped = ["weights/checkpoint.rs", "weights/gguf.rs"].map(|file| (file.to_owned(), 1));
    assert_eq!(of("generators/src"), mapped, "generators maps files, and nothing else");
    assert!(!of("metal/src").is_empty(), "the word is found");
}

/// What changes a disk; clippy forbids the commonest of these to everybody, and tests may use the rest.
const WRITES: &[&str] = &[
    "OpenOptions",
    "File::options",
    "File::create",
    "hard_link(",
    "fs::copy(",
    "fs_err::copy(",
    "set_permissions(",
    "set_times(",
    "create_dir(",
    "remove_dir(",
    "DirBuilder",
    "fs::symlink(",
    "fs::chown(",
    "lchown(",
    "mkfifo",
];

#[test]
fn only_fsio_writes() {
    let writes = |text: &str| WRITES.iter().copied().find(|word| without_tests(text).contains(word));
    let found: Vec<String> = rust_files(Path::new("src"))
        .into_iter()
        .filter(|(file, _)| !file.starts_with("fsio"))
        .filter_map(|(file, text)| Some(format!("{file}: {}", writes(&text)?)))
        .collect();
    assert!(found.is_empty(), "only fsio changes a disk: {found:#?}");
    assert!(rust_files(Path::new("src/fsio")).iter().any(|(_, text)| writes(text).is_some()), "the words are found");
}
