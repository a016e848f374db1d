//! What looks like a broken model and is none: the GPU and its driver, memory, Python packages, the services
//! that read the models, rights, dangling links, keys.
//!
//! Files are read, `nvidia-smi` and `git` are asked; nothing is changed, and Python is not started.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::conditions::{self, Finding, State, Surroundings};
use crate::inventory::Inventory;
use crate::lock::Lock;
use crate::manifest::Manifests;
use crate::stores::Stores;

mod accounts;
mod gpu;
mod memory;
mod python;
mod services;
mod trees;
mod units;

/// The machine that is examined.
#[derive(Debug, Clone, Copy)]
pub struct Machine<'a> {
    /// What `/proc`, `/sys`, `/etc` and `/usr` lie in: `/`, or a copy of a machine.
    pub root: &'a Path,
    /// What `~` stands for.
    pub home: &'a Path,
}

impl Machine<'_> {
    /// The memory of the first GPU that nobody uses, in bytes, as `nvidia-smi` tells it; `None` where it does not.
    pub fn free_gpu_memory(&self) -> Option<u64> {
        gpu::free_memory(*self)
    }

    /// Where the absolute path `path` of the machine lies.
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A text of the machine, without what is no text; `None` where it cannot be read.
    fn read(&self, path: &str) -> Option<String> {
        fs_err::read(self.at(path)).ok().map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// What the lab says of the machine.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// The inventory.
    pub inventory: &'a Inventory,
    /// The manifests.
    pub manifests: &'a Manifests,
    /// The artifacts that it must have.
    pub artifacts: &'a Lock,
    /// Its stores.
    pub stores: &'a Stores,
}

/// Findings about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Area {
    /// What they are about.
    pub name: &'static str,
    /// Those that do not hold first.
    pub findings: Vec<Finding>,
}

/// Examines everything. Nothing here fails as a whole: what cannot be looked at is a finding.
pub fn examine(machine: Machine<'_>, wanted: Wanted<'_>) -> Vec<Area> {
    let around = Surroundings { home: machine.home, environments: &wanted.inventory.python.environments };
    let gpus = gpu::look(machine);
    let concerns = |name: &str| wanted.artifacts.artifact(name).is_some();
    let (keys, software): (Vec<Finding>, Vec<Finding>) = conditions::look(wanted.manifests, around, &concerns)
        .into_iter()
        .partition(|one| one.subject.starts_with("key "));
    let services = services::read(machine);
    let mut areas = vec![
        Area { name: "graphics", findings: gpus.findings() },
        Area { name: "memory", findings: memory::look(machine, &gpus, wanted) },
        Area { name: "python", findings: python::look(around, &gpus).into_iter().chain(software).collect() },
        Area { name: "services", findings: services::look(machine, &services, wanted) },
        Area { name: "stores", findings: trees::look(machine, &services, wanted) },
        Area { name: "keys", findings: keys },
    ];
    for area in &mut areas {
        area.findings.sort_by_key(|finding| match finding.state {
            State::Fault => 0,
            State::Unknown => 1,
            State::Ok => 2,
        });
    }
    areas.retain(|area| !area.findings.is_empty());
    areas
}
