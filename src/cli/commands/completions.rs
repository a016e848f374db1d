//! `larder completions SHELL`: completions on standard output.

use clap_complete::Shell;

use crate::cli::Exit;
use crate::cli::error::CliError;
use crate::cli::ui::Ui;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The shell
    shell: Shell,
}

pub(in crate::cli) fn run(ui: &Ui, args: &Args, mut command: clap::Command) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "larder", &mut script);
    ui.raw(&script);
    Ok(Exit::InOrder)
}
