//! A way to a server that only a program can reach: each connection is that program's standard input and output.
//!
//! `ssh pc1 larder serve --stdio` is such a program: the user's keys, configuration and jump hosts lead there,
//! and nothing listens on any network.

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{ChildStderr, Command};
use tokio::task::JoinHandle;

/// How much the program is given or taken from at a time.
const PIECE: usize = 256 << 10;

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
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => return remember(format!("{} cannot be started: {error}", program.to_string_lossy())),
    };
    let (Some(mut input), Some(output), Some(errors)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return;
    };
    let (from_us, mut to_us) = stream.into_split();
    let forth = async {
        let _ = tokio::io::copy_buf(&mut BufReader::with_capacity(PIECE, from_us), &mut input).await;
        // The program learns that nothing more will come.
        drop(input);
    };
    let back = async {
        let _ = tokio::io::copy_buf(&mut BufReader::with_capacity(PIECE, output), &mut to_us).await;
        let _ = to_us.shutdown().await;
    };
    let listen = listen(errors, remember);
    tokio::pin!(forth, listen);
    tokio::select! {
        () = back => {}
        () = async { forth.await; std::future::pending().await } => {}
    }
    // The program has closed its output: its last words are all that can still come.
    listen.await;
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
