//! `larder list`: the artifacts of the manifests, what is known of them, and where they go.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::cli::error::CliError;
use crate::cli::lab::{Lab, Scope};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::manifest::Declared;
use crate::report::list::{self, Request};
use crate::resolve;

#[derive(Debug, Default, clap::Args)]
pub(in crate::cli) struct Args {
    /// Everything that the manifests know, whatever the profile leaves out
    #[arg(long, conflicts_with = "profile")]
    all: bool,
    /// The artifacts of this profile, whoever has it [default: that of the machine]
    #[arg(long, value_name = "NAME")]
    profile: Option<String>,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let scope = match &args.profile {
        Some(name) => Scope::Profile(name.clone()),
        None if args.all => Scope::Everything,
        None => Scope::Machine,
    };
    let lab = Lab::read_scope(ui, common, scope)?;
    let selected = lab.selected(common)?;
    let profile = lab.profile_in_scope()?.map(|(name, _)| name).filter(|_| common.only.is_empty());
    // A choice of single artifacts says nothing of profiles.
    let none = BTreeMap::new();
    let profiles = if common.only.is_empty() { &lab.inventory.profiles } else { &none };
    let list = list::list(&Request {
        manifests: &lab.manifests,
        lock: lab.stored.as_ref(),
        profiles,
        wanted: &|declared| selected.iter().any(|artifact| artifact.name == declared.name),
        profile,
        location: &|declared| location(&lab, declared),
    })?;
    ui.text(&list::render(&list, ui.width(), common.verbose > 0));
    ui.object("list", &list);
    Ok(Exit::InOrder)
}

/// Where programs find what the lock, or else the manifest, says of an artifact.
fn location(lab: &Lab, declared: &Declared) -> Option<PathBuf> {
    let store = &lab.stores.get(&declared.store)?.store;
    let locked = lab.stored.as_ref().and_then(|lock| lock.artifact(&declared.name));
    Some(match locked {
        Some(artifact) => store.location(artifact),
        None => store.location(&resolve::from_pins(declared, lab.layout(declared))),
    })
}
