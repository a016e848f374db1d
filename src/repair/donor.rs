//! Gets chunks from the first place that has them right.

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use futures_util::StreamExt as _;

use super::{Donor, Means, Patch};
use crate::artifact::Remote;
use crate::digest::{Blake3, CHUNK_LEN, chunk_range};
use crate::retry::Backoff;
use crate::sources::{ByteRange, SourceError};

/// Why nobody could give the right bytes.
#[derive(Debug, thiserror::Error)]
pub(super) enum DonorError {
    /// The run was stopped.
    #[error("stopped")]
    Interrupted,
    /// Another file here.
    #[error("{path} cannot be read")]
    File {
        path: String,
        #[source]
        source: io::Error,
    },
    /// Somewhere else.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It gave other bytes.
    #[error("{from} has other content at byte {at}")]
    Wrong { from: String, at: u64 },
}

/// What was got, and how many bytes of it came from elsewhere.
pub(super) struct Got {
    pub(super) bytes: Vec<u8>,
    pub(super) moved: u64,
}

/// The right bytes of chunks that follow each other, each proven by its digest.
///
/// `moved` counts also what came from places that had it wrong.
pub(super) async fn chunks(patch: &Patch, run: &[u64], means: &Means) -> Result<Got, DonorError> {
    let (Some(first), Some(last)) = (run.first(), run.last()) else { return Ok(Got { bytes: Vec::new(), moved: 0 }) };
    let size = patch.found.size;
    let range = chunk_range(*first, size).start..chunk_range(*last, size).end;
    let mut error = DonorError::Source(SourceError::NoUpstream { what: patch.path.to_string() });
    let mut moved = 0;
    for donor in &patch.from {
        let got = match donor {
            Donor::File { path, .. } => from_file(path, range.clone()).await,
            Donor::Remote(remote) => patiently(remote, range.clone(), means, &mut moved).await,
        };
        match got.and_then(|bytes| proven(patch, run, bytes, donor)) {
            Ok(bytes) => return Ok(Got { bytes, moved }),
            Err(DonorError::Interrupted) => return Err(DonorError::Interrupted),
            Err(failed) => error = failed,
        }
    }
    Err(error)
}

fn proven(patch: &Patch, run: &[u64], bytes: Vec<u8>, donor: &Donor) -> Result<Vec<u8>, DonorError> {
    for (number, chunk) in run.iter().zip(bytes.chunks(CHUNK_LEN as usize)) {
        let expected = usize::try_from(*number).ok().and_then(|index| patch.right.digests().get(index));
        if expected != Some(&Blake3::of(chunk)) {
            let from = match donor {
                Donor::File { path, .. } => path.display().to_string(),
                Donor::Remote(remote) => remote.reference.to_string(),
            };
            return Err(DonorError::Wrong { from, at: number * CHUNK_LEN });
        }
    }
    Ok(bytes)
}

async fn from_file(path: &Path, range: Range<u64>) -> Result<Vec<u8>, DonorError> {
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        fs_err::File::open(&owned)?.file().read_exact_at(&mut bytes, range.start)?;
        Ok(bytes)
    });
    let failed = |source| DonorError::File { path: path.display().to_string(), source };
    read.await.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)
}

/// Asks again after passing errors.
async fn patiently(remote: &Remote, range: Range<u64>, means: &Means, moved: &mut u64) -> Result<Vec<u8>, DonorError> {
    let mut backoff = Backoff::new(means.retry);
    loop {
        let asked = tokio::select! {
            asked = ask(remote, range.clone(), means, moved) => asked,
            () = means.stop.cancelled() => return Err(DonorError::Interrupted),
        };
        let error = match asked {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        let pause = if error.is_permanent() { None } else { backoff.next(error.wait()) };
        let Some(pause) = pause else { return Err(error.into()) };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = means.stop.cancelled() => return Err(DonorError::Interrupted),
        }
    }
}

async fn ask(remote: &Remote, range: Range<u64>, means: &Means, moved: &mut u64) -> Result<Vec<u8>, SourceError> {
    let what = || remote.reference.to_string();
    let source = means.sources.for_reference(&remote.reference)?;
    let wanted = ByteRange { start: range.start, end: Some(range.end) };
    let mut body = source.open(remote, wanted).await?;
    if body.start != range.start {
        // It would send the whole file for a few bytes of it.
        let reason = "it does not serve parts of files".to_owned();
        return Err(SourceError::Protocol { what: what(), reason });
    }
    let len = range.end - range.start;
    let mut bytes = Vec::with_capacity(len as usize);
    while (bytes.len() as u64) < len {
        let Some(piece) = body.stream.next().await else {
            return Err(SourceError::CutShort { what: what(), expected: len, got: bytes.len() as u64 });
        };
        let piece = piece?;
        *moved += piece.len() as u64;
        bytes.extend_from_slice(&piece);
    }
    // More than was asked for is nobody's.
    bytes.truncate(len as usize);
    Ok(bytes)
}
