//! `larder status`: what is here, missing and wrong, without reading contents.

use serde::Serialize;

use crate::cli::error::CliError;
use crate::cli::lab::{Lab, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::report::plan::Heading;
use crate::report::status::{self, ArtifactStatus, is_in_order};
use crate::verify;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {}

#[derive(Serialize)]
struct Status<'a> {
    machine: &'a str,
    profile: Option<&'a str>,
    artifacts: &'a [ArtifactStatus],
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, _: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read(ui, common)?;
    let sightings = lab.sight(false)?;
    let verdict = verify::glance(&sightings);
    let statuses = status::statuses(&sightings, &verdict);
    let (machine, profile) = (lab.machine.as_str(), lab.profile());
    let heading = Heading { machine, profile, now: now(), width: ui.width(), everything: true };
    ui.text(&status::text(&statuses, &heading));
    ui.object("status", &Status { machine, profile, artifacts: &statuses });
    Ok(if statuses.iter().all(is_in_order) { Exit::InOrder } else { Exit::Differences })
}
