//! What must hold between the entries of all manifests.

use std::collections::{HashMap, HashSet};

use globset::Glob;

use super::{Declared, InputError, Manifests, Section, did_you_mean};
use crate::artifact::Reference;

/// A mistake and its advice, told with the keys that lead to it within the entry.
type Report<'a> = dyn FnMut(&[&str], String, &str) + 'a;

/// Checks every entry alone and all of them together.
///
/// Names that no manifest declares are mistakes only where `all_are_here`.
pub(super) fn check(all: &Manifests, all_are_here: bool) -> Vec<InputError> {
    let mut errors = Vec::new();
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (index, artifact) in all.artifacts.iter().enumerate() {
        let place = |keys: &[&str]| all.places.of(all.places.artifacts.get(index), "artifact", keys);
        let mut wrong = |keys: &[&str], message: String, hint: &str| {
            let message = format!("artifact `{}`: {message}", artifact.name);
            errors.push(InputError::new(place(keys), message).hint(hint));
        };
        if let Some(first) = seen.insert(&artifact.name, index) {
            let first = all.places.of(all.places.artifacts.get(first), "artifact", &["name"]);
            wrong(&["name"], format!("the name is taken already, at {first}"), "give each artifact a name of its own");
        }
        check_name(artifact, &mut wrong);
        check_source(artifact, &mut wrong);
        check_globs(artifact, &mut wrong);
        check_files(artifact, &mut wrong);
        if all_are_here {
            check_references(artifact, all, &mut wrong);
        }
    }
    errors.extend(check_groups(all, all_are_here));
    errors
}

fn check_name(artifact: &Declared, wrong: &mut Report<'_>) {
    let good = artifact.name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && artifact.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._:+-".contains(c));
    if !good {
        let rule = "the name begins with a lower-case letter or a digit, and has only these and . _ - : + in it";
        wrong(&["name"], rule.to_owned(), "for example sd35-large or qwen3:4b");
    }
}

fn check_source(artifact: &Declared, wrong: &mut Report<'_>) {
    let every_file_has_source = !artifact.file.is_empty() && artifact.file.iter().all(|file| file.source.is_some());
    if artifact.source.is_none()
        && artifact.alternatives.is_empty()
        && artifact.duplicate_of.is_none()
        && !every_file_has_source
    {
        wrong(
            &[],
            "it has no `source`".into(),
            "write source = \"hf:OWNER/NAME\", \"ollama:MODEL:TAG\", \"https://…\", \"local\" or \"unidentified\", or give every file one",
        );
    }
    if artifact.manifest.is_some() && !matches!(artifact.source, Some(Reference::Ollama(_))) {
        wrong(
            &["manifest"],
            "`manifest` is the digest of an Ollama image, but the source is not ollama:…".into(),
            "use sha256 on the files instead",
        );
    }
    if !artifact.include.is_empty() && !matches!(artifact.source, Some(Reference::Hub { .. } | Reference::Directory(_)))
    {
        wrong(
            &["include"],
            "`include` selects files of a hub repository or a folder, but the source is neither".into(),
            "list the files instead",
        );
    }
}

fn check_globs(artifact: &Declared, wrong: &mut Report<'_>) {
    let of = |key, globs: &[String]| globs.iter().cloned().map(move |glob| (key, glob)).collect::<Vec<_>>();
    let pattern = artifact.pattern.iter().map(|pattern| ("match", pattern.glob.clone()));
    for (key, glob) in
        of("include", &artifact.include).into_iter().chain(of("exclude", &artifact.exclude)).chain(pattern)
    {
        if let Err(error) = Glob::new(&glob) {
            let message = format!("`{key}`: {glob:?} is not a glob: {}", error.kind());
            let hint = if key == "match" {
                "* matches within a folder, ** across folders; close every [ and {"
            } else {
                "* matches across folders; close every [ and {"
            };
            wrong(&[key], message, hint);
        }
    }
    if artifact.pattern.as_ref().is_some_and(|pattern| pattern.count == 0) {
        wrong(&["match", "count"], "`match` wants 0 files".into(), "write how many files must match");
    }
}

fn check_files(artifact: &Declared, wrong: &mut Report<'_>) {
    let mut seen = HashSet::new();
    for (index, file) in artifact.file.iter().enumerate() {
        if !seen.insert(&file.path) {
            let keys = ["file", &index.to_string(), "path"];
            wrong(&keys, format!("the file {:?} is listed twice", file.path), "remove one of the two");
        }
    }
}

fn check_references(artifact: &Declared, all: &Manifests, wrong: &mut Report<'_>) {
    if let Some(original) = &artifact.duplicate_of
        && all.artifact(original).is_none()
    {
        let message = format!("it is a duplicate of `{original}`, which no manifest declares");
        let others = all.artifacts.iter().map(|other| other.name.as_str()).filter(|name| *name != artifact.name);
        wrong(&["duplicate-of"], message, &artifact_hint(others, original));
    }
    if let Some(section) = &artifact.section
        && !all.sections.iter().any(|known| known.name == *section)
    {
        let known = all.sections.iter().map(|known| known.name.as_str());
        let hint = did_you_mean(section, known).unwrap_or_else(|| "add a [[section]] table".to_owned());
        wrong(&["section"], format!("no manifest declares the section `{section}`"), &hint);
    }
}

fn artifact_hint<'a>(known: impl Iterator<Item = &'a str>, unknown: &str) -> String {
    match super::closest(unknown, known) {
        Some(name) => format!("did you mean `{name}`?"),
        None => "correct the name, or add an [[artifact]] table for it".to_owned(),
    }
}

/// Checks what sections, packages and conditions say about each other and about artifacts.
fn check_groups(all: &Manifests, all_are_here: bool) -> Vec<InputError> {
    let mut errors = Vec::new();
    for (index, section) in all.sections.iter().enumerate() {
        let place = |key| all.places.of(all.places.sections.get(index), "section", &[key]);
        if let Some(first) = all.sections[..index].iter().position(|other| other.name == section.name) {
            let first = all.places.of(all.places.sections.get(first), "section", &["name"]);
            let message = format!("section `{}` is declared twice, first at {first}", section.name);
            errors.push(InputError::new(place("name"), message).hint("remove one of the two"));
        }
        if all_are_here && !chain_ends(all, section) {
            let message = format!("section `{}`: `part-of` leads to no section, or back to itself", section.name);
            let hint = "name a section that some manifest declares";
            errors.push(InputError::new(place("part-of"), message).hint(hint));
        }
    }
    if all_are_here {
        errors.extend(unknown_artifacts(all));
    }
    errors
}

/// Artifacts that packages and conditions name and no manifest declares.
fn unknown_artifacts(all: &Manifests) -> Vec<InputError> {
    let mut errors = Vec::new();
    let mut look = |kind: &str, name: &str, origin, key: &str, artifact: &String| {
        if all.artifact(artifact).is_none() {
            let message = format!("{kind} `{name}` names the artifact `{artifact}`, which no manifest declares");
            let place = all.places.of(origin, kind, &[key]);
            let known = all.artifacts.iter().map(|artifact| artifact.name.as_str());
            errors.push(InputError::new(place, message).hint(artifact_hint(known, artifact)));
        }
    };
    for (index, package) in all.packages.iter().enumerate() {
        let origin = all.places.packages.get(index);
        package.artifact.iter().for_each(|artifact| look("package", &package.name, origin, "artifact", artifact));
        package.needed_by.iter().for_each(|artifact| look("package", &package.name, origin, "needed-by", artifact));
    }
    for (index, condition) in all.conditions.iter().enumerate() {
        let origin = all.places.conditions.get(index);
        condition.artifacts.iter().for_each(|it| look("condition", &condition.name, origin, "artifacts", it));
    }
    errors
}

/// Whether following `part-of` from `section` ends at a section that is part of nothing.
fn chain_ends(all: &Manifests, section: &Section) -> bool {
    let mut at = section;
    for _ in 0..=all.sections.len() {
        let Some(parent) = &at.part_of else { return true };
        let Some(next) = all.sections.iter().find(|section| section.name == *parent) else { return false };
        at = next;
    }
    false
}
