//! Fetches one file: small ones and those of unknown length in one stream, large ones in parts.

use std::sync::Arc;

use super::bring::{Arrival, Target};
use super::{JobError, Run};
use crate::artifact::Remote;
use crate::plan::WORTH_PARTS;
use crate::sources::Body;

pub(super) use blocks::Blocks;
pub use joining::TooSlow;

mod blocks;
mod doubt;
mod inquiry;
mod joining;
mod landing;
mod line;
mod parts;
mod schedule;
mod spans;
mod stream;
mod suppliers;
mod tempo;

/// A server may give less at a time than it is asked for, but not so little that a file would take a million requests.
const LEAST_PART: u64 = 16 << 10;

impl Run {
    /// Fetches from those of `remotes` that deliver the right content.
    pub(super) async fn fetch(self: Arc<Self>, target: Target, remotes: Vec<Remote>) -> Result<Arrival, JobError> {
        match target.wanted().size {
            // Shorter files are asked for once, as a whole, and keep no journal: there is nothing to win.
            Some(size) if size >= WORTH_PARTS => self.fetch_parts(target, remotes, size).await,
            _ => self.fetch_stream(target, remotes).await,
        }
    }

    /// Whether a source that sent wrong content has another way to the same bytes, which it takes from now on.
    fn distrusts(&self, remote: &Remote) -> bool {
        self.means.sources.for_reference(&remote.reference).is_ok_and(|source| source.distrust(remote))
    }
}

/// Whether the hub names the content by sha256, as far as its answer tells: its ETag is a sha256 for LFS
/// files and a git blob id for the others.
fn names_by_sha256(body: &Body) -> Option<bool> {
    let etag = body.etag.as_deref()?;
    let is_hex = etag.bytes().all(|byte| byte.is_ascii_hexdigit());
    match etag.len() {
        64 if is_hex => Some(true),
        40 if is_hex => Some(false),
        _ => None,
    }
}
