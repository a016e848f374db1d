//! `larder list`: the artifacts of the manifests.

use crate::cli::error::CliError;
use crate::cli::lab::Lab;
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, _: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read(ui, common)?;
    let _ = &lab.manifests;
    Ok(Exit::InOrder)
}
