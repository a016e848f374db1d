//! A real S3 server, s3s-fs, on a free port of the loopback, behind a relay that counts and can stop in the middle.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

#[path = "parts.rs"]
pub(crate) mod parts;

/// Who may ask the server.
pub(crate) const KEY: &str = "LARDERTESTKEY";
pub(crate) const SECRET: &str = "larder-test-secret-0123456789";

/// A running server; ends when dropped.
pub(crate) struct S3 {
    child: Child,
    program: PathBuf,
    port: u16,
    root: tempfile::TempDir,
    relay: Arc<Relay>,
    /// Where it is asked, through the relay.
    pub(crate) endpoint: String,
}

/// What has passed, and how far more may.
#[derive(Default)]
struct Relay {
    passed: Mutex<Passed>,
    changed: Condvar,
}

#[derive(Default)]
struct Passed {
    /// Connections of an earlier one are cut: what they still hold is nobody's any more.
    generation: u64,
    requests: Vec<String>,
    up: u64,
    down: u64,
    /// Nothing more passes in this direction once so many bytes have.
    up_to: Option<u64>,
    down_to: Option<u64>,
    is_stopped: bool,
}

impl S3 {
    /// Starts a server with these buckets; `None`, loudly, where the program is not installed and this is not CI.
    pub(crate) fn start(buckets: &[&str]) -> Option<Self> {
        let program = parts::part("bin/s3s-fs")?;
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for bucket in buckets {
            fs_err::create_dir(root.path().join(bucket)).unwrap();
        }
        // The program takes no port 0, so one is tried that was free a moment ago.
        let (child, port) = (0..20).find_map(|_| serve(&program, root.path())).expect("s3s-fs finds a free port");
        let relay = Arc::new(Relay::default());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let accepting = relay.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { continue };
                pump(&accepting, &client, &server, true);
                pump(&accepting, &server, &client, false);
            }
        });
        Some(Self { child, program, port, root, relay, endpoint })
    }

    /// Ends the server as kill -9 does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again where it was.
    pub(crate) fn restart(&mut self) {
        self.child = serve_at(&self.program, self.root.path(), self.port).expect("its port is still free");
    }

    /// Where the server keeps an object on its disk.
    pub(crate) fn on_disk(&self, bucket: &str, key: &str) -> PathBuf {
        self.root.path().join(bucket).join(key)
    }

    /// The keys of everything in a bucket.
    pub(crate) fn keys(&self, bucket: &str) -> Vec<String> {
        let root = self.root.path().join(bucket);
        let files = walkdir::WalkDir::new(&root).sort_by_file_name().into_iter().map(Result::unwrap);
        let files = files.filter(|entry| entry.file_type().is_file());
        files.map(|entry| entry.path().strip_prefix(&root).unwrap().to_str().unwrap().to_owned()).collect()
    }

    /// Forgets what has passed, and lets everything pass.
    pub(crate) fn count_anew(&self) {
        self.relay.begin(None, None);
    }

    /// The requests since then: method and path without query.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.relay.passed.lock().unwrap().requests.clone()
    }

    /// Bytes that were sent to the server, and by it.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        let passed = self.relay.passed.lock().unwrap();
        (passed.up, passed.down)
    }

    /// From now on nothing passes once so many bytes have: to the server, or by it.
    pub(crate) fn stop_after(&self, up: Option<u64>, down: Option<u64>) {
        self.relay.begin(up, down);
    }

    /// Waits until the relay has stopped.
    pub(crate) fn wait_for_stop(&self) {
        let passed = self.relay.passed.lock().unwrap();
        drop(self.relay.changed.wait_while(passed, |passed| !passed.is_stopped).unwrap());
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server on a port that nobody had; `None` where somebody was faster.
fn serve(program: &Path, root: &Path) -> Option<(Child, u16)> {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    serve_at(program, root, port).map(|child| (child, port))
}

fn serve_at(program: &Path, root: &Path, port: u16) -> Option<Child> {
    let mut command = Command::new(program);
    command.args(["--host", "127.0.0.1", "--port", &port.to_string(), "--access-key", KEY, "--secret-key", SECRET]);
    let mut child = command.arg(root).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    loop {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        if TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Some(child);
        }
        std::thread::yield_now();
    }
}

fn pump(relay: &Arc<Relay>, from: &TcpStream, to: &TcpStream, is_up: bool) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    let relay = relay.clone();
    let generation = relay.passed.lock().unwrap().generation;
    std::thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let got = match from.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Ok(0) | Err(_) => break,
                Ok(got) => got,
            };
            if !relay.let_pass(&buffer[..got], is_up, generation) || to.write_all(&buffer[..got]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    });
}

impl Relay {
    fn begin(&self, up_to: Option<u64>, down_to: Option<u64>) {
        let mut passed = self.passed.lock().unwrap();
        *passed = Passed { generation: passed.generation + 1, up_to, down_to, ..Passed::default() };
        self.changed.notify_all();
    }

    /// Counts, and waits where no more may pass; `false` where the connection's time is over.
    fn let_pass(&self, bytes: &[u8], is_up: bool, generation: u64) -> bool {
        let mut passed = self.passed.lock().unwrap();
        loop {
            if passed.generation != generation {
                return false;
            }
            let (so_far, limit) = if is_up { (passed.up, passed.up_to) } else { (passed.down, passed.down_to) };
            if limit.is_none_or(|limit| so_far < limit) {
                break;
            }
            passed.is_stopped = true;
            self.changed.notify_all();
            passed = self.changed.wait(passed).unwrap();
        }
        if is_up {
            passed.up += bytes.len() as u64;
            passed.requests.extend(request(bytes));
        } else {
            passed.down += bytes.len() as u64;
        }
        true
    }
}

/// The request that begins here, if one does: clients begin each in a packet of its own.
fn request(bytes: &[u8]) -> Option<String> {
    let line = bytes.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (method, path, version) = (words.next()?, words.next()?, words.next()?);
    let is_method = ["GET", "HEAD", "PUT", "POST", "DELETE"].contains(&method);
    (is_method && version == "HTTP/1.1").then(|| format!("{method} {}", path.split('?').next().unwrap_or(path)))
}
