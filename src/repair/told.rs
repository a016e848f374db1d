//! What peers say of the chunks of files that are wrong, where this machine does not know it itself.
//!
//! A peer's word is good for finding what to fetch, not for calling it right: that is the whole's digest's to say.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::Arc;

use futures_util::future::join_all;

use super::{Wrong, address, remotes_of};
use crate::artifact::{Found, Reference, Remote};
use crate::digest::{Blake3, Blake3Hasher, CHUNK_LEN, ChunkDigests, Sha256, chunk_count, chunk_range};
use crate::facts::{Facts, FactsError};
use crate::fsio::{ContentReader, PIECE, PieceBuffer};
use crate::monitor::{Event, Monitor};
use crate::observe::Sighting;
use crate::plan::Plan;
use crate::sources::Sources;
use crate::stores::FileState;

/// What peers said, by artifact and the number of its file.
#[derive(Debug, Default)]
pub struct Told {
    files: HashMap<(String, usize), Word>,
}

/// What one peer says of a file's chunks, and which of them are something else here.
#[derive(Debug, Clone)]
pub(super) struct Word {
    /// The peer.
    pub(super) whose: String,
    /// What the chunks should be.
    pub(super) right: ChunkDigests,
    /// Numbers of those that are not.
    pub(super) wrong: Vec<u64>,
}

impl Word {
    pub(super) fn about(&self, content: Sha256) -> Wrong {
        let told_by = Some(self.whose.clone());
        Wrong { chunks: self.wrong.clone(), right: self.right.clone(), content, told_by }
    }
}

impl Told {
    pub(super) fn of(&self, artifact: &str, file: usize) -> Option<&Word> {
        self.files.get(&(artifact.to_owned(), file))
    }
}

/// A file that would be fetched as a whole because its wrong parts are not known.
struct Question {
    key: (String, usize),
    item: String,
    found: Found,
    content: Sha256,
    peers: BTreeSet<String>,
}

/// Asks peers for the chunk digests of what `plan`, which was made of `sightings`, would fetch as a whole, and compares
/// the files here with them: each of these is read once. A peer that does not know them, or does not answer, tells nothing.
pub async fn ask(
    plan: &Plan,
    sightings: &[Sighting<'_>],
    facts: &Facts,
    sources: &Sources,
    monitor: &Arc<dyn Monitor>,
) -> Result<Told, FactsError> {
    let mut told = Told::default();
    for question in questions(plan, sightings, facts)? {
        let peers = question.peers.iter();
        let asked = join_all(peers.map(async |peer| (peer, sources.peers().chunks(peer, &question.content).await)));
        let lists = asked.await.into_iter().filter_map(|(peer, list)| Some((peer.clone(), list.ok()?)));
        let lists: Vec<_> = lists.filter(|(_, list)| list.content_len() == question.found.size).collect();
        if let Some(word) = compared(&question, lists, monitor).await {
            told.files.insert(question.key, word);
        }
    }
    Ok(told)
}

fn questions(plan: &Plan, sightings: &[Sighting<'_>], facts: &Facts) -> Result<Vec<Question>, FactsError> {
    let mut questions = Vec::new();
    for entry in &plan.artifacts {
        let sighting = sightings.iter().find(|sighting| sighting.artifact.name == entry.artifact);
        let Some(sighting) = sighting else { continue };
        for step in &entry.steps {
            let Some((file, from)) = remotes_of(step) else { continue };
            let FileState::Present(found) = &sighting.observed.files[file] else { continue };
            let Some(content) = sighting.artifact.files[file].digests.sha256 else { continue };
            let peers: BTreeSet<String> = from.iter().filter_map(peer).collect();
            // One chunk is the whole.
            let is_worth_it = found.size > CHUNK_LEN && sighting.artifact.files[file].size == Some(found.size);
            if is_worth_it && !peers.is_empty() && address(found, facts)?.is_none() {
                let key = (entry.artifact.clone(), file);
                let item = format!("{}/{}", entry.artifact, sighting.path_of(file));
                questions.push(Question { key, item, found: found.clone(), content, peers });
            }
        }
    }
    Ok(questions)
}

fn peer(remote: &Remote) -> Option<String> {
    match &remote.reference {
        Reference::Peer { peer, .. } => Some(peer.clone()),
        _ => None,
    }
}

/// Of several lists the one that disputes the least: believing it costs the least. One that disputes nothing of a file
/// that is wrong, or all of it, is no help.
async fn compared(question: &Question, lists: Vec<(String, ChunkDigests)>, monitor: &Arc<dyn Monitor>) -> Option<Word> {
    if lists.is_empty() {
        return None;
    }
    let (found, item, own) = (question.found.clone(), question.item.clone(), Arc::clone(monitor));
    let measured = tokio::task::spawn_blocking(move || measure(&found, &item, own.as_ref())).await;
    let measured = match measured.unwrap_or_else(|error| Err(io::Error::other(error))) {
        Ok(measured) => measured,
        Err(error) => {
            monitor.event(Event::Failed { item: &question.item, reason: &error.to_string() });
            return None;
        }
    };
    let words = lists.into_iter().map(|(whose, right)| {
        let differs = |(said, found): (&Blake3, &Option<Blake3>)| Some(*said) != *found;
        let pairs = (0..).zip(right.digests().iter().zip(&measured));
        let wrong: Vec<u64> = pairs.filter(|(_, pair)| differs(*pair)).map(|(number, _)| number).collect();
        Word { whose, right, wrong }
    });
    words.filter(|word| (1..measured.len()).contains(&word.wrong.len())).min_by_key(|word| word.wrong.len())
}

/// The digest of each chunk; `None` where the disk cannot read it.
fn measure(found: &Found, item: &str, monitor: &dyn Monitor) -> io::Result<Vec<Option<Blake3>>> {
    monitor.event(Event::Started { item, total: Some(found.size), resumed: 0, from: "the disk" });
    let reader = ContentReader::open(&found.path)?;
    let mut buffer = PieceBuffer::default();
    let mut digests = Vec::new();
    for number in 0..chunk_count(found.size) {
        let range = chunk_range(number, found.size);
        let (mut hasher, mut at) = (Blake3Hasher::default(), range.start);
        while at < range.end {
            let Ok(got @ 1..) = reader.read(&mut buffer, at, PIECE.min((range.end - at) as usize)) else { break };
            hasher.update(buffer.filled(got));
            at += got as u64;
        }
        digests.push((at == range.end).then(|| hasher.finish()));
        monitor.event(Event::Advanced { item, bytes: range.end - range.start });
    }
    monitor.event(Event::Finished { item });
    Ok(digests)
}
