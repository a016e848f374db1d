//! Fetches a large file in parts: decides who asks whom for what, and what an error means.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::Instant;

use super::inquiry::Inquiry;
use super::joining::Watch;
use super::landing::{Landing, Site, Told};
use super::line::{Broken, Line, Shared};
use super::schedule::{Claim, ClaimId, Schedule};
use super::suppliers::{Answers, Suppliers};
use super::tempo::{Measure, OWN_LIMIT, PERIOD, Tempo};
use crate::apply::bring::{Arrival, Target, blocking};
use crate::apply::{JobError, Run};
use crate::artifact::Remote;
use crate::digest::{CHUNK_LEN, ChunkDigests, DigestMismatch};
use crate::fsio::{Assembly, Earlier, Prefix, ProofError};
use crate::monitor::Event;
use crate::sources::SourceError;

/// A connection that is slower than the others by this factor is taken back once there is nothing else to do.
const TOO_SLOW: f64 = 8.0;
/// How long a connection that is tried may take to bring its first bytes: a login by ssh over a long line takes a second.
const LOGIN: Duration = Duration::from_secs(3);

/// How one attempt at the whole file ended.
enum Ending {
    Proven(Arrival),
    /// Nobody is left to ask.
    GivenUp,
    /// All bytes came, and they are not the file.
    Wrong(ProofError),
}

/// One attempt at the whole file.
struct Parts<'a> {
    run: Arc<Run>,
    target: &'a Target,
    assembly: Arc<Assembly>,
    suppliers: &'a mut Suppliers,
    shared: Arc<Shared>,
    landing: Landing,
    tempo: Tempo,
    /// Who is asked first: what is found out about connections is remembered for it.
    host: Option<String>,
    lines: JoinSet<Result<(), Broken>>,
    running: HashMap<Id, Running>,
    measured_at: Instant,
    watch: Watch,
    told_lines: usize,
    /// How many connections there were when the rate was measured last.
    measured_lines: usize,
}

/// One connection under way.
struct Running {
    claim: ClaimId,
    supplier: usize,
    authority: String,
    brought: Arc<AtomicU64>,
    since: Instant,
    /// Whether it is one more than before.
    is_tried: bool,
    abort: AbortHandle,
}

impl Run {
    /// Fetches a file of `size` bytes from all of `remotes` at once, as far as that is of use.
    pub(super) async fn fetch_parts(
        self: Arc<Self>,
        target: Target,
        remotes: Vec<Remote>,
        size: u64,
    ) -> Result<Arrival, JobError> {
        let (assembly, mut earlier, known) = self.open_assembly(&target, size).await?;
        let mut suppliers = Suppliers::new(remotes, &self.distrusted, self.means.retry);
        let mut inquiry = Inquiry::into(&assembly);
        let first = suppliers.next().map_or(String::new(), |index| suppliers.get(index).name.clone());
        let (item, resumed) = (target.item.as_str(), earlier.bytes());
        self.means.monitor.event(Event::Started { item, total: Some(size), resumed, from: &first });
        loop {
            let site = Site {
                assembly: assembly.clone(),
                here: earlier.parts,
                hasher: target.hasher(),
                known: known.clone(),
                senders: inquiry.senders.clone(),
            };
            let mut parts = Parts::begin(&self, &target, &mut suppliers, site);
            let ending = parts.live().await;
            let closed = parts.close().await;
            let error = match ending? {
                Ending::Proven(arrival) => {
                    self.name_liars(&target, &assembly, &suppliers, &inquiry);
                    return Ok(arrival);
                }
                Ending::GivenUp => return Err(suppliers.take_last_error(item)),
                Ending::Wrong(error) => error,
            };
            closed?;
            earlier = self.after_wrong(&target, &mut suppliers, &mut inquiry, error).await?;
        }
    }

    async fn open_assembly(
        self: &Arc<Self>,
        target: &Target,
        size: u64,
    ) -> Result<(Arc<Assembly>, Earlier, Option<ChunkDigests>), JobError> {
        let (run, target) = (self.clone(), target.clone());
        blocking(move || {
            let (assembly, earlier) = Assembly::open(&target.staging, &target.key(), size, target.owner)
                .map_err(JobError::io(format!("{} cannot be written", target.staging.display())))?;
            let sha256 = target.wanted().digests.sha256;
            // A cache that cannot be read costs nothing but its help.
            let known = sha256.and_then(|sha256| run.means.facts.chunks(&sha256).ok().flatten());
            Ok((Arc::new(assembly), earlier, known.filter(|known| known.content_len() == size)))
        })
        .await
    }

    /// As many connections as an earlier file of the host ended with, or as the user wants at first.
    fn tempo_for(&self, host: Option<&str>) -> Tempo {
        let most = self.means.connections;
        match host.and_then(|host| self.lines.of_use(host)) {
            Some(count) => Tempo::beginning_with(count, most),
            None if self.means.first_connections > 1 => Tempo::beginning_with(self.means.first_connections, most),
            None => Tempo::new(most),
        }
    }
}

impl<'a> Parts<'a> {
    fn begin(run: &Arc<Run>, target: &'a Target, suppliers: &'a mut Suppliers, site: Site) -> Self {
        let assembly = site.assembly.clone();
        let schedule = Schedule::new(assembly.size(), &site.here);
        let host = suppliers.next().map(|index| suppliers.get(index).remote.reference.authority());
        let landing = Landing::start(run.clone(), &target.item, site);
        let shared = Shared {
            run: run.clone(),
            size: assembly.size(),
            schedule: Mutex::new(schedule),
            pieces: landing.pieces(),
            answers: suppliers.each(|_| Answers::default()),
            is_alone: AtomicBool::new(true),
            stride: AtomicU64::new(0),
            came: AtomicU64::new(0),
            held_up_us: AtomicU64::new(0),
        };
        Self {
            run: run.clone(),
            target,
            assembly,
            suppliers,
            shared: Arc::new(shared),
            landing,
            tempo: run.tempo_for(host.as_deref()),
            host,
            lines: JoinSet::new(),
            running: HashMap::new(),
            measured_at: Instant::now(),
            watch: Watch::default(),
            told_lines: 0,
            measured_lines: 0,
        }
    }

    /// Goes on until the file is proven, or cannot be.
    async fn live(&mut self) -> Result<Ending, JobError> {
        let stop = self.run.means.stop.clone();
        loop {
            self.start_lines();
            if self.lines.is_empty() && self.suppliers.is_over() && self.shared.schedule().missing_bytes() > 0 {
                return Ok(Ending::GivenUp);
            }
            let rested = self.suppliers.rested_at();
            tokio::select! {
                () = stop.cancelled() => return Err(JobError::Interrupted),
                Some(ended) = self.lines.join_next_with_id() => self.line_ended(ended)?,
                told = self.landing.told() => if let Some(prefix) = self.told(told)? {
                    return self.prove(prefix).await;
                },
                () = tokio::time::sleep_until(self.measured_at + self.tempo.period()) => self.measure(),
                () = tokio::time::sleep_until(rested.unwrap_or_else(Instant::now)), if rested.is_some() => {}
            }
        }
    }

    /// Ends all connections and threads; what came is on the disk.
    async fn close(mut self) -> Result<(), JobError> {
        self.lines.shutdown().await;
        for running in self.running.values() {
            self.run.lines.leave(&running.authority);
            self.suppliers.get_mut(running.supplier).lines -= 1;
        }
        // Of several hosts, nobody knows to whom it was owed.
        let is_of_one = self.suppliers.only_contributor().is_some();
        if let Some(host) = self.host.as_deref().filter(|_| is_of_one && self.tempo.has_found()) {
            self.run.lines.learn(host, self.tempo.count());
        }
        let closed = self.landing.close().await;
        closed.map_err(|error| self.refused(error))
    }

    fn refused(&self, error: std::io::Error) -> JobError {
        JobError::io(format!("Its content cannot be written to {}", self.target.staging.display()))(error)
    }

    async fn prove(&mut self, prefix: Prefix) -> Result<Ending, JobError> {
        // Nobody else is to sync meanwhile.
        self.landing.close().await.map_err(|error| self.refused(error))?;
        let (assembly, digests) = (self.assembly.clone(), self.target.wanted().digests);
        match blocking(move || Ok(assembly.prove(prefix, &digests))).await? {
            Ok(proven) => {
                let lfs = self.shared.answers.iter().find_map(Answers::lfs);
                Ok(Ending::Proven(Arrival { proven, lfs }))
            }
            // A disk that cannot sync is no fault of the source.
            Err(ProofError::Io(error)) => Err(self.refused(error)),
            Err(error) => Ok(Ending::Wrong(error)),
        }
    }

    fn start_lines(&mut self) {
        self.shared.is_alone.store(self.tempo.count() == 1, Ordering::Relaxed);
        while self.lines.len() < self.tempo.count() {
            let Some(supplier) = self.suppliers.next() else { break };
            let authority = self.suppliers.get(supplier).remote.reference.authority();
            // The first connection of a file is always made; further ones only while the host has few.
            if !self.run.lines.enter(&authority, self.lines.is_empty()) {
                break;
            }
            let Some(claim) = self.next_claim() else {
                self.run.lines.leave(&authority);
                break;
            };
            self.start_line(supplier, authority, claim);
        }
        if self.lines.len() != self.told_lines {
            self.told_lines = self.lines.len();
            self.run.means.monitor.event(Event::Connections { item: &self.target.item, count: self.told_lines });
        }
    }

    fn next_claim(&self) -> Option<Claim> {
        let mut schedule = self.shared.schedule();
        let length = self.tempo.range(schedule.missing_bytes());
        self.shared.stride.store(length, Ordering::Relaxed);
        // With nothing left to begin, a range that is under way is shared.
        schedule.take(length).or_else(|| schedule.split(CHUNK_LEN))
    }

    fn start_line(&mut self, supplier: usize, authority: String, claim: Claim) {
        let brought = Arc::new(AtomicU64::new(0));
        let id = claim.id;
        let remote = self.suppliers.get(supplier).remote.clone();
        let by_all = self.run.lines.counter(&authority);
        let (shared, goes_on) = (self.shared.clone(), self.tempo.is_one_enough());
        let line = Line { shared, remote, supplier, claim, goes_on, brought: brought.clone(), by_all };
        let is_tried = self.lines.len() >= self.measured_lines;
        let abort = self.lines.spawn(line.run());
        self.suppliers.get_mut(supplier).lines += 1;
        let running = Running { claim: id, supplier, authority, brought, since: Instant::now(), is_tried, abort };
        self.running.insert(running.abort.id(), running);
    }

    fn line_ended(&mut self, ended: Result<(Id, Result<(), Broken>), JoinError>) -> Result<(), JobError> {
        let (id, result) = match ended {
            Ok((id, result)) => (id, Some(result)),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // It was taken back.
            Err(error) => (error.id(), None),
        };
        let Some(running) = self.running.remove(&id) else { return Ok(()) };
        let rest = {
            let mut schedule = self.shared.schedule();
            let rest = schedule.rest(running.claim);
            schedule.end(running.claim);
            rest.end - rest.start
        };
        self.run.lines.leave(&running.authority);
        let supplier = self.suppliers.get_mut(running.supplier);
        supplier.lines -= 1;
        let brought = running.brought.load(Ordering::Relaxed);
        supplier.brought(brought, brought + rest);
        match result {
            Some(Ok(())) | None => Ok(()),
            Some(Err(Broken::Job(JobError::Interrupted))) => Err(JobError::Interrupted),
            Some(Err(Broken::Job(error))) => {
                self.leave_out(running.supplier, error);
                Ok(())
            }
            Some(Err(Broken::SendsWhole)) => {
                self.sends_whole(running.supplier);
                Ok(())
            }
            Some(Err(Broken::Source(error))) => {
                self.broke(running.supplier, error);
                Ok(())
            }
        }
    }

    /// A source that cannot give parts is of use only where it is the only one.
    fn sends_whole(&mut self, supplier: usize) {
        if self.suppliers.has_other_than(supplier) {
            let what = self.suppliers.get(supplier).name.clone();
            let reason = "it sends the whole file where a part is asked for".to_owned();
            self.leave_out(supplier, SourceError::Protocol { what, reason }.into());
        } else {
            self.tempo.only_one();
        }
    }

    fn broke(&mut self, index: usize, error: SourceError) {
        let supplier = self.suppliers.get_mut(index);
        let is_about_the_file =
            matches!(error, SourceError::Changed { .. } | SourceError::Exchanged { .. } | SourceError::Protocol { .. });
        if supplier.lines > 0 && !is_about_the_file {
            // Others still deliver: it was one connection too many.
            tracing::info!(item = self.target.item, from = supplier.name, %error, "one connection less");
            return self.tempo.refused();
        }
        match supplier.rest_after(&error) {
            Some(pause) => {
                let (reason, pause_ms) = (error.to_string(), u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
                self.run.means.monitor.event(Event::Retrying { item: &self.target.item, reason: &reason, pause_ms });
            }
            None => self.leave_out(index, error.into()),
        }
    }

    /// Does without a source from now on; where others go on, this is told.
    fn leave_out(&mut self, index: usize, why: JobError) {
        for running in self.running.values().filter(|running| running.supplier == index) {
            running.abort.abort();
        }
        if self.suppliers.has_other_than(index) {
            let from = &self.suppliers.get(index).remote.reference;
            self.run.left_out(&self.target.item, from, &why.chain());
        }
        self.suppliers.get_mut(index).leave_out(why);
    }

    fn told(&mut self, told: Told) -> Result<Option<Prefix>, JobError> {
        match told {
            Told::Hashed(prefix) => return Ok(Some(*prefix)),
            Told::Failed(error) => return Err(self.refused(error)),
            Told::Lost { chunk, sent } => {
                let range = self.shared.schedule().lost(chunk);
                let bytes = range.end - range.start;
                self.run.means.monitor.event(Event::Lost { item: &self.target.item, bytes });
                if let Some((supplier, mismatch)) = sent {
                    self.lied(supplier, mismatch);
                }
            }
        }
        Ok(None)
    }

    /// A source sent a chunk that has another digest than it had when the content was last proven.
    fn lied(&mut self, index: usize, mismatch: DigestMismatch) {
        if self.run.distrusts(&self.suppliers.get(index).remote) {
            // It has another way to the same bytes, and the chunk comes again by that one.
        } else if self.suppliers.has_other_than(index) {
            let from = self.suppliers.get(index).name.clone();
            self.run.distrust(&self.suppliers.get(index).remote.reference);
            self.leave_out(index, JobError::Wrong { from, source: ProofError::Content(mismatch) });
        } else {
            // Nobody else can say it better: the digest of the whole decides.
            self.landing.stop_believing();
        }
    }

    fn measure(&mut self) {
        let time = self.measured_at.elapsed();
        self.measured_at = Instant::now();
        let bytes = self.shared.came.swap(0, Ordering::Relaxed);
        let held_up = self.shared.held_up_us.swap(0, Ordering::Relaxed) as f64 / 1e6;
        if self.lines.is_empty() || !self.tempo.has_found() && self.is_one_logging_in() {
            return;
        }
        self.measured_lines = self.lines.len();
        let held_up = held_up / (time.as_secs_f64().max(0.001) * self.lines.len() as f64);
        let missing = self.shared.schedule().missing_bytes();
        self.tempo.measured(Measure { bytes, time, held_up, missing });
        self.join_where_it_is_slow(held_up > OWN_LIMIT);
        self.take_back_the_slow();
    }

    /// Whether a connection that is tried has not had the time to show what it brings.
    fn is_one_logging_in(&self) -> bool {
        let is_silent = |running: &Running| running.brought.load(Ordering::Relaxed) == 0;
        self.running.values().any(|running| running.is_tried && running.since.elapsed() < LOGIN && is_silent(running))
    }

    /// Lets sources of the next kind help where those at work are far too slow.
    fn join_where_it_is_slow(&mut self, is_held_up: bool) {
        let missing = self.shared.schedule().missing_bytes();
        let Some(helper) = self.run.join(&mut self.watch, self.suppliers, missing, is_held_up) else { return };
        self.tempo.joined();
        let from = &self.suppliers.get(helper).name;
        tracing::warn!("{}: {from} helps from now on: those before it are far too slow", self.target.item);
    }

    /// At the end, nobody is to wait for one connection that is far slower than the others.
    fn take_back_the_slow(&mut self) {
        let has_idle = self.lines.len() < self.tempo.count();
        if !has_idle || self.shared.schedule().free_bytes() > 0 {
            return;
        }
        let usual = self.tempo.rate() / self.tempo.count() as f64;
        let is_slow = |running: &&Running| {
            let time = running.since.elapsed();
            time > 2 * PERIOD
                && (running.brought.load(Ordering::Relaxed) as f64) < usual * time.as_secs_f64() / TOO_SLOW
        };
        let slow: Vec<(usize, AbortHandle)> =
            self.running.values().filter(is_slow).map(|running| (running.supplier, running.abort.clone())).collect();
        for (supplier, abort) in slow {
            abort.abort();
            if self.suppliers.has_other_than(supplier) {
                self.suppliers.get_mut(supplier).rest_for_slowness();
                let from = &self.suppliers.get(supplier).remote.reference;
                self.run.left_out(&self.target.item, from, "it is far slower than the others, and rests for a minute");
            }
        }
    }
}
