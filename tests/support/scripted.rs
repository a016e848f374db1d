//! An http server on loopback that has one file and answers each request as a script says; every request
//! and every byte is counted.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bytes are sent in pieces of this length.
const PIECE: usize = 64 << 10;

/// A request, before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asked {
    /// How many came before it.
    pub(crate) number: usize,
    /// First byte.
    pub(crate) start: u64,
    /// First byte no longer wanted, where the request says so.
    pub(crate) end: Option<u64>,
}

/// How a request is answered. By default: as it should be, at full speed.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    /// Another status than 200 or 206, and nothing else.
    pub(crate) refuse: Option<u16>,
    /// The connection breaks after so many bytes.
    pub(crate) cut_after: Option<u64>,
    /// The whole file, whatever was asked for.
    pub(crate) whole: bool,
    /// A byte of the file that is sent with a wrong bit.
    pub(crate) flip: Option<u64>,
    /// Before each piece.
    pub(crate) pause: Duration,
    /// With several answers at once, the pauses are longer by the square of their number: all of them together are slower.
    pub(crate) collapses: bool,
    /// The entity tag.
    pub(crate) etag: &'static str,
}

impl Default for Reply {
    fn default() -> Self {
        Self {
            refuse: None,
            cut_after: None,
            whole: false,
            flip: None,
            pause: Duration::ZERO,
            collapses: false,
            etag: "one",
        }
    }
}

type Script = Box<dyn Fn(Asked) -> Reply + Send + Sync>;

/// Answers with content.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Open {
    /// Under way now.
    now: u32,
    /// The most that were under way at the same time.
    pub(crate) most: u32,
    /// Bytes that were sent while only one was under way.
    pub(crate) sent_alone: u64,
}

struct World {
    content: Arc<Vec<u8>>,
    script: Mutex<Arc<Script>>,
    asked: Mutex<Vec<Asked>>,
    sent: Mutex<u64>,
    open: Mutex<Open>,
    ended: AtomicBool,
}

/// A running server; ends when dropped.
pub(crate) struct Scripted {
    pub(crate) address: SocketAddr,
    world: Arc<World>,
}

impl Scripted {
    /// Serves `content` on a free port.
    pub(crate) fn start(content: Arc<Vec<u8>>, script: impl Fn(Asked) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let world = Arc::new(World {
            content,
            script: Mutex::new(Arc::new(Box::new(script))),
            asked: Mutex::default(),
            sent: Mutex::new(0),
            open: Mutex::default(),
            ended: AtomicBool::new(false),
        });
        let shared = world.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.ended.load(Ordering::Relaxed) {
                    return;
                }
                let world = shared.clone();
                std::thread::spawn(move || world.serve(stream));
            }
        });
        Self { address, world }
    }

    /// Where the file is.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/model.bin", self.address)
    }

    /// Answers by another script from now on.
    pub(crate) fn follow(&self, script: impl Fn(Asked) -> Reply + Send + Sync + 'static) {
        *self.world.script.lock().unwrap() = Arc::new(Box::new(script));
    }

    /// Takes the requests out of the log.
    pub(crate) fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.world.asked.lock().unwrap())
    }

    /// How many answers were under way at the same time.
    pub(crate) fn open(&self) -> Open {
        *self.world.open.lock().unwrap()
    }

    /// Bytes of content that were handed to connections so far.
    pub(crate) fn sent(&self) -> u64 {
        *self.world.sent.lock().unwrap()
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.world.ended.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
    }
}

impl World {
    fn serve(&self, stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut stream = stream;
        while let Some((is_head, range)) = read_request(&mut reader) {
            if self.ended.load(Ordering::Relaxed) || !self.answer(&mut stream, is_head, range) {
                return;
            }
        }
    }

    /// Whether the connection goes on.
    fn answer(&self, stream: &mut TcpStream, is_head: bool, range: Option<Range>) -> bool {
        let size = self.content.len() as u64;
        if is_head {
            return write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {size}\r\nETag: \"one\"\r\n\r\n").is_ok();
        }
        let (start, end) = range.unwrap_or((0, None));
        let asked = {
            let mut log = self.asked.lock().unwrap();
            let asked = Asked { number: log.len(), start, end };
            log.push(asked);
            asked
        };
        let script = self.script.lock().unwrap().clone();
        let reply = script(asked);
        if let Some(status) = reply.refuse {
            return write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n").is_ok();
        }
        let is_part = range.is_some() && !reply.whole;
        let (start, end) = if is_part { (start, end.unwrap_or(size).min(size)) } else { (0, size) };
        let mut head = format!("HTTP/1.1 {} OK\r\n", if is_part { 206 } else { 200 });
        if is_part {
            head.push_str(&format!("Content-Range: bytes {start}-{}/{size}\r\n", end - 1));
        }
        head.push_str(&format!("Content-Length: {}\r\nETag: \"{}\"\r\n\r\n", end - start, reply.etag));
        if stream.write_all(head.as_bytes()).is_err() {
            return false;
        }
        self.count(|open| {
            open.now += 1;
            open.most = open.most.max(open.now);
        });
        let goes_on = self.send(stream, start, end, &reply);
        self.count(|open| open.now -= 1);
        goes_on
    }

    fn count(&self, change: impl FnOnce(&mut Open)) -> Open {
        let mut open = self.open.lock().unwrap();
        change(&mut open);
        *open
    }

    fn send(&self, stream: &mut TcpStream, start: u64, end: u64, reply: &Reply) -> bool {
        let stop = reply.cut_after.map_or(end, |after| end.min(start + after));
        let mut at = start;
        while at < stop {
            let until = stop.min(at + PIECE as u64);
            let mut piece = self.content[at as usize..until as usize].to_vec();
            if let Some(flip) = reply.flip.filter(|flip| (at..until).contains(flip)) {
                piece[(flip - at) as usize] ^= 0x10;
            }
            let now = self.count(|_| ()).now;
            if !reply.pause.is_zero() {
                std::thread::sleep(reply.pause * if reply.collapses { now * now } else { 1 });
            }
            if self.ended.load(Ordering::Relaxed) || stream.write_all(&piece).is_err() {
                return false;
            }
            *self.sent.lock().unwrap() += piece.len() as u64;
            self.count(|open| open.sent_alone += if open.now == 1 { piece.len() as u64 } else { 0 });
            at = until;
        }
        stop == end
    }
}

/// First byte, and first byte no longer wanted.
type Range = (u64, Option<u64>);

/// Whether it is HEAD, and the range that is asked for.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<(bool, Option<Range>)> {
    let mut line = String::new();
    (reader.read_line(&mut line).ok()? > 0).then_some(())?;
    let (is_head, mut range) = (line.starts_with("HEAD"), None);
    loop {
        line.clear();
        (reader.read_line(&mut line).ok()? > 0).then_some(())?;
        let text = line.trim().to_ascii_lowercase();
        if text.is_empty() {
            return Some((is_head, range));
        }
        if let Some((first, last)) = text.strip_prefix("range: bytes=").and_then(|text| text.split_once('-')) {
            range = Some((first.parse().ok()?, last.parse::<u64>().ok().map(|last| last + 1)));
        }
    }
}
