//! What a plan consists of.

use std::path::PathBuf;

use serde::Serialize;

use super::{Download, Refusal};
use crate::artifact::Remote;
use crate::relpath::RelPath;

/// Everything that will happen, artifact by artifact.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Plan {
    /// One entry per wanted artifact, in the lock's order.
    pub artifacts: Vec<ArtifactPlan>,
    /// What it means for each file system.
    pub rooms: Vec<Room>,
    /// What it means for the download limit, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download: Option<Download>,
}

/// What happens to one artifact.
#[derive(Debug, Clone, Serialize)]
pub struct ArtifactPlan {
    /// Its name.
    pub artifact: String,
    /// Its store.
    pub store: String,
    /// How many files it has, where that is known.
    pub files: usize,
    /// Its size, where every file's size is known.
    pub size: Option<u64>,
    /// Files that are here and not known to be wrong.
    pub here_files: usize,
    /// Their bytes.
    pub here_bytes: u64,
    /// When the least recently proven file was proven; `None` when one never was.
    pub proven_at: Option<i64>,
    /// Files whose place another file has, which is kept in the store's `.larder/replaced` first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub set_aside: Vec<RelPath>,
    /// What will be done, in order.
    pub steps: Vec<Step>,
    /// What cannot be done.
    pub obstacles: Vec<Obstacle>,
}

/// One thing that will be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Step {
    /// Bring a file from elsewhere.
    Fetch {
        /// Index in the artifact's files.
        #[serde(skip)]
        file: usize,
        /// Its path.
        path: RelPath,
        /// Bytes that must move: the length less what a stopped run left. `None` if unknown.
        bytes: Option<u64>,
        /// Where from, the preferred place first.
        #[serde(serialize_with = "remote_names")]
        from: Vec<Remote>,
        /// Why.
        need: Need,
    },
    /// Take content that another place on this machine has.
    Reuse {
        /// Index in the artifact's files.
        #[serde(skip)]
        file: usize,
        /// Its path.
        path: RelPath,
        /// Length.
        bytes: u64,
        /// Who has it.
        from: Origin,
        /// Where it can be fetched if that turns out to be wrong.
        #[serde(serialize_with = "remote_names")]
        or_from: Vec<Remote>,
        /// Why.
        need: Need,
    },
    /// Have the running server install the image.
    Install {
        /// Bytes of layers that are not known to be here.
        bytes: Option<u64>,
        /// Where larder takes them from to hand them over, the preferred place first, by the numbers of the artifact's
        /// files; empty where the server pulls from upstream.
        #[serde(skip_serializing_if = "Vec::is_empty", serialize_with = "names_of_all")]
        from: Vec<Vec<Remote>>,
    },
    /// Make the artifact visible under its name.
    Publish {
        /// What is missing or different now.
        because: String,
    },
}

/// Where reused content is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Here already: in whose possession, and where.
    Here {
        /// Artifact and path.
        whose: String,
        /// The content.
        path: PathBuf,
    },
    /// Arriving in this run for another artifact.
    Arriving {
        /// Artifact and path.
        whose: String,
    },
    /// On a drive.
    Drive {
        /// The content.
        path: PathBuf,
    },
}

/// Why a file must be placed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// It is not here.
    Missing,
    /// Something else is in its place; where its bytes could be of worth, they are set aside first.
    Mend {
        /// What is wrong.
        defect: String,
    },
}

/// Something that cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    /// The file, where it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<RelPath>,
    /// Why, and what to do.
    #[serde(flatten)]
    pub refusal: Refusal,
}

/// What the plan means for one file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Room {
    /// A path on it.
    pub path: PathBuf,
    /// Free bytes now.
    pub free: u64,
    /// Bytes that the steps will take.
    pub needed: u64,
    /// Files that may still be created; `None` where the file system has no fixed number.
    pub free_inodes: Option<u64>,
    /// Files that will be created.
    pub new_files: u64,
    /// Stores on it.
    pub stores: Vec<String>,
}

impl Plan {
    /// Whether there is nothing to do and nothing that could not be done.
    pub fn is_settled(&self) -> bool {
        self.artifacts.iter().all(|artifact| artifact.steps.is_empty() && artifact.obstacles.is_empty())
    }

    /// Whether there is anything to do.
    pub fn has_steps(&self) -> bool {
        self.artifacts.iter().any(|artifact| !artifact.steps.is_empty())
    }

    /// Bytes that will come from elsewhere, as far as they are known.
    pub fn bytes_to_move(&self) -> u64 {
        self.steps().filter_map(Step::bytes_to_move).sum()
    }

    /// Everything that is to be asked over the network, each place once, with one file to try it by.
    ///
    /// That is the first place of each file, and the others of its kind, which give parts of it at the same time. Who would
    /// only stand in for them is not asked before that happens: upstream may be far away, or nowhere at all.
    pub fn remotes_to_check(&self) -> Vec<&Remote> {
        let mut seen = std::collections::HashSet::new();
        let files = self.steps().flat_map(|step| match step {
            Step::Fetch { from, .. } => std::slice::from_ref(from),
            Step::Install { from, .. } => from.as_slice(),
            _ => &[],
        });
        let choices = files.flat_map(|from| {
            let first = from.first().map(|remote| std::mem::discriminant(&remote.reference));
            from.iter().take_while(move |remote| Some(std::mem::discriminant(&remote.reference)) == first)
        });
        choices.filter(|remote| seen.insert(remote.reference.place())).collect()
    }

    fn steps(&self) -> impl Iterator<Item = &Step> {
        self.artifacts.iter().flat_map(|artifact| &artifact.steps)
    }
}

impl Step {
    /// Bytes that come from elsewhere for this step.
    pub fn bytes_to_move(&self) -> Option<u64> {
        match self {
            Step::Fetch { bytes, .. } | Step::Install { bytes, .. } => *bytes,
            Step::Reuse { .. } | Step::Publish { .. } => Some(0),
        }
    }
}

fn remote_names<S: serde::Serializer>(remotes: &[Remote], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(remotes.iter().map(|remote| remote.reference.to_string()))
}

fn names_of_all<S: serde::Serializer>(from: &[Vec<Remote>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(from.iter().flatten().map(|remote| remote.reference.to_string()))
}
