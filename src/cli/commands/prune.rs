//! `larder prune`: leftovers, shown first and removed only if asked.

use std::time::Duration;

use serde::Serialize;

use crate::adopt::{self, Known, Survey, Surveyor};
use crate::cli::commands::adopt::everything;
use crate::cli::commands::after::duration;
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::monitor::Silent;
use crate::prune::{self, Kept, Outcome, Removal};
use crate::report::table::count;
use crate::size::Bytes;

mod bucket;

/// What is younger stays where nothing else is said.
const USUAL_AGE: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Carry it out, after asking; without it, nothing is changed
    #[arg(long)]
    apply: bool,
    /// Do not ask
    #[arg(long, requires = "apply")]
    yes: bool,
    /// What was changed later stays: a download may be running [default: 7d; in a bucket 30d]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    older_than: Option<Duration>,
    /// Revisions of hub repositories too that a newer one replaced and that no branch, tag, lock or manifest names
    #[arg(long, conflicts_with = "bucket")]
    superseded: bool,
    /// Not here: what lies in a bucket and no machine's lock names; BUCKET as [sources] buckets calls it, or the only one
    #[arg(long, value_name = "BUCKET", num_args = 0..=1)]
    bucket: Option<Option<String>>,
}

#[derive(Serialize)]
struct Pruned<'a> {
    bytes_to_win: u64,
    removals: &'a [Removal],
    kept: &'a [Kept],
    outcomes: &'a [Outcome],
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    if let Some(name) = &args.bucket {
        return bucket::run(ui, common, args, name.as_deref());
    }
    let lab = Lab::read(ui, common)?;
    let artifacts = everything(&lab);
    let mut known = Known::new(&artifacts, &lab.manifests);
    let how = Surveyor { read: false, facts: &lab.facts, monitor: &Silent, at: now() };
    let survey = adopt::survey(&lab.stores, &|_| true, &mut known, &how);
    let age = i64::try_from(args.older_than.unwrap_or(USUAL_AGE).as_secs()).unwrap_or(i64::MAX);
    let (removals, kept) = prune::plan(&survey, &lab.stores, &artifacts, now().saturating_sub(age), args.superseded);
    let bytes_to_win = removals.iter().map(|removal| removal.size).sum();
    ui.text(&text(&removals, &kept, bytes_to_win));
    if !args.superseded {
        ui.text(&hint_of_superseded(&survey));
    }
    let outcomes =
        if args.apply && !removals.is_empty() && agreed(ui, args)? { carry_out(ui, &removals) } else { Vec::new() };
    ui.object("prune", &Pruned { bytes_to_win, removals: &removals, kept: &kept, outcomes: &outcomes });
    Ok(if outcomes.iter().any(|outcome| outcome.result.is_err()) { Exit::Partly } else { Exit::InOrder })
}

fn agreed(ui: &Ui, args: &Args) -> Result<bool, CliError> {
    if args.yes {
        return Ok(true);
    }
    ui.ask("Remove these files?").ok_or_else(|| {
        CliError::usage("Nobody can be asked here, and nothing was changed").hint("say yes beforehand: --apply --yes")
    })
}

fn carry_out(ui: &Ui, removals: &[Removal]) -> Vec<Outcome> {
    let outcomes = prune::carry_out(removals);
    for outcome in &outcomes {
        if let Err(reason) = &outcome.result {
            ui.warn(&format!("{}: {reason}", outcome.path.display()));
        }
    }
    let won: u64 = outcomes.iter().filter_map(|outcome| outcome.result.as_ref().ok()).sum();
    ui.text(&format!("{} won\n", Bytes(won)));
    outcomes
}

fn text(removals: &[Removal], kept: &[Kept], bytes_to_win: u64) -> String {
    let mut out = String::new();
    for removal in removals {
        out.push_str(&format!("remove {}: {}, {}\n", removal.path.display(), Bytes(removal.size), removal.what));
    }
    for kept in kept {
        out.push_str(&format!("keep   {}: {}\n", kept.path.display(), kept.reason));
    }
    out.push_str(&format!("{}, {} to win\n", count(removals.len(), "leftover"), Bytes(bytes_to_win)));
    if !removals.is_empty() {
        out.push_str("Carry it out with: larder prune --apply\n");
    }
    out
}

/// What more there is, where revisions lie that were replaced.
fn hint_of_superseded(survey: &Survey) -> String {
    let revisions = survey.stores.iter().map(|store| store.superseded.len()).sum();
    match revisions {
        0 => String::new(),
        _ => format!("{} more can go: larder prune --superseded\n", count(revisions, "replaced revision")),
    }
}
