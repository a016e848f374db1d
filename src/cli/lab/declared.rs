//! Finding and reading the files in which people write: the inventory and the manifests that it names.

use std::path::{Path, PathBuf};

use globset::Glob;

use crate::cli::error::CliError;
use crate::cli::{Common, env};
use crate::inventory::Inventory;
use crate::manifest::{InputError, Manifests, did_you_mean};

/// The inventory that a command goes by: the one that is named, else the first of the usual places.
pub(in crate::cli) fn inventory_path(common: &Common, home: &Path) -> Result<PathBuf, CliError> {
    if let Some(path) = &common.inventory {
        return Ok(path.clone());
    }
    let places = env::inventory_places(home);
    places.iter().find(|path| path.exists()).cloned().ok_or_else(|| {
        let looked = places.map(|path| path.display().to_string()).join(", ");
        CliError::usage(format!("There is no inventory; looked for {looked}")).hint(
            "name one with --inventory PATH; larder's repository has one to begin with, and larder demo needs none",
        )
    })
}

/// Reads inventory, manifests and lock; the mistakes of all of them come together.
pub(super) fn read_declared(path: &Path) -> Result<Declaration, Vec<InputError>> {
    let inventory = Inventory::read(path)?;
    let files = manifest_files(path, &inventory)?;
    let (manifests, texts) = Manifests::read_with_texts(&files)?;
    Ok((inventory, manifests, files.into_iter().zip(texts).collect()))
}

/// The inventory, the manifests, and the text of each of these by file.
pub(super) type Declaration = (Inventory, Manifests, Vec<(PathBuf, String)>);

pub(in crate::cli) fn manifest_files(
    inventory_path: &Path,
    inventory: &Inventory,
) -> Result<Vec<PathBuf>, Vec<InputError>> {
    let root = inventory_path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let (mut files, mut errors) = (Vec::new(), Vec::new());
    for (index, pattern) in inventory.manifests.iter().enumerate() {
        match files_matching(root, pattern) {
            Ok(found) => files.extend(found),
            Err(reason) => {
                let place = inventory.place(inventory_path, &["manifests", &index.to_string()]);
                let error = InputError::new(place, format!("`manifests`: {pattern:?}: {reason}"));
                let hint = "manifests are named relative to the inventory, for example \"manifests/*.toml\"";
                errors.push(error.hint(hint));
            }
        }
    }
    // A file that two patterns name is read once.
    let mut seen = std::collections::HashSet::new();
    files.retain(|file: &PathBuf| seen.insert(file.clone()));
    if errors.is_empty() { Ok(files) } else { Err(errors) }
}

fn files_matching(root: &Path, pattern: &str) -> Result<Vec<PathBuf>, String> {
    let glob = Glob::new(pattern).map_err(|error| error.kind().to_string())?.compile_matcher();
    // The longest part without wildcards is a folder to begin in, also where it leads out of `root`.
    let fixed: PathBuf =
        Path::new(pattern).iter().take_while(|part| !part.to_string_lossy().contains(['*', '?', '[', '{'])).collect();
    let start = if fixed == Path::new(pattern) { root.join(pattern) } else { root.join(&fixed) };
    if start.is_file() {
        return Ok(vec![start]);
    }
    let mut files: Vec<PathBuf> = walkdir::WalkDir::new(&start)
        .into_iter()
        .filter_map(Result::ok)
        .map(walkdir::DirEntry::into_path)
        .filter(|path| path.is_file() && glob.is_match(path.strip_prefix(root).unwrap_or(path)))
        // Messages name files as people would.
        .map(|path| path.strip_prefix(".").map(Path::to_owned).unwrap_or(path))
        .collect();
    files.sort();
    if files.is_empty() { Err("no file matches".to_owned()) } else { Ok(files) }
}

pub(super) fn check_machine(common: &Common, inventory: &Inventory) -> Result<(), CliError> {
    let Some(machine) = common.machine.as_ref().filter(|name| !inventory.machines.contains_key(*name)) else {
        return Ok(());
    };
    let known = inventory.machines.keys().map(String::as_str);
    let hint = did_you_mean(machine, known).unwrap_or_else(|| format!("add a table [machines.{machine}]"));
    Err(CliError::usage(format!("The inventory has no machine `{machine}`")).hint(hint))
}
