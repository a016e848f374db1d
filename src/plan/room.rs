//! Whether the steps fit: artifacts are taken in order while there is room for them.

use std::collections::BTreeMap;

use super::{ArtifactPlan, Need, Outlook, Refusal, Room, Step};
use crate::observe::Sighting;
use crate::size::Bytes;

/// Left free on every file system: a full disk stops more than larder.
const MARGIN: u64 = 64 << 20;

/// What the steps so far take on each file system.
#[derive(Default)]
pub(super) struct Rooms(BTreeMap<u64, Room>);

impl Rooms {
    /// Counts what `entry` takes; or says why it does not fit, and counts nothing.
    pub(super) fn take(&mut self, entry: &ArtifactPlan, sighting: &Sighting<'_>, outlook: &Outlook) -> Option<Refusal> {
        let space = outlook.spaces.get(&entry.store)?;
        let room = self.0.entry(space.device).or_insert_with(|| Room {
            path: space.path.clone(),
            free: space.bytes,
            needed: 0,
            free_inodes: space.inodes,
            new_files: 0,
            stores: Vec::new(),
        });
        if !room.stores.contains(&entry.store) {
            room.stores.push(entry.store.clone());
        }
        let (needed, new_files) = need(entry, sighting);
        let bytes_fit = needed == 0 || room.needed.saturating_add(needed).saturating_add(MARGIN) <= room.free;
        let files_fit = space.inodes.is_none_or(|left| room.new_files + new_files <= left);
        if bytes_fit && files_fit {
            room.needed += needed;
            room.new_files += new_files;
            return None;
        }
        let left = Bytes(room.free.saturating_sub(room.needed + MARGIN));
        let reason = if bytes_fit {
            format!("it needs {new_files} new files, and {} has no room for so many", room.path.display())
        } else {
            format!("it needs {}, and {} has {left} left for it", Bytes(needed), room.path.display())
        };
        Some(Refusal { reason, hint: Some("make room, or move the store to a larger disk".to_owned()) })
    }

    pub(super) fn into_rooms(self) -> Vec<Room> {
        self.0.into_values().collect()
    }
}

/// Bytes and files that an artifact's steps will add to its store's file system.
///
/// Reused content counts in full: whether blocks can be shared is known only once it is tried.
fn need(entry: &ArtifactPlan, sighting: &Sighting<'_>) -> (u64, u64) {
    let mut needed = 0;
    let mut files = 0;
    for step in &entry.steps {
        let (bytes, new) = match step {
            Step::Fetch { file, bytes, need, .. } => {
                // What a stopped run left is on the disk already, and so is the room it took for the rest.
                let reserved = sighting.partials.get(*file).map_or(0, |left| left.allocated.saturating_sub(left.bytes));
                (bytes.unwrap_or(0).saturating_sub(reserved), u64::from(*need == Need::Missing))
            }
            Step::Reuse { bytes, need, .. } => (*bytes, u64::from(*need == Need::Missing)),
            Step::Install { bytes, .. } => (bytes.unwrap_or(0), sighting.artifact.files.len() as u64 + 1),
            Step::Publish { .. } => (0, sighting.artifact.files.len() as u64),
        };
        needed += bytes;
        files += new;
    }
    (needed, files)
}
