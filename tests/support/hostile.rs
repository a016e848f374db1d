//! A web server that does as a test says, byte by byte, and keeps count. Shares no code with larder.
//!
//! It speaks HTTP/1.1 over plain sockets, one request per connection, so that every habit a server can have
//! can be written down: what a script returns is what goes over the wire.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long a thread sleeps in the kernel before it looks whether the server is to end.
const HEARTBEAT: Duration = Duration::from_millis(20);

/// One request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path with query.
    pub(crate) target: String,
    pub(crate) headers: Vec<(String, String)>,
    /// How often the same method and path were asked before.
    pub(crate) before: usize,
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// First byte, and first byte no longer wanted, of a `Range`.
    pub(crate) fn range(&self) -> Option<(usize, Option<usize>)> {
        let (start, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((start.parse().ok()?, last.parse::<usize>().ok().map(|last| last + 1)))
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or("")
    }
}

/// One thing that is done on the connection.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Send(Vec<u8>),
    /// So many bytes at a time with a pause between.
    Trickle(Vec<u8>, usize, Duration),
    /// Nothing, until the other side has enough.
    Silence,
    /// The connection is torn down.
    Reset,
}

/// What the server does about one request; then it closes the connection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answer(pub(crate) Vec<Act>);

impl Answer {
    /// Status, headers and body, with the body's length.
    pub(crate) fn new(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let length = body.len().to_string();
        let mut all = headers.to_vec();
        all.push(("Content-Length", &length));
        Self::raw(status, &all, body)
    }

    /// Status, headers and body, with nothing added.
    pub(crate) fn raw(status: u16, headers: &[(&str, &str)], body: &[u8]) -> Self {
        let mut head = format!("HTTP/1.1 {status} so\r\nConnection: close\r\n");
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        Self(vec![Act::Send(head.into_bytes()), Act::Send(body.to_vec())])
    }

    pub(crate) fn json(body: &serde_json::Value) -> Self {
        Self::new(200, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    /// The file as an honest server sends it: parts where they are asked for, no body for HEAD.
    pub(crate) fn file(asked: &Asked, bytes: &[u8], more: &[(&str, &str)]) -> Self {
        let mut headers = vec![("Accept-Ranges", "bytes"), ("ETag", "\"one\"")];
        headers.extend(more);
        if asked.method == "HEAD" {
            let length = bytes.len().to_string();
            headers.push(("Content-Length", &length));
            return Self::raw(200, &headers, b"");
        }
        match asked.range() {
            Some((start, _)) if start >= bytes.len() => {
                let unsatisfied = format!("bytes */{}", bytes.len());
                headers.push(("Content-Range", &unsatisfied));
                Self::new(416, &headers, b"")
            }
            Some((start, end)) => {
                let end = end.unwrap_or(bytes.len()).min(bytes.len());
                let range = format!("bytes {start}-{}/{}", end - 1, bytes.len());
                headers.push(("Content-Range", &range));
                Self::new(206, &headers, &bytes[start..end])
            }
            None => Self::new(200, &headers, bytes),
        }
    }

    pub(crate) fn redirect(to: &str) -> Self {
        Self::new(302, &[("Location", to)], b"")
    }

    /// The same, but something else happens after `bytes` of the body.
    pub(crate) fn cut(mut self, bytes: usize, then: Option<Act>) -> Self {
        if let Some(Act::Send(body)) = self.0.get_mut(1) {
            body.truncate(bytes);
        }
        self.0.extend(then);
        self
    }

    /// The same, but the body comes in drops.
    pub(crate) fn trickled(mut self, at_a_time: usize, pause: Duration) -> Self {
        if let Some(Act::Send(body)) = self.0.pop() {
            self.0.push(Act::Trickle(body, at_a_time, pause));
        }
        self
    }
}

/// One request, and what became of it.
#[derive(Debug, Clone)]
pub(crate) struct Served {
    pub(crate) asked: Asked,
    /// Bytes that were handed to the connection, with the head.
    pub(crate) sent: usize,
    pub(crate) status: u16,
}

type Script = dyn Fn(&Asked) -> Answer + Send + Sync;

#[derive(Default)]
struct Counts {
    served: Mutex<Vec<Served>>,
    seen: Mutex<HashMap<String, usize>>,
    open: AtomicUsize,
    most_open: AtomicUsize,
    stop: AtomicBool,
}

/// A running server; ends when dropped.
pub(crate) struct Hostile {
    pub(crate) port: u16,
    script: Arc<Mutex<Arc<Script>>>,
    counts: Arc<Counts>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Hostile {
    pub(crate) fn start(script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").unwrap(), script)
    }

    /// On a port that was free a moment ago.
    pub(crate) fn start_at(port: u16, script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind(("127.0.0.1", port)).unwrap(), script)
    }

    fn on(listener: TcpListener, script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let port = listener.local_addr().unwrap().port();
        let script: Arc<Mutex<Arc<Script>>> = Arc::new(Mutex::new(Arc::new(script)));
        let counts = Arc::new(Counts::default());
        let thread = std::thread::spawn({
            let (script, counts) = (Arc::clone(&script), Arc::clone(&counts));
            move || accept(&listener, &script, &counts)
        });
        Self { port, script, counts, thread: Some(thread) }
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on it does this instead.
    pub(crate) fn now(&self, script: impl Fn(&Asked) -> Answer + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Arc::new(script);
        self.counts.served.lock().unwrap().clear();
        self.counts.seen.lock().unwrap().clear();
        self.counts.most_open.store(0, Ordering::SeqCst);
    }

    pub(crate) fn served(&self) -> Vec<Served> {
        self.counts.served.lock().unwrap().clone()
    }

    /// Bytes that were handed to connections.
    pub(crate) fn sent(&self) -> usize {
        self.served().iter().map(|served| served.sent).sum()
    }

    /// The most answers that were under way at the same time.
    pub(crate) fn most_open(&self) -> usize {
        self.counts.most_open.load(Ordering::SeqCst)
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.counts.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, script: &Arc<Mutex<Arc<Script>>>, counts: &Arc<Counts>) {
    let mut threads = Vec::new();
    for connection in listener.incoming() {
        if counts.stop.load(Ordering::SeqCst) {
            break;
        }
        let Ok(connection) = connection else { continue };
        let (script, counts) = (Arc::clone(script), Arc::clone(counts));
        threads.push(std::thread::spawn(move || {
            serve(connection, &script, &counts);
        }));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

fn serve(mut connection: TcpStream, script: &Mutex<Arc<Script>>, counts: &Counts) {
    let _ = connection.set_nodelay(true);
    let _ = connection.set_read_timeout(Some(HEARTBEAT));
    let _ = connection.set_write_timeout(Some(Duration::from_secs(20)));
    let Some(mut asked) = read_request(&mut connection, counts) else { return };
    {
        let mut seen = counts.seen.lock().unwrap();
        let before = seen.entry(format!("{} {}", asked.method, asked.path())).or_default();
        asked.before = *before;
        *before += 1;
    }
    let script = Arc::clone(&script.lock().unwrap());
    let answer = script(&asked);
    let entry = {
        let mut served = counts.served.lock().unwrap();
        let status = match answer.0.first() {
            Some(Act::Send(head)) => String::from_utf8_lossy(head).split(' ').nth(1).and_then(|s| s.parse().ok()),
            _ => None,
        };
        served.push(Served { asked, sent: 0, status: status.unwrap_or(0) });
        served.len() - 1
    };
    let count = |bytes: usize| {
        if let Some(served) = counts.served.lock().unwrap().get_mut(entry) {
            served.sent += bytes;
        }
    };
    let open = counts.open.fetch_add(1, Ordering::SeqCst) + 1;
    counts.most_open.fetch_max(open, Ordering::SeqCst);
    let rest = perform(connection, answer, counts, count);
    if let Some(mut connection) = rest {
        let _ = connection.shutdown(Shutdown::Write);
        while !is_gone(&mut connection, HEARTBEAT, counts) {}
    }
}

/// Does what the answer says; gives the connection back unless it broke.
///
/// The answer counts as under way until its last piece goes out: the other side cannot be done before.
fn perform(connection: TcpStream, answer: Answer, counts: &Counts, count: impl Fn(usize)) -> Option<TcpStream> {
    let mut under_way = Some(UnderWay(counts));
    let mut connection = connection;
    let acts: Vec<Act> =
        answer.0.into_iter().filter(|act| !matches!(act, Act::Send(bytes) if bytes.is_empty())).collect();
    let last = acts.len().saturating_sub(1);
    for (nth, act) in acts.into_iter().enumerate() {
        let (bytes, at_a_time, pause) = match act {
            // In pieces, so that what is counted is about what left.
            Act::Send(bytes) => (bytes, 16 << 10, None),
            Act::Trickle(bytes, at_a_time, pause) => (bytes, at_a_time, Some(pause)),
            Act::Silence => {
                while !is_gone(&mut connection, HEARTBEAT, counts) {}
                continue;
            }
            Act::Reset => {
                // Closing with this set sends RST instead of FIN.
                let socket = tokio::net::TcpSocket::from_std_stream(connection);
                let _ = socket.set_zero_linger();
                return None;
            }
        };
        let pieces = bytes.len().div_ceil(at_a_time);
        for (number, piece) in bytes.chunks(at_a_time).enumerate() {
            if nth == last && number + 1 == pieces {
                under_way.take();
            }
            connection.write_all(piece).ok()?;
            count(piece.len());
            if pause.is_some_and(|pause| is_gone(&mut connection, pause, counts)) {
                return None;
            }
        }
    }
    Some(connection)
}

/// One answer under way, until it is dropped.
struct UnderWay<'a>(&'a Counts);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Waits for so long; whether the other side has closed, or the server is to end.
fn is_gone(connection: &mut TcpStream, wait: Duration, counts: &Counts) -> bool {
    let _ = connection.set_read_timeout(Some(wait.max(Duration::from_millis(1))));
    let is_timeout =
        |error: &std::io::Error| matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
    match connection.read(&mut [0; 1]) {
        Ok(0) => true,
        Err(error) if !is_timeout(&error) => true,
        _ => counts.stop.load(Ordering::SeqCst),
    }
}

/// Reads a request to the end of its body.
fn read_request(connection: &mut TcpStream, counts: &Counts) -> Option<Asked> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    let asked = loop {
        if let Some((asked, end)) = parse(&bytes) {
            let length = asked.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            if bytes.len() >= end + length {
                break asked;
            }
        }
        match connection.read(&mut piece) {
            Ok(0) => return None,
            Ok(n) => bytes.extend_from_slice(&piece[..n]),
            Err(_) if counts.stop.load(Ordering::SeqCst) => return None,
            Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => return None,
        }
    };
    Some(asked)
}

fn parse(bytes: &[u8]) -> Option<(Asked, usize)> {
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect();
    Some((Asked { method, target, headers, before: 0 }, end))
}
