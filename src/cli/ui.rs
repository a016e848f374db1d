//! The only place that prints: results to standard output, everything else to standard error.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;

use serde::Serialize;
use tracing_subscriber::EnvFilter;

use super::error::CliError;
use super::progress::Progress;
use super::{env, progress};
use crate::monitor::{Monitor, Silent};

/// How this run talks to its user.
pub(super) struct Ui {
    pub(super) json: bool,
    quiet: bool,
    progress: Progress,
    /// Standard output is somebody else's.
    mute: bool,
}

#[derive(Serialize)]
struct Envelope<'a, T> {
    version: u32,
    command: &'a str,
    #[serde(flatten)]
    result: &'a T,
}

impl Ui {
    pub(super) fn new(json: bool, quiet: bool, verbose: u8, progress: Progress) -> Self {
        let level = ["warn", "info", "debug"][usize::from(verbose.min(2))];
        let filter = env::log_filter().unwrap_or_else(|| format!("larder={level}"));
        let logging = tracing_subscriber::fmt()
            .with_writer(io::stderr)
            .with_ansi(io::stderr().is_terminal())
            .with_target(false)
            .without_time()
            .with_env_filter(EnvFilter::new(filter));
        // A second subscriber in one process (tests) is no reason to stop.
        let _ = logging.try_init();
        Self { json, quiet, progress, mute: false }
    }

    /// The same for a part of a command: with `--json`, only the whole prints its object.
    pub(super) fn for_a_part(&self) -> Self {
        Self { json: false, mute: self.json, ..*self }
    }

    /// Prints a result for people; nothing with `--json`.
    ///
    /// In systemd's journal, faults have the priority of errors.
    pub(super) fn text(&self, text: &str) {
        if self.json || self.mute {
            return;
        }
        if env::output_is_journal() { print(&with_priorities(text)) } else { print(text) }
    }

    /// Prints the result as one JSON object, with `--json`.
    pub(super) fn object<T: Serialize>(&self, command: &str, result: &T) {
        if !self.json {
            return;
        }
        print(&envelope(command, result));
    }

    /// Prints to standard output whatever the format: completions, the manual page.
    pub(super) fn raw(&self, bytes: &[u8]) {
        // Nobody listening is no error: `larder man | head`.
        let _ = io::stdout().write_all(bytes);
    }

    /// Tells something on the way.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(anstream::stderr(), "{text}");
        }
    }

    /// Warns; also with `--quiet`.
    pub(super) fn warn(&self, text: &str) {
        let _ = writeln!(anstream::stderr(), "warning: {text}");
    }

    /// Tells why the command failed.
    pub(super) fn error(&self, error: &CliError) {
        let mut out = anstream::stderr();
        for (message, hint) in error.messages() {
            let _ = writeln!(out, "error: {message}");
            if let Some(hint) = hint {
                let _ = writeln!(out, "hint: {hint}");
            }
        }
    }

    /// Asks whether something is to be changed, on the terminal; `None` where nobody can answer.
    pub(super) fn ask(&self, question: &str) -> Option<bool> {
        if !io::stdin().is_terminal() {
            return None;
        }
        let _ = write!(anstream::stderr(), "{question} [y/N] ");
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).ok()?;
        let agreed = matches!(answer.trim().to_lowercase().as_str(), "y" | "yes" | "j" | "ja");
        if !agreed {
            self.note("Nothing was changed");
        }
        Some(agreed)
    }

    /// Columns of the terminal, or enough for a log.
    pub(super) fn width(&self) -> u16 {
        let size = io::stdout().is_terminal().then(|| rustix::termios::tcgetwinsize(io::stdout()).ok()).flatten();
        size.map(|size| size.ws_col).filter(|columns| *columns >= 40).unwrap_or(120)
    }

    /// Who shows the progress of a run that will move `expected` bytes.
    pub(super) fn monitor(&self, expected: Option<u64>) -> Arc<dyn Monitor> {
        let on_terminal = io::stderr().is_terminal();
        match self.progress {
            Progress::None => Arc::new(Silent),
            Progress::Auto if self.quiet => Arc::new(Silent),
            Progress::Json => Arc::new(progress::Events::new(expected)),
            Progress::Bars => Arc::new(progress::Bars::new(expected)),
            Progress::Lines => Arc::new(progress::Lines),
            Progress::Auto if on_terminal => Arc::new(progress::Bars::new(expected)),
            Progress::Auto if self.json => Arc::new(progress::Events::new(expected)),
            Progress::Auto => Arc::new(progress::Lines),
        }
    }
}

/// Lines as the journal reads them: `<3>` is an error, `<4>` a warning. What is indented belongs to the line above.
fn with_priorities(text: &str) -> String {
    let mut priority = "";
    let mut out = String::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        if !line.starts_with(' ') {
            priority = match line.split_once(':').map(|(word, _)| word) {
                Some("fault" | "error" | "wrong") => "<3>",
                Some("warning" | "unknown") => "<4>",
                _ => "",
            };
        }
        out.push_str(&format!("{priority}{line}\n"));
    }
    out
}

/// The object that `--json` prints.
pub(super) fn envelope<T: Serialize>(command: &str, result: &T) -> String {
    let text = serde_json::to_string_pretty(&Envelope { version: 1, command, result });
    text.expect("results have only text keys") + "\n"
}

fn print(text: &str) {
    // Nobody listening is no error: `larder list | head`.
    let _ = anstream::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_journal_learns_what_is_bad() {
        let said =
            super::with_priorities("fault: a/b: it is missing\n       /srv/b\n\nunknown: x: y\n2 files, 1 fault\n");
        assert_eq!(said, "<3>fault: a/b: it is missing\n<3>       /srv/b\n<4>unknown: x: y\n2 files, 1 fault\n");
    }
}
