//! `larder copy`: takes what this machine lacks from one place, or gives to another what it lacks.

use std::path::{Path, PathBuf};

use crate::cli::error::CliError;
use crate::cli::lab::{Lab, Limits, Locality, expand};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::inventory::{Peer, SourceConfig, SourceKind, parse_rate};
use crate::report::plan::ending;
use crate::size::Bytes;

use super::apply::{self, Command};
use super::plan;
use super::remote::Way;

mod folder;
mod machine;

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

    /// Take through this socket: how `copy --to` runs on the other machine
    #[arg(long, value_name = "PATH", hide = true, conflicts_with_all = ["from", "to"])]
    from_socket: Option<PathBuf>,
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
    if let Some(socket) = &args.from_socket {
        common.only.extend(args.what.iter().cloned());
        return through_socket(ui, &common, args, socket);
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
    let mut lab = Lab::read(ui, common)?.within(args.locality);
    let folder = expand(folder, &lab.home);
    if !folder.is_dir() {
        return Err(CliError::usage(format!("{} is no folder", folder.display())).hint("is the drive mounted?"));
    }
    let sources = lab.inventory.sources_of(&lab.machine);
    lab.take_only_from(SourceConfig { order: vec![SourceKind::Drive], drives: vec![folder], ..sources });
    carry_out(ui, common, args, &lab)
}

fn through_socket(ui: &Ui, common: &Common, args: &Args, socket: &Path) -> Result<Exit, CliError> {
    let mut lab = Lab::read(ui, common)?.within(args.locality);
    take_only_from_peer(&mut lab, args, "the other machine", socket);
    let carried_out = carry_out(ui, common, args, &lab);
    // ssh makes the socket's file and leaves it behind.
    let _ = crate::fsio::remove_file(socket);
    carried_out
}

/// Makes the server behind `socket` the only source.
fn take_only_from_peer(lab: &mut Lab, args: &Args, name: &str, socket: &Path) {
    let sources = lab.inventory.sources_of(&lab.machine);
    let peer = Peer {
        name: name.to_owned(),
        url: "http://peer".parse().expect("a constant address"),
        token_file: None,
        certificate: None,
        // Who limits a copy means what the copy takes; the inventory's limit is about upstream.
        metered: args.limits.max_download.is_some(),
        socket: Some(socket.to_owned()),
    };
    lab.take_only_from(SourceConfig { order: vec![SourceKind::Peer], peers: vec![peer], ..sources });
}

fn carry_out(ui: &Ui, common: &Common, args: &Args, lab: &Lab) -> Result<Exit, CliError> {
    let plan = plan::make(ui, lab, common, &args.limits)?;
    if args.dry_run {
        plan::show(ui, lab, &plan, false);
        ui.text(ending(&plan));
        return Ok(Exit::InOrder);
    }
    let command = Command { name: "copy", yes: args.yes, limits: args.limits, max_rate: args.max_rate };
    apply::carry_out(ui, common, lab, &plan, command)
}
