//! `larder lock`: from manifests to exact revisions, sizes and digests.

use std::collections::HashMap;

use serde::Serialize;

use crate::artifact::{Artifact, Origin};
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, Limits, selector};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::inventory::Selector;
use crate::lock::Lock;
use crate::manifest::Declared;
use crate::report::table::count;
use crate::resolve;
use crate::sources::Sources;

#[derive(Debug, Default, clap::Args)]
pub(in crate::cli) struct Args {
    /// Look these up again though they are locked: NAME (with *), tag:T, store:S; may be repeated
    #[arg(long, value_name = "WHAT", conflicts_with = "check")]
    update: Vec<String>,
    /// Only say whether the lock is up to date with the manifests; exit code 3 if not
    #[arg(long)]
    check: bool,
}

#[derive(Debug, Default, Serialize)]
struct Changes {
    added: Vec<String>,
    changed: Vec<String>,
    removed: Vec<String>,
    incomplete: Vec<String>,
    failed: Vec<Failed>,
}

#[derive(Debug, Clone, Serialize)]
struct Failed {
    artifact: String,
    reason: String,
    hint: Option<String>,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read(ui, common)?;
    if args.check {
        return Ok(check(ui, &lab));
    }
    let update = selector(&args.update)?;
    let sources = lab.sources(common, &Limits::default())?;
    let runtime = tokio::runtime::Runtime::new()?;
    let looked_up = runtime.block_on(look_up_all(ui, &lab, common, &update, &sources))?;
    let (mut lock, mut changes) = merge(&lab, common, lab.stored.as_ref(), &looked_up)?;
    if lab.stored.as_ref() != Some(&lock) {
        // Looking up takes its time: other larders may have written the lock meanwhile.
        let _held = Lock::hold(&lab.lock_path)?;
        let stored = Lock::read(&lab.lock_path)?;
        (lock, changes) = merge(&lab, common, stored.as_ref(), &looked_up)?;
        if stored.as_ref() != Some(&lock) {
            lock.write(&lab.lock_path)?;
        }
    }
    ui.text(&text(&lab, &lock, &changes));
    ui.object("lock", &changes);
    Ok(if changes.failed.is_empty() { Exit::InOrder } else { Exit::Partly })
}

/// What was looked up, or why it could not be, by the artifact's name.
type LookedUp = HashMap<String, Result<Artifact, Failed>>;

/// The declared artifacts that `--only` leaves, and that are locked at all.
fn asked_for<'a>(lab: &'a Lab, common: &Common) -> Result<Vec<&'a Declared>, CliError> {
    let asked = if common.only.is_empty() { lab.manifests.artifacts.iter().collect() } else { lab.selected(common)? };
    Ok(asked.into_iter().filter(|declared| !resolve::is_note(declared)).collect())
}

/// Looks up everything whose locked entry does not say all that can be told.
async fn look_up_all(
    ui: &Ui,
    lab: &Lab,
    common: &Common,
    update: &Selector,
    sources: &Sources,
) -> Result<LookedUp, CliError> {
    let mut looked_up = LookedUp::new();
    for declared in asked_for(lab, common)? {
        let previous = lab.stored.as_ref().and_then(|lock| lock.artifact(&declared.name));
        let keeps = previous.is_some_and(|locked| is_current(locked, declared, common) && !update.matches(declared));
        if !keeps {
            let entry = match common.offline {
                true => from_record(lab, declared, previous),
                false => look_up(ui, lab, declared, sources).await,
            };
            looked_up.insert(declared.name.clone(), entry);
        }
    }
    Ok(looked_up)
}

/// Everything that the manifests declare, locked: what was looked up, and the rest as it is `stored` now.
fn merge(lab: &Lab, common: &Common, stored: Option<&Lock>, looked_up: &LookedUp) -> Result<(Lock, Changes), CliError> {
    let mut changes = Changes::default();
    let mut lock = Lock::default();
    let asked = asked_for(lab, common)?;
    for declared in lab.manifests.artifacts.iter().filter(|declared| !resolve::is_note(declared)) {
        let previous = stored.and_then(|lock| lock.artifact(&declared.name));
        let is_asked = asked.iter().any(|asked| asked.name == declared.name);
        let found = looked_up.get(&declared.name);
        changes.failed.extend(found.and_then(|found| found.as_ref().err()).cloned());
        let found = found.and_then(|found| found.as_ref().ok());
        // What somebody looked up meanwhile is not given up for what the manifest says.
        let says_less = |entry: &&Artifact| {
            let is_looked_up =
                previous.is_some_and(|locked| locked.origin == Origin::Upstream && is_of(locked, declared));
            entry.origin == Origin::Pins && entry.source.has_upstream() && is_looked_up
        };
        let found = found.filter(|entry| !says_less(entry)).cloned();
        let pins = || is_asked.then(|| resolve::from_pins(declared, lab.layout(declared)));
        let Some(mut entry) = found.or_else(|| previous.cloned()).or_else(pins) else { continue };
        if let Some(previous) = previous {
            resolve::keep_first_use(&mut entry, previous);
            resolve::keep_xet(&mut entry, previous);
        }
        note(&mut changes, previous, &entry);
        lock.artifacts.push(entry);
    }
    let gone = |artifact: &&Artifact| lock.artifact(&artifact.name).is_none();
    changes.removed = stored.iter().flat_map(|lock| &lock.artifacts).filter(gone).map(|a| a.name.clone()).collect();
    Ok((lock, changes))
}

/// What can be said of an artifact without asking anybody.
fn from_record(lab: &Lab, declared: &Declared, previous: Option<&Artifact>) -> Result<Artifact, Failed> {
    let says_more = previous.is_some_and(|locked| locked.origin == Origin::Upstream && is_of(locked, declared));
    if says_more { Err(not_offline(declared)) } else { Ok(resolve::from_pins(declared, lab.layout(declared))) }
}

async fn look_up(ui: &Ui, lab: &Lab, declared: &Declared, sources: &Sources) -> Result<Artifact, Failed> {
    ui.note(&format!("looking up {}", declared.name));
    resolve::resolve(declared, lab.layout(declared), sources).await.map_err(|error| Failed {
        artifact: declared.name.clone(),
        reason: crate::text::chain(&error),
        hint: error.hint(),
    })
}

/// What upstream said once is more than the manifest says: without asking again, it stays.
fn not_offline(declared: &Declared) -> Failed {
    Failed {
        artifact: declared.name.clone(),
        reason: format!("{} is not looked up again: --offline forbids to ask; what is locked stays", declared.name),
        hint: Some("run it again without --offline".to_owned()),
    }
}

/// Whether an entry was locked from what the manifest says now.
fn is_of(locked: &Artifact, declared: &Declared) -> bool {
    locked.declared == resolve::fingerprint(declared)
}

/// Whether a locked entry still says all that the manifest and the mode of this run can tell.
fn is_current(locked: &Artifact, declared: &Declared, common: &Common) -> bool {
    is_of(locked, declared) && (common.offline || locked.origin == Origin::Upstream || !locked.source.has_upstream())
}

fn note(changes: &mut Changes, previous: Option<&Artifact>, entry: &Artifact) {
    match previous {
        None => changes.added.push(entry.name.clone()),
        Some(previous) if previous != entry => changes.changed.push(entry.name.clone()),
        Some(_) => {}
    }
    if !entry.complete {
        changes.incomplete.push(entry.name.clone());
    }
}

fn check(ui: &Ui, lab: &Lab) -> Exit {
    let declared = lab.manifests.artifacts.iter().filter(|declared| !resolve::is_note(declared));
    let mut changes = Changes::default();
    for declared in declared {
        match lab.stored.as_ref().and_then(|lock| lock.artifact(&declared.name)) {
            None => changes.added.push(declared.name.clone()),
            Some(locked) if locked.declared != resolve::fingerprint(declared) => {
                changes.changed.push(declared.name.clone())
            }
            Some(locked) if !locked.complete => changes.incomplete.push(declared.name.clone()),
            Some(_) => {}
        }
    }
    let known = |artifact: &&Artifact| lab.manifests.artifact(&artifact.name).is_none();
    changes.removed =
        lab.stored.iter().flat_map(|lock| &lock.artifacts).filter(known).map(|a| a.name.clone()).collect();
    let is_current = changes.added.is_empty() && changes.changed.is_empty() && changes.removed.is_empty();
    ui.object("lock", &changes);
    if is_current {
        ui.text("The lock is up to date with the manifests\n");
        return Exit::InOrder;
    }
    for (what, names) in
        [("not locked", &changes.added), ("changed", &changes.changed), ("no longer declared", &changes.removed)]
    {
        if !names.is_empty() {
            ui.text(&format!("{what}: {}\n", names.join(", ")));
        }
    }
    ui.note("hint: bring it up to date with: larder lock");
    Exit::Differences
}

fn text(lab: &Lab, lock: &Lock, changes: &Changes) -> String {
    let files: usize = lock.artifacts.iter().map(|artifact| artifact.files.len()).sum();
    let pinned = lock.artifacts.iter().flat_map(|a| &a.files).filter(|file| file.digests.proves_content()).count();
    let mut out = format!(
        "{}: {}, {}, {pinned} of them with a digest\n",
        lab.lock_path.display(),
        count(lock.artifacts.len(), "artifact"),
        count(files, "file"),
    );
    for (what, names) in [("added", &changes.added), ("changed", &changes.changed), ("removed", &changes.removed)] {
        if !names.is_empty() {
            out.push_str(&format!("  {what}: {}\n", names.join(", ")));
        }
    }
    if !changes.incomplete.is_empty() {
        out.push_str(&format!("  not complete, because the record is not: {}\n", changes.incomplete.join(", ")));
    }
    for failed in &changes.failed {
        out.push_str(&format!("  failed: {}\n", failed.reason));
        if let Some(hint) = &failed.hint {
            out.push_str(&format!("  hint: {hint}\n"));
        }
    }
    out
}
