//! The documents say what is true: the command line reference, links, commands, keys.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use clap::{Arg, Command};
use larder::fsio::{self, WriteOptions};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(relative: &str) -> String {
    fs_err::read_to_string(root().join(relative)).unwrap()
}

/// README and everything in `docs/`, by path.
fn documents() -> Vec<(PathBuf, String)> {
    let docs = walkdir::WalkDir::new(root().join("docs")).sort_by_file_name().into_iter().map(Result::unwrap);
    let pages = docs.map(walkdir::DirEntry::into_path).filter(|path| path.extension().is_some_and(|end| end == "md"));
    let all = [root().join("README.md"), root().join("CHANGELOG.md")].into_iter().chain(pages);
    all.map(|path| (path.clone(), fs_err::read_to_string(path).unwrap())).collect()
}

#[test]
fn the_command_line_reference_is_what_the_program_says() {
    let path = root().join("docs/cli.md");
    let made = reference();
    #[expect(clippy::disallowed_methods, reason = "the test is told by the environment to write")]
    if std::env::var_os("LARDER_BLESS").is_some() {
        fsio::write_atomic(&path, made.as_bytes(), &WriteOptions::default()).unwrap();
    }
    let written = fs_err::read_to_string(&path).unwrap_or_default();
    assert!(written == made, "docs/cli.md is stale: LARDER_BLESS=1 cargo test --test docs");
}

fn reference() -> String {
    let mut program = larder::cli::command().term_width(1000);
    program.build();
    let mut out = String::from(
        "# The command line\n\n<!-- Made by tests/docs.rs: LARDER_BLESS=1 cargo test --test docs -->\n\n\
         Results go to standard output, everything else to standard error.\n\n## Every command\n\n",
    );
    let own = |arg: &&Arg| !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str());
    out.push_str(&table(program.get_arguments().filter(own)));
    for command in program.get_subcommands().filter(|command| command.get_name() != "help") {
        out.push_str(&section(command));
    }
    let codes = program.get_after_help().unwrap().to_string();
    out.push_str("\n## Exit codes\n\n| code | means |\n|---|---|\n");
    for line in codes.lines().skip(1) {
        let (code, meaning) = line.trim().split_once("  ").unwrap();
        out.push_str(&format!("| {code} | {} |\n", meaning.trim()));
    }
    out
}

fn section(command: &Command) -> String {
    let name = command.get_name();
    let own: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| {
            !arg.is_global_set() && !arg.is_hide_set() && !["help", "version"].contains(&arg.get_id().as_str())
        })
        .collect();
    let positional: String = own.iter().filter(|arg| arg.is_positional()).map(|arg| format!(" {arg}")).collect();
    let options = if own.iter().all(|arg| arg.is_positional()) { "" } else { " [OPTIONS]" };
    let about = command.get_about().unwrap();
    let mut out = format!("\n## larder {name}\n\n{about}.\n\n```\nlarder {name}{options}{positional}\n```\n");
    if let Some(more) = command.get_after_help() {
        out.push_str(&format!("\n{more}\n"));
    }
    if !own.is_empty() {
        out.push('\n');
        out.push_str(&table(own.into_iter()));
    }
    out
}

fn table<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
    let mut out = String::from("| option | does |\n|---|---|\n");
    for arg in arguments {
        let short = arg.get_short().map(|short| format!("`-{short}`, ")).unwrap_or_default();
        let mut help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let values: Vec<String> = arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
        if arg.get_action().takes_values() && !values.is_empty() {
            help.push_str(&format!(": {}", values.join(", ")));
        }
        if let Some(default) = arg.get_default_values().first().filter(|_| arg.get_action().takes_values()) {
            help.push_str(&format!(" [default: {}]", default.to_str().unwrap()));
        }
        if let Some(variable) = arg.get_env() {
            help.push_str(&format!(" [environment: {}]", variable.to_str().unwrap()));
        }
        let name = arg.get_long().map_or_else(
            || arg.to_string(),
            |long| {
                let value = arg.get_action().takes_values().then(|| arg.get_value_names().unwrap()[0].to_string());
                format!("--{long}{}", value.map(|value| format!(" {value}")).unwrap_or_default())
            },
        );
        out.push_str(&format!("| {short}`{name}` | {help} |\n"));
    }
    out
}

#[test]
fn every_link_leads_somewhere() {
    let mut dead = Vec::new();
    for (path, text) in documents() {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            let target = path.parent().unwrap().join(file);
            if !file.is_empty() && !link.contains("://") && !target.exists() {
                dead.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(dead.is_empty(), "{dead:#?}");
}

#[test]
fn every_command_in_the_documents_can_be_typed() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (path, text) in documents() {
        for line in commands(&text) {
            seen += 1;
            let parsed = larder::cli::command().try_get_matches_from(line.split_whitespace());
            if let Err(error) = parsed.map_err(|error| error.kind())
                && !matches!(error, clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion)
            {
                wrong.push(format!("{}: {line}: {error}", path.display()));
            }
        }
    }
    assert!(seen > 25, "only {seen} commands were found in the documents");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Commands in code: in blocks and in lines, as they would be typed.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, block) in text.split("```").enumerate() {
        let pieces: Vec<&str> = if index % 2 == 1 {
            block.lines().skip(1).collect()
        } else {
            block.split('`').skip(1).step_by(2).collect()
        };
        found.extend(pieces.into_iter().filter_map(typed));
    }
    found
}

/// `larder …` without prompt, comment and what stands for more.
fn typed(piece: &str) -> Option<String> {
    let piece = piece.split(" #").next()?.trim().trim_start_matches("$ ").trim_start_matches("sudo ");
    let piece = piece.strip_prefix("ExecStart=/usr/local/bin/").unwrap_or(piece);
    let rest = piece.strip_prefix("larder ")?;
    let words: Vec<&str> = rest.split_whitespace().filter(|word| !word.contains('…')).collect();
    let is_usage = words.iter().any(|word| word.starts_with(['[', '<']));
    (!words.is_empty() && !is_usage).then(|| format!("larder {}", words.join(" ")))
}

#[test]
fn every_key_of_the_files_is_described() {
    let formats = read("docs/formats.md");
    let manifest = read("src/manifest.rs");
    let between = |start: &str, end: &str| &manifest[manifest.find(start).unwrap()..manifest.find(end).unwrap()];
    let manifest = [between("struct ManifestFile", "impl Declared"), between("/// A Python package", "impl Manifests")];
    let inventory = read("src/inventory.rs");
    let inventory = &inventory[..inventory.find("impl Inventory").unwrap()];
    let (serving, buckets) = (read("src/inventory/lan.rs"), read("src/inventory/bucket.rs"));
    let buckets = &buckets[..buckets.find("impl BucketConfig").unwrap()];
    let serving = &serving[..serving.find("impl Peer").unwrap()];
    let mut keys: Vec<String> = manifest.into_iter().chain([inventory, serving, buckets]).flat_map(keys_of).collect();
    assert!(keys.len() > 60 && keys.contains(&"max-rate".to_owned()), "{keys:?}");
    keys.retain(|key| !formats.contains(&format!("`{key}`")));
    assert!(keys.is_empty(), "docs/formats.md does not describe {keys:?}");
}

/// The names that serde reads: fields and variants in kebab case, or as they are renamed.
fn keys_of(text: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut renamed = None;
    let mut is_skipped = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[serde(") {
            renamed = line.split("rename = \"").nth(1).and_then(|rest| rest.split('"').next()).map(str::to_owned);
            is_skipped = line.contains("skip");
            continue;
        }
        let is_item = ["//", "#", "}", "fn ", "impl", "use "].iter().all(|start| !line.starts_with(start));
        let field = line.strip_prefix("pub ").unwrap_or(line).split_once(": ").map(|(name, _)| name);
        let name = field.filter(|name| is_item && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        if let Some(name) = name.filter(|_| !is_skipped && line.ends_with(',')) {
            keys.push(renamed.take().unwrap_or_else(|| name.replace('_', "-")));
        }
        if !line.starts_with("//") {
            (renamed, is_skipped) = (None, false);
        }
    }
    keys.sort();
    keys.dedup();
    keys
}

#[test]
fn the_changelog_has_what_is_not_released_yet() {
    let log = read("CHANGELOG.md");
    assert!(log.contains("\n## Unreleased\n"), "{log}");
}

/// The table of what is tried again says the same as the program does.
#[test]
fn the_table_of_passing_errors_is_true() {
    let page = read("docs/guide/network.md");
    let row = page.lines().find(|line| line.starts_with("| 408")).unwrap();
    let passing: Vec<u16> = row.split(['|', ',', ' ']).filter_map(|word| word.parse().ok()).collect();
    for status in (300..600).filter(|status| *status != 429) {
        let error = larder::sources::SourceError::Status { what: String::new(), status, wait: None };
        assert_eq!(error.is_permanent(), !passing.contains(&status), "{status}");
    }
    let limited = larder::sources::SourceError::RateLimited { what: String::new(), wait: None };
    assert!(!limited.is_permanent() && passing.contains(&429));
}
