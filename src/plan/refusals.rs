//! What cannot be had, and how much is meant by it.

use std::collections::HashMap;

use super::Refusal;
use crate::artifact::{Reference, Remote};

/// What cannot be had: of some places nothing, of others single files.
///
/// A file that vanished says nothing about its neighbours; a gate, or a server that is off, stands before all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusals {
    places: HashMap<String, Refusal>,
    files: HashMap<Reference, Refusal>,
}

impl Refusals {
    /// Nothing can be had from `place`, a [`Reference::place`].
    pub fn refuse_place(&mut self, place: String, refusal: Refusal) {
        self.places.entry(place).or_insert(refusal);
    }

    /// `remote` cannot be had; its place may have other files.
    pub fn refuse_file(&mut self, remote: &Remote, refusal: Refusal) {
        self.files.entry(remote.reference.clone()).or_insert(refusal);
    }

    /// Why `remote` cannot be had; `None` where nothing speaks against it.
    pub fn of(&self, remote: &Remote) -> Option<&Refusal> {
        self.places.get(&remote.reference.place()).or_else(|| self.files.get(&remote.reference))
    }

    /// Takes over what is known elsewhere.
    pub fn extend(&mut self, other: Refusals) {
        other.places.into_iter().for_each(|(place, refusal)| self.refuse_place(place, refusal));
        other.files.into_iter().for_each(|(file, refusal)| {
            self.files.entry(file).or_insert(refusal);
        });
    }

    /// Whether nothing is refused.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty() && self.files.is_empty()
    }
}
