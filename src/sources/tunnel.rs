//! A way to a server that only a program can reach: each connection is that program's standard input and output.
//!
//! `ssh pc1 larder serve --stdio` is such a program: the user's keys, configuration and jump hosts lead there,
//! and nothing listens on any network.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, ChildStderr, Command};
use tokio::task::JoinHandle;

/// How long the last words of a program that has ended are waited for.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How much of what a program says may wait to be read, as far as the system allows it.
const WAITING: usize = 1 << 20;

/// A socket in a folder of our user's own; whoever connects talks to a program of its own.
///
/// Closed, and its programs ended, when dropped.
#[derive(Debug)]
pub struct Tunnel {
    socket: PathBuf,
    last_words: Arc<Mutex<String>>,
    accepting: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl Tunnel {
    /// Opens the socket; `command` is started anew for every connection.
    ///
    /// Must be called within a tokio runtime.
    pub fn open(command: Vec<OsString>) -> io::Result<Self> {
        let folder =
            tempfile::Builder::new().prefix("larder-").permissions(PermissionsExt::from_mode(0o700)).tempdir()?;
        let socket = folder.path().join("tunnel");
        let listener = UnixListener::bind(&socket)?;
        let last_words = Arc::new(Mutex::default());
        let accepting = tokio::spawn(accept(listener, command, Arc::clone(&last_words)));
        Ok(Self { socket, last_words, accepting, _folder: folder })
    }

    /// Where to connect to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The last line that one of the programs said on its standard error, if any.
    pub fn last_words(&self) -> String {
        self.last_words.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // The connections' tasks end with it: each holds a program that is ended when dropped.
        self.accepting.abort();
    }
}

async fn accept(listener: UnixListener, command: Vec<OsString>, last_words: Arc<Mutex<String>>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connect(stream, command.clone(), Arc::clone(&last_words)));
                }
                Err(error) => tracing::warn!(%error, "a connection to the other machine could not be begun"),
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn connect(stream: UnixStream, command: Vec<OsString>, last_words: Arc<Mutex<String>>) {
    let remember = |words: String| *last_words.lock().unwrap_or_else(PoisonError::into_inner) = words;
    let Some((program, arguments)) = command.split_first() else { return };
    let failed = |error: io::Error| remember(format!("{} cannot be started: {error}", program.to_string_lossy()));
    let (kept, ends) = match both_ends(stream) {
        Ok(ends) => ends,
        Err(error) => return failed(error),
    };
    let mut child = match start(program, arguments, ends) {
        Ok(child) => child,
        Err(error) => return failed(error),
    };
    if let Some(errors) = child.stderr.take() {
        let listen = listen(errors, remember);
        tokio::pin!(listen);
        tokio::select! {
            () = &mut listen => {}
            // A master connection that ssh leaves behind may hold it open.
            _ = child.wait() => drop(tokio::time::timeout(LAST_WORDS, &mut listen).await),
        }
    }
    let _ = child.wait().await;
    // Only now does who is connected see the end, so that the last words can be asked for then.
    drop(kept);
}

/// The connection, and the same as a program's input and output: nothing is copied between.
fn both_ends(stream: UnixStream) -> io::Result<(OwnedFd, [Stdio; 2])> {
    let stream = stream.into_std()?;
    let _ = rustix::net::sockopt::set_socket_send_buffer_size(&stream, WAITING);
    stream.set_nonblocking(false)?;
    let ends = [OwnedFd::from(stream.try_clone()?), OwnedFd::from(stream.try_clone()?)];
    Ok((OwnedFd::from(stream), ends.map(Stdio::from)))
}

fn start(program: &OsStr, arguments: &[OsString], [input, output]: [Stdio; 2]) -> io::Result<Child> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(input).stdout(output).stderr(Stdio::piped()).kill_on_drop(true).spawn()
}

async fn listen(errors: ChildStderr, remember: impl Fn(String)) {
    let mut lines = BufReader::new(errors).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        tracing::info!(line, "from the other machine");
        if !line.trim().is_empty() {
            remember(line);
        }
    }
}
