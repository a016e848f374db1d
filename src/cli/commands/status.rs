//! `larder status`: what is here, missing and wrong, without reading contents.

use serde::Serialize;

use crate::cli::commands::fleet;
use crate::cli::commands::remote::Way;
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::conditions::{Finding, State};
use crate::report::plan::Heading;
use crate::report::status::{self, ArtifactStatus, is_in_order};
use crate::verify;

#[derive(Debug, Default, clap::Args)]
pub(in crate::cli) struct Args {
    /// All machines that have told a bucket what they have: BUCKET as [sources] buckets calls it, or the only one
    #[arg(long, value_name = "BUCKET", num_args = 0..=1)]
    fleet: Option<Option<String>>,

    /// These machines, asked over ssh, side by side: pc1,pc2
    #[arg(long, value_name = "MACHINES", value_delimiter = ',', conflicts_with = "fleet")]
    machines: Vec<String>,

    #[command(flatten)]
    way: Way,
}

#[derive(Serialize)]
struct Status<'a> {
    machine: &'a str,
    profile: Option<&'a str>,
    artifacts: &'a [ArtifactStatus],
    findings: &'a [Finding],
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    if let Some(bucket) = &args.fleet {
        let machines = fleet::in_bucket(ui, common, bucket.as_deref())?;
        return Ok(fleet::show(ui, &machines));
    }
    if !args.machines.is_empty() {
        return side_by_side(ui, common, args);
    }
    let mut lab = Lab::read_wanted(ui, common)?;
    let mut sightings = lab.sight(false)?;
    lab.hear_servers(common, &mut sightings)?;
    let verdict = verify::glance(&sightings);
    let statuses = status::statuses(&sightings, &verdict);
    let (machine, profile) = (lab.machine.as_str(), lab.profile());
    let heading = Heading { machine, profile, now: now(), width: ui.width(), everything: true };
    let findings = lab.conditions(common);
    ui.text(&status::text(&statuses, &findings, &heading));
    ui.object("status", &Status { machine, profile, artifacts: &statuses, findings: &findings });
    let holds = findings.iter().all(|finding| finding.state != State::Fault);
    let exit = if holds && statuses.iter().all(is_in_order) { Exit::InOrder } else { Exit::Differences };
    // The process ends here: giving a hundred thousand entries back one by one would be for nobody.
    std::mem::forget(sightings);
    std::mem::forget(std::mem::take(&mut lab.wanted));
    Ok(exit)
}

/// Those that do not answer are told; the others are shown all the same.
fn side_by_side(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let (mut seen, mut silent) = (Vec::new(), Vec::new());
    for (name, answer) in args.machines.iter().zip(fleet::machines::ask(ui, common, &args.way, &args.machines)?) {
        match answer {
            Ok(machine) => seen.push(machine),
            Err(error) => silent.push((name, error)),
        }
    }
    let exit = fleet::show(ui, &seen);
    let all_are_silent = seen.is_empty();
    for (name, error) in silent.iter().filter(|_| !all_are_silent) {
        let said: Vec<&str> = error.messages().iter().map(|(message, _)| message.as_str()).collect();
        ui.warn(&format!("{name} is not counted: {}", said.join("; ")));
    }
    match silent.pop() {
        Some((_, error)) if all_are_silent => Err(error),
        Some(_) => Ok(Exit::Partly),
        None => Ok(exit),
    }
}
