//! Brings what others of the lab ask for, from where it was published, into this machine's own stores.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Semaphore;

use crate::apply::{self, Means, Outcome};
use crate::cli::Common;
use crate::cli::commands::apply::means;
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, Limits};
use crate::cli::ui::Ui;
use crate::inventory::SourceKind;
use crate::monitor::Silent;
use crate::observe::observe;
use crate::plan::{self, ArtifactPlan, Plan, Step};
use crate::serve::Supply;
use crate::sources::Sources;
use crate::stores::FileState;
use crate::text::chain;

/// Fetches with this machine's own engine: proven on arrival, and here for this machine too.
pub(super) struct Upstream {
    ui: Ui,
    lab: Arc<Lab>,
    sources: Arc<Sources>,
    turns: Arc<Semaphore>,
}

impl Upstream {
    pub(super) fn new(ui: &Ui, common: &Common, lab: &Arc<Lab>) -> Result<Self, CliError> {
        let config = lab.inventory.sources_of(&lab.machine);
        if !config.order.contains(&SourceKind::Upstream) {
            return Err(CliError::usage("[sources] order has no \"upstream\", so nothing can be fetched from there")
                .hint("leave out --fetch-missing, or add \"upstream\" to the order"));
        }
        // Each file is a run of its own with the whole rate: with a limit, there is one at a time.
        let turns = if config.max_rate.is_some() { 1 } else { config.parallel.max(1) };
        let sources = lab.sources(common, &Limits::default())?;
        Ok(Self { ui: ui.for_a_part(), lab: Arc::clone(lab), sources, turns: Arc::new(Semaphore::new(turns)) })
    }

    /// The same for what `lab` wants: its places, from the sources that were asked before.
    pub(super) fn over(&self, lab: &Arc<Lab>) -> Arc<dyn Supply> {
        let (sources, turns) = (Arc::clone(&self.sources), Arc::clone(&self.turns));
        Arc::new(Self { ui: self.ui.for_a_part(), lab: Arc::clone(lab), sources, turns })
    }

    fn means(&self, plan: &Plan) -> Result<Means, String> {
        let means = means(&self.ui, &self.lab, plan, Arc::clone(&self.sources));
        means.map(|means| Means { monitor: Arc::new(Silent), ..means }).map_err(said)
    }
}

#[async_trait]
impl Supply for Upstream {
    async fn bring(&self, artifact: &str, file: usize) -> Result<PathBuf, String> {
        let _turn = self.turns.acquire().await.map_err(|error| error.to_string())?;
        let (lab, name) = (Arc::clone(&self.lab), artifact.to_owned());
        let plan = blocking(move || plan_for(&lab, &name, file)).await?;
        if plan.has_steps() {
            let outcome = apply::apply(&plan, &self.lab.wanted, self.means(&plan)?).await;
            first_failure(&outcome)?;
        }
        let (lab, name) = (Arc::clone(&self.lab), artifact.to_owned());
        blocking(move || place(&lab, &name, file)).await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.map_err(|error| error.to_string())?
}

/// The one step that brings the file; none if it is here. Peers are not asked: they would ask us in turn.
fn plan_for(lab: &Lab, artifact: &str, file: usize) -> Result<Plan, String> {
    let wanted = lab.wanted.artifact(artifact).ok_or_else(|| format!("{artifact} is not wanted here"))?;
    let sightings = observe(&lab.stores, &[wanted], &lab.facts, true).map_err(|error| chain(&error))?;
    let mut plan = plan::plan(&sightings, &lab.outlook().map_err(said)?);
    for entry in &mut plan.artifacts {
        if let Some(reason) = obstacle(entry, file) {
            return Err(reason);
        }
        entry.steps.retain(|step| is_for(step, file));
    }
    Ok(plan)
}

fn is_for(step: &Step, wanted: usize) -> bool {
    matches!(step, Step::Fetch { file, .. } | Step::Reuse { file, .. } if *file == wanted)
}

/// Why the file cannot be brought, where nothing would be done for it and something is in the way.
fn obstacle(entry: &ArtifactPlan, file: usize) -> Option<String> {
    if entry.steps.iter().any(|step| is_for(step, file)) {
        return None;
    }
    if entry.steps.iter().any(|step| matches!(step, Step::Install { .. })) {
        return Some(format!("{} is installed by its server, as a whole", entry.artifact));
    }
    entry.obstacles.first().map(|obstacle| format!("{}: {}", entry.artifact, obstacle.refusal.reason))
}

fn first_failure(outcome: &Outcome) -> Result<(), String> {
    outcome.failures.first().map_or(Ok(()), |failure| Err(format!("{}: {}", failure.item, failure.reason)))
}

fn place(lab: &Lab, artifact: &str, file: usize) -> Result<PathBuf, String> {
    let wanted = lab.wanted.artifact(artifact).ok_or_else(|| format!("{artifact} is not wanted here"))?;
    let sightings = observe(&lab.stores, &[wanted], &lab.facts, false).map_err(|error| chain(&error))?;
    match sightings.first().and_then(|sighting| sighting.observed.files.get(file)) {
        Some(FileState::Present(found) | FileState::Staged(found)) => Ok(found.path.clone()),
        _ => Err(format!("a file of {artifact} did not arrive")),
    }
}

fn said(error: CliError) -> String {
    let messages: Vec<&str> = error.messages().iter().map(|(message, _)| message.as_str()).collect();
    messages.join("; ")
}
