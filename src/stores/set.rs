//! All stores of this machine, opened as the inventory says.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Absence, Store, open};
use crate::fsio::Owner;
use crate::inventory::{Inventory, StoreConfig, expand_home};

/// One store with what the inventory says about it.
pub struct OpenStore {
    /// The store.
    pub store: Box<dyn Store>,
    /// Its entry in the inventory, with paths expanded.
    pub config: StoreConfig,
    /// Why it must not be written though its root may be there.
    pub closed: Option<Absence>,
}

/// The stores of this machine by name.
pub struct Stores {
    stores: BTreeMap<String, OpenStore>,
}

impl Stores {
    /// Opens every store as `machine` has it; nothing on disk is touched.
    ///
    /// `home` stands for `~`. Files belong to the configured owner, else to whoever owns the root or
    /// the closest folder above it.
    pub fn open(inventory: &Inventory, machine: &str, home: &Path) -> Self {
        let moved = inventory.machines.get(machine).map(|machine| &machine.stores);
        let mut stores = BTreeMap::new();
        for (name, config) in &inventory.stores {
            let mut config = config.clone();
            if let Some(path) = moved.and_then(|moved| moved.get(name)) {
                config.path.clone_from(path);
            }
            config.path = expand_home(&config.path, home);
            config.mounted = config.mounted.map(|path| expand_home(&path, home));
            let (owner, closed) = owner_of(&config);
            stores.insert(name.clone(), OpenStore { store: open(name, &config, owner), config, closed });
        }
        Self { stores }
    }

    /// The store called `name`.
    pub fn get(&self, name: &str) -> Option<&OpenStore> {
        self.stores.get(name)
    }

    /// All stores by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &OpenStore)> {
        self.stores.iter().map(|(name, store)| (name.as_str(), store))
    }
}

/// Who must own what is written; a name that this machine does not know closes only this store.
fn owner_of(config: &StoreConfig) -> (Option<Owner>, Option<Absence>) {
    let Some(user) = &config.owner else { return (Owner::of(&config.path).ok(), None) };
    match Owner::named(user) {
        Ok(owner) => (Some(owner), None),
        Err(_) => {
            let path = config.path.display().to_string();
            (Owner::of(&config.path).ok(), Some(Absence::UnknownUser { path, user: user.clone() }))
        }
    }
}
