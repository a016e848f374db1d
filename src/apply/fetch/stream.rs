//! Fetches one file in one stream from its first byte on: resumes, tries again, changes sources, and proves.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::LEAST_PART;
use super::suppliers::Answers;
use crate::apply::bring::{Arrival, Target, blocking};
use crate::apply::{JobError, Run};
use crate::artifact::Remote;
use crate::fsio::{Partial, ProofError, Unproven};
use crate::monitor::Event;
use crate::retry::Backoff;
use crate::sources::{Body, ByteRange, SourceError};

/// Chunks between the network and the disk: what a slow disk lets pile up in memory per file.
const QUEUE: usize = 8;

/// What one source made of the partial.
enum Attempt {
    /// Complete and right.
    Proven(Arrival),
    /// This source cannot finish it; the partial may still be of use to another.
    GivenUp(Box<(JobError, Partial)>),
}

impl Attempt {
    fn given_up(error: impl Into<JobError>, partial: Partial) -> Self {
        Self::GivenUp(Box::new((error.into(), partial)))
    }
}

/// What is learnt of one source while it is asked.
struct Visit {
    /// Whether the partial holds bytes that came from elsewhere or from an earlier run.
    was_resumed: bool,
    backoff: Backoff,
    answers: Answers,
}

/// What of a body is still wanted.
struct Wanted {
    /// Bytes that are here already, to be thrown away.
    skip: u64,
    /// Bytes that may follow, where the length is known.
    room: Option<u64>,
}

impl Run {
    /// Fetches from the first of `remotes` that delivers the right content.
    pub(super) async fn fetch_stream(
        self: Arc<Self>,
        target: Target,
        remotes: Vec<Remote>,
    ) -> Result<Arrival, JobError> {
        let mut partial = self.open_partial(&target).await?;
        if let Some(expected) = target.wanted().size.filter(|size| partial.len() > *size) {
            let error = ProofError::Length { expected, actual: partial.len() };
            partial = self.restart(&target, partial, &error).await?;
        }
        let mut last = JobError::Source(SourceError::NoUpstream { what: target.item.clone() });
        let remotes = self.distrusted.last_of(remotes);
        for (index, remote) in remotes.iter().enumerate() {
            match self.fetch_from_one(&target, remote, partial).await? {
                Attempt::Proven(arrival) => return Ok(arrival),
                Attempt::GivenUp(given_up) => (last, partial) = *given_up,
            }
            if matches!(last, JobError::Wrong { .. }) {
                self.distrust(&remote.reference);
            }
            if index + 1 < remotes.len() {
                self.left_out(&target.item, &remote.reference, &last.chain());
            }
        }
        Err(last)
    }

    async fn open_partial(&self, target: &Target) -> Result<Partial, JobError> {
        let target = target.clone();
        blocking(move || {
            Partial::open(&target.staging, &target.key(), target.hasher_with_chunks(), target.owner)
                .map_err(JobError::io(format!("{} cannot be written", target.staging.display())))
        })
        .await
    }

    async fn fetch_from_one(
        &self,
        target: &Target,
        remote: &Remote,
        mut partial: Partial,
    ) -> Result<Attempt, JobError> {
        let from = remote.reference.to_string();
        let (total, resumed) = (target.wanted().size, partial.len());
        self.means.monitor.event(Event::Started { item: &target.item, total, resumed, from: &from });
        let mut visit =
            Visit { was_resumed: resumed > 0, backoff: Backoff::new(self.means.retry), answers: Answers::default() };
        loop {
            let before = partial.len();
            let (rest, asked) = self.ask(target, remote, partial, &mut visit).await?;
            partial = rest;
            let asked = asked.and_then(|()| {
                let (Some(expected), got) = (total, partial.len() - before) else { return Ok(true) };
                match partial.len() < expected {
                    false => Ok(true),
                    true if got >= LEAST_PART => Ok(false),
                    true => Err(SourceError::CutShort { what: from.clone(), expected: expected - before, got }),
                }
            });
            match asked {
                Ok(true) => {}
                // It gave less than it was asked for, and said so.
                Ok(false) => continue,
                Err(error) if self.pause(target, &error, &mut visit.backoff).await? => continue,
                Err(error) => return Ok(Attempt::given_up(error, partial)),
            }
            let unproven = match self.prove(target, partial).await? {
                Ok(proven) => return Ok(Attempt::Proven(Arrival { proven, lfs: visit.answers.lfs() })),
                Err(unproven) => *unproven,
            };
            partial = self.restart(target, unproven.partial, &unproven.error).await?;
            visit.answers.forget_the_file();
            if self.distrusts(remote) {
                visit.was_resumed = false;
                continue;
            }
            // A mixture of two runs proves nothing about this source; a whole file from it does.
            if !std::mem::take(&mut visit.was_resumed) {
                return Ok(Attempt::given_up(JobError::Wrong { from, source: unproven.error }, partial));
            }
        }
    }

    /// Asks `remote` once for what is missing. The inner result is the source's, the outer one ours.
    async fn ask(
        &self,
        target: &Target,
        remote: &Remote,
        partial: Partial,
        visit: &mut Visit,
    ) -> Result<(Partial, Result<(), SourceError>), JobError> {
        if target.wanted().size == Some(partial.len()) {
            return Ok((partial, Ok(())));
        }
        let source = self.means.sources.for_reference(&remote.reference)?;
        let opened = tokio::select! {
            opened = source.open(remote, ByteRange::from(partial.len())) => opened,
            () = self.means.stop.cancelled() => return Err(JobError::Interrupted),
        };
        let body = match opened {
            Ok(body) => body,
            Err(error) => return Ok((partial, Err(error))),
        };
        let what = remote.reference.to_string();
        if let Err(error) = visit.answers.compare(&body, target.wanted().size, &what) {
            return Ok((partial, Err(error)));
        }
        let before = partial.len();
        let (partial, poured) = self.pour(partial, body, target).await?;
        let missing = target.wanted().size.map(|size| size.saturating_sub(before));
        visit.backoff.progressed_by(partial.len() - before, missing);
        Ok((partial, poured))
    }

    /// Waits before the next try; `false` when trying again cannot help.
    async fn pause(&self, target: &Target, error: &SourceError, backoff: &mut Backoff) -> Result<bool, JobError> {
        if error.is_permanent() {
            return Ok(false);
        }
        let Some(pause) = backoff.next(error.wait()) else { return Ok(false) };
        let (reason, pause_ms) = (error.to_string(), pause.as_millis() as u64);
        self.means.monitor.event(Event::Retrying { item: &target.item, reason: &reason, pause_ms });
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(true),
            () = self.means.stop.cancelled() => Err(JobError::Interrupted),
        }
    }

    async fn prove(
        &self,
        target: &Target,
        partial: Partial,
    ) -> Result<Result<crate::fsio::Proven, Box<Unproven>>, JobError> {
        let target = target.clone();
        let proven = blocking(move || Ok(partial.prove(target.wanted().size, &target.wanted().digests))).await?;
        match proven {
            // A disk that cannot sync is no fault of the source.
            Err(unproven) if matches!(unproven.error, ProofError::Io(_)) => {
                let ProofError::Io(error) = unproven.error else { return Err(JobError::Interrupted) };
                Err(JobError::io("Its content cannot be written")(error))
            }
            other => Ok(other),
        }
    }

    async fn restart(&self, target: &Target, mut partial: Partial, error: &ProofError) -> Result<Partial, JobError> {
        let reason = error.to_string();
        self.means.monitor.event(Event::Restarted { item: &target.item, reason: &reason });
        let target = target.clone();
        blocking(move || {
            partial
                .restart(target.hasher_with_chunks())
                .map_err(JobError::io("Its unfinished content cannot be emptied"))?;
            Ok(partial)
        })
        .await
    }

    /// Writes the body to the partial. The inner result is the source's, the outer one ours.
    async fn pour(
        &self,
        partial: Partial,
        body: Body,
        target: &Target,
    ) -> Result<(Partial, Result<(), SourceError>), JobError> {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let wanted = Wanted {
            skip: partial.len().saturating_sub(body.start),
            room: target.wanted().size.map(|size| size.saturating_sub(partial.len())),
        };
        let writer = tokio::task::spawn_blocking(move || write_all(partial, receiver));
        let poured = self.pump(body, wanted, &sender, target).await;
        drop(sender);
        let (partial, written) = writer.await.map_err(|_| JobError::Interrupted)?;
        written.map_err(JobError::io(format!("Its content cannot be written to {}", target.staging.display())))?;
        if self.means.stop.is_cancelled() {
            return Err(JobError::Interrupted);
        }
        Ok((partial, poured))
    }

    async fn pump(
        &self,
        mut body: Body,
        mut wanted: Wanted,
        sender: &mpsc::Sender<Bytes>,
        target: &Target,
    ) -> Result<(), SourceError> {
        loop {
            let chunk = tokio::select! {
                chunk = body.stream.next() => chunk,
                () = self.means.stop.cancelled() => return Ok(()),
            };
            let Some(chunk) = chunk else { return Ok(()) };
            let mut chunk = chunk?;
            tokio::select! {
                () = self.pacer.pass(chunk.len()) => {}
                () = self.means.stop.cancelled() => return Ok(()),
            }
            self.note(|outcome| outcome.moved_bytes += chunk.len() as u64);
            // A source that ignores ranges sends again what is here already.
            let known = wanted.skip.min(chunk.len() as u64);
            wanted.skip -= known;
            let _ = chunk.split_to(known as usize);
            if chunk.is_empty() {
                continue;
            }
            let len = chunk.len() as u64;
            if let Some(left) = &mut wanted.room {
                *left = left.checked_sub(len).ok_or_else(|| SourceError::Protocol {
                    what: target.item.clone(),
                    reason: "more bytes come than the file has".to_owned(),
                })?;
            }
            // The writer stops listening only when the disk refuses; it says why itself.
            if sender.send(chunk).await.is_err() {
                return Ok(());
            }
            self.means.monitor.event(Event::Advanced { item: &target.item, bytes: len });
        }
    }
}

fn write_all(mut partial: Partial, mut chunks: mpsc::Receiver<Bytes>) -> (Partial, std::io::Result<()>) {
    while let Some(chunk) = chunks.blocking_recv() {
        if let Err(error) = partial.append(&chunk) {
            return (partial, Err(error));
        }
    }
    (partial, Ok(()))
}
