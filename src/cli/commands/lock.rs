//! `larder lock`: from manifests to exact revisions, sizes and digests.

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

#[derive(Debug, Serialize)]
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
    let (lock, changes) = runtime.block_on(lock(ui, &lab, common, &update, &sources))?;
    if lab.stored.as_ref() != Some(&lock) {
        lock.write(&lab.lock_path)?;
    }
    ui.text(&text(&lab, &lock, &changes));
    ui.object("lock", &changes);
    Ok(if changes.failed.is_empty() { Exit::InOrder } else { Exit::Partly })
}

/// Everything that the manifests declare, locked; what `--only` leaves out stays as it was.
async fn lock(
    ui: &Ui,
    lab: &Lab,
    common: &Common,
    update: &Selector,
    sources: &Sources,
) -> Result<(Lock, Changes), CliError> {
    let mut changes = Changes::default();
    let mut lock = Lock::default();
    let narrowed = if common.only.is_empty() { None } else { Some(lab.selected(common)?) };
    for declared in lab.manifests.artifacts.iter().filter(|declared| !resolve::is_note(declared)) {
        let previous = lab.stored.as_ref().and_then(|lock| lock.artifact(&declared.name));
        let is_asked = narrowed.as_ref().is_none_or(|names| names.iter().any(|name| name.name == declared.name));
        let keeps = previous
            .filter(|previous| !is_asked || (is_current(previous, declared, common) && !update.matches(declared)));
        let entry = match keeps {
            Some(previous) => previous.clone(),
            None if !is_asked => continue,
            None => match look_up(ui, lab, declared, common, sources).await {
                Ok(entry) => entry,
                Err(failed) => {
                    changes.failed.push(failed);
                    previous.cloned().unwrap_or_else(|| resolve::from_pins(declared, lab.layout(declared)))
                }
            },
        };
        let mut entry = entry;
        if let Some(previous) = previous {
            resolve::keep_first_use(&mut entry, previous);
            resolve::keep_xet(&mut entry, previous);
        }
        note(&mut changes, previous, &entry);
        lock.artifacts.push(entry);
    }
    let gone = |artifact: &&Artifact| lock.artifact(&artifact.name).is_none();
    changes.removed = lab.stored.iter().flat_map(|lock| &lock.artifacts).filter(gone).map(|a| a.name.clone()).collect();
    Ok((lock, changes))
}

async fn look_up(
    ui: &Ui,
    lab: &Lab,
    declared: &Declared,
    common: &Common,
    sources: &Sources,
) -> Result<Artifact, Failed> {
    if common.offline {
        return Ok(resolve::from_pins(declared, lab.layout(declared)));
    }
    ui.note(&format!("looking up {}", declared.name));
    resolve::resolve(declared, lab.layout(declared), sources).await.map_err(|error| Failed {
        artifact: declared.name.clone(),
        reason: crate::text::chain(&error),
        hint: error.hint(),
    })
}

/// Whether a locked entry still says all that the manifest and the mode of this run can tell.
fn is_current(locked: &Artifact, declared: &Declared, common: &Common) -> bool {
    let same = locked.declared == resolve::fingerprint(declared);
    same && (common.offline || locked.origin == Origin::Upstream || !locked.source.has_upstream())
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
