//! `larder verify`: is what is here what the lock says?

use std::sync::atomic::Ordering;

use crate::cli::error::CliError;
use crate::cli::lab::{Lab, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::report::verdict;
use crate::verify;

#[derive(Debug, Default, clap::Args)]
pub(in crate::cli) struct Args {
    /// Names, links, sizes, headers and shard indexes only; reads no weights
    #[arg(long, conflicts_with = "full")]
    quick: bool,
    /// Read every byte and compare every digest [default]
    #[arg(long)]
    full: bool,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read_wanted(ui, common)?;
    let mut sightings = lab.sight(false)?;
    lab.hear_servers(common, &mut sightings)?;
    let verdict = if args.quick && !args.full {
        verify::quick(&sightings)
    } else {
        let stop = super::stopped_by_signals()?;
        let monitor = ui.monitor();
        verify::full(&sightings, &lab.facts, monitor.as_ref(), now, &|| stop.load(Ordering::Relaxed))
    };
    ui.text(&verdict::text(&verdict, !args.quick));
    ui.object("verify", &verdict);
    Ok(match (verdict.interrupted, verdict.faults.is_empty()) {
        (true, _) => Exit::Interrupted,
        (false, true) => Exit::InOrder,
        (false, false) => Exit::Differences,
    })
}
