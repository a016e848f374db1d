//! What goes on a drive besides contents, so that a machine that has nothing but the drive can begin with it.

use std::io;
use std::path::{Path, PathBuf};

use crate::fsio::{self, WriteOptions};

/// The lock, on every drive.
pub(super) const LOCK: &str = "inventory.lock";

const README: &str = "\
This drive carries AI models, packed by larder.

blobs/          their contents, each under the name of its digest
inventory.lock  which model needs which of them, with sizes and digests
inventory.toml  the machines and stores of the lab that packed it
manifests/      what these models are

On a machine with larder:       larder copy --from THIS-FOLDER
  Where larder finds no inventory, it goes by the one on this drive. To keep it on the machine:
                                mkdir -p ~/.config/larder
                                cp -r THIS-FOLDER/inventory.* THIS-FOLDER/manifests ~/.config/larder/
  What of it is this machine's: larder copy --from THIS-FOLDER --machine NAME
  What is on the drive:         larder adopt --drive THIS-FOLDER
Without larder:                 a file blobs/sha256-X is whole if `sha256sum` of it prints X;
                                inventory.lock, a text file, says what it is called in its model.
";

/// The files that say what is wanted, as they are to lie on a drive: inventory, manifests, and their signatures.
#[derive(Debug, Default)]
pub struct Papers {
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Papers {
    /// Adds a file that will lie at `place`, relative to the drive's root.
    pub fn add(&mut self, place: impl Into<PathBuf>, bytes: Vec<u8>) {
        self.files.push((place.into(), bytes));
    }

    /// The files with their places.
    pub fn into_files(self) -> Vec<(PathBuf, Vec<u8>)> {
        self.files
    }

    /// Whether a lock is among them.
    pub(super) fn have_lock(&self) -> bool {
        self.files.iter().any(|(place, _)| place == Path::new(LOCK))
    }

    pub(super) fn write(&self, root: &Path) -> io::Result<()> {
        let readme = (PathBuf::from("README.txt"), README.as_bytes().to_vec());
        self.files
            .iter()
            .chain([&readme])
            .try_for_each(|(place, bytes)| fsio::write_atomic(&root.join(place), bytes, &WriteOptions::default()))
    }
}
