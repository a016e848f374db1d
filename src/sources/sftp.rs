//! The files of a machine without larder, read by sftp: all it needs is its sshd.
//!
//! Where a content may lie there is known beforehand, from the layouts of its stores; whether it is that content is
//! known when it has arrived and is proven.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsString;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{StreamExt, try_unfold};
use tokio::runtime::{Handle, Id as RuntimeId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::artifact::{Reference, Remote};
use crate::digest::ContentName;
use crate::pace::Pacer;
use crate::sources::body::{empty_body, is_empty, printable, size_change};
use crate::sources::network::{Allowed, Network};
use crate::sources::{Body, ByteRange, Holdings, Listing, Source, SourceError};

mod session;

use session::{Attributes, Refusal, Session, Trouble};

/// How much is asked for at once; every server gives that much.
const PIECE: u32 = 32 << 10;
/// How many pieces are on their way at a time: 4 MiB fill a gigabit over 30 ms.
const ON_THE_WAY: usize = 128;

/// How the files of one machine are reached.
#[derive(Debug, Clone, Default)]
pub struct SftpConfig {
    /// What people call it.
    pub name: String,
    /// The program that leads there, and speaks sftp on its standard input and output.
    pub command: Vec<OsString>,
    /// How many of these may run at the same time.
    pub sessions: usize,
    /// Where each content may lie there, the likeliest place first, with its length where that is known. Relative
    /// paths begin in the home of whoever logs in.
    pub places: HashMap<ContentName, (Option<u64>, Vec<String>)>,
}

/// The machines that are read by sftp.
#[derive(Debug)]
pub struct SftpSource {
    machines: BTreeMap<String, Arc<Machine>>,
    network: Network,
}

#[derive(Debug)]
struct Machine {
    config: SftpConfig,
    turns: Arc<Semaphore>,
    /// Each can only be used within the runtime that it was begun in.
    idle: Mutex<Vec<(RuntimeId, Session)>>,
    /// By content: how many of its places turned out to hold something else.
    distrusted: Mutex<HashMap<ContentName, usize>>,
}

impl SftpSource {
    /// Prepares the source; nobody is asked.
    pub(super) fn new(machines: &[SftpConfig], network: Network) -> Self {
        let machine = |config: &SftpConfig| {
            let machine = Machine {
                config: config.clone(),
                turns: Arc::new(Semaphore::new(config.sessions.max(1))),
                idle: Mutex::default(),
                distrusted: Mutex::default(),
            };
            (config.name.clone(), Arc::new(machine))
        };
        Self { machines: machines.iter().map(machine).collect(), network }
    }

    /// Whether `machine` is read by sftp.
    pub fn knows(&self, machine: &str) -> bool {
        self.machines.contains_key(machine)
    }

    /// What lies on `machine` in one of its places, with the right length.
    pub async fn holdings(&self, machine: &str) -> Result<Holdings, SourceError> {
        let machine = self.machine(machine)?;
        let mut lent = machine.lend(&self.network).await?;
        let (mut paths, mut whose) = (Vec::new(), Vec::new());
        for (content, (size, places)) in &machine.config.places {
            for place in places {
                paths.push(place.clone());
                whose.push((*content, *size));
            }
        }
        let described = lent.session().describe_all(&paths).await.map_err(|trouble| machine.trouble("", trouble))?;
        lent.give_back();
        let mut holdings = Holdings::default();
        for ((content, size), described) in whose.into_iter().zip(described) {
            if described.is_ok_and(|found| is_the_file(&found, size)) {
                holdings.here.insert(content);
            }
        }
        Ok(holdings)
    }

    fn machine(&self, name: &str) -> Result<&Arc<Machine>, SourceError> {
        self.machines.get(name).ok_or_else(|| SourceError::NoUpstream { what: format!("machine {name}") })
    }

    fn content<'a>(&self, reference: &'a Reference) -> Result<(&Arc<Machine>, &'a ContentName), SourceError> {
        match reference {
            Reference::Peer { peer, content } => Ok((self.machine(peer)?, content)),
            other => Err(SourceError::NoUpstream { what: other.to_string() }),
        }
    }
}

fn is_the_file(found: &Attributes, size: Option<u64>) -> bool {
    found.is_file && (size.is_none() || found.size == size)
}

#[async_trait]
impl Source for SftpSource {
    async fn list(&self, reference: &Reference) -> Result<Listing, SourceError> {
        Err(SourceError::NoUpstream { what: reference.to_string() })
    }

    async fn check(&self, remote: &Remote) -> Result<(), SourceError> {
        let (machine, content) = self.content(&remote.reference)?;
        let mut lent = machine.lend(&self.network).await?;
        machine.find(lent.session(), content, remote.size).await?;
        lent.give_back();
        Ok(())
    }

    async fn open(&self, remote: &Remote, range: ByteRange) -> Result<Body, SourceError> {
        let (machine, content) = self.content(&remote.reference)?;
        if is_empty(range) {
            return Ok(empty_body(range.start, remote.size));
        }
        let allowed = self.network.allowed(range, remote.size, &machine.config.name)?;
        let mut lent = machine.lend(&self.network).await?;
        let (place, size) = machine.find(lent.session(), content, remote.size).await?;
        if range.start > size {
            // The same answer as an HTTP server's.
            return Err(SourceError::Status { what: machine.what(&place), status: 416, wait: None });
        }
        if range.start == size {
            lent.give_back();
            return Ok(empty_body(range.start, Some(size)));
        }
        let opened = lent.session().open(&place).await;
        let handle = opened.map_err(|trouble| machine.trouble(&place, trouble))?;
        let end = allowed.range.end.map_or(size, |end| end.min(size));
        let lane = self.network.lane(&[&machine.config.name]);
        let network = self.network.clone();
        let reader = Reader { lent, handle, place, start: range.start, next: range.start, end, asked: VecDeque::new() };
        let (start, total, stream) = (range.start, Some(size), reader.stream(network, lane, allowed));
        Ok(Body { start, total, ignores_range: false, etag: None, stream })
    }

    fn distrust(&self, remote: &Remote) -> bool {
        let Ok((machine, content)) = self.content(&remote.reference) else { return false };
        let mut distrusted = machine.distrusted.lock().unwrap_or_else(PoisonError::into_inner);
        let count = distrusted.entry(*content).or_default();
        *count += 1;
        machine.config.places.get(content).is_some_and(|(_, places)| *count < places.len())
    }
}

impl Machine {
    fn what(&self, place: &str) -> String {
        if place.is_empty() { self.config.name.clone() } else { format!("{}:{place}", self.config.name) }
    }

    fn trouble(&self, place: &str, trouble: Trouble) -> SourceError {
        let what = self.what(place);
        match trouble {
            Trouble::Refused(Refusal::Missing) => SourceError::NotFound { what, whole: false },
            Trouble::Refused(Refusal::Forbidden(message)) => SourceError::Forbidden { what, message },
            Trouble::Refused(Refusal::Other(message)) => SourceError::Protocol { what, reason: message },
            Trouble::Refused(Refusal::End) => {
                SourceError::Protocol { what, reason: "the file ended at once".to_owned() }
            }
            Trouble::Broken(reason) => SourceError::Unreachable { what, reason },
            Trouble::Nonsense(reason) => SourceError::Protocol { what, reason },
        }
    }

    /// A session of one's own, for as long as it is needed.
    async fn lend(self: &Arc<Self>, network: &Network) -> Result<Lent, SourceError> {
        let turn = Arc::clone(&self.turns).acquire_owned().await;
        // The semaphore is never closed.
        let turn = turn.map_err(|_| SourceError::NoUpstream { what: self.config.name.clone() })?;
        let within = Handle::current().id();
        let idle = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|(of, _)| *of == within);
            idle.pop()
        };
        let session = match idle {
            Some((_, session)) => session,
            None => {
                let begun = Session::begin(&self.config.command, network.timeouts().stall).await;
                begun.map_err(|trouble| self.trouble("", trouble))?
            }
        };
        Ok(Lent { session: Some(session), machine: Arc::clone(self), _turn: turn })
    }

    /// Where `content` is, among the places that are not distrusted, and how long it is.
    async fn find(
        &self,
        session: &mut Session,
        content: &ContentName,
        size: Option<u64>,
    ) -> Result<(String, u64), SourceError> {
        let missing = || SourceError::NotFound { what: format!("{content} on {}", self.config.name), whole: false };
        let skipped = self.distrusted.lock().unwrap_or_else(PoisonError::into_inner).get(content).copied();
        let (_, places) = self.config.places.get(content).ok_or_else(missing)?;
        let places = places.get(skipped.unwrap_or(0)..).unwrap_or_default();
        let described = session.describe_all(places).await.map_err(|trouble| self.trouble("", trouble))?;
        let mut reason = None;
        for (place, described) in places.iter().zip(described) {
            match described {
                Ok(found) if is_the_file(&found, size) => match found.size {
                    Some(size) => return Ok((place.clone(), size)),
                    None => reason = Some(self.trouble(place, Trouble::Nonsense("its length is not told".to_owned()))),
                },
                Ok(found) => reason = size_change(found.size, size, &self.what(place)).or(reason),
                Err(Refusal::Missing) => {}
                Err(refusal) => reason = Some(self.trouble(place, Trouble::Refused(refusal))),
            }
        }
        Err(reason.unwrap_or_else(missing))
    }
}

/// A session that one reader has for itself. One that is not given back is ended: who knows what is still under way.
#[derive(Debug)]
struct Lent {
    session: Option<Session>,
    machine: Arc<Machine>,
    _turn: OwnedSemaphorePermit,
}

impl Lent {
    fn session(&mut self) -> &mut Session {
        self.session.as_mut().expect("it is given back once, by who has it")
    }

    fn give_back(mut self) {
        let session = self.session.take().map(|session| (Handle::current().id(), session));
        self.machine.idle.lock().unwrap_or_else(PoisonError::into_inner).extend(session);
    }
}

/// Reads one stretch of a file, with many pieces on their way.
struct Reader {
    lent: Lent,
    handle: Bytes,
    place: String,
    start: u64,
    /// The first byte that nobody has asked for.
    next: u64,
    end: u64,
    /// What was asked for, in the order of the file: number, offset and length.
    asked: VecDeque<(u32, u64, u32)>,
}

impl Reader {
    fn stream(
        self,
        network: Network,
        lane: Option<Arc<Pacer>>,
        allowed: Allowed,
    ) -> futures_util::stream::BoxStream<'static, Result<Bytes, SourceError>> {
        try_unfold(Some(self), move |reader| {
            let (network, lane) = (network.clone(), lane.clone());
            async move {
                let Some(mut reader) = reader else { return Ok(None) };
                let Some(mut bytes) = reader.piece().await? else {
                    let name = reader.lent.machine.config.name.clone();
                    reader.end().await;
                    return if allowed.is_cut { Err(network.limit_reached(&name)) } else { Ok(None) };
                };
                if let Some(lane) = &lane {
                    lane.pass(bytes.len()).await;
                }
                let granted = network.allowance().take(bytes.len() as u64);
                if granted == 0 {
                    return Err(network.limit_reached(&reader.lent.machine.config.name));
                }
                bytes.truncate(granted as usize);
                Ok(Some((bytes, Some(reader))))
            }
        })
        .boxed()
    }

    /// The next bytes; `None` at the end.
    async fn piece(&mut self) -> Result<Option<Bytes>, SourceError> {
        let machine = Arc::clone(&self.lent.machine);
        let refused = |place: &str, trouble| machine.trouble(place, trouble);
        while self.asked.len() < ON_THE_WAY && self.next < self.end {
            let len = u32::try_from(self.end - self.next).unwrap_or(PIECE).min(PIECE);
            let id = self.lent.session().ask_for(&self.handle, self.next, len).await;
            self.asked.push_back((id.map_err(|trouble| refused(&self.place, trouble))?, self.next, len));
            self.next += u64::from(len);
        }
        let Some((id, offset, len)) = self.asked.pop_front() else { return Ok(None) };
        let bytes = match self.lent.session().bytes(id).await {
            Ok(bytes) if bytes.len() <= len as usize => bytes,
            Ok(_) => {
                let trouble = Trouble::Nonsense("more came than was asked for".to_owned());
                return Err(refused(&self.place, trouble));
            }
            // The file is shorter than it was when it was opened.
            Err(Trouble::Refused(Refusal::End)) => {
                let (what, expected) = (machine.what(&self.place), self.end - self.start);
                return Err(SourceError::CutShort { what, expected, got: offset - self.start });
            }
            Err(trouble) => return Err(refused(&self.place, trouble)),
        };
        if let Some(left) = len.checked_sub(bytes.len() as u32).filter(|left| *left > 0) {
            // A server may give less than was asked for; the rest is asked for next, before what follows it.
            let from = offset + bytes.len() as u64;
            let id = self.lent.session().ask_for(&self.handle, from, left).await;
            self.asked.push_front((id.map_err(|trouble| refused(&self.place, trouble))?, from, left));
        }
        Ok(Some(bytes))
    }

    async fn end(mut self) {
        if self.lent.session().close(&self.handle).await.is_ok() {
            self.lent.give_back();
        }
    }
}
