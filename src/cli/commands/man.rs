//! `larder man [COMMAND]`: manual pages in roff on standard output.

use crate::cli::Exit;
use crate::cli::error::CliError;
use crate::cli::ui::Ui;
use crate::manifest::did_you_mean;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The command to describe [default: the program]
    command: Option<String>,
}

pub(in crate::cli) fn run(ui: &Ui, args: &Args, program: clap::Command) -> Result<Exit, CliError> {
    let command = match &args.command {
        None => program,
        Some(name) => {
            let found = program.find_subcommand(name).cloned();
            let found = found.ok_or_else(|| {
                let known: Vec<&str> = program.get_subcommands().map(clap::Command::get_name).collect();
                let hint = did_you_mean(name, known).unwrap_or_else(|| "see larder help".to_owned());
                CliError::usage(format!("There is no command `{name}`")).hint(hint)
            })?;
            // Manual pages stand alone, so the full name is on them.
            found.display_name(format!("larder-{name}"))
        }
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    ui.raw(&page);
    Ok(Exit::InOrder)
}
