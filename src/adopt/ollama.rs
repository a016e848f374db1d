//! Ollama's models: manifests say what they hold.

use std::collections::BTreeSet;
use std::path::Path;

use walkdir::WalkDir;

use super::propose::Proposal;
use super::{Known, Seen, StoreSurvey, authority};
use crate::artifact::{OllamaName, Reference, blob_name, parse_manifest};
use crate::digest::Sha256;
use crate::stores::Store;

/// Looks at every manifest, and at blobs that none of them names.
pub(super) fn look(store: &dyn Store, known: &mut Known, found: &mut StoreSurvey) -> Vec<Proposal> {
    let manifests = store.root().join("manifests");
    let mut proposals = Vec::new();
    let mut named = BTreeSet::new();
    for entry in WalkDir::new(&manifests).sort_by_file_name() {
        match entry {
            Ok(entry) if entry.file_type().is_file() => {
                let within = entry.path().strip_prefix(&manifests).unwrap_or(entry.path());
                proposals.extend(look_at(entry.path(), within, (known, &mut named), found));
            }
            Ok(_) => {}
            Err(error) => {
                found.unreadable.push(Seen { path: "manifests".to_owned(), size: 0, what: error.to_string() })
            }
        }
    }
    orphans(&store.root().join("blobs"), (&named, known), found);
    proposals
}

fn look_at(
    path: &Path,
    within: &Path,
    (known, named): (&mut Known, &mut BTreeSet<String>),
    found: &mut StoreSurvey,
) -> Option<Proposal> {
    let place = format!("manifests/{}", within.display());
    let parts: Vec<&str> = within.iter().filter_map(|part| part.to_str()).collect();
    let [host, namespace, model, tag] = parts[..] else {
        found.unreadable.push(Seen { path: place, size: 0, what: "its place is no name of a model".to_owned() });
        return None;
    };
    let read = fs_err::read(path).map_err(|error| error.to_string());
    let parsed =
        read.and_then(|bytes| parse_manifest(&bytes).map(|files| (bytes, files)).map_err(|error| error.to_string()));
    let (bytes, files) = match parsed {
        Ok(parsed) => parsed,
        Err(what) => {
            found.unreadable.push(Seen { path: place, size: 0, what });
            return None;
        }
    };
    named.extend(files.iter().filter_map(|file| file.digests.sha256.as_ref().map(blob_name)));
    let size = files.iter().filter_map(|file| file.size).sum();
    let name = OllamaName { host: host.into(), namespace: namespace.into(), model: model.into(), tag: tag.into() };
    let source = Reference::Ollama(name);
    if let Some(artifact) = known.sources.get(&(found.store.clone(), authority(&source))) {
        found.known.push(Seen { path: place, size, what: artifact.clone() });
        return None;
    }
    found.unknown.push(Seen { path: place, size, what: source.to_string() });
    let name = known.new_name(&format!("{model}:{tag}"));
    let note = "found in Ollama's store; if it was made here with `ollama create`, no registry has it".to_owned();
    Some(Proposal {
        name,
        store: found.store.clone(),
        source,
        files: Vec::new(),
        manifest: Some(Sha256::of(&bytes)),
        note,
    })
}

/// Blobs that no manifest names: Ollama removes them when it starts, unless it is told not to.
fn orphans(blobs: &Path, (named, known): (&BTreeSet<String>, &Known), found: &mut StoreSurvey) {
    // What a broken manifest names, nobody knows.
    let all_are_read = found.unreadable.is_empty();
    for entry in fs_err::read_dir(blobs).into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name().to_string_lossy().replace(':', "-");
        if named.contains(&name) {
            continue;
        }
        let size = entry.metadata().map(|metadata| metadata.len()).unwrap_or(0);
        let seen = |what: String| Seen { path: format!("blobs/{name}"), size, what };
        let digest = name.strip_prefix("sha256-").and_then(|digits| digits.parse::<Sha256>().ok());
        if let Some(owner) = digest.and_then(|digest| known.by_digest.get(&digest)) {
            found.elsewhere.push(seen(format!("the content of {owner}, which no manifest names here")));
        } else if name.contains("-partial") {
            found.leftovers.push(seen("an unfinished download".to_owned()));
        } else if all_are_read {
            found.leftovers.push(seen("no manifest names it".to_owned()));
        } else {
            found.unknown.push(seen("no manifest that can be read names it".to_owned()));
        }
    }
}
