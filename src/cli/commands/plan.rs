//! `larder plan`: what would be done; changes nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use url::Url;

use crate::apply;
use crate::artifact::File;
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, Limits, Locality, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::digest::{ContentName, Sha256};
use crate::inventory::SourceKind;
use crate::observe::{self, Access, Held, Proof, Sighting};
use crate::plan::{self, ArtifactPlan, Outlook, Plan, Refusal};
use crate::relpath::RelPath;
use crate::report::plan::{Heading, by_place, ending, text};
use crate::sources::{BucketSource, Holdings, SourceError, Sources, find_in_drive};

/// How often places are asked at most: a place that gives nothing is known well enough by then.
const MOST_ROUNDS: usize = 8;

#[derive(Debug, Default, clap::Args)]
pub(in crate::cli) struct Args {
    /// Exit with 3 if there is anything to do
    #[arg(long)]
    check: bool,
    /// Also list the artifacts that are in order
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    limits: Limits,
    #[command(flatten)]
    locality: Locality,
}

#[derive(Serialize)]
struct Planned<'a> {
    machine: &'a str,
    profile: Option<&'a str>,
    bytes_to_move: u64,
    /// How long that takes, where every place was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
    #[serde(flatten)]
    plan: &'a Plan,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read_wanted(ui, common)?.within(args.locality);
    let plan = make(ui, &lab, common, &args.limits)?;
    show(ui, &lab, &plan, args.all);
    ui.text(&ending(&plan, Some("larder apply")));
    Ok(if args.check && !plan.is_settled() { Exit::Differences } else { Exit::InOrder })
}

/// Prints the plan in both formats.
pub(in crate::cli) fn show(ui: &Ui, lab: &Lab, plan: &Plan, everything: bool) {
    let (machine, profile) = (lab.machine.as_str(), lab.profile());
    // Without measurements, nobody knows how long it takes.
    let rates = lab.facts.rates().unwrap_or_default();
    ui.text(&text(plan, &Heading { machine, profile, now: now(), width: ui.width(), everything }, &rates));
    let seconds = rates.seconds(&by_place(plan));
    ui.object("plan", &Planned { machine, profile, bytes_to_move: plan.bytes_to_move(), seconds, plan });
}

/// Looks, decides, asks every place that would be fetched from, and decides again with the answers.
pub(in crate::cli) fn make(ui: &Ui, lab: &Lab, common: &Common, limits: &Limits) -> Result<Plan, CliError> {
    make_for(ui, lab, common, limits, lab.outlook()?)
}

/// The same as if there were room for everything: for what is mended in place.
pub(super) fn make_without_room(ui: &Ui, lab: &Lab, common: &Common) -> Result<Plan, CliError> {
    make_for(ui, lab, common, &Limits::default(), Outlook { spaces: HashMap::new(), ..lab.outlook()? })
}

fn make_for(ui: &Ui, lab: &Lab, common: &Common, limits: &Limits, mut outlook: Outlook) -> Result<Plan, CliError> {
    let mut sightings = lab.sight(true)?;
    lab.hear_servers(common, &mut sightings)?;
    outlook.on_drives = on_drives(lab, &sightings);
    outlook.max_download = limits.max_download.or(lab.inventory.sources_of(&lab.machine).max_download);
    let mut draft = plan::plan(&sightings, &outlook);
    outlook.silent_servers = silent_servers(lab, common, &sightings, &draft)?;
    outlook.on_machine = on_machine(lab, &outlook, &draft)?;
    if !outlook.silent_servers.is_empty() || !outlook.on_machine.is_empty() {
        draft = plan::plan(&sightings, &outlook);
    }
    let places = lab.inventory.sources_of(&lab.machine);
    let may_ask = |kind| !common.offline && places.order.contains(&kind) && wants_content(&draft);
    let may_ask_peers = !places.peers.is_empty() && may_ask(SourceKind::Peer);
    let may_ask_buckets = !places.buckets.is_empty() && may_ask(SourceKind::Bucket);
    // Offline, the sources refuse without asking anybody: so the plan says what cannot be had.
    if draft.remotes_to_check().is_empty() && !may_ask_peers && !may_ask_buckets {
        return Ok(draft);
    }
    // Preparing sources loads the system's certificates: only who asks somebody pays for it.
    let sources = lab.sources(common, limits)?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        if may_ask_buckets {
            outlook.on_buckets = on_buckets(ui, lab, sources.buckets()).await;
        }
        if may_ask_peers {
            (outlook.on_peers, outlook.brought) = on_peers(ui, lab, &sources, &outlook.on_buckets).await;
        }
        if may_ask_peers || may_ask_buckets {
            let before = servers_to_ask(lab, &sightings, &draft);
            draft = plan::plan(&sightings, &outlook);
            // Some have something to install only now that somebody has it.
            let mut late = servers_to_ask(lab, &sightings, &draft);
            late.retain(|store, _| !before.contains_key(store));
            if !late.is_empty() {
                outlook.silent_servers.extend(apply::silent_servers(late).await);
                draft = plan::plan(&sightings, &outlook);
            }
        }
        Ok(asked(&sightings, outlook, draft, &sources).await)
    })
}

/// What of the contents that are to be fetched, or cannot be had so far, this machine has anyway. Looks only where
/// something is lacking.
fn on_machine(lab: &Lab, outlook: &Outlook, draft: &Plan) -> Result<HashMap<ContentName, Held>, CliError> {
    let lacking: HashSet<ContentName> = draft.artifacts.iter().flat_map(|entry| lacking(lab, entry)).collect();
    if !outlook.reuse || lacking.is_empty() {
        return Ok(HashMap::new());
    }
    Ok(observe::elsewhere(&lab.stores, &lab.others(), &lab.facts, &lacking)?)
}

/// The contents of an artifact that nothing on this machine is planned to give.
fn lacking(lab: &Lab, entry: &ArtifactPlan) -> Vec<ContentName> {
    let Some(artifact) = lab.wanted.artifact(&entry.artifact) else { return Vec::new() };
    let is_blocked = entry.obstacles.iter().any(|obstacle| obstacle.path.is_none());
    let fetched = entry.steps.iter().filter_map(|step| match step {
        plan::Step::Fetch { path, .. } => Some(path),
        _ => None,
    });
    let blocked = entry.obstacles.iter().filter_map(|obstacle| obstacle.path.as_ref());
    let lacking: HashSet<&RelPath> = fetched.chain(blocked).collect();
    let files = artifact.files.iter().filter(|file| is_blocked || lacking.contains(&file.path));
    files.flat_map(|file| file.digests.names()).collect()
}

/// Whether anything is to be fetched, or cannot be had so far.
fn wants_content(draft: &Plan) -> bool {
    let lacks = |step: &plan::Step| !matches!(step, plan::Step::Publish { .. });
    draft.artifacts.iter().any(|entry| !entry.obstacles.is_empty() || entry.steps.iter().any(lacks))
}

/// What each peer has, in the order of the inventory; who brings what is neither there nor `elsewhere` in the lab; and
/// what that is.
/// A peer that does not answer has nothing today.
async fn on_peers(
    ui: &Ui,
    lab: &Lab,
    sources: &Sources,
    elsewhere: &HashMap<ContentName, Vec<String>>,
) -> (HashMap<ContentName, Vec<String>>, HashSet<ContentName>) {
    let wanted = wanted_contents(lab);
    let names = lab.inventory.sources_of(&lab.machine).peers.into_iter().map(|peer| peer.name);
    let (peers, sftp) = (sources.peers(), sources.sftp());
    let asked = names.filter(|name| peers.names().any(|known| known == name)).map(|name| async {
        let holdings = if sftp.knows(&name) { sftp.holdings(&name).await } else { peers.holdings(&name).await };
        (name, holdings)
    });
    let mut found: HashMap<ContentName, Vec<String>> = HashMap::new();
    let mut bringers: HashMap<ContentName, Vec<String>> = HashMap::new();
    let is_wanted = |content: &ContentName| wanted.contains_key(content);
    for (name, holdings) in futures_util::future::join_all(asked).await {
        let Holdings { here, brings } = match holdings {
            Ok(holdings) => holdings,
            Err(error) => {
                ui.warn(&format!("{error}; nothing is taken from there"));
                continue;
            }
        };
        here.into_iter().filter(is_wanted).for_each(|content| found.entry(content).or_default().push(name.clone()));
        brings
            .into_iter()
            .filter(|content| lab.peers_may_bring() && is_wanted(content))
            .for_each(|content| bringers.entry(content).or_default().push(name.clone()));
    }
    bringers.retain(|content, _| !elsewhere.contains_key(content) && !found.contains_key(content));
    let brought = bringers.keys().copied().collect();
    for (content, bringers) in bringers {
        found.insert(content, whose_turn(&content, bringers).into_iter().collect());
    }
    (found, brought)
}

/// Who brings a content that no peer has: every machine of the lab comes to the same answer, so that one asks upstream.
fn whose_turn(content: &ContentName, bringers: Vec<String>) -> Option<String> {
    bringers.into_iter().max_by_key(|peer| *Sha256::of(format!("{peer} {content}").as_bytes()).as_bytes())
}

/// The contents that this machine must have, with their lengths where these are known.
fn wanted_contents(lab: &Lab) -> HashMap<ContentName, Option<u64>> {
    let files = lab.wanted.artifacts.iter().flat_map(|artifact| &artifact.files);
    files.flat_map(|file| file.digests.names().map(|name| (name, file.size))).collect()
}

/// What each bucket has, in the order of the inventory. A bucket that does not answer has nothing today.
async fn on_buckets(ui: &Ui, lab: &Lab, buckets: &BucketSource) -> HashMap<ContentName, Vec<String>> {
    let wanted = wanted_contents(lab);
    let is_wanted = |content: &ContentName, size: u64| {
        wanted.get(content).is_some_and(|wanted| wanted.is_none_or(|wanted| wanted == size))
    };
    let asked = lab.inventory.sources_of(&lab.machine).buckets.into_iter().map(|bucket| async {
        let holdings = buckets.holdings(&bucket.name).await;
        (bucket.name, holdings)
    });
    let mut found: HashMap<ContentName, Vec<String>> = HashMap::new();
    for (name, holdings) in futures_util::future::join_all(asked).await {
        match holdings {
            Ok(holdings) => holdings
                .into_iter()
                .filter(|(content, size)| is_wanted(content, *size))
                .for_each(|(content, _)| found.entry(content).or_default().push(name.clone())),
            Err(error) => tell_silent(ui, &error),
        }
    }
    found
}

fn tell_silent(ui: &Ui, error: &SourceError) {
    let hint = error.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
    ui.warn(&format!("{error}; nothing is taken from there{hint}"));
}

/// Servers that would have to install something and cannot; those that were heard already are not asked again.
fn silent_servers(
    lab: &Lab,
    common: &Common,
    sightings: &[Sighting<'_>],
    draft: &Plan,
) -> Result<HashMap<String, Refusal>, CliError> {
    if common.offline {
        let servers = apply::servers_of(draft, &lab.stores);
        let refuse = |(store, server)| {
            let reason = format!("--offline forbids to ask the Ollama server at {server}");
            (store, Refusal { reason, hint: Some("run it again without --offline".to_owned()) })
        };
        return Ok(servers.into_iter().map(refuse).collect());
    }
    let servers = servers_to_ask(lab, sightings, draft);
    if servers.is_empty() {
        return Ok(HashMap::new());
    }
    Ok(tokio::runtime::Runtime::new()?.block_on(apply::silent_servers(servers)))
}

fn servers_to_ask(lab: &Lab, sightings: &[Sighting<'_>], draft: &Plan) -> BTreeMap<String, Url> {
    let was_heard = |store: &str| sightings.iter().any(|s| s.artifact.store == store && s.access == Access::Told);
    let mut servers = apply::servers_of(draft, &lab.stores);
    servers.retain(|store, _| !was_heard(store));
    servers
}

async fn asked(sightings: &[Sighting<'_>], mut outlook: Outlook, draft: Plan, sources: &Sources) -> Plan {
    let mut plan = draft;
    let mut open = HashSet::new();
    // A refusal moves files to a mirror that was not asked yet, or leaves its place to be asked about another file.
    for _ in 0..MOST_ROUNDS {
        let refusals = apply::preflight(&plan, &mut open, sources).await;
        if refusals.is_empty() {
            break;
        }
        outlook.refusals.extend(refusals);
        plan = plan::plan(sightings, &outlook);
    }
    plan
}

/// Wanted files that a drive of the inventory holds.
fn on_drives(lab: &Lab, sightings: &[Sighting<'_>]) -> HashMap<String, PathBuf> {
    let config = lab.inventory.sources_of(&lab.machine);
    if !config.order.contains(&SourceKind::Drive) {
        return HashMap::new();
    }
    let drives: Vec<_> = config.drives.iter().map(|drive| crate::cli::lab::expand(drive, &lab.home)).collect();
    let mut found = HashMap::new();
    for sighting in sightings.iter().filter(|_| !drives.is_empty()) {
        let files = sighting.artifact.files.iter().zip(&sighting.observed.files).zip(&sighting.proofs);
        for ((file, state), proof) in files {
            // What is known to be wrong is wanted like what is missing.
            let is_here = matches!(state, crate::stores::FileState::Present(_) | crate::stores::FileState::Staged(_))
                && !matches!(proof, Proof::Refuted(_));
            let place = drives.iter().filter(|_| !is_here).find_map(|drive| on_drive(drive, file));
            if let Some(place) = place {
                found.insert(file.content_key(sighting.artifact), place);
            }
        }
    }
    found
}

/// Where `drive` holds a file's content, by digest or by path, with the right length.
fn on_drive(drive: &Path, file: &File) -> Option<PathBuf> {
    // A drive that cannot be read is no reason not to fetch: the file comes from elsewhere then.
    let found = find_in_drive(drive, &file.digests, file.size, std::slice::from_ref(&file.path)).ok()?;
    found.into_iter().next().map(|found| found.path)
}
