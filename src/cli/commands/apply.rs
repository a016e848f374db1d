//! `larder apply`: shows the plan, asks, and carries out exactly that.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{plan, sign};
use crate::apply::{self, Means, Outcome};
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, Limits, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::inventory::parse_rate;
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
    /// Download at most at this rate, such as 80MB/s [default: max-rate in the inventory]
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    pub(super) max_rate: Option<Bytes>,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read(ui, common)?;
    let plan = plan::make(ui, &lab, common, &args.limits)?;
    let Args { yes, limits, max_rate } = *args;
    carry_out(ui, common, &lab, &plan, Command { name: "apply", yes, limits, max_rate })
}

/// Which command carries a plan out, whether it was agreed to beforehand, and within what.
pub(super) struct Command {
    pub(super) name: &'static str,
    pub(super) yes: bool,
    pub(super) limits: Limits,
    pub(super) max_rate: Option<Bytes>,
}

/// Shows the plan, asks, and does it.
pub(super) fn carry_out(ui: &Ui, common: &Common, lab: &Lab, plan: &Plan, command: Command) -> Result<Exit, CliError> {
    if !ui.json {
        plan::show(ui, lab, plan, false);
    }
    if !plan.has_steps() {
        ui.text(ending(plan));
        ui.object(command.name, &Outcome::default());
        return Ok(if plan.is_settled() { Exit::InOrder } else { Exit::Partly });
    }
    sign::require(lab)?;
    if !command.yes && !agreed(ui, command.name)? {
        return Ok(Exit::InOrder);
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let mut means = means(ui, lab, plan, lab.sources(common, &command.limits)?)?;
    means.max_rate = command.max_rate.or(means.max_rate);
    let outcome = runtime.block_on(async {
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
    keep_what_was_learned(lab, &outcome)?;
    ui.text(&text(&outcome));
    ui.object(command.name, &outcome);
    Ok(exit(&outcome, plan.artifacts.iter().any(|entry| !entry.obstacles.is_empty())))
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
        max_rate,
        retry: lab.retry(),
        stop: CancellationToken::new(),
        now,
    })
}

/// Digests of first fetches go into the lock, so that they are pinned from now on.
pub(super) fn keep_what_was_learned(lab: &Lab, outcome: &Outcome) -> Result<(), CliError> {
    let Some(stored) = &lab.stored else { return Ok(()) };
    // What somebody signed is not larder's to change.
    if lab.inventory.trust.require_signature {
        return Ok(());
    }
    let mut lock: Lock = stored.clone();
    for learned in &outcome.learned {
        if let Some(entry) = lock.artifacts.iter_mut().find(|entry| entry.name == learned.name) {
            entry.files.clone_from(&learned.files);
        }
    }
    if lock != *stored {
        lock.write(&lab.lock_path).map_err(|error| CliError::from(error).context(lab.lock_path.display()))?;
    }
    Ok(())
}

pub(super) fn text(outcome: &Outcome) -> String {
    let mut out = format!("{} placed", count(outcome.placed.len(), "file"));
    if outcome.moved_bytes > 0 {
        out.push_str(&format!(", {} fetched", Bytes(outcome.moved_bytes)));
    }
    if outcome.reused_bytes > 0 {
        out.push_str(&format!(", {} copied from other places on this machine", Bytes(outcome.reused_bytes)));
    }
    out.push_str(&format!(", {} ready\n", count(outcome.published.len(), "artifact")));
    for failure in &outcome.failures {
        out.push_str(&format!("failed: {}: {}\n", failure.item, failure.reason));
    }
    let mut hints: Vec<&String> = outcome.failures.iter().filter_map(|failure| failure.hint.as_ref()).collect();
    hints.sort();
    hints.dedup();
    hints.iter().for_each(|hint| out.push_str(&format!("hint: {hint}\n")));
    if outcome.interrupted {
        out.push_str("Stopped; larder apply continues from here\n");
    }
    out
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
