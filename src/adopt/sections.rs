//! What lies here of each section of the manifests, beside what the lab's own document says that it takes.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::Survey;
use crate::artifact::Artifact;
use crate::manifest::{Manifests, Section};

/// One section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SectionSum {
    /// Short name.
    pub name: String,
    /// What people call it.
    pub title: String,
    /// What the document says.
    pub documented: String,
    /// Bytes here of its artifacts and those of its parts, where they are declared and elsewhere.
    pub known_bytes: u64,
    /// Bytes beside them that no manifest has.
    pub unknown_bytes: u64,
    /// How many files or repositories these are.
    pub unknown: usize,
}

/// Known bytes, unknown bytes, and how many unknown things there are.
#[derive(Clone, Copy, Default)]
struct Sum {
    known: u64,
    unknown: u64,
    count: usize,
}

/// The sections that the document gives a total for and of which anything was seen, in the manifests' order.
///
/// What no manifest has counts for the section whose files lie nearest to it; where nothing of any section lies in the
/// same folder of the store, for none. `artifacts` are those that `survey` knew.
pub fn sections(survey: &Survey, artifacts: &[Artifact], manifests: &Manifests) -> Vec<SectionSum> {
    let section_of: HashMap<&str, &str> = manifests
        .artifacts
        .iter()
        .filter_map(|declared| Some((declared.name.as_str(), declared.section.as_deref()?)))
        .collect();
    let mut sums: BTreeMap<&str, Sum> = BTreeMap::new();
    for store in &survey.stores {
        for seen in store.known.iter().chain(&store.elsewhere) {
            if let Some(section) = named_in(&seen.what, &section_of) {
                sums.entry(section).or_default().known += seen.size;
            }
        }
        let own: Vec<&Artifact> = artifacts.iter().filter(|artifact| artifact.store == store.store).collect();
        for seen in &store.unknown {
            if let Some(section) = nearest(&seen.path, &own, &section_of) {
                let sum = sums.entry(section).or_default();
                sum.unknown += seen.size;
                sum.count += 1;
            }
        }
    }
    let with_total = manifests.sections.iter().filter_map(|section| Some((section, section.documented.as_ref()?)));
    let of = |(section, documented): (&Section, &String)| {
        let parts = sums.iter().filter(|(name, _)| is_within(name, section, manifests));
        let sum = parts.fold(Sum::default(), |all, (_, part)| Sum {
            known: all.known + part.known,
            unknown: all.unknown + part.unknown,
            count: all.count + part.count,
        });
        (sum.known + sum.unknown > 0).then(|| SectionSum {
            name: section.name.clone(),
            title: section.title.clone(),
            documented: documented.clone(),
            known_bytes: sum.known,
            unknown_bytes: sum.unknown,
            unknown: sum.count,
        })
    };
    with_total.filter_map(of).collect()
}

/// The section of the artifact that `what` names, alone or before a path, at its end.
fn named_in<'a>(what: &str, section_of: &HashMap<&str, &'a str>) -> Option<&'a str> {
    let name = what.strip_prefix("the content of ").unwrap_or(what);
    let name = name.strip_prefix("the files of ").map_or(name, |rest| rest.split(", ").next().unwrap_or(rest));
    let ends = name.match_indices('/').map(|(at, _)| &name[..at]).chain([name]);
    ends.filter_map(|name| section_of.get(name)).next_back().copied()
}

/// The section with a file in the deepest folder that `path` lies in as well. Repositories and images lie side by side:
/// theirs is the one section of the store, where it has one only.
fn nearest<'a>(path: &str, own: &[&Artifact], section_of: &HashMap<&str, &'a str>) -> Option<&'a str> {
    let folders = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
    let place = folders(path);
    let place = &place[..place.len() - 1];
    let mut best: Option<(usize, &str)> = None;
    let mut sections: Vec<&str> = Vec::new();
    for artifact in own {
        let Some(section) = section_of.get(artifact.name.as_str()).copied() else { continue };
        sections.push(section);
        for file in &artifact.files {
            let other = folders(file.path.as_str());
            let common = place.iter().zip(&other[..other.len() - 1]).take_while(|(one, other)| one == other).count();
            if common > 0 && best.is_none_or(|(depth, _)| common > depth) {
                best = Some((common, section));
            }
        }
    }
    sections.sort_unstable();
    sections.dedup();
    best.map(|(_, section)| section).or(if let [only] = sections[..] { Some(only) } else { None })
}

/// Whether the section called `name` is `section` or a part of it.
fn is_within(name: &str, section: &Section, manifests: &Manifests) -> bool {
    let mut name = name.to_owned();
    // More steps than sections would be a circle.
    for _ in 0..=manifests.sections.len() {
        if name == section.name {
            return true;
        }
        let part_of = manifests.sections.iter().find(|one| one.name == name).and_then(|one| one.part_of.clone());
        let Some(above) = part_of else { return false };
        name = above;
    }
    false
}
