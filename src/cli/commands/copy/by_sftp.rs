//! Takes from a machine without larder: its sshd hands the files out, by the layouts of its stores.

use std::collections::HashMap;
use std::path::Path;

use super::machine::{CONNECTIONS, cap_logins};
use super::{Args, carry_out};
use crate::cli::error::CliError;
use crate::cli::lab::Lab;
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::digest::ContentName;
use crate::inventory::{Peer, SourceConfig, SourceKind};
use crate::sources::SftpConfig;
use crate::stores::{Stores, places_of};

/// Takes from `machine` what this one lacks, as far as its stores lie where the inventory says.
pub(super) fn take(ui: &Ui, common: &Common, args: &Args, machine: &str) -> Result<Exit, CliError> {
    let mut lab = Lab::read(ui, common)?;
    let mut command = args.way.to_move(&lab, machine);
    // Before the destination: the last word is then a subsystem.
    let at = command.len() - 2;
    command.insert(at, "-s".into());
    command.push("sftp".into());
    let places = places_on(&lab, machine);
    lab.by_sftp = vec![SftpConfig { name: machine.to_owned(), command, sessions: CONNECTIONS, places }];
    let sources = lab.inventory.sources_of(&lab.machine);
    let peers = vec![Peer::on_this_machine(machine)];
    lab.take_only_from(machine, SourceConfig { order: vec![SourceKind::Peer], peers, ..sources });
    cap_logins(&mut lab);
    let sources = lab.sources(common, &args.limits)?;
    tokio::runtime::Runtime::new()?.block_on(sources.sftp().holdings(machine)).map_err(|error| {
        CliError::failed(&error).hint(format!("its sshd must know sftp: try {} -s {machine} sftp", args.way.ssh))
    })?;
    carry_out(ui, common, args, &lab)
}

/// Where the stores of `machine` keep what is wanted here. `~` is the home of whoever logs in, where sftp begins.
fn places_on(lab: &Lab, machine: &str) -> HashMap<ContentName, (Option<u64>, Vec<String>)> {
    let stores = Stores::open(&lab.inventory, machine, Path::new(""));
    let mut places: HashMap<ContentName, (Option<u64>, Vec<String>)> = HashMap::new();
    for artifact in &lab.wanted.artifacts {
        let Some(open) = stores.get(&artifact.store) else { continue };
        for file in &artifact.files {
            let found = places_of(open.config.layout, open.store.root(), artifact, file);
            let found: Vec<String> = found.into_iter().filter_map(|place| place.to_str().map(str::to_owned)).collect();
            for name in file.digests.names() {
                let (size, known) = places.entry(name).or_default();
                *size = size.or(file.size);
                known.extend(found.iter().filter(|place| !known.contains(place)).cloned().collect::<Vec<_>>());
            }
        }
    }
    places
}
