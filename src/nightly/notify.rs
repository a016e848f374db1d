//! Runs a command of the admin's choosing with something on its standard input, within a time.

use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStderr, Command};

/// How much of what a command says is kept for a message.
const KEPT: usize = 4096;
/// How long what a command has said is waited for after its end.
const AFTERWARDS: Duration = Duration::from_secs(1);

/// The command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// It is no command.
    #[error("The notify command is empty")]
    Empty,
    /// It cannot be started.
    #[error("The notify command {program} cannot be started")]
    Start {
        /// Its program.
        program: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It was started and cannot be followed.
    #[error("The notify command {program} cannot be waited for")]
    Wait {
        /// Its program.
        program: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It took too long and was ended, with everything it had started.
    #[error("The notify command {program} was ended after {} s", limit.as_secs())]
    TooLong {
        /// Its program.
        program: String,
        /// How long it was given.
        limit: Duration,
    },
    /// It ended with a failure of its own.
    #[error("The notify command {program} failed ({status}){said}")]
    Failed {
        /// Its program.
        program: String,
        /// How it ended.
        status: String,
        /// The last line it wrote to standard error, after a colon; empty if there was none.
        said: String,
    },
}

/// Runs `command` with `input` on its standard input, for at most `limit`.
///
/// A command that does not read its input is no failure. What it prints goes nowhere; of its complaints the
/// last line becomes part of the error. When time is up, its whole process group is ended.
pub async fn run_with_input(command: &[String], input: &[u8], limit: Duration) -> Result<(), NotifyError> {
    let (program, arguments) = command.split_first().ok_or(NotifyError::Empty)?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| NotifyError::Start { program: program.clone(), source })?;
    let group = child.id();
    match tokio::time::timeout(limit, finish(&mut child, input)).await {
        Ok(Ok((status, _))) if status.success() => Ok(()),
        Ok(Ok((status, said))) => {
            Err(NotifyError::Failed { program: program.clone(), status: status.to_string(), said })
        }
        Ok(Err(source)) => Err(NotifyError::Wait { program: program.clone(), source }),
        Err(_) => {
            end_group(group);
            let _ = child.wait().await;
            Err(NotifyError::TooLong { program: program.clone(), limit })
        }
    }
}

async fn finish(child: &mut Child, input: &[u8]) -> io::Result<(std::process::ExitStatus, String)> {
    let (stdin, stderr, input) = (child.stdin.take(), child.stderr.take(), input.to_vec());
    // Both pipes may be held open by something the command left behind: only its own end is waited for.
    let give = tokio::spawn(async move {
        if let Some(mut stdin) = stdin {
            // Nobody has to read what is offered.
            let _ = stdin.write_all(&input).await;
        }
    });
    let said = Arc::new(Mutex::new(Vec::new()));
    let hear = tokio::spawn(listen(stderr, said.clone()));
    let status = child.wait().await;
    give.abort();
    let _ = tokio::time::timeout(AFTERWARDS, hear).await;
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    let said = String::from_utf8_lossy(&said);
    let last = said.lines().rev().map(str::trim).find(|line| !line.is_empty());
    Ok((status?, last.map(|line| format!(": {line}")).unwrap_or_default()))
}

/// Keeps the end of what is said, and lets nobody wait for being heard.
async fn listen(stderr: Option<ChildStderr>, said: Arc<Mutex<Vec<u8>>>) {
    let Some(mut stderr) = stderr else { return };
    let mut piece = vec![0; KEPT];
    while let Ok(length @ 1..) = stderr.read(&mut piece).await {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.extend_from_slice(&piece[..length]);
        let superfluous = said.len().saturating_sub(KEPT);
        said.drain(..superfluous);
    }
}

/// Ends a command and everything it started that has not left its process group.
fn end_group(group: Option<u32>) {
    let pid = group.and_then(|id| i32::try_from(id).ok()).and_then(rustix::process::Pid::from_raw);
    if let Some(pid) = pid {
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}
