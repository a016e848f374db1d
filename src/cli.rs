//! The command line: what can be typed, and which exit code answers.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

mod buckets;
mod commands;
mod env;
mod error;
mod exit;
mod gauge;
mod lab;
mod limits;
mod papers;
mod progress;
mod ui;

pub use exit::Exit;

use error::CliError;
use ui::Ui;

/// Keeps the AI models of a lab.
///
/// larder reads manifests and an inventory, shows what is missing or wrong on this machine, brings
/// it here from where it can be had, and proves that it is intact.
#[derive(Debug, Parser)]
#[command(name = "larder", version, max_term_width = 100, after_help = exit::TABLE)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

/// What every command understands.
#[derive(Debug, Clone, clap::Args)]
struct Common {
    /// The inventory file [default: inventory.toml here, in ~/.config/larder, or in /etc/larder]
    #[arg(long, global = true, value_name = "PATH", env = "LARDER_INVENTORY")]
    inventory: Option<PathBuf>,
    /// Act as this machine of the inventory [default: the host name]
    #[arg(long, global = true, value_name = "NAME")]
    machine: Option<String>,
    /// Only these artifacts: NAME (with *), tag:T, store:S or section:S; may be repeated
    #[arg(long, global = true, value_name = "WHAT")]
    only: Vec<String>,
    /// Where measurements are kept [default: $LARDER_STATE, or ~/.local/state/larder]
    #[arg(long, global = true, value_name = "DIR", hide = true)]
    state: Option<PathBuf>,
    /// Print one JSON object on standard output
    #[arg(long, global = true)]
    json: bool,
    /// Ask nothing over the network
    #[arg(long, global = true)]
    offline: bool,
    /// Print nothing but the result
    #[arg(short, long, global = true)]
    quiet: bool,
    /// How progress is shown, on standard error
    #[arg(long, global = true, value_name = "HOW", value_enum, default_value_t, hide_possible_values = false)]
    progress: progress::Progress,
    /// Tell more; twice: tell everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what is here, missing and wrong, without reading contents
    Status(commands::status::Args),
    /// List the artifacts of the manifests: sizes, pins, licences, places
    List(commands::list::Args),
    /// Look up exact revisions, sizes and digests, and write them to the lock
    Lock(commands::lock::Args),
    /// Show what would be done, and change nothing
    Plan(commands::plan::Args),
    /// Carry out the plan
    #[command(after_help = exit::OF_APPLY)]
    Apply(commands::apply::Args),
    /// Check that what is here is what the lock says
    Verify(commands::verify::Args),
    /// Copy from or to another machine or a drive
    Copy(commands::copy::Args),
    /// Put what this machine has, and its report, into a bucket
    Push(commands::push::Args),
    /// Show what two machines have differently, from their reports in a bucket
    Diff(commands::diff::Args),
    /// Report the state of everything, as text, a page or metrics
    Report(commands::report::Args),
    /// Write checksums, a metalink or a bill of materials for other tools
    Export(commands::export::Args),
    /// Show or install systemd units that verify every night
    Schedule(commands::schedule::Args),
    /// Look for what mimics a broken model: driver, memory, packages, services, rights, keys
    Doctor(commands::doctor::Args),
    /// Find out what a machine has, and propose a manifest for what nobody knows
    Adopt(commands::adopt::Args),
    /// Find one content in several places, and let it take the room of one
    Dedupe(commands::dedupe::Args),
    /// Remove what downloads left behind and what nothing names, from a plan that is shown first
    Prune(commands::prune::Args),
    /// Mend what was found wrong: only the wrong parts of a file, where they are known
    #[command(after_help = exit::OF_APPLY)]
    Repair(commands::repair::Args),
    /// Sign the lock and the manifests with your ssh key, or say who did
    Sign(commands::sign::Args),
    /// Try whether generators work: headers, parts, or a few steps
    Smoke(commands::smoke::Args),
    /// Serve this machine's artifacts to others, read-only
    Serve(commands::serve::Args),
    /// Show all of it on a miniature lab, without internet
    Demo(commands::demo::Args),
    /// Print completions for a shell
    Completions(commands::completions::Args),
    /// Print the manual page
    Man(commands::man::Args),
}

/// Everything that can be typed: what `docs/cli.md`, the manual pages and the completions are made of.
pub fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program as it was called.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let ui = Ui::new(cli.common.json, cli.common.quiet, cli.common.verbose, cli.common.progress);
    match run(&ui, &cli.common, &cli.command) {
        Ok(exit) => exit.into(),
        Err(error) => {
            ui.error(&error);
            error.exit().into()
        }
    }
}

fn usage(error: &clap::Error) -> ExitCode {
    // Help and version are asked for; everything else is a mistake. A closed pipe is neither.
    let _ = error.print();
    if error.use_stderr() { Exit::Usage.into() } else { Exit::InOrder.into() }
}

fn run(ui: &Ui, common: &Common, command: &Command) -> Result<Exit, CliError> {
    match command {
        Command::Status(args) => commands::status::run(ui, common, args),
        Command::List(args) => commands::list::run(ui, common, args),
        Command::Lock(args) => commands::lock::run(ui, common, args),
        Command::Plan(args) => commands::plan::run(ui, common, args),
        Command::Apply(args) => commands::apply::run(ui, common, args),
        Command::Verify(args) => commands::verify::run(ui, common, args),
        Command::Copy(args) => commands::copy::run(ui, common, args),
        Command::Push(args) => commands::push::run(ui, common, args),
        Command::Diff(args) => commands::diff::run(ui, common, args),
        Command::Report(args) => commands::report::run(ui, common, args),
        Command::Export(args) => commands::export::run(ui, common, args),
        Command::Schedule(args) => commands::schedule::run(ui, common, args),
        Command::Doctor(args) => commands::doctor::run(ui, common, args),
        Command::Adopt(args) => commands::adopt::run(ui, common, args),
        Command::Dedupe(args) => commands::dedupe::run(ui, common, args),
        Command::Prune(args) => commands::prune::run(ui, common, args),
        Command::Repair(args) => commands::repair::run(ui, common, args),
        Command::Sign(args) => commands::sign::run(ui, common, args),
        Command::Smoke(args) => commands::smoke::run(ui, common, args),
        Command::Serve(args) => commands::serve::run(ui, common, args),
        Command::Demo(args) => commands::demo::run(ui, common, args),
        Command::Completions(args) => commands::completions::run(ui, args, Cli::command()),
        Command::Man(args) => commands::man::run(ui, args, Cli::command()),
    }
}
