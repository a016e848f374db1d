//! `larder copy`: takes what this machine lacks from one place, or gives to another what it lacks.

use std::path::{Path, PathBuf};

use crate::apply::Failure;
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, Limits, Locality, expand, inventory_path};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit, env};
use crate::inventory::{Peer, SourceConfig, SourceKind, parse_rate};
use crate::plan::Plan;
use crate::report::plan::ending;
use crate::size::Bytes;

use super::apply::{self, Command};
use super::plan;
use super::remote::Way;
use super::remote::install::Sending;

mod by_sftp;
mod folder;
mod machine;
mod unread;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// The machine to take from (`pc1:`), or after --to and --from the artifacts to copy
    #[arg(value_name = "MACHINE:|NAME")]
    what: Vec<String>,

    /// Take from this machine (over ssh) or folder, and from nowhere else
    #[arg(long, value_name = "MACHINE:|DIR", conflicts_with = "to")]
    from: Option<String>,

    /// Give to this machine (over ssh; it decides what it lacks) or put into this folder
    #[arg(long, value_name = "MACHINE:|DIR")]
    to: Option<String>,

    /// Show what would be copied, and change nothing
    #[arg(short = 'n', long)]
    dry_run: bool,

    /// Do not ask before beginning
    #[arg(short, long, conflicts_with = "dry_run")]
    yes: bool,

    #[command(flatten)]
    limits: Limits,

    #[command(flatten)]
    locality: Locality,

    /// Copy at most at this rate, such as 80MB/s [default: max-rate in the inventory]
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    max_rate: Option<Bytes>,

    #[command(flatten)]
    way: Way,

    #[command(flatten)]
    sending: Sending,

    /// Read the other machine's files by sftp: larder need not be there
    #[arg(long, conflicts_with_all = ["to", "send_larder", "remote_larder"])]
    sftp: bool,

    /// Take through this socket: how `copy --to` runs on the other machine. Several are ways to the same server
    #[arg(long, value_name = "PATH", hide = true, conflicts_with_all = ["from", "to"])]
    from_socket: Vec<PathBuf>,
}

impl Args {
    /// What to type to do the same; not known where another machine asked for it.
    fn again(&self) -> Option<String> {
        if !self.from_socket.is_empty() {
            return None;
        }
        let from = self.from.iter().map(|from| format!(" --from {from}"));
        let to = self.to.iter().map(|to| format!(" --to {to}"));
        let what = self.what.iter().map(|what| format!(" {what}"));
        Some(from.chain(to).chain(what).fold("larder copy".to_owned(), |command, word| command + &word))
    }
}

/// Where something is copied from or to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A machine of the inventory, or whatever ssh understands.
    Machine(String),
    /// A folder of this machine, such as a mounted drive.
    Folder(PathBuf),
}

impl Place {
    fn parse(text: &str) -> Result<Self, CliError> {
        let unclear = |why: &str| {
            CliError::usage(format!("{text:?} {why}"))
                .hint("write a machine with a colon (pc1:), or a folder (/mnt/usb)")
        };
        match text.strip_suffix(':') {
            Some("") => Err(unclear("names no machine")),
            // ssh would read it as an option.
            Some(machine) if machine.starts_with('-') => Err(unclear("is no machine")),
            Some(machine) => Ok(Place::Machine(machine.to_owned())),
            None if text.contains('/') || Path::new(text).is_dir() => Ok(Place::Folder(PathBuf::from(text))),
            None => Err(unclear("is neither a machine nor a folder")),
        }
    }
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    if common.offline {
        let hint = "a drive that [sources] drives names is used by: larder apply --offline";
        return Err(CliError::usage("--offline forbids to copy between machines").hint(hint));
    }
    let mut common = common.clone();
    if !args.from_socket.is_empty() {
        common.only.extend(args.what.iter().cloned());
        return through_sockets(ui, &common, args);
    }
    let (from, to, names) = match (&args.from, &args.to, args.what.split_first()) {
        (Some(from), _, _) => (Some(from), None, args.what.as_slice()),
        (None, Some(to), _) => (None, Some(to), args.what.as_slice()),
        (None, None, Some((from, names))) => (Some(from), None, names),
        (None, None, None) => {
            return Err(CliError::usage("Copy from where, or to where?").hint(
                "larder copy pc1:, larder copy --to pc2:, larder copy --to /mnt/usb, larder copy --from /mnt/usb",
            ));
        }
    };
    common.only.extend(names.iter().cloned());
    let (from, to) = (from.map(|text| Place::parse(text)).transpose()?, to.map(|text| Place::parse(text)).transpose()?);
    match (from, to) {
        (Some(Place::Machine(machine)), _) => machine::take(ui, &common, args, &machine),
        (Some(Place::Folder(folder)), _) => take_from_folder(ui, &common, args, &folder),
        (None, Some(Place::Machine(machine))) => machine::give(ui, &common, args, &machine),
        (None, Some(Place::Folder(folder))) => folder::give(ui, &common, args, &folder),
        (None, None) => Ok(Exit::InOrder),
    }
}

fn take_from_folder(ui: &Ui, common: &Common, args: &Args, folder: &Path) -> Result<Exit, CliError> {
    let home = env::home();
    let folder = expand(folder, &home);
    if !folder.is_dir() {
        return Err(CliError::usage(format!("{} is no folder", folder.display())).hint("is the drive mounted?"));
    }
    let mut lab = match inventory_path(common, &home) {
        Err(_) if folder.join("inventory.toml").is_file() => read_from_drive(ui, common, &folder)?,
        _ => Lab::read(ui, common)?,
    };
    let sources = lab.inventory.sources_of(&lab.machine);
    let name = folder.display().to_string();
    lab.take_only_from(&name, SourceConfig { order: vec![SourceKind::Drive], drives: vec![folder], ..sources });
    carry_out(ui, common, args, &lab)
}

/// A machine that has no inventory yet goes by the one that came with the drive.
fn read_from_drive(ui: &Ui, common: &Common, folder: &Path) -> Result<Lab, CliError> {
    let inventory = folder.join("inventory.toml");
    ui.note(&format!(
        "This machine has no inventory: going by {}; its README.txt says how to keep it",
        inventory.display()
    ));
    let mut lab = Lab::read(ui, &Common { inventory: Some(inventory), ..common.clone() })?;
    // What is learned on the way is not written to the drive, which need not be writable.
    lab.stored = None;
    Ok(lab)
}

/// Takes through the sockets, with the secret that comes by the standard input.
fn through_sockets(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let mut secret = String::new();
    std::io::stdin().read_line(&mut secret)?;
    let mut lab = Lab::read(ui, common)?.within(args.locality);
    if let Some(settled) = nothing_to_take(ui, common, args, &lab)? {
        return Ok(settled);
    }
    let secret = Some(secret.trim().to_owned());
    take_only_from_peer(&mut lab, args, "the other machine", args.from_socket.clone(), secret);
    carry_out(ui, common, args, &lab)
}

/// Where all is here and was read, says so, and nobody is asked; else `None`.
fn nothing_to_take(ui: &Ui, common: &Common, args: &Args, lab: &Lab) -> Result<Option<Exit>, CliError> {
    let sightings = lab.sight(true)?;
    if !unread::is_all_here(&sightings) {
        return Ok(None);
    }
    let plan = crate::plan::plan(&sightings, &lab.outlook()?);
    drop(sightings);
    show_or_take(ui, common, args, (lab, &plan), Vec::new()).map(Some)
}

/// Makes the server behind `sockets` the only source.
fn take_only_from_peer(lab: &mut Lab, args: &Args, name: &str, sockets: Vec<PathBuf>, token: Option<String>) {
    let sources = lab.inventory.sources_of(&lab.machine);
    // Who limits a copy means what the copy takes; the inventory's limit is about upstream.
    let metered = args.limits.max_download.is_some();
    let peer = Peer { sockets, token, metered, ..Peer::on_this_machine(name) };
    lab.take_only_from(name, SourceConfig { order: vec![SourceKind::Peer], peers: vec![peer], ..sources });
}

/// Shows what is lacking here and takes it. What is here and was never read is read first: a length proves nothing.
fn carry_out(ui: &Ui, common: &Common, args: &Args, lab: &Lab) -> Result<Exit, CliError> {
    let unproven = if args.dry_run {
        unread::tell(ui, lab)?;
        Vec::new()
    } else {
        let Some(unproven) = unread::read(ui, lab, common)? else { return Ok(Exit::Interrupted) };
        unproven
    };
    let plan = plan::make(ui, lab, common, &args.limits)?;
    show_or_take(ui, common, args, (lab, &plan), unproven)
}

/// What `plan` says; unless it is only to be shown, after asking, all of it.
fn show_or_take(
    ui: &Ui,
    common: &Common,
    args: &Args,
    (lab, plan): (&Lab, &Plan),
    unproven: Vec<Failure>,
) -> Result<Exit, CliError> {
    if args.dry_run {
        plan::show(ui, lab, plan, false);
        ui.text(&ending(plan, args.again().as_deref()));
        return Ok(Exit::InOrder);
    }
    let again = args.again();
    let command = Command {
        name: "copy",
        again: again.as_deref(),
        yes: args.yes,
        limits: args.limits,
        max_rate: args.max_rate,
        paces_drives: true,
        unproven,
    };
    apply::carry_out(ui, common, lab, plan, command)
}
