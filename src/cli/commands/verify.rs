//! `larder verify`: is what is here what the lock says?

use std::sync::atomic::Ordering;

use crate::cli::commands::after::{self, BusyArgs, Skipped, Watch};
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, now};
use crate::cli::limits::{self, Span};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::facts::Depth;
use crate::fsio;
use crate::lock::Lock;
use crate::report::verdict;
use crate::size::Bytes;
use crate::verify::{self, Budget, Reading, Stray};

#[derive(Debug, Default, clap::Args)]
pub(in crate::cli) struct Args {
    /// Names, links, sizes, headers and shard indexes only; reads no weights
    #[arg(long, conflicts_with_all = ["full", "budget", "max_age", "max_rate", "idle", "accept"])]
    quick: bool,
    /// Compare every digest of the lock, also where known chunk digests would do
    #[arg(long)]
    full: bool,
    /// Stop after this time or so many bytes, such as 2h or 200GB; the next run goes on from there
    #[arg(long, value_name = "LIMIT", value_parser = limits::budget)]
    budget: Option<Budget>,
    /// Leave out what was read within this time, such as 7d
    #[arg(long, value_name = "TIME")]
    max_age: Option<Span>,
    /// Read no faster than this, such as 200MB/s
    #[arg(long, value_name = "RATE", value_parser = limits::rate)]
    max_rate: Option<Bytes>,
    /// Let all other programs go first, on the processor and on the disk
    #[arg(long)]
    idle: bool,
    /// Read only this artifact, and trust its files as they are now where the lock has no digest of them
    #[arg(long, value_name = "ARTIFACT", conflicts_with = "only")]
    accept: Vec<String>,
    #[command(flatten)]
    busy: BusyArgs,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    if args.idle
        && let Err(error) = fsio::be_idle()
    {
        ui.warn(&error.to_string());
    }
    let named = Common { only: args.accept.clone(), ..common.clone() };
    let common = if args.accept.is_empty() { common } else { &named };
    let mut lab = Lab::read_wanted(ui, common)?;
    refuse_needless(&lab, args)?;
    if let Some(skipped) = args.busy.obstacle(ui)? {
        ui.text(&format!("Nothing was verified, because the machine is needed: {skipped}\n"));
        ui.object("verify", &Skipped { skipped });
        return Ok(Exit::InOrder);
    }
    let mut sightings = lab.sight(false)?;
    lab.hear_servers(common, &mut sightings)?;
    let verdict = if args.quick && !args.full {
        let mut verdict = verify::quick(&sightings, &lab.facts.harmless()?);
        verdict.strays = strays(&lab, common);
        verdict
    } else {
        let stop = super::stopped_by_signals()?;
        let monitor = ui.monitor(None);
        let watch = args.busy.watch();
        let needed = || watch.as_ref().and_then(Watch::needed);
        let stopped = || stop.load(Ordering::Relaxed) || needed().is_some();
        let reading = Reading {
            whole: args.full,
            budget: args.budget.unwrap_or_default(),
            max_age: args.max_age.map(|Span(age)| i64::try_from(age.as_secs()).unwrap_or(i64::MAX)),
            max_rate: args.max_rate,
            accepted: &args.accept,
            ..Reading::new(&lab.facts, monitor.as_ref(), now, &stopped)
        };
        let mut verdict = verify::contents(&sightings, &reading)?;
        if let Some(what) = needed() {
            ui.note(&format!("stopped, because the machine is needed: {what}; the next run goes on from here"));
        }
        // What was read not long ago is not worth a walk through the stores either.
        if verdict.bytes_read > 0 && !verdict.interrupted {
            verdict.strays = strays(&lab, common);
        }
        verdict
    };
    // Otherwise they are followed again next time.
    if let Err(error) = lab.facts.record_harmless(&verdict.harmless) {
        tracing::warn!(%error, "which pickles are harmless is not remembered");
    }
    let depth = if args.quick && !args.full { Depth::Quick } else { Depth::Full };
    ui.text(&verdict::text(&verdict, !args.quick));
    ui.object("verify", &verdict);
    after::remember(ui, &lab, &sightings, &verdict, depth);
    // The process ends here: giving a hundred thousand entries back one by one would be for nobody.
    std::mem::forget(sightings);
    std::mem::forget(std::mem::take(&mut lab.wanted));
    Ok(match (verdict.interrupted, verdict.faults.is_empty()) {
        (true, _) => Exit::Interrupted,
        (false, true) => Exit::InOrder,
        (false, false) => Exit::Differences,
    })
}

/// Accepting is for files whose digest nobody recorded: what the lock says of the others is changed there.
fn refuse_needless(lab: &Lab, args: &Args) -> Result<(), CliError> {
    for name in &args.accept {
        let Some(artifact) = lab.wanted.artifact(name) else {
            return Err(CliError::usage(format!("There is no artifact {name} to accept files of"))
                .hint("name it as larder status does, without *"));
        };
        if artifact.pattern.is_none() && artifact.files.iter().all(|file| file.digests.proves_content()) {
            return Err(CliError::usage(format!(
                "The lock has a digest of every file of {name}, so nothing is trusted"
            ))
            .hint(format!("change its manifest, then run: larder lock --update {name}")));
        }
    }
    Ok(())
}

/// Files that no artifact of the whole lock has, whatever this machine's profile selects; with --only, in the stores
/// that are concerned.
pub(super) fn strays(lab: &Lab, common: &Common) -> Vec<Stray> {
    let Ok(Some(lock)) = Lock::read(&lab.lock_path) else { return Vec::new() };
    let is_concerned =
        |store: &str| common.only.is_empty() || lab.wanted.artifacts.iter().any(|artifact| artifact.store == store);
    verify::strays(&lab.stores, &lock.artifacts, &is_concerned)
}
