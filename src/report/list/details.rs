//! What `larder list` tells of single artifacts: what each is for, where it goes, what to know of it.

use std::fmt::Write as _;

use crate::report::list::text::push_entry;
use crate::report::list::{List, ListedArtifact};

/// A paragraph for every artifact of the list.
pub(super) fn push_details(text: &mut String, list: &List, width: usize) {
    for artifact in &list.artifacts {
        let title = artifact.title.as_ref().map(|title| format!(": {title}")).unwrap_or_default();
        let _ = writeln!(text, "{}{title}", artifact.name);
        for (what, words) in facts(artifact) {
            push_entry(text, &format!("{what}: {words}"), width);
        }
        text.push('\n');
    }
}

fn facts(artifact: &ListedArtifact) -> impl Iterator<Item = (&'static str, String)> {
    let joined = |words: &[String]| (!words.is_empty()).then(|| words.join(", "));
    let place = artifact.path.as_ref().map(|path| path.display().to_string());
    let facts = [
        ("for", artifact.purpose.clone()),
        ("note", artifact.note.clone()),
        ("place", place.or_else(|| Some(format!("the inventory has no store `{}`", artifact.store)))),
        ("source", joined(&artifact.sources)),
        ("copy of", artifact.duplicate_of.clone()),
        ("known copies", joined(&artifact.copies)),
        ("tags", joined(&artifact.tags)),
    ];
    facts.into_iter().filter_map(|(what, words)| Some((what, words?)))
}
