//! What the lab's machines say of themselves in a bucket: for `status --fleet` and `diff`.

use serde::Serialize;

use crate::bucket::{Bucket, Key, Shelf};
use crate::cli::commands::push;
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::fleet::{Copies, Report, Seen, State, copies};
use crate::report::fleet::table;
use crate::sweep::{self, SweepError};

pub(in crate::cli) mod machines;

/// One machine in the object of `status --fleet`.
#[derive(Serialize)]
struct Line<'a> {
    machine: &'a str,
    wanted: usize,
    present: usize,
    verified: usize,
    here_bytes: u64,
    oldest_proof: Option<i64>,
    faults: usize,
    last_seen: i64,
}

#[derive(Serialize)]
struct Fleet<'a> {
    machines: Vec<Line<'a>>,
    irreplaceable: &'a [Copies],
}

/// Every machine that has told the bucket what it has, in alphabetical order.
pub(in crate::cli) fn in_bucket(ui: &Ui, common: &Common, name: Option<&str>) -> Result<Vec<Seen>, CliError> {
    let lab = Lab::read_wanted(ui, common)?;
    let bucket = push::open(&lab, common, &push::configured(&lab, name)?)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let states = runtime.block_on(async {
        let listed = bucket.list(Shelf::States).await?;
        sweep::states(&bucket, &listed).await
    });
    let states = states.map_err(|error| failed(&error))?;
    let mut seen: Vec<Seen> = states.into_iter().filter_map(|state| read(ui, state)).collect();
    seen.sort_by(|a, b| a.report.machine.cmp(&b.report.machine));
    Ok(seen)
}

/// One machine of the bucket, with the lock that it goes by.
pub(in crate::cli) async fn one(bucket: &Bucket, machine: &str) -> Result<Option<Seen>, CliError> {
    let listed = bucket.list(Shelf::States).await.map_err(push::failed)?;
    let key = Key::state(machine);
    let own: Vec<_> = listed.into_iter().filter(|object| Some(&object.key) == key.as_ref()).collect();
    let states = sweep::states(bucket, &own).await.map_err(|error| failed(&error))?;
    let Some(state) = states.into_iter().next() else { return Ok(None) };
    let lock = match state.lock {
        Some(digest) => sweep::lock(bucket, digest).await.map_err(|error| failed(&error))?,
        None => None,
    };
    let report = Report::of(state.report).map_err(|error| CliError::failed(&error).context(machine))?;
    Ok(Some(Seen { report, lock }))
}

fn failed(error: &SweepError) -> CliError {
    let hint = match error {
        SweepError::Bucket(error) => error.hint(),
        _ => Some("let that machine tell again, with the same larder: larder push --report"),
    };
    hint.into_iter().fold(CliError::failed(error), CliError::hint)
}

/// One that speaks another language is told and left out.
fn read(ui: &Ui, state: State) -> Option<Seen> {
    match Report::of(state.report) {
        Ok(report) => Some(Seen { report, lock: None }),
        Err(error) => {
            ui.warn(&format!("{}: {}; left out", state.machine, crate::text::chain(&error)));
            None
        }
    }
}

/// Prints machines side by side; there are differences where any of them is not in order, or alone with something.
pub(in crate::cli) fn show(ui: &Ui, machines: &[Seen]) -> Exit {
    ui.text(&table(machines, now(), ui.width()));
    let irreplaceable = copies(machines);
    let lines = machines.iter().map(|seen| {
        let (report, totals) = (&seen.report, &seen.report.totals);
        Line {
            machine: &report.machine,
            wanted: totals.artifacts,
            present: totals.in_order,
            verified: report.verified(),
            here_bytes: totals.here_bytes,
            oldest_proof: totals.proven_at,
            faults: totals.faults,
            last_seen: report.at,
        }
    });
    ui.object("status", &Fleet { machines: lines.collect(), irreplaceable: &irreplaceable });
    let is_in_order = |seen: &Seen| seen.report.totals.in_order == seen.report.totals.artifacts;
    let all_is_well = machines.iter().all(is_in_order) && !irreplaceable.iter().any(Copies::is_alarming);
    if all_is_well { Exit::InOrder } else { Exit::Differences }
}
