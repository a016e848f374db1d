//! `larder apply`: shows the plan, asks, and carries out exactly that.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{plan, sign};
use crate::apply::{self, Failure, LeftOut, Means, Outcome, TooSlow};
use crate::artifact::Artifact;
use crate::cli::error::CliError;
use crate::cli::gauge::Gauge;
use crate::cli::lab::{Lab, Limits, Locality, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::inventory::{SourceConfig, parse_rate};
use crate::lock::Lock;
use crate::plan::Plan;
use crate::report::plan::ending;
use crate::report::table::count;
use crate::size::Bytes;

#[derive(Debug, Default, clap::Args)]
pub(in crate::cli) struct Args {
    /// Do not ask before beginning
    #[arg(short, long)]
    pub(super) yes: bool,
    #[command(flatten)]
    pub(super) limits: Limits,
    #[command(flatten)]
    pub(super) locality: Locality,
    /// Download at most at this rate, such as 80MB/s [default: max-rate in the inventory]
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(super) max_rate: Option<Bytes>,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read_wanted(ui, common)?.within(args.locality);
    let plan = plan::make(ui, &lab, common, &args.limits)?;
    let Args { yes, limits, max_rate, .. } = *args;
    let again = Some("larder apply");
    let command = Command { name: "apply", again, yes, limits, max_rate, paces_drives: false, unproven: Vec::new() };
    carry_out(ui, common, &lab, &plan, command)
}

/// Which command carries a plan out, whether it was agreed to beforehand, and within what.
pub(super) struct Command<'a> {
    pub(super) name: &'static str,
    /// What to type to go on from here, where that is known.
    pub(super) again: Option<&'a str>,
    pub(super) yes: bool,
    pub(super) limits: Limits,
    pub(super) max_rate: Option<Bytes>,
    pub(super) paces_drives: bool,
    /// What is here according to the plan, and could not be proven.
    pub(super) unproven: Vec<Failure>,
}

/// Shows the plan, asks, and does it.
pub(super) fn carry_out(
    ui: &Ui,
    common: &Common,
    lab: &Lab,
    plan: &Plan,
    command: Command<'_>,
) -> Result<Exit, CliError> {
    if !ui.json {
        plan::show(ui, lab, plan, false);
    }
    if !plan.has_steps() {
        return Ok(nothing_to_do(ui, plan, command));
    }
    sign::require(lab)?;
    if !command.yes && !agreed(ui, command.name)? {
        return Ok(Exit::InOrder);
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let mut means = means(ui, lab, plan, lab.sources(common, &command.limits)?)?;
    means.max_rate = command.max_rate.or(means.max_rate);
    means.paces_drives = command.paces_drives;
    let gauge = Arc::new(Gauge::new(plan, means.monitor));
    means.monitor = gauge.clone();
    let mut outcome = runtime.block_on(async {
        let (stop, first) = (means.stop.clone(), super::stop_signal()?);
        tokio::spawn(async move {
            first.await;
            stop.cancel();
            // Listens only from now on, so that one signal is not heard twice.
            if let Ok(second) = super::stop_signal() {
                second.await;
                // Whatever a file-system call still waits for, the state on disk is that of a kill: resumable.
                crate::cli::exit::now(Exit::Interrupted);
            }
        });
        Ok::<_, CliError>(apply::apply(plan, &lab.wanted, means).await)
    })?;
    gauge.remember(&lab.facts);
    keep_what_was_learned(lab, &outcome)?;
    outcome.failures.extend(command.unproven);
    ui.text(&text(&outcome, command.again));
    ui.object(command.name, &outcome);
    Ok(exit(&outcome, plan.artifacts.iter().any(|entry| !entry.obstacles.is_empty())))
}

fn nothing_to_do(ui: &Ui, plan: &Plan, command: Command<'_>) -> Exit {
    let outcome = Outcome { failures: command.unproven, ..Outcome::default() };
    let is_proven = outcome.failures.is_empty();
    ui.text(&if is_proven { ending(plan, None) } else { failures(&outcome) });
    ui.object(command.name, &outcome);
    if plan.is_settled() && is_proven { Exit::InOrder } else { Exit::Partly }
}

/// Whether somebody who was asked said yes.
pub(super) fn agreed(ui: &Ui, command: &str) -> Result<bool, CliError> {
    ui.ask("Carry this out?").ok_or_else(|| {
        CliError::usage("Nobody is there to ask, so nothing was changed")
            .hint(format!("say yes beforehand with: larder {command} --yes"))
    })
}

pub(super) fn means(ui: &Ui, lab: &Lab, plan: &Plan, sources: Arc<crate::sources::Sources>) -> Result<Means, CliError> {
    // Whoever gets here changes stores, whichever command it is.
    sign::require(lab)?;
    let config = lab.inventory.sources_of(&lab.machine);
    let max_rate = config.max_rate().map_err(CliError::usage)?;
    Ok(Means {
        stores: lab.stores.clone(),
        sources,
        facts: lab.facts.clone(),
        monitor: ui.monitor(Some(plan.bytes_to_move())),
        ollama_registry: config.ollama.clone(),
        parallel: config.parallel,
        connections: config.connections,
        first_connections: config.first_connections,
        too_slow: too_slow(&config)?,
        max_rate,
        paces_drives: false,
        retry: lab.retry(),
        stop: CancellationToken::new(),
        now,
    })
}

/// Longer than a hiccup, and shorter than anybody's patience.
fn too_slow(config: &SourceConfig) -> Result<Option<TooSlow>, CliError> {
    let below = config.too_slow().map_err(CliError::usage)?;
    Ok(below.map(|below| TooSlow { below: below.0, during: Duration::from_secs(10) }))
}

/// Digests of first fetches go into the lock, so that they are pinned from now on.
///
/// The lock is read anew: other larders may have written it since this run began.
pub(super) fn keep_what_was_learned(lab: &Lab, outcome: &Outcome) -> Result<(), CliError> {
    // What somebody signed is not larder's to change.
    if lab.inventory.trust.require_signature || !outcome.learned.iter().any(|learned| is_news(lab, learned)) {
        return Ok(());
    }
    let failed = |error: std::io::Error| CliError::from(error).context(lab.lock_path.display());
    let _held = Lock::hold(&lab.lock_path).map_err(failed)?;
    let stored = Lock::read(&lab.lock_path)?;
    let mut lock = stored.clone().unwrap_or_default();
    for learned in &outcome.learned {
        let is_locked = lock.learn(learned) || lock.artifact(&learned.name).is_some();
        if !is_locked && learned.files.iter().any(|file| file.first_use) {
            lock.artifacts.insert(place_of(lab, &lock, &learned.name), learned.clone());
        }
    }
    if stored.as_ref() != Some(&lock) {
        lock.write(&lab.lock_path).map_err(failed)?;
    }
    Ok(())
}

/// Whether more is known of an artifact now than when this run began.
fn is_news(lab: &Lab, learned: &Artifact) -> bool {
    lab.wanted.artifact(&learned.name).is_some_and(|before| before.files != learned.files)
}

/// Where an artifact goes in the lock, which has the manifests' order.
fn place_of(lab: &Lab, lock: &Lock, artifact: &str) -> usize {
    let number = |name: &str| lab.manifests.artifacts.iter().position(|declared| declared.name == name);
    let own = number(artifact);
    lock.artifacts.iter().position(|entry| number(&entry.name) > own).unwrap_or(lock.artifacts.len())
}

/// What was done; `again` goes on from there.
pub(super) fn text(outcome: &Outcome, again: Option<&str>) -> String {
    let mut out = format!("{} placed", count(outcome.placed.len(), "file"));
    if outcome.moved_bytes > 0 {
        out.push_str(&format!(", {} fetched", Bytes(outcome.moved_bytes)));
    }
    if outcome.reused_bytes > 0 {
        out.push_str(&format!(", {} copied from other places on this machine", Bytes(outcome.reused_bytes)));
    }
    out.push_str(&format!(", {} ready\n", count(outcome.published.len(), "artifact")));
    out.push_str(&left_out(outcome));
    out.push_str(&failures(outcome));
    if outcome.interrupted {
        let how = again.map_or_else(|| "the same command".to_owned(), str::to_owned);
        out.push_str(&format!("Stopped; {how} continues from here\n"));
    }
    out
}

fn failures(outcome: &Outcome) -> String {
    let failures = outcome.failures.iter().map(|failure| format!("failed: {}: {}\n", failure.item, failure.reason));
    let mut out: String = failures.collect();
    let mut hints: Vec<&String> = outcome.failures.iter().filter_map(|failure| failure.hint.as_ref()).collect();
    hints.sort();
    hints.dedup();
    hints.iter().for_each(|hint| out.push_str(&format!("hint: {hint}\n")));
    out
}

/// Sources that others stood in for, each once.
fn left_out(outcome: &Outcome) -> String {
    let mut told: Vec<(&LeftOut, usize)> = Vec::new();
    for left_out in &outcome.left_out {
        match told.iter_mut().find(|(first, _)| first.from == left_out.from) {
            Some((_, times)) => *times += 1,
            None => told.push((left_out, 1)),
        }
    }
    let line = |(LeftOut { item, from, reason }, times): (&LeftOut, usize)| {
        let more = if times > 1 { format!(" and {} more", times - 1) } else { String::new() };
        format!("others stood in for {from}: {item}{more}: {reason}\n")
    };
    told.into_iter().map(line).collect()
}

fn exit(outcome: &Outcome, has_obstacles: bool) -> Exit {
    if outcome.interrupted {
        Exit::Interrupted
    } else if outcome.failures.is_empty() && !has_obstacles {
        Exit::InOrder
    } else if outcome.placed.is_empty() && outcome.published.is_empty() {
        Exit::Failed
    } else {
        Exit::Partly
    }
}
