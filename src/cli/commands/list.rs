//! `larder list`: the artifacts of the manifests, what is known of them, and where they go.

use crate::cli::error::CliError;
use crate::cli::lab::Lab;
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::report::list;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, _: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read(ui, common)?;
    let selected = lab.selected(common)?;
    let is_selected = |name: &str| selected.iter().any(|artifact| artifact.name == name);
    let list = list::list(&lab.manifests, lab.stored.as_ref(), &|declared| is_selected(&declared.name));
    ui.text(&list::render(&list, ui.width()));
    ui.object("list", &list);
    Ok(Exit::InOrder)
}
