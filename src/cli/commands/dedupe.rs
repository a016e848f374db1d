//! `larder dedupe`: one content, many places, the room of one.

use std::path::PathBuf;

use serde::Serialize;

use crate::cli::error::CliError;
use crate::cli::lab::{Lab, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::dedupe::{self, Outcome, Twins};
use crate::fsio::Sharing;
use crate::report::table::count;
use crate::size::Bytes;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Carry it out, after asking; without it, nothing is changed
    #[arg(long)]
    apply: bool,
    /// Do not ask
    #[arg(long, requires = "apply")]
    yes: bool,
    /// Make one file of several instead of sharing blocks: a program that writes to one then writes to all
    #[arg(long)]
    hardlink: bool,
}

#[derive(Serialize)]
struct Deduped<'a> {
    bytes_to_win: u64,
    twins: &'a [Twins],
    outcomes: Vec<Outcome>,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read_wanted(ui, common)?;
    let twins = dedupe::find(&lab.stores, &lab.facts, &dedupe::shared_before(&lab.state))?;
    let bytes_to_win = twins.iter().map(Twins::to_win).sum();
    ui.text(&text(&twins, bytes_to_win));
    let is_wanted = args.apply && bytes_to_win > 0;
    let outcomes = if is_wanted && agreed(ui, args)? { share(ui, &lab, args, &twins) } else { Vec::new() };
    ui.object("dedupe", &Deduped { bytes_to_win, twins: &twins, outcomes: outcomes.clone() });
    let failed = outcomes.iter().any(|outcome| outcome.result.is_err());
    Ok(if failed { Exit::Partly } else { Exit::InOrder })
}

fn agreed(ui: &Ui, args: &Args) -> Result<bool, CliError> {
    if args.yes {
        return Ok(true);
    }
    let answer = ui.ask("Let these files share their room?");
    answer.ok_or_else(|| {
        CliError::usage("Nobody can be asked here, and nothing was changed").hint("say yes beforehand: --apply --yes")
    })
}

fn share(ui: &Ui, lab: &Lab, args: &Args, twins: &[Twins]) -> Vec<Outcome> {
    let sharing = if args.hardlink { Sharing::Hardlink } else { Sharing::Reflink };
    let done: Vec<_> = twins.iter().flat_map(|twins| twins.share(sharing, &lab.facts, now())).collect();
    let identities = done.iter().filter_map(|(_, identity)| *identity);
    if let Err(error) = dedupe::remember_shared(&lab.state, identities) {
        ui.warn(&format!("what was done is not remembered: {error}"));
    }
    let outcomes: Vec<Outcome> = done.into_iter().map(|(outcome, _)| outcome).collect();
    for outcome in &outcomes {
        if let Err(reason) = &outcome.result {
            ui.warn(&format!("{}: {reason}", outcome.path.display()));
        }
    }
    let won: u64 = outcomes.iter().filter_map(|outcome| outcome.result.as_ref().ok()).sum();
    ui.text(&format!("{} won\n", Bytes(won)));
    outcomes
}

fn text(twins: &[Twins], bytes_to_win: u64) -> String {
    let mut out = String::new();
    for twins in twins {
        out.push_str(&format!("{} of {}\n  keep  {}\n", Bytes(twins.size), twins.sha256, twins.keep.path.display()));
        let rows: [(&str, &[dedupe::Place]); 2] = [("same", &twins.copies), ("there", &twins.elsewhere)];
        for (word, places) in rows {
            let paths: Vec<&PathBuf> = places.iter().map(|place| &place.path).collect();
            paths.iter().for_each(|path| out.push_str(&format!("  {word:<5} {}\n", path.display())));
        }
    }
    let many = count(twins.len(), "content");
    out.push_str(&format!("{many} in several places, {} to win\n", Bytes(bytes_to_win)));
    if bytes_to_win > 0 {
        out.push_str("Only what was read is compared: larder verify. Carry it out with: larder dedupe --apply\n");
    }
    out
}
