//! Puts a large content in parts: read once, proven as a whole before it becomes visible, and gone on with after
//! an interruption.

use std::sync::Arc;

use bytes::Bytes;
use tokio::task::JoinSet;

use super::ledger::{Ledger, Part};
use super::{Means, Parcel, PushError, blocking, is_content_of, proven};
use crate::bucket::{Bucket, BucketError, Upload, part_len};
use crate::digest::{Blake3, ContentHasher, Sha256};
use crate::fsio::{self, ContentReader, PIECE, PieceBuffer};
use crate::monitor::Event;

/// How often an upload is begun anew because the server has forgotten it.
const BEGINNINGS: usize = 2;

/// A part on its way: its number, what it is, and the server's answer.
type Sending = JoinSet<(usize, Blake3, u64, Result<String, BucketError>)>;

/// Puts `parcel`; what an earlier run has sent is not sent again.
pub(super) async fn put(parcel: &Parcel, means: &Means) -> Result<(), PushError> {
    let mut failed = PushError::Interrupted;
    for _ in 0..BEGINNINGS {
        match put_once(parcel, means).await {
            Err(error) if is_forgotten(&error) => failed = error,
            outcome => return outcome,
        }
        // It may have been completed, and only the answer was lost.
        if is_there(parcel, &means.bucket).await? {
            return Ok(());
        }
    }
    Err(failed)
}

/// Whether the server does not know the upload any more. Some say then that it is forbidden.
fn is_forgotten(error: &PushError) -> bool {
    matches!(error, PushError::Bucket(BucketError::NoSuchUpload { .. } | BucketError::Refused { .. }))
}

async fn put_once(parcel: &Parcel, means: &Means) -> Result<(), PushError> {
    let noted = |source| PushError::Io { path: means.ledgers.clone(), source };
    let mut ledger = match Ledger::find(&means.ledgers, parcel, &means.bucket) {
        Some(ledger) => ledger,
        None => begin(parcel, means).await?,
    };
    let sent = send(parcel, means, &mut ledger).await;
    let upload = ledger.upload.clone();
    let parts: Vec<String> = ledger.parts.iter().flatten().map(|part| part.name.clone()).collect();
    let completed = match sent {
        Ok(()) => means.bucket.complete(&upload, parts).await.map_err(PushError::from),
        Err(error) => Err(why_really(error, &ledger, means).await),
    };
    match completed {
        Ok(()) => {}
        Err(error @ (PushError::Wrong { .. } | PushError::Length { .. })) => {
            // The parts of wrong content are of no use to anybody.
            give_up(&upload, means).await;
            ledger.close().map_err(noted)?;
            return Err(error);
        }
        Err(error) if is_forgotten(&error) => {
            ledger.close().map_err(noted)?;
            return Err(error);
        }
        Err(error) => return Err(error),
    }
    ledger.close().map_err(noted)?;
    if is_there(parcel, &means.bucket).await? {
        return Ok(());
    }
    Err(PushError::NotThere { what: means.bucket.what(), key: parcel.key.clone() })
}

/// A connection that broke may be all that is seen of a server which does not know the upload.
async fn why_really(error: PushError, ledger: &Ledger, means: &Means) -> PushError {
    let is_broken = matches!(error, PushError::Bucket(BucketError::Unreachable { .. }));
    if !is_broken || ledger.parts.iter().all(Option::is_none) {
        return error;
    }
    match means.bucket.has_parts(&ledger.upload).await {
        Ok(false) => BucketError::NoSuchUpload { what: means.bucket.what() }.into(),
        _ => error,
    }
}

async fn is_there(parcel: &Parcel, bucket: &Bucket) -> Result<bool, PushError> {
    let head = bucket.head(&parcel.key).await?;
    Ok(head.is_some_and(|head| is_content_of(parcel, head.size, head.sha256)))
}

async fn begin(parcel: &Parcel, means: &Means) -> Result<Ledger, PushError> {
    let sha256 = match parcel.digests.sha256 {
        Some(known) => known,
        // What is known by another digest is read once more: its sha256 is written beside it from the beginning.
        None => measured(parcel).await?,
    };
    let upload = means.bucket.begin(&parcel.key, sha256).await?;
    let ledger = Ledger::begin(&means.ledgers, parcel, &means.bucket, upload);
    ledger.map_err(|source| PushError::Io { path: means.ledgers.clone(), source })
}

async fn measured(parcel: &Parcel) -> Result<Sha256, PushError> {
    let reading = parcel.clone();
    blocking(&parcel.from, move || {
        let measured = fsio::hash_file(&reading.from, ContentHasher::new());
        let (digests, _) = measured.map_err(|source| PushError::Io { path: reading.from.clone(), source })?;
        Ok(digests.sha256.unwrap_or_else(|| Sha256::of(&[])))
    })
    .await
}

/// A server that keeps the parts for longer does no harm.
async fn give_up(upload: &Upload, means: &Means) {
    if let Err(error) = means.bucket.abort(upload).await {
        tracing::info!("{error}; unfinished parts of {} stay there", upload.key);
    }
}

/// Sends the parts that the server does not have, and proves the whole.
async fn send(parcel: &Parcel, means: &Means, ledger: &mut Ledger) -> Result<(), PushError> {
    let resumed = ledger.parts.iter().flatten().count() as u64 * part_len(parcel.bytes);
    let (item, from) = (parcel.item.as_str(), "this machine");
    means.monitor.event(Event::Started { item, total: Some(parcel.bytes), resumed: resumed.min(parcel.bytes), from });
    let mut reading = Reading::open(parcel).await?;
    let mut sending = Sending::new();
    for number in 0..ledger.parts.len() {
        if means.stop.is_cancelled() {
            return drain(sending, parcel, means, ledger).await.and(Err(PushError::Interrupted));
        }
        let (content, rest) = reading.next(parcel).await?;
        reading = rest;
        let blake3 = Blake3::of(&content);
        if ledger.parts[number].as_ref().is_some_and(|part| part.blake3 == blake3) {
            continue;
        }
        while sending.len() >= means.connections.max(1) {
            receive(&mut sending, parcel, means, ledger).await?;
        }
        means.pacer.pass(content.len()).await;
        let (bucket, upload) = (means.bucket.clone(), ledger.upload.clone());
        sending.spawn(async move {
            let len = content.len() as u64;
            (number, blake3, len, bucket.part(&upload, number, content).await)
        });
    }
    drain(sending, parcel, means, ledger).await?;
    proven(parcel, reading.read, reading.hasher).map(drop)
}

async fn drain(mut sending: Sending, parcel: &Parcel, means: &Means, ledger: &mut Ledger) -> Result<(), PushError> {
    while !sending.is_empty() {
        receive(&mut sending, parcel, means, ledger).await?;
    }
    Ok(())
}

/// Waits for one part to arrive, and notes it.
async fn receive(sending: &mut Sending, parcel: &Parcel, means: &Means, ledger: &mut Ledger) -> Result<(), PushError> {
    let Some(answer) = sending.join_next().await else { return Ok(()) };
    let broken = |error| PushError::Io { path: parcel.from.clone(), source: std::io::Error::other(error) };
    let (number, blake3, bytes, answer) = answer.map_err(broken)?;
    let part = Part { name: answer?, blake3 };
    ledger.note(number, part).map_err(|source| PushError::Io { path: means.ledgers.clone(), source })?;
    means.monitor.event(Event::Advanced { item: &parcel.item, bytes });
    Ok(())
}

/// A file that is read part by part, from its beginning to its end.
struct Reading {
    reader: Arc<ContentReader>,
    buffer: PieceBuffer,
    hasher: ContentHasher,
    read: u64,
}

impl Reading {
    async fn open(parcel: &Parcel) -> Result<Self, PushError> {
        let (path, digests, size) = (parcel.from.clone(), parcel.digests, parcel.bytes);
        blocking(&parcel.from, move || {
            let reader = ContentReader::open(&path).map_err(|source| PushError::Io { path: path.clone(), source })?;
            if reader.found().size != size {
                return Err(PushError::Length { path, expected: size, actual: reader.found().size });
            }
            let hasher = ContentHasher::to_compare(&digests, Some(size));
            Ok(Self { reader: Arc::new(reader), buffer: PieceBuffer::default(), hasher, read: 0 })
        })
        .await
    }

    /// The next part, hashed.
    async fn next(mut self, parcel: &Parcel) -> Result<(Bytes, Self), PushError> {
        let (path, len) = (parcel.from.clone(), part_len(parcel.bytes).min(parcel.bytes - self.read));
        blocking(&parcel.from, move || {
            let mut content = Vec::with_capacity(len as usize);
            while (content.len() as u64) < len {
                let left = (len as usize - content.len()).min(PIECE);
                let got = self.reader.read(&mut self.buffer, self.read, left);
                let got = got.map_err(|source| PushError::Io { path: path.clone(), source })?;
                if got == 0 {
                    return Err(PushError::Length { path, expected: self.read + left as u64, actual: self.read });
                }
                content.extend_from_slice(self.buffer.filled(got));
                self.read += got as u64;
            }
            self.hasher.update(&content);
            Ok((content.into(), self))
        })
        .await
    }
}
