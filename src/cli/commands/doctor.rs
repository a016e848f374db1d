//! `larder doctor`: what looks like a broken model and is none.

use std::path::PathBuf;

use serde::Serialize;

use crate::cli::error::CliError;
use crate::cli::lab::Lab;
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::conditions::State;
use crate::doctor::{self, Area, Machine, Wanted};
use crate::report;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Also list what holds
    #[arg(long)]
    all: bool,
    /// Examine the machine whose files lie here
    #[arg(long, value_name = "DIR", default_value = "/", hide = true)]
    root: PathBuf,
}

#[derive(Serialize)]
struct Diagnosis<'a> {
    machine: &'a str,
    areas: &'a [Area],
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read_wanted(ui, common)?;
    let wanted = Wanted {
        inventory: &lab.inventory,
        manifests: &lab.manifests,
        artifacts: &lab.wanted,
        stores: lab.stores.as_ref(),
    };
    let areas = doctor::examine(Machine { root: &args.root, home: &lab.home }, wanted);
    ui.text(&report::doctor::text(&areas, args.all));
    ui.object("doctor", &Diagnosis { machine: &lab.machine, areas: &areas });
    let is_well = areas.iter().flat_map(|area| &area.findings).all(|finding| finding.state != State::Fault);
    Ok(if is_well { Exit::InOrder } else { Exit::Differences })
}
