//! Other machines of the lab, reached by the user's own ssh: keys, configuration and jump hosts.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::cli::error::CliError;
use crate::cli::lab::Lab;

pub(super) mod install;

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
        let output = asking.wait_with_output()?;
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
