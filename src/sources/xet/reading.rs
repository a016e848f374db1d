//! One body that comes by Xet: stretch after stretch, and by plain ranges from where Xet fails.
//!
//! The library decodes what it was asked for into memory before it hands out the first byte, so it is asked
//! for little at a time: the length of a stretch follows the speed, and all stretches that are on their way
//! together stay within [`BUDGET`].

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use tokio::time::timeout;
use xet::xet_session::{XetDownloadStream, XetFileInfo};

use super::trouble::Trouble;
use super::{Shared, Way};
use crate::artifact::Remote;
use crate::sources::hub::Announced;
use crate::sources::{ByteRange, Source as _, SourceError};

/// Decoded bytes of all stretches together.
pub(super) const BUDGET: u64 = 12 << 20;
/// The longest stretch: more would not be faster, and fewer questions hardly matter then.
pub(super) const LONGEST_STRETCH: u64 = 8 << 20;
/// The length of the first stretch of a run.
pub(super) const FIRST_STRETCH: u64 = 1 << 20;
/// A chunk has up to 128 KiB: stretches much shorter than this would fetch much that is thrown away.
const SHORTEST_STRETCH: u64 = 512 << 10;
/// A stretch should come within this time, so that progress is seen and a stall is told from a slow line.
const GOOD_TIME: Duration = Duration::from_secs(1);
/// What is handed on at once.
const PIECE: usize = 256 << 10;

/// A range of a file that is being read.
pub(super) struct Reading {
    shared: Arc<Shared>,
    remote: Remote,
    announced: Announced,
    /// Bytes that are still to come.
    left: Range<u64>,
    now: Now,
    /// The pass that the store did not accept at this offset.
    refused: Option<u64>,
    /// Whether the download limit ends it before its time.
    pub(super) is_cut: bool,
}

enum Now {
    BetweenStretches,
    Stretch(Stretch),
    Plain(Plain),
    Ended,
}

enum Step {
    Begun,
    Piece(Bytes),
    Complete,
}

/// What the library was asked for.
struct Stretch {
    stream: XetDownloadStream,
    /// What it handed out and nobody has taken yet.
    rest: Bytes,
    /// Bytes asked for, and those of them that nobody has taken yet.
    asked: u64,
    missing: u64,
    pass: u64,
    begun: Instant,
    _counted: Counted,
}

/// Bytes by plain ranges.
struct Plain {
    stream: BoxStream<'static, Result<Bytes, SourceError>>,
    /// Bytes before those that are wanted.
    skip: u64,
}

/// One of the stretches that are on their way.
struct Counted(Arc<Shared>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.on_their_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Reading {
    pub(super) fn new(shared: Arc<Shared>, remote: Remote, announced: Announced, left: Range<u64>) -> Self {
        Self { shared, remote, announced, left, now: Now::BetweenStretches, refused: None, is_cut: false }
    }

    pub(super) fn into_stream(self) -> BoxStream<'static, Result<Bytes, SourceError>> {
        stream::unfold(self, |mut reading| async { reading.next().await.map(|piece| (piece, reading)) }).boxed()
    }

    async fn next(&mut self) -> Option<Result<Bytes, SourceError>> {
        loop {
            let step = match &mut self.now {
                Now::Ended => return None,
                Now::Plain(plain) => return plain.next().await,
                Now::BetweenStretches if self.left.is_empty() && self.is_cut => return Some(self.limit_reached()),
                Now::BetweenStretches if self.left.is_empty() => return None,
                Now::BetweenStretches => self.begin().await.map(|()| Step::Begun),
                Now::Stretch(stretch) => match timeout(self.shared.patience, stretch.next()).await {
                    Ok(piece) => piece.map(|piece| piece.map_or(Step::Complete, Step::Piece)),
                    Err(_) => Err(Trouble::new("no sign of life for too long")),
                },
            };
            match step {
                Ok(Step::Begun) => {}
                Ok(Step::Piece(piece)) => return Some(self.hand_on(piece).await),
                Ok(Step::Complete) => self.end_stretch(),
                Err(trouble) => {
                    if let Err(error) = self.recover(&trouble).await {
                        self.now = Now::Ended;
                        return Some(Err(error));
                    }
                }
            }
        }
    }

    /// Lets a piece pass under the limits that plain content passes under too.
    async fn hand_on(&mut self, mut piece: Bytes) -> Result<Bytes, SourceError> {
        if let Some(lane) = self.shared.hub.lane() {
            lane.pass(piece.len()).await;
        }
        let granted = self.shared.hub.network().allowance().take(piece.len() as u64);
        if granted == 0 && !piece.is_empty() {
            return self.limit_reached();
        }
        piece.truncate(granted as usize);
        self.left.start += piece.len() as u64;
        self.refused = None;
        Ok(piece)
    }

    fn limit_reached(&mut self) -> Result<Bytes, SourceError> {
        self.now = Now::Ended;
        Err(self.shared.hub.network().limit_reached(&self.remote.reference.to_string()))
    }

    /// Asks for the next stretch.
    async fn begin(&mut self) -> Result<(), Trouble> {
        if matches!(self.shared.way(&self.remote), Some(Way::Plain)) {
            return Err(Trouble::new("it failed elsewhere"));
        }
        let shared = &self.shared;
        let granted = shared.passes.granted(&shared.hub, &self.remote, self.refused).await?;
        let together = shared.on_their_way.fetch_add(1, Ordering::Relaxed) + 1;
        let counted = Counted(Arc::clone(shared));
        let asked = stretch_length(shared.stretch.load(Ordering::Relaxed), together);
        let end = self.left.end.min(self.left.start + asked);
        let file = XetFileInfo::new(self.announced.hash.clone(), self.announced.size);
        let begun = Instant::now();
        let stream = granted.group.download_stream(file, Some(self.left.start..end)).await?;
        let (rest, pass, asked) = (Bytes::new(), granted.number, end - self.left.start);
        self.now = Now::Stretch(Stretch { stream, rest, asked, missing: asked, pass, begun, _counted: counted });
        Ok(())
    }

    /// Learns from a stretch that has come whole how long the next one should be.
    fn end_stretch(&mut self) {
        let Now::Stretch(stretch) = &self.now else { return };
        let usual = self.shared.stretch.load(Ordering::Relaxed);
        let better = better_length(stretch.asked, stretch.begun.elapsed());
        // The short end of a range says nothing about longer ones.
        if stretch.asked >= usual || better < stretch.asked {
            self.shared.stretch.store(better, Ordering::Relaxed);
        }
        self.now = Now::BetweenStretches;
    }

    /// Goes on with a fresh pass where that can help, else by plain ranges.
    async fn recover(&mut self, trouble: &Trouble) -> Result<(), SourceError> {
        if let Now::Stretch(stretch) = &self.now
            && trouble.refused
            && self.refused.is_none()
        {
            self.refused = Some(stretch.pass);
            self.now = Now::BetweenStretches;
            return Ok(());
        }
        self.shared.give_up(&self.remote, trouble);
        let range = ByteRange { start: self.left.start, end: Some(self.left.end) };
        let body = self.shared.hub.open(&self.remote, range).await?;
        self.now = Now::Plain(Plain { stream: body.stream, skip: range.start.saturating_sub(body.start) });
        Ok(())
    }
}

impl Stretch {
    /// The next piece; `None` once the stretch is complete.
    async fn next(&mut self) -> Result<Option<Bytes>, Trouble> {
        while self.rest.is_empty() {
            match self.stream.next().await? {
                Some(bytes) if bytes.len() as u64 <= self.missing => self.rest = bytes,
                Some(_) => return Err(Trouble::new("it sends more than was asked for")),
                None if self.missing == 0 => return Ok(None),
                None => return Err(Trouble::silent()),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        self.missing -= piece.len() as u64;
        Ok(Some(piece))
    }
}

impl Plain {
    async fn next(&mut self) -> Option<Result<Bytes, SourceError>> {
        loop {
            let mut piece = match self.stream.next().await? {
                Ok(piece) => piece,
                Err(error) => return Some(Err(error)),
            };
            let known = self.skip.min(piece.len() as u64);
            self.skip -= known;
            let _ = piece.split_to(known as usize);
            if !piece.is_empty() {
                return Some(Ok(piece));
            }
        }
    }
}

/// How much to ask for where `together` stretches share the memory.
fn stretch_length(usual: u64, together: usize) -> u64 {
    usual.min(BUDGET / together.max(1) as u64).clamp(SHORTEST_STRETCH, LONGEST_STRETCH)
}

/// What is likely to come in good time, after `asked` bytes have come in `took`.
fn better_length(asked: u64, took: Duration) -> u64 {
    let better = match took {
        took if took < GOOD_TIME => asked * 2,
        took if took > 4 * GOOD_TIME => asked / 2,
        _ => asked,
    };
    better.clamp(SHORTEST_STRETCH, LONGEST_STRETCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_stretches_together_stay_within_the_budget() {
        assert_eq!(stretch_length(LONGEST_STRETCH, 1), LONGEST_STRETCH);
        for together in 1..=(BUDGET / SHORTEST_STRETCH) as usize {
            assert!(stretch_length(LONGEST_STRETCH, together) * together as u64 <= BUDGET, "{together}");
        }
        assert_eq!(stretch_length(1, 1000), SHORTEST_STRETCH);
    }

    #[test]
    fn stretches_follow_the_speed() {
        let lengths = |took: Duration| {
            std::iter::successors(Some(FIRST_STRETCH), move |length| Some(better_length(*length, took))).nth(10)
        };
        assert_eq!(lengths(Duration::from_millis(100)), Some(LONGEST_STRETCH));
        assert_eq!(lengths(Duration::from_secs(2)), Some(FIRST_STRETCH));
        assert_eq!(lengths(Duration::from_secs(30)), Some(SHORTEST_STRETCH));
    }
}
