//! Before and after a verification: waiting while the machine is needed, remembering what was found,
//! and telling when it has changed.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::cli::error::CliError;
use crate::cli::lab::{Lab, now};
use crate::cli::ui::Ui;
use crate::facts::Depth;
use crate::nightly::{self, Busy, Change, Probe};
use crate::observe::Sighting;
use crate::text::chain;
use crate::verify::{Fault, Outlook, Verdict};

/// How often somebody busy is asked again.
const PAUSE: Duration = Duration::from_secs(60);
/// How often a run that goes on asks whether it may.
const WATCH: Duration = Duration::from_secs(5);

#[derive(Debug, Default, clap::Args)]
pub(in crate::cli) struct BusyArgs {
    /// Do nothing, or stop, while this says that the machine is needed: a server's status, or a command that succeeds then
    #[arg(long, value_name = "URL|COMMAND")]
    unless_busy: Option<Probe>,
    /// How long to wait for the machine before giving up, such as 2h [default: not at all]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "unless_busy")]
    postpone: Option<Duration>,
}

impl BusyArgs {
    /// Why nothing is to be done now; `None` where nobody needs the machine, or nobody knows.
    pub(in crate::cli) fn obstacle(&self, ui: &Ui) -> Result<Option<String>, CliError> {
        let Some(probe) = &self.unless_busy else { return Ok(None) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(match runtime.block_on(probe.wait(self.postpone.unwrap_or_default(), PAUSE)) {
            Busy::Yes(what) => Some(what),
            Busy::No => None,
            Busy::Unknown(why) => {
                ui.warn(&format!("nobody knows whether the machine is needed, so the run goes on: {why}"));
                None
            }
        })
    }

    /// Begins to ask on in the background; `None` where nobody is to be asked.
    pub(in crate::cli) fn watch(&self) -> Option<Watch> {
        let probe = self.unless_busy.clone()?;
        let needed = Arc::new(OnceLock::new());
        let (end, ended) = channel();
        let say = Arc::clone(&needed);
        std::thread::spawn(move || watch(&probe, &say, &ended));
        Some(Watch { needed, _end: end })
    }
}

/// Asks while a run goes on whether the machine is needed by now; ends when it is dropped.
pub(in crate::cli) struct Watch {
    needed: Arc<OnceLock<String>>,
    _end: Sender<()>,
}

impl Watch {
    /// Why the run is to stop, once it is.
    pub(in crate::cli) fn needed(&self) -> Option<&String> {
        self.needed.get()
    }
}

/// Asks `probe` again and again, not more often than is cheap, until it says yes once.
fn watch(probe: &Probe, needed: &OnceLock<String>, ended: &Receiver<()>) {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    let mut pause = WATCH;
    while let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(pause) {
        let asked = Instant::now();
        if let Busy::Yes(what) = runtime.block_on(probe.ask()) {
            let _ = needed.set(what);
            return;
        }
        pause = WATCH.max(asked.elapsed() * 20);
    }
}

/// What is printed instead of a result when the machine is needed.
#[derive(Serialize)]
pub(in crate::cli) struct Skipped {
    /// What is going on.
    pub(in crate::cli) skipped: String,
}

/// `90s`, `30m`, `2h`, `1d`.
pub(in crate::cli) fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim() {
        "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err("write a number and a unit: 90s, 30m, 2h or 1d".to_owned()),
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    seconds.map(Duration::from_secs).ok_or_else(|| "write a number and a unit: 90s, 30m, 2h or 1d".to_owned())
}

/// What the notify command reads.
#[derive(Serialize)]
struct News<'a> {
    version: u32,
    event: &'static str,
    machine: &'a str,
    at: i64,
    #[serde(flatten)]
    change: &'a Change,
    faults: &'a [Fault],
}

/// Remembers a run, and runs the inventory's notify command where the run changed what is known.
///
/// What goes wrong here is told and changes nothing of the run's own result.
pub(in crate::cli) fn remember(ui: &Ui, lab: &Lab, sightings: &[Sighting<'_>], verdict: &Verdict, depth: Depth) {
    let known = Outlook::new(sightings, verdict);
    let run = nightly::run_of(verdict, depth, now());
    let at = run.at;
    let change = match nightly::remember(&lab.facts, &run, &verdict.faults, &known) {
        Ok(change) => change,
        Err(error) => {
            ui.warn(&format!("this run is not remembered: {}", chain(&error)));
            return;
        }
    };
    let Some(notify) = lab.inventory.notify.as_ref().filter(|_| !change.is_none()) else { return };
    let news = News {
        version: 1,
        event: "faults-changed",
        machine: &lab.machine,
        at,
        change: &change,
        faults: &verdict.faults,
    };
    if let Err(error) = tell(&notify.command, Duration::from_secs(notify.timeout_seconds), &news) {
        ui.warn(&format!("nobody was told of the change: {}", chain(&error)));
    }
}

fn tell(command: &[String], limit: Duration, news: &News<'_>) -> Result<(), nightly::NotifyError> {
    let input = serde_json::to_vec(news).unwrap_or_default();
    let program = || command.first().cloned().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| nightly::NotifyError::Start { program: program(), source })?;
    runtime.block_on(nightly::run_with_input(command, &input, limit))
}
