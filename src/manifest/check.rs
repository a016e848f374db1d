//! What must hold between the entries of all manifests.

use std::collections::HashMap;
use std::path::PathBuf;

use globset::Glob;

use super::{Declared, InputError, Manifests, Place, Section};
use crate::artifact::Reference;

/// Checks every artifact alone and all of them together; `places[i]` is where artifact `i` begins.
pub(super) fn check(all: &Manifests, places: &[Place]) -> Vec<InputError> {
    let mut errors = Vec::new();
    let mut seen: HashMap<&str, &Place> = HashMap::new();
    for (artifact, place) in all.artifacts.iter().zip(places) {
        let mut wrong = |message: String, hint: &str| {
            let message = format!("artifact `{}`: {message}", artifact.name);
            errors.push(InputError::new(place.clone(), message).hint(hint));
        };
        if let Some(first) = seen.insert(&artifact.name, place) {
            wrong(format!("the name is taken already, at {first}"), "give each artifact a name of its own");
        }
        check_alone(artifact, &mut wrong);
        check_references(artifact, all, &mut wrong);
    }
    errors
}

fn check_alone(artifact: &Declared, wrong: &mut impl FnMut(String, &str)) {
    let good_name = artifact.name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && artifact.name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._:+-".contains(c));
    if !good_name {
        wrong(
            "the name may have lower-case letters, digits and . _ - : + only".into(),
            "for example sd35-large or qwen3:4b",
        );
    }
    let every_file_has_source = !artifact.file.is_empty() && artifact.file.iter().all(|file| file.source.is_some());
    if artifact.source.is_none()
        && artifact.alternatives.is_empty()
        && artifact.duplicate_of.is_none()
        && !every_file_has_source
    {
        wrong(
            "it has no `source`".into(),
            "write source = \"hf:OWNER/NAME\", \"ollama:MODEL:TAG\", \"https://…\", \"local\" or \"unidentified\", or give every file one",
        );
    }
    for glob in
        artifact.include.iter().chain(&artifact.exclude).chain(artifact.pattern.iter().map(|pattern| &pattern.glob))
    {
        if let Err(error) = Glob::new(glob) {
            wrong(format!("{glob:?} is not a glob: {}", error.kind()), "* matches within a name, ** across folders");
        }
    }
    let mut paths: Vec<&str> = artifact.file.iter().map(|file| file.path.as_str()).collect();
    paths.sort_unstable();
    if let Some(twice) = paths.windows(2).find(|pair| pair[0] == pair[1]) {
        wrong(format!("the file {:?} is listed twice", twice[0]), "remove one of the two");
    }
    if artifact.manifest.is_some() && !matches!(artifact.source, Some(Reference::Ollama(_))) {
        wrong(
            "`manifest` is the digest of an Ollama image, but the source is not ollama:…".into(),
            "use sha256 on the files instead",
        );
    }
    if !artifact.include.is_empty() && !matches!(artifact.source, Some(Reference::Hub { .. } | Reference::Directory(_)))
    {
        wrong(
            "`include` selects files of a hub repository or a folder, but the source is neither".into(),
            "list the files instead",
        );
    }
}

fn check_references(artifact: &Declared, all: &Manifests, wrong: &mut impl FnMut(String, &str)) {
    if let Some(original) = &artifact.duplicate_of
        && all.artifact(original).is_none()
    {
        wrong(format!("it is a duplicate of `{original}`, which no manifest declares"), "check the name");
    }
    if let Some(section) = &artifact.section
        && !all.sections.iter().any(|known| known.name == *section)
    {
        wrong(format!("no manifest declares the section `{section}`"), "add a [[section]] table, or check the name");
    }
}

/// Checks what sections, packages and conditions say about each other; their places are not known, so `file` is named.
pub(super) fn check_groups(all: &Manifests, file: Option<&PathBuf>) -> Vec<InputError> {
    let mut errors = Vec::new();
    let Some(file) = file else { return errors };
    let mut wrong = |message: String, hint: &str| {
        errors.push(InputError::new(Place::file(file), message).hint(hint));
    };
    for (index, section) in all.sections.iter().enumerate() {
        if all.sections[..index].iter().any(|other| other.name == section.name) {
            wrong(format!("section `{}` is declared twice", section.name), "remove one of the two");
        }
        if !chain_ends(all, section) {
            let message = format!("section `{}`: `part-of` leads to no section, or back to itself", section.name);
            wrong(message, "name a section that some manifest declares");
        }
    }
    let packages = all.packages.iter().flat_map(|package| {
        let named = package.artifact.iter().chain(&package.needed_by);
        named.map(move |artifact| ("package", &package.name, artifact))
    });
    let conditions = all
        .conditions
        .iter()
        .flat_map(|condition| condition.artifacts.iter().map(move |artifact| ("condition", &condition.name, artifact)));
    for (kind, name, artifact) in packages.chain(conditions) {
        if all.artifact(artifact).is_none() {
            wrong(
                format!("{kind} `{name}` names the artifact `{artifact}`, which no manifest declares"),
                "check the name",
            );
        }
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
