//! A plain folder: files under their own names, as SwarmUI, ComfyUI, MMAudio and HeartMuLa read them.

use std::io;
use std::path::{Path, PathBuf};

use crate::artifact::{Artifact, File, Found, Pattern};
use crate::fsio::{self, Owner, Proven};
use crate::inventory::Layout;
use crate::stores::look::{self, CrowdedFolder, look_beside};
use crate::stores::{FileState, Observed, Store, StoreError, Unpublished};

/// Our own folder at the root, which the programs that scan for models pass over for its dot.
const OWN_FOLDER: &str = ".larder";

/// The ending of the control file that aria2 keeps beside an unfinished download.
const ARIA2: &str = "aria2";

/// From so many neighbours of one artifact, their folder is listed instead of asked.
const CROWDED: usize = 32;

/// A folder whose files lie at the artifact's own paths.
#[derive(Debug)]
pub struct FolderStore {
    name: String,
    root: PathBuf,
    owner: Option<Owner>,
}

impl FolderStore {
    /// Opens the store at `root`; nothing on disk is touched.
    pub fn new(name: String, root: PathBuf, owner: Option<Owner>) -> Self {
        Self { name, root, owner }
    }

    fn io(&self, what: String) -> impl FnOnce(io::Error) -> StoreError {
        let store = self.name.clone();
        move |source| StoreError::Io { store, what, source }
    }

    /// Looks at `files` of one folder, which is listed where they are many: that costs less than asking
    /// for each file whether aria2 is still at it.
    fn look_at_neighbours(&self, files: &[File]) -> Vec<FileState> {
        let crowded = files.first().filter(|_| files.len() >= CROWDED).map(|file| self.root.join(folder_of(file)));
        match crowded.map(CrowdedFolder::open) {
            Some(Ok(folder)) => files.iter().map(|file| folder.look(file)).collect(),
            // Where the folder cannot be listed, asking file by file tells what is wrong with it.
            None | Some(Err(_)) => files.iter().map(|file| look_beside(&file.path.under(&self.root), file)).collect(),
        }
    }

    /// Keeps what lies in the place of `file`, unless it is worthless.
    ///
    /// A link is set aside as the link it is: what it leads to lies elsewhere, may serve others, and
    /// stays untouched, so the new content takes the place of the link and is not written through it.
    fn clear_the_way(&self, file: &File, content: &Proven) -> io::Result<()> {
        let path = file.path.under(&self.root);
        let Ok(found) = fs_err::symlink_metadata(&path) else {
            return Ok(());
        };
        if look::is_worthless(&path, file) || (found.is_file() && is_same(&path, content)) {
            return Ok(());
        }
        fsio::set_aside(&path, &look::aside_path(&self.staging(), Path::new(file.path.as_str())), self.owner)
    }

    /// Moves aria2's control file for `file` away: it belongs to what lay here before, and would go on
    /// saying that the whole file is unfinished.
    fn clear_control_file(&self, file: &File) -> io::Result<()> {
        let name = format!("{}.{ARIA2}", file.path);
        let path = self.root.join(&name);
        if fs_err::symlink_metadata(&path).is_err() {
            return Ok(());
        }
        fsio::set_aside(&path, &look::aside_path(&self.staging(), Path::new(&name)), self.owner)?;
        match fsio::remove_file(&path) {
            Err(error) if !fsio::is_absent(&error) => Err(error),
            _ => Ok(()),
        }
    }
}

fn folder_of(file: &File) -> &str {
    file.path.as_str().rsplit_once('/').map_or("", |(folder, _)| folder)
}

/// Whether the file at `path` has the bytes of `content`, so that replacing it loses nothing.
fn is_same(path: &Path, content: &Proven) -> bool {
    let same_length = fs_err::metadata(path).is_ok_and(|found| found.len() == content.size());
    let hash = || fsio::hash_file(path, crate::digest::ContentHasher::new());
    same_length && hash().is_ok_and(|(digests, _)| digests.same_content(content.digests()))
}

impl Store for FolderStore {
    fn name(&self) -> &str {
        &self.name
    }

    fn layout(&self) -> Layout {
        Layout::Folder
    }

    fn root(&self) -> &Path {
        &self.root
    }

    fn owner(&self) -> Option<Owner> {
        self.owner
    }

    fn staging(&self) -> PathBuf {
        self.root.join(OWN_FOLDER)
    }

    fn observe(&self, artifact: &Artifact) -> Observed {
        let files = look::in_parts(&artifact.files, |part| {
            let neighbours = part.chunk_by(|one, next| folder_of(one) == folder_of(next));
            neighbours.flat_map(|files| self.look_at_neighbours(files)).collect()
        });
        let absent = artifact.files.iter().zip(&files).find(|(_, state)| !matches!(state, FileState::Present(_)));
        let published = absent.map_or(Ok(()), |(file, _)| Err(Unpublished::Missing { what: file.path.to_string() }));
        Observed { files, published }
    }

    fn content_path(&self, _artifact: &Artifact, file: &File) -> PathBuf {
        file.path.under(&self.root)
    }

    /// A single file is its own place; several are in the deepest folder that they share.
    fn location(&self, artifact: &Artifact) -> PathBuf {
        let of_pattern = artifact.pattern.as_ref().map(|pattern| look::literal_start(&pattern.glob));
        let mut paths = artifact.files.iter().map(|file| file.path.as_str()).chain(of_pattern).map(Path::new);
        let Some(first) = paths.next() else {
            return artifact.folder.as_ref().map_or_else(|| self.root.clone(), |folder| folder.under(&self.root));
        };
        let mut shared = first;
        for path in paths {
            while !path.starts_with(shared) {
                shared = shared.parent().unwrap_or(Path::new(""));
            }
        }
        self.root.join(shared)
    }

    /// None: the programs that read these folders take no locks.
    fn foreign_locks(&self, _artifact: &Artifact, _file: &File) -> Vec<PathBuf> {
        Vec::new()
    }

    fn place(&self, _artifact: &Artifact, file: &File, content: Proven) -> Result<PathBuf, StoreError> {
        look::admit(&self.name, file, &content)?;
        let path = file.path.under(&self.root);
        self.clear_the_way(file, &content)
            .map_err(self.io(format!("Cannot keep what is in the place of {}", file.path)))?;
        let placed = content
            .persist(&path, fsio::default_file_mode(), self.owner)
            .map_err(self.io(format!("Cannot put {} in its place", file.path)))?;
        // Only now: before, a kill would leave an unfinished file that nothing marks as one.
        self.clear_control_file(file).map_err(self.io(format!("Cannot move {}.{ARIA2} away", file.path)))?;
        Ok(placed)
    }

    /// Checks that all is there: files are visible as soon as they are placed.
    fn publish(&self, artifact: &Artifact) -> Result<(), StoreError> {
        let observed = self.observe(artifact);
        let absent =
            artifact.files.iter().zip(&observed.files).find(|(_, state)| !matches!(state, FileState::Present(_)));
        absent.map_or(Ok(()), |(file, _)| {
            Err(StoreError::Incomplete {
                store: self.name.clone(),
                artifact: artifact.name.clone(),
                missing: file.path.to_string(),
            })
        })
    }

    fn matching(&self, pattern: &Pattern) -> io::Result<Vec<Found>> {
        look::matching(&self.root, &pattern.glob, OWN_FOLDER)
    }
}
