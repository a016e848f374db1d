//! A real sshd on loopback, with keys of its own, that lets nobody in but the test.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// A running server, ended when dropped.
pub(crate) struct Sshd {
    folder: tempfile::TempDir,
    port: u16,
    server: Child,
    logins: Arc<AtomicUsize>,
    ciphers: Arc<Mutex<Vec<String>>>,
}

impl Sshd {
    /// Starts the server; `None` where there is none on this machine.
    pub(crate) fn start() -> Option<Self> {
        Self::start_with("")
    }

    /// The same for a machine where who logs in has this home, and finds programs only in these folders.
    pub(crate) fn start_at(home: &Path, path: &str) -> Option<Self> {
        Self::start_with(&format!("SetEnv HOME={} PATH={path}\n", home.display()))
    }

    /// The same on another host: `there` makes of a program one that runs on that host, which has this address.
    pub(crate) fn start_on(there: impl Fn(&Command) -> Command, address: &str) -> Option<Self> {
        Self::start_somewhere("", address, there)
    }

    fn start_with(more: &str) -> Option<Self> {
        Self::start_somewhere(more, "127.0.0.1", |command| {
            let mut same = Command::new(command.get_program());
            same.args(command.get_args());
            same
        })
    }

    fn start_somewhere(more: &str, address: &str, there: impl Fn(&Command) -> Command) -> Option<Self> {
        let program = Path::new("/usr/sbin/sshd");
        if !program.exists() {
            crate::skip::skipped("sshd is missing; install it with scripts/test-parts");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for key in ["host", "user"] {
            let made = Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(at(key)).status();
            assert!(made.unwrap().success());
        }
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let write = |name: &str, text: String| {
            larder::fsio::write_atomic(&at(name), text.as_bytes(), &larder::fsio::WriteOptions::default()).unwrap();
        };
        let path = |name: &str| at(name).display().to_string();
        write(
            "sshd_config",
            format!(
                "Port {port}\nListenAddress {address}\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\n\
                 StrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n\
                 LogLevel DEBUG1\n{more}",
                path("host"),
                path("user.pub")
            ),
        );
        write(
            "ssh_config",
            format!(
                "Host *\n  HostName {address}\n  Port {port}\n  IdentityFile {}\n  IdentitiesOnly yes\n  BatchMode yes\n\
                 \x20 StrictHostKeyChecking no\n  UserKnownHostsFile {}\n  LogLevel ERROR\n",
                path("user"),
                path("known_hosts")
            ),
        );
        // As root, sshd wants the folder that its package's service makes.
        let _ = Command::new("mkdir").args(["-p", "-m", "0755", "/run/sshd"]).status();
        let mut server = there(&program_for(folder.path())).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(server.stderr.take().unwrap()).lines().map_while(Result::ok);
        assert!(said.by_ref().any(|line| line.contains("Server listening")), "sshd does not listen");
        let logins = Arc::new(AtomicUsize::new(0));
        let ciphers = Arc::default();
        std::thread::spawn({
            let (logins, ciphers) = (Arc::clone(&logins), Arc::clone(&ciphers));
            move || said.for_each(|line| note(&line, &logins, &ciphers))
        });
        Some(Self { folder, port, server, logins, ciphers })
    }

    /// Ends the server and all its sessions, at once.
    pub(crate) fn kill_all(&mut self) {
        let own = self.server.id().to_string();
        // Its sessions first: without their parent nobody would know whose they are.
        descendants(&own).iter().chain([&own]).for_each(|number| {
            let _ = Command::new("kill").args(["-9", number]).stderr(Stdio::null()).status();
        });
        let _ = self.server.wait();
    }

    /// Starts it again where it was.
    pub(crate) fn start_again(&mut self) {
        self.server = program_for(self.folder.path()).stderr(Stdio::null()).spawn().unwrap();
        self.wait_until_it_listens(self.port);
    }

    /// The ciphers by which it sent so far, one for every login.
    pub(crate) fn ciphers(&self) -> Vec<String> {
        self.ciphers.lock().unwrap().clone()
    }

    /// Adds a line to what the client goes by.
    pub(crate) fn configure_client(&self, line: &str) {
        let path = self.folder.path().join("ssh_config");
        let text = std::fs::read_to_string(&path).unwrap() + line;
        larder::fsio::write_atomic(&path, text.as_bytes(), &larder::fsio::WriteOptions::default()).unwrap();
    }

    /// The client's command line.
    pub(crate) fn client(&self) -> String {
        format!("ssh -F {}", self.folder.path().join("ssh_config").display())
    }

    /// How often somebody has logged in, until it was killed.
    pub(crate) fn logins(&self) -> usize {
        self.logins.load(Ordering::Relaxed)
    }

    /// Where it listens.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The same by another port of this machine, which leads there.
    pub(crate) fn client_by(&self, port: u16) -> String {
        format!("{} -p {port}", self.client())
    }

    fn wait_until_it_listens(&self, port: u16) {
        for _ in 0..2000 {
            if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        panic!("sshd does not listen");
    }
}

fn note(line: &str, logins: &AtomicUsize, ciphers: &Mutex<Vec<String>>) {
    if line.starts_with("Accepted publickey ") {
        logins.fetch_add(1, Ordering::Relaxed);
    }
    if let Some((_, cipher)) = line.split_once("kex: server->client cipher: ") {
        ciphers.lock().unwrap().extend(cipher.split(' ').next().map(str::to_owned));
    }
}

fn program_for(folder: &Path) -> Command {
    let mut server = Command::new("/usr/sbin/sshd");
    server.args(["-D", "-e", "-f"]).arg(folder.join("sshd_config"));
    server
}

/// The numbers of all processes that `parent` began, and those began, and so on.
fn descendants(parent: &str) -> Vec<String> {
    let children = Command::new("ps").args(["-o", "pid=", "--ppid", parent]).output().unwrap();
    let children: Vec<String> =
        String::from_utf8_lossy(&children.stdout).split_whitespace().map(str::to_owned).collect();
    let further = children.iter().flat_map(|child| descendants(child)).collect::<Vec<_>>();
    children.into_iter().chain(further).collect()
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// `program` as the other machine would start it: knowing only what the words say.
pub(crate) fn remote_words(program: &Path, home: &Path) -> String {
    let at = |name: &str| -> PathBuf { home.join(name) };
    format!(
        "env -i HOME={} LARDER_STATE={} {} --inventory {}",
        at("home").display(),
        at("state").display(),
        program.display(),
        at("inventory.toml").display()
    )
}
