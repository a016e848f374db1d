//! `larder serve`.

use crate::cli::error::CliError;
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {}

pub(in crate::cli) fn run(_: &Ui, _: &Common, _: &Args) -> Result<Exit, CliError> {
    Ok(Exit::InOrder)
}
