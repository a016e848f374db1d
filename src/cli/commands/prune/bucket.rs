//! `larder prune --bucket`: what no machine's lock names, shown first and removed only if asked.

use std::time::Duration;

use serde::Serialize;

use super::{Args, agreed};
use crate::bucket::Bucket;
use crate::cli::commands::push;
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::report::table::count;
use crate::size::Bytes;
use crate::sweep::{self, Sweep, SweepError, Swept};

/// What is younger stays where nothing else is said: a machine may be away for as long.
const USUAL_GRACE: Duration = Duration::from_secs(30 * 24 * 3600);

#[derive(Serialize)]
struct Pruned<'a> {
    bucket: &'a str,
    bytes_to_win: u64,
    #[serde(flatten)]
    sweep: &'a Sweep,
    outcomes: &'a [Swept],
}

pub(super) fn run(ui: &Ui, common: &Common, args: &Args, name: Option<&str>) -> Result<Exit, CliError> {
    let lab = Lab::read(ui, common)?;
    let bucket = push::open(&lab, common, &push::configured(&lab, name)?)?;
    let grace = i64::try_from(args.older_than.unwrap_or(USUAL_GRACE).as_secs()).unwrap_or(i64::MAX);
    let before = now().saturating_sub(grace);
    let runtime = tokio::runtime::Runtime::new()?;
    let sweep = sweep::plan(&runtime.block_on(sweep::survey(&bucket)).map_err(failed)?, before);
    ui.text(&text(&sweep, &bucket));
    let outcomes = if args.apply && !sweep.removals.is_empty() && agreed(ui, args)? {
        runtime.block_on(sweep::carry_out(&sweep, &bucket, before)).map_err(failed)?
    } else {
        Vec::new()
    };
    tell(ui, &outcomes);
    let bytes_to_win = sweep.bytes();
    ui.object("prune", &Pruned { bucket: bucket.name(), bytes_to_win, sweep: &sweep, outcomes: &outcomes });
    Ok(if outcomes.iter().any(|outcome| outcome.result.is_err()) { Exit::Partly } else { Exit::InOrder })
}

fn failed(error: SweepError) -> CliError {
    match error {
        SweepError::Bucket(error) => push::failed(error),
        SweepError::Nobody { .. } => {
            CliError::failed(&error).hint("let every machine tell first: larder push --report")
        }
        other => {
            CliError::failed(&other).hint("nothing was removed; let that machine tell again: larder push --report")
        }
    }
}

fn tell(ui: &Ui, outcomes: &[Swept]) {
    for outcome in outcomes {
        if let Err(reason) = &outcome.result {
            ui.warn(&format!("{} stays: {reason}", outcome.key));
        }
    }
    if !outcomes.is_empty() {
        let won = outcomes.iter().filter_map(|outcome| outcome.result.as_ref().ok()).sum();
        ui.text(&format!("{} won\n", Bytes(won)));
    }
}

fn text(sweep: &Sweep, bucket: &Bucket) -> String {
    let mut out = String::new();
    for removal in &sweep.removals {
        out.push_str(&format!("remove {}: {}\n", removal.key, Bytes(removal.size)));
    }
    let objects = count(sweep.removals.len(), "object");
    out.push_str(&format!("{}: {objects}, {} to win\n", bucket.what(), Bytes(sweep.bytes())));
    out.push_str(&format!(
        "{} named by a machine or a young lock, {} irreplaceable, {} too young stay\n",
        sweep.named, sweep.irreplaceable, sweep.young
    ));
    if !sweep.removals.is_empty() {
        out.push_str("Carry it out with: larder prune --bucket --apply\n");
    }
    out
}
