//! A real nginx with one folder, which counts its answers and their bytes.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = "/usr/sbin/nginx";
/// Longer than it takes to start; only a hang takes so long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running nginx; ends when dropped.
pub(crate) struct Nginx {
    dir: tempfile::TempDir,
    pub(crate) address: SocketAddr,
    child: Child,
}

/// Whether it is installed.
pub(crate) fn is_installed() -> bool {
    Path::new(PROGRAM).exists()
}

impl Nginx {
    /// Serves `root`, every connection at `rate`, such as `16m`.
    pub(crate) fn start(root: &Path, rate: &str) -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (home, root) = (dir.path().display(), root.display());
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|name| format!("{name}_temp_path {home}/{name}; "))
            .collect();
        let user = if larder::fsio::running_as().uid == 0 { "user root;" } else { "" };
        let text = format!(
            "{user} daemon off; master_process off; pid {home}/pid; error_log {home}/errors;\n\
             events {{ worker_connections 128; }}\n\
             http {{ log_format sent '$body_bytes_sent $msec $request_time'; access_log {home}/sent sent; {temporary}\n\
             server {{ listen {address}; root {root}; limit_rate {rate}; }} }}\n"
        );
        let config = dir.path().join("nginx.conf");
        larder::fsio::write_atomic(&config, text.as_bytes(), &larder::fsio::WriteOptions::default()).unwrap();
        let mut command = Command::new(PROGRAM);
        command.arg("-c").arg(&config).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let begin = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(begin.elapsed() < PATIENCE, "nginx does not start");
            std::thread::yield_now();
        }
        Self { dir, address, child }
    }

    /// Ends it, and says what it did.
    pub(crate) fn end(mut self) -> Served {
        // Gracefully: answers that were broken off are counted when it notices.
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::QUIT)
            .unwrap();
        self.child.wait().unwrap();
        let log = fs_err::read_to_string(self.dir.path().join("sent")).unwrap();
        let mut served = Served { sent: 0, most_open: 0 };
        let mut changes = Vec::new();
        for line in log.lines() {
            let mut words = line.split_whitespace().map(|word| word.parse::<f64>().unwrap());
            let (sent, ended, took) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            served.sent += sent as u64;
            changes.extend([((ended - took) * 1000.0, 1), (ended * 1000.0, -1)]);
        }
        // Those that end first: what follows upon an answer is not beside it.
        changes.sort_by(|one, other| one.partial_cmp(other).unwrap());
        let mut open = 0_i32;
        for (_, change) in changes {
            open += change;
            served.most_open = served.most_open.max(usize::try_from(open).unwrap_or(0));
        }
        served
    }
}

/// What a server did in its life.
pub(crate) struct Served {
    /// Bytes of all answers.
    pub(crate) sent: u64,
    /// The most answers that were under way at the same time.
    pub(crate) most_open: usize,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
