//! Other machines of the lab, reached by the user's own ssh: keys, configuration and jump hosts.

use std::ffi::OsString;
use std::io::{self, Read, Write as _};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::cli::error::CliError;
use crate::cli::lab::Lab;

mod cipher;
pub(super) mod install;

/// The longest answer that is taken: the lock or the report of a million files. Nobody is trusted to come to an end.
const LONGEST: u64 = 128 << 20;
/// What is kept of what the other machine says beside its answer.
const LONGEST_COMPLAINT: u64 = 64 << 10;
/// How long an answer may take in all. What is asked for reads no contents.
const PATIENCE: Duration = Duration::from_secs(300);

/// How other machines are reached.
#[derive(Debug, Clone, clap::Args)]
pub(in crate::cli) struct Way {
    /// The program that leads to the other machine, with its options
    #[arg(long, value_name = "COMMAND", default_value = "ssh")]
    pub(super) ssh: String,

    /// larder as it is started on the other machine, with its options
    #[arg(long, value_name = "COMMAND", default_value = "larder")]
    pub(super) remote_larder: String,
}

impl Default for Way {
    fn default() -> Self {
        Self { ssh: "ssh".to_owned(), remote_larder: "larder".to_owned() }
    }
}

impl Way {
    /// ssh with the user's options and the destination; the remote command is still to be added.
    pub(super) fn to(&self, lab: &Lab, machine: &str) -> Vec<OsString> {
        let known = lab.inventory.machines.get(machine).and_then(|machine| machine.ssh.as_deref());
        let options = ["-T", "-oServerAliveInterval=5", "-oServerAliveCountMax=6"];
        let words = self.ssh.split_whitespace().chain(options).chain(["--", known.unwrap_or(machine)]);
        words.map(OsString::from).collect()
    }

    /// The same for moving many bytes: by the fastest cipher, where the user leaves that to ssh.
    pub(super) fn to_move(&self, lab: &Lab, machine: &str) -> Vec<OsString> {
        let mut words = self.to(lab, machine);
        if let Some(option) = cipher::option(&words) {
            words.insert(1, option);
        }
        words
    }

    /// What the larder on `machine` answers to `arguments`, given `input`; an error where ssh itself failed, or there is none.
    pub(super) fn ask(&self, lab: &Lab, machine: &str, arguments: &str, input: &[u8]) -> Result<Output, CliError> {
        let mut words = self.to(lab, machine);
        words.push(format!("{} {arguments}", self.remote_larder).into());
        let program = words.remove(0);
        let (stdin, stdout, stderr) = (Stdio::piped(), Stdio::piped(), Stdio::piped());
        let started = Command::new(&program).args(words).stdin(stdin).stdout(stdout).stderr(stderr).spawn();
        let mut asking = started.map_err(|error| {
            CliError::from(error).context(format!("{} cannot be started", program.to_string_lossy()))
        })?;
        if let Some(mut stdin) = asking.stdin.take() {
            // Who does not want to hear says why on its standard error.
            let _ = stdin.write_all(input);
        }
        let output = answer(asking, PATIENCE).map_err(|reason| {
            CliError::failed(&io::Error::other(format!("{machine} cannot be asked: {reason}")))
                .hint(format!("see what it says: {} {machine} {} {arguments}", self.ssh, self.remote_larder))
        })?;
        match output.status.code() {
            Some(0 | 3) => Ok(output),
            code => Err(self.failure(machine, code, &String::from_utf8_lossy(&output.stderr))),
        }
    }

    fn failure(&self, machine: &str, code: Option<i32>, said: &str) -> CliError {
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
        let reason = match code {
            Some(127) => format!("there is no larder on {machine}: {last}"),
            Some(255) | None => format!("{machine} cannot be reached: {last}"),
            Some(_) => format!("larder on {machine} could not: {last}"),
        };
        CliError::failed(&std::io::Error::other(reason))
            .hint(format!("try: {} {machine} {} --version", self.ssh, self.remote_larder))
    }
}

/// A word that the remote shell takes as it is.
pub(super) fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Everything that `asked` says, within bounds; it is ended where it goes beyond them.
fn answer(mut asked: Child, patience: Duration) -> Result<Output, String> {
    let until = Instant::now() + patience;
    let (tell, heard) = channel();
    let streams: [(Option<Box<dyn Read + Send>>, u64); 2] = [
        (asked.stdout.take().map(|stream| Box::new(stream) as _), LONGEST),
        (asked.stderr.take().map(|stream| Box::new(stream) as _), LONGEST_COMPLAINT),
    ];
    for (index, (stream, longest)) in streams.into_iter().enumerate() {
        let tell = tell.clone();
        std::thread::spawn(move || {
            // Nobody hears it where the answer was given up.
            let _ = tell.send((index, stream.map_or(Ok(Vec::new()), |stream| read(stream, longest, index == 1))));
        });
    }
    let mut said = [Vec::new(), Vec::new()];
    for _ in 0..said.len() {
        let reason = match heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok((index, Ok(bytes))) if index == 1 || (bytes.len() as u64) <= LONGEST => {
                said[index] = bytes;
                continue;
            }
            Ok((_, Ok(_))) => "its answer does not end".to_owned(),
            Ok((_, Err(error))) => error.to_string(),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => "it takes too long to answer".to_owned(),
        };
        let _ = asked.kill();
        let _ = asked.wait();
        return Err(reason);
    }
    let status = asked.wait().map_err(|error| error.to_string())?;
    let [stdout, stderr] = said;
    Ok(Output { status, stdout, stderr })
}

/// One byte more than `longest` where there is more; the rest is read and thrown away where it is `drained`.
fn read(mut stream: impl Read, longest: u64, drained: bool) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.by_ref().take(longest + 1).read_to_end(&mut bytes)?;
    if drained {
        io::copy(&mut stream, &mut io::sink())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(script: &str) -> Child {
        let (stdout, stderr) = (Stdio::piped(), Stdio::piped());
        Command::new("/bin/sh").args(["-c", script]).stdout(stdout).stderr(stderr).spawn().unwrap()
    }

    #[test]
    fn an_answer_is_taken_with_its_code_and_what_was_said_beside_it() {
        let output = answer(asked("echo yes; yes complaint | head -c 1000000 >&2; exit 3"), PATIENCE).unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(3), &b"yes\n"[..]));
        assert!(output.stderr.len() as u64 <= LONGEST_COMPLAINT + 1);
    }

    #[test]
    fn who_does_not_come_to_an_end_is_ended() {
        assert_eq!(answer(asked("exec yes"), PATIENCE).unwrap_err(), "its answer does not end");
        // It would never say anything; no time at all is a limit too.
        assert_eq!(answer(asked("exec tail -f /dev/null"), Duration::ZERO).unwrap_err(), "it takes too long to answer");
    }
}
