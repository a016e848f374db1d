//! Everything a command works with, read once: inventory, manifests, lock, stores, facts.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use url::Url;

use super::error::CliError;
use super::ui::Ui;
use super::{Common, env};
use crate::artifact::{Artifact, Reference};
use crate::conditions::{self, Finding, Surroundings};
use crate::facts::Facts;
use crate::inventory::{self, Inventory, Layout, Profile, Selector, SourceKind, expand_home};
use crate::lock::Lock;
use crate::manifest::{Declared, InputError, Manifests, did_you_mean};
use crate::observe::{self, Sighting};
use crate::plan::Outlook;
use crate::resolve;
use crate::sources::{SftpConfig, Sources};
use crate::stores::Stores;

mod declared;
mod origins;

use declared::{check_machine, read_declared};
pub(super) use declared::{inventory_path, manifest_files};
pub(super) use origins::{Limits, Locality, read_token};

/// Which of the declared artifacts a command is about, before `--only`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Scope {
    /// Those that this machine must have.
    #[default]
    Machine,
    /// Those of this profile, whoever has it.
    Profile(String),
    /// Everything that the manifests know.
    Everything,
}

/// One machine of a lab, as its files describe it.
pub(super) struct Lab {
    pub(super) inventory: Inventory,
    pub(super) manifests: Manifests,
    /// What the lock file says; `None` before the first `larder lock`.
    pub(super) stored: Option<Lock>,
    pub(super) inventory_path: PathBuf,
    pub(super) lock_path: PathBuf,
    /// What this machine must have: the lock's entries, else what the manifests alone say.
    pub(super) wanted: Lock,
    /// What the lock says of everything else.
    unwanted: Vec<Artifact>,
    pub(super) machine: String,
    scope: Scope,
    pub(super) home: PathBuf,
    /// Where larder remembers what it measured and found.
    pub(super) state: PathBuf,
    pub(super) stores: Arc<Stores>,
    pub(super) facts: Arc<Facts>,
    /// The one place that this run may take from, as people call it.
    only_from: Option<String>,
    /// Machines that are read by sftp in this run.
    pub(super) by_sftp: Vec<SftpConfig>,
    /// Lock and manifests as they were read, where signatures are wanted: these go for what was read.
    pub(super) read_texts: Vec<(PathBuf, String)>,
    /// Whether the command line forbids to take anything from upstream.
    only_local: bool,
    /// Made when first needed; all of a run share it, with what it learns of its hosts.
    sources: OnceLock<Arc<Sources>>,
}

impl Lab {
    /// Reads everything that `common` names.
    pub(super) fn read(ui: &Ui, common: &Common) -> Result<Self, CliError> {
        Self::read_and(ui, common, Scope::Machine, true)
    }

    /// The same without `stored`, whose entries become the wanted ones: long locks need not be copied.
    pub(super) fn read_wanted(ui: &Ui, common: &Common) -> Result<Self, CliError> {
        Self::read_and(ui, common, Scope::Machine, false)
    }

    /// The same for artifacts that this machine need not have.
    pub(super) fn read_scope(ui: &Ui, common: &Common, scope: Scope) -> Result<Self, CliError> {
        Self::read_and(ui, common, scope, true)
    }

    fn read_and(ui: &Ui, common: &Common, scope: Scope, keep_stored: bool) -> Result<Self, CliError> {
        let home = env::home();
        let path = inventory_path(common, &home)?;
        let lock_path = path.with_extension("lock");
        // The lock and the facts can be long, and neither needs the other.
        let reading = std::thread::spawn({
            let lock_path = lock_path.clone();
            move || Lock::read_with_text(&lock_path)
        });
        let stored = || reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let (inventory, manifests, texts) = match read_declared(&path) {
            Ok(declared) => declared,
            Err(errors) => return Err(errors.into_iter().chain(stored().err()).collect::<Vec<_>>().into()),
        };
        let machine = common.machine.clone().or_else(|| inventory.machine.clone()).unwrap_or_else(env::host_name);
        check_machine(common, &inventory)?;
        let stores = Stores::open(&inventory, &machine, &home);
        let state = state_dir(common, &home);
        let facts = open_facts(ui, &state);
        stores.iter().for_each(|(_, open)| facts.read_ahead(open.store.root()));
        let (stored, lock_text) = stored()?.unzip();
        let read_texts = if inventory.trust.require_signature {
            lock_text.map(|text| (lock_path.clone(), text)).into_iter().chain(texts).collect()
        } else {
            Vec::new()
        };
        let mut lab = Self {
            wanted: Lock::default(),
            unwanted: Vec::new(),
            inventory,
            manifests,
            stored,
            inventory_path: path.clone(),
            lock_path,
            machine,
            scope,
            home,
            state,
            stores: Arc::new(stores),
            facts: Arc::new(facts),
            only_from: None,
            by_sftp: Vec::new(),
            read_texts,
            only_local: false,
            sources: OnceLock::new(),
        };
        lab.check_selection(&path)?;
        let locked = if keep_stored { lab.stored.clone() } else { lab.stored.take() };
        (lab.wanted, lab.unwanted) = lab.split(ui, common, locked.unwrap_or_default())?;
        Ok(lab)
    }

    /// The files that say what is wanted: the manifests, and the lock where there is one.
    pub(super) fn signed_files(&self) -> Result<Vec<PathBuf>, CliError> {
        let lock = fs_err::exists(&self.lock_path)?.then(|| self.lock_path.clone());
        let manifests = manifest_files(&self.inventory_path, &self.inventory)?;
        Ok(lock.into_iter().chain(manifests).collect())
    }

    /// The name of the machine's profile.
    pub(super) fn profile(&self) -> Option<&str> {
        self.inventory.profile_of(&self.machine).map(|(name, _)| name)
    }

    /// The profile that the command is about: the machine's, or the one that was asked for.
    pub(super) fn profile_in_scope(&self) -> Result<Option<(&str, &Profile)>, CliError> {
        match &self.scope {
            Scope::Machine => Ok(self.inventory.profile_of(&self.machine)),
            Scope::Everything => Ok(None),
            Scope::Profile(name) => {
                let profiles = &self.inventory.profiles;
                let found = profiles.get_key_value(name).map(|(name, profile)| Some((name.as_str(), profile)));
                found.ok_or_else(|| {
                    let known = profiles.keys().map(String::as_str);
                    let hint = did_you_mean(name, known).unwrap_or_else(|| "see them with: larder list".to_owned());
                    CliError::usage(format!("The inventory has no profile `{name}`")).hint(hint)
                })
            }
        }
    }

    /// The declared artifacts that the command's scope and `--only` select.
    pub(super) fn selected(&self, common: &Common) -> Result<Vec<&Declared>, CliError> {
        let only = selector(&common.only)?;
        let mut selected = self.in_scope()?;
        selected.retain(|artifact| common.only.is_empty() || only.matches(artifact));
        if selected.is_empty() && !common.only.is_empty() {
            return Err(self.nothing_selected(common, &only)?);
        }
        Ok(selected)
    }

    fn nothing_selected(&self, common: &Common, only: &Selector) -> Result<CliError, CliError> {
        let profile = self.profile_in_scope()?.map(|(name, _)| name);
        let whose = profile.map_or_else(|| "the manifests".to_owned(), |name| format!("profile {name}"));
        let asked = format!("--only {}", common.only.join(" --only "));
        let hint = if self.manifests.artifacts.iter().any(|artifact| only.matches(artifact)) {
            format!("the manifests have it, outside the profile: larder list --all {asked}")
        } else {
            "see the names with: larder list --all".to_owned()
        };
        Ok(CliError::usage(format!("{asked} selects nothing in {whose}")).hint(hint))
    }

    fn in_scope(&self) -> Result<Vec<&Declared>, CliError> {
        let all = &self.manifests.artifacts;
        let Some((_, profile)) = self.profile_in_scope()? else { return Ok(all.iter().collect()) };
        Ok(profile.select(all)?)
    }

    /// Whether the profile selects anything, and whether all of it fits its stores.
    fn check_selection(&self, inventory_path: &Path) -> Result<(), CliError> {
        let selected = self.in_scope()?;
        // What this machine need not have need not fit into it.
        if self.scope != Scope::Machine {
            return Ok(());
        }
        let errors = inventory::fit(&self.inventory, &self.manifests, &selected);
        if !errors.is_empty() {
            return Err(errors.into());
        }
        match self.profile().filter(|_| selected.is_empty() && !self.manifests.artifacts.is_empty()) {
            None => Ok(()),
            Some(profile) => {
                let place = self.inventory.place(inventory_path, &["profiles", profile, "artifacts"]);
                let message = format!("profile `{profile}` selects no artifact");
                Err(InputError::new(place, message).hint("check the names: a profile of * has everything").into())
            }
        }
    }

    /// The layout of a declared artifact's store; plain files where the inventory has no such store.
    pub(super) fn layout(&self, declared: &Declared) -> Layout {
        self.inventory.stores.get(&declared.store).map_or(Layout::Folder, |store| store.layout)
    }

    /// What this machine must have, and the rest of what is `locked`.
    fn split(&self, ui: &Ui, common: &Common, locked: Lock) -> Result<(Lock, Vec<Artifact>), CliError> {
        let mut locked: HashMap<String, Artifact> =
            locked.artifacts.into_iter().map(|artifact| (artifact.name.clone(), artifact)).collect();
        let selected = self.selected(common)?;
        let mut artifacts = Vec::new();
        let mut stale = Vec::new();
        for declared in selected.into_iter().filter(|declared| !resolve::is_note(declared)) {
            match locked.remove(&declared.name) {
                Some(locked) => {
                    if locked.declared != resolve::fingerprint(declared) {
                        stale.push(declared.name.as_str());
                    }
                    artifacts.push(locked);
                }
                None => artifacts.push(resolve::from_pins(declared, self.layout(declared))),
            }
        }
        if !stale.is_empty() {
            let names = stale.join(", ");
            ui.warn(&format!(
                "the manifest has changed since these were locked: {names}; bring the lock up to date with: larder lock"
            ));
        }
        let mut unwanted: Vec<Artifact> = locked.into_values().collect();
        unwanted.sort_unstable_by(|one, other| one.name.cmp(&other.name));
        Ok((Lock { artifacts }, unwanted))
    }

    /// Everything that is locked or declared, and not wanted here now.
    pub(super) fn others(&self) -> Vec<Artifact> {
        let is_known =
            |name: &str| self.wanted.artifact(name).is_some() || self.unwanted.iter().any(|a| a.name == name);
        let declared = self.manifests.artifacts.iter().filter(|declared| !resolve::is_note(declared));
        let unlocked = declared.filter(|declared| !is_known(&declared.name));
        let pins = unlocked.map(|declared| resolve::from_pins(declared, self.layout(declared)));
        self.unwanted.iter().cloned().chain(pins).collect()
    }

    /// Looks at every wanted artifact.
    pub(super) fn sight(&self, to_write: bool) -> Result<Vec<Sighting<'_>>, CliError> {
        let artifacts: Vec<&Artifact> = self.wanted.artifacts.iter().collect();
        Ok(observe::observe(&self.stores, &artifacts, &self.facts, to_write)?)
    }

    /// Lets running servers say what they have in stores that larder may not look into.
    pub(super) fn hear_servers(&self, common: &Common, sightings: &mut [Sighting<'_>]) -> Result<(), CliError> {
        let servers = observe::servers_to_ask(&self.stores, sightings);
        if !common.offline && !servers.is_empty() {
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(observe::hear(&servers, &self.stores, sightings));
        }
        Ok(())
    }

    /// Packages, keys and conditions that concern the wanted artifacts; with `--only`, those that name one of them.
    pub(super) fn conditions(&self, common: &Common) -> Vec<Finding> {
        let around = Surroundings { home: &self.home, environments: &self.inventory.python.environments };
        let is_wanted = |name: &str| self.wanted.artifact(name).is_some();
        let look = if common.only.is_empty() { conditions::look } else { conditions::look_only };
        look(&self.manifests, around, &is_wanted)
    }

    /// What is known of the world before anybody is asked.
    pub(super) fn outlook(&self) -> Result<Outlook, CliError> {
        let deny = selector(&self.inventory.policy.deny)?;
        let artifacts = &self.wanted.artifacts;
        let denied = artifacts.iter().map(|artifact| artifact.name.clone()).filter(|name| deny.matches_name(name));
        let served = self.stores.iter().filter(|(_, open)| open.config.api.is_some());
        // A folder that is not on this machine's file systems takes no room on them.
        let is_elsewhere = |name: &str| {
            self.stores.get(name).is_some_and(|open| open.config.api.is_some() && !open.store.root().exists())
        };
        let mut spaces = observe::spaces(&self.stores);
        spaces.retain(|name, _| !is_elsewhere(name));
        let order = self.inventory.sources_of(&self.machine).order;
        let is_near = |server: &Url| match server.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        let near = self.stores.iter().filter(|(_, open)| open.config.api.as_ref().is_some_and(is_near));
        Ok(Outlook {
            upstream: order.contains(&SourceKind::Upstream),
            only_from: self.only_from.clone(),
            only_local: self.only_local,
            metered: self.metered(),
            order,
            spaces,
            alternatives: self.alternatives(),
            denied: denied.collect(),
            reuse: self.inventory.policy.reuse == crate::inventory::Reuse::Copy,
            served_stores: served.map(|(name, _)| name.to_owned()).collect(),
            near_servers: near.map(|(name, _)| name.to_owned()).collect(),
            ..Outlook::default()
        })
    }

    /// What the manifests say of artifacts whose source nobody has decided yet.
    fn alternatives(&self) -> HashMap<String, Vec<Reference>> {
        let undecided = self.manifests.artifacts.iter().filter(|declared| !declared.alternatives.is_empty());
        undecided.map(|declared| (declared.name.clone(), declared.alternatives.clone())).collect()
    }
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

fn state_dir(common: &Common, home: &Path) -> PathBuf {
    common.state.clone().unwrap_or_else(|| env::state_dir(home))
}

/// Combines selections of the command line or of a profile.
pub(super) fn selector(patterns: &[String]) -> Result<Selector, CliError> {
    Ok(Selector::new(patterns.iter().map(String::as_str))?)
}

fn open_facts(ui: &Ui, state: &Path) -> Facts {
    let path = state.join("facts.sqlite");
    Facts::open(&path)
        .or_else(|error| {
            ui.warn(&format!("{}; nothing will be remembered of this run", crate::text::chain(&error)));
            Facts::in_memory()
        })
        .expect("a database in memory needs no disk")
}

/// `~` in a path of the command line means the same as in the inventory.
pub(super) fn expand(path: &Path, home: &Path) -> PathBuf {
    expand_home(path, home)
}
