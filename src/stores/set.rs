//! All stores of this machine, opened as the inventory says.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Store, open};
use crate::fsio::{Owner, OwnerError};
use crate::inventory::{Inventory, StoreConfig, expand_home};

/// One store with what the inventory says about it.
pub struct OpenStore {
    /// The store.
    pub store: Box<dyn Store>,
    /// Its entry in the inventory, with paths expanded.
    pub config: StoreConfig,
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
    pub fn open(inventory: &Inventory, machine: &str, home: &Path) -> Result<Self, OwnerError> {
        let moved = inventory.machines.get(machine).map(|machine| &machine.stores);
        let mut stores = BTreeMap::new();
        for (name, config) in &inventory.stores {
            let mut config = config.clone();
            if let Some(path) = moved.and_then(|moved| moved.get(name)) {
                config.path.clone_from(path);
            }
            config.path = expand_home(&config.path, home);
            config.mounted = config.mounted.map(|path| expand_home(&path, home));
            let owner = match &config.owner {
                Some(user) => Some(Owner::named(user)?),
                None => Owner::of(&config.path).ok(),
            };
            stores.insert(name.clone(), OpenStore { store: open(name, &config, owner), config });
        }
        Ok(Self { stores })
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
