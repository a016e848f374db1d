//! The trees of the stores: links that lead nowhere, files of the wrong user, and what a service may not read.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::conditions::Finding;
use crate::doctor::accounts::Account;
use crate::doctor::services::{Service, same_place};
use crate::doctor::{Machine, Wanted};
use crate::fsio::Owner;
use crate::inventory::Layout;
use crate::stores::OpenStore;

/// How many paths a finding names.
const NAMED: usize = 3;

/// What one walk through a store has seen.
#[derive(Default)]
struct Seen {
    files: usize,
    dangling: Vec<PathBuf>,
    /// Files and folders of somebody else than the store's owner.
    others: Vec<PathBuf>,
    /// Those that each service's user may not read, by the order of the accounts.
    closed: Vec<Vec<PathBuf>>,
    unreadable: Vec<String>,
}

/// Findings for every store that is there.
pub(super) fn look(machine: Machine<'_>, services: &[Service], wanted: Wanted<'_>) -> Vec<Finding> {
    let there = wanted.stores.iter().filter(|(_, open)| open.store.root().is_dir());
    there.flat_map(|(name, open)| look_at(name, open, &readers(machine, services, open))).collect()
}

/// The users whose services read this store.
fn readers<'a>(machine: Machine<'_>, services: &'a [Service], open: &OpenStore) -> Vec<&'a Account> {
    let root = open.store.root();
    let reads = |service: &&Service| match open.config.layout {
        Layout::HfCache => {
            !service.is_ollama() && service.hub_cache(machine).is_some_and(|path| same_place(&path, root))
        }
        Layout::Ollama => {
            service.is_ollama() && service.ollama_models(machine).is_some_and(|path| same_place(&path, root))
        }
        Layout::Folder => !service.is_ollama(),
    };
    let mut readers: Vec<&Account> =
        services.iter().filter(reads).filter_map(|service| service.account.as_ref()).collect();
    readers.dedup_by_key(|account| account.uid);
    readers
}

fn look_at(name: &str, open: &OpenStore, readers: &[&Account]) -> Vec<Finding> {
    let root = open.store.root();
    let owner = open.store.owner().or_else(|| Owner::of(root).ok());
    let seen = walk(root, &open.store.staging(), owner.map(|owner| owner.uid), readers);
    let mut findings = vec![dangling(name, root, &seen)];
    findings.extend(owner.map(|owner| owned(name, root, owner, &seen)));
    findings.extend(readers.iter().zip(&seen.closed).map(|(account, closed)| readable(name, root, account, closed)));
    if !seen.unreadable.is_empty() {
        let what = format!("{} folders may not be looked into: {}", seen.unreadable.len(), first(&seen.unreadable));
        let fix = "run it again as the store's user or as root";
        findings.push(Finding::unknown(format!("store {name}"), what, "nobody knows what is wrong in there", fix));
    }
    findings
}

fn walk(root: &Path, staging: &Path, owner: Option<u32>, readers: &[&Account]) -> Seen {
    let mut seen = Seen { closed: vec![Vec::new(); readers.len()], ..Seen::default() };
    let entries = WalkDir::new(root).same_file_system(true).into_iter().filter_entry(|entry| entry.path() != staging);
    for entry in entries {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) => {
                seen.unreadable.push(error.path().unwrap_or(root).display().to_string());
                continue;
            }
        };
        let Ok(metadata) = entry.metadata() else { continue };
        let path = entry.path();
        if owner.is_some_and(|owner| owner != metadata.uid()) {
            seen.others.push(path.to_owned());
        }
        if metadata.is_symlink() {
            if !path.exists() {
                seen.dangling.push(path.to_owned());
            }
            continue;
        }
        seen.files += usize::from(metadata.is_file());
        for (account, closed) in readers.iter().zip(&mut seen.closed) {
            if !account.may_read(&metadata) {
                closed.push(path.to_owned());
            }
        }
    }
    seen
}

fn dangling(name: &str, root: &Path, seen: &Seen) -> Finding {
    let (subject, why) = (format!("links in store {name}"), "a link to nothing looks like a model and is none");
    if seen.dangling.is_empty() {
        return Finding::ok(subject, format!("none of them leads to nothing; {} files", seen.files), why);
    }
    let what = format!("{} lead to nothing: {}", seen.dangling.len(), named(root, &seen.dangling));
    let fix =
        format!("larder plan shows what would be put there; see all of them with: find {} -xtype l", quoted(root));
    Finding::fault(subject, what, why, fix)
}

fn owned(name: &str, root: &Path, owner: Owner, seen: &Seen) -> Finding {
    let subject = format!("owner in store {name}");
    let why = "the service cannot replace or remove what belongs to another user, such as root after a sudo";
    let user = owner.name();
    if seen.others.is_empty() {
        return Finding::ok(subject, format!("everything belongs to {user}"), why);
    }
    let what = format!("{} do not belong to {user}: {}", seen.others.len(), named(root, &seen.others));
    let user = if user.contains(' ') { owner.uid.to_string() } else { user };
    Finding::fault(subject, what, why, format!("sudo chown --recursive --no-dereference {user}: {}", quoted(root)))
}

fn readable(name: &str, root: &Path, account: &Account, closed: &[PathBuf]) -> Finding {
    let (subject, why) =
        (format!("rights of {} in store {name}", account.name), "what the service may not read does not exist for it");
    if let Some(folder) = account.stopped_at(root) {
        let fix = format!("sudo setfacl -m u:{}:x {}", account.name, quoted(&folder));
        return Finding::fault(subject, format!("{} may not be entered", folder.display()), why, fix);
    }
    if closed.is_empty() {
        return Finding::ok(subject, "everything may be read", why);
    }
    let what = format!("{} may not be read: {}", closed.len(), named(root, closed));
    Finding::fault(subject, what, why, format!("sudo chmod --recursive a+rX {}", quoted(root)))
}

/// The first few paths, below the store's root.
fn named(root: &Path, paths: &[PathBuf]) -> String {
    let texts: Vec<String> = paths
        .iter()
        .map(|path| path.strip_prefix(root).unwrap_or(path))
        .map(|path| match path.as_os_str().is_empty() {
            true => "its root".to_owned(),
            false => path.display().to_string(),
        })
        .collect();
    first(&texts)
}

fn first(texts: &[String]) -> String {
    let more = texts.len().saturating_sub(NAMED);
    let named = texts[..texts.len().min(NAMED)].join(", ");
    if more > 0 { format!("{named} and {more} more") } else { named }
}

/// A path for a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/-_.+:@".contains(c));
    if is_plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
