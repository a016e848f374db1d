//! `larder push`: puts what this machine has, and what it says of itself, into a bucket.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::bucket::{Bucket, BucketError, Key};
use crate::cli::commands::apply::agreed;
use crate::cli::commands::report::overview;
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, Limits, manifest_files, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::digest::Sha256;
use crate::fleet::{KeptManifest, State, VERSION};
use crate::fsio::FileLock;
use crate::inventory::{BucketConfig, parse_rate};
use crate::pace::Pacer;
use crate::push::{self, Load, Means, Message, Parcel, PushError};
use crate::report::table::count;
use crate::size::Bytes;
use crate::text::chain;
use crate::trust::signature_of;

/// How long another push of this machine is waited for.
const PATIENCE: Duration = Duration::from_secs(7 * 24 * 3600);

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line")]
pub(in crate::cli) struct Args {
    /// The bucket, as [sources] buckets calls it [default: the only one]
    #[arg(value_name = "BUCKET")]
    bucket: Option<String>,
    /// Show what would be put, and change nothing
    #[arg(short = 'n', long, conflicts_with = "yes")]
    dry_run: bool,
    /// Do not ask before beginning
    #[arg(short, long)]
    yes: bool,
    /// Put only this machine's report, lock and manifests, and no contents
    #[arg(long, conflicts_with_all = ["dry_run", "gated"])]
    report: bool,
    /// Also put artifacts whose licence every user must accept himself
    #[arg(long)]
    gated: bool,
    /// Put at most at this rate, such as 80MB/s
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    max_rate: Option<Bytes>,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Pushed<'a> {
    bucket: &'a str,
    #[serde(flatten)]
    load: &'a Load,
    pushed: usize,
    failures: Vec<Failure>,
    state: bool,
    interrupted: bool,
}

#[derive(Debug, Serialize)]
struct Failure {
    item: String,
    reason: String,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read(ui, common)?;
    let config = configured(&lab, args.bucket.as_deref())?;
    let bucket = open(&lab, common, &config)?;
    let key = state_key(&lab.machine)?;
    let runtime = tokio::runtime::Runtime::new()?;
    if args.report {
        let message = message(ui, common, &lab)?;
        runtime.block_on(push::tell(&message, &key, &bucket)).map_err(failed)?;
        ui.text(&format!("{} has told {} what it has\n", lab.machine, bucket.what()));
        ui.object("push", &pushed(&bucket, &Load::default(), 0, Vec::new(), true));
        return Ok(Exit::InOrder);
    }
    let mut load = plan(&lab, args, &config)?;
    runtime.block_on(push::compare(&mut load, &bucket)).map_err(failed)?;
    ui.text(&plan_text(&load, &bucket));
    if args.dry_run {
        ui.text("Nothing has been changed\n");
        ui.object("push", &pushed(&bucket, &load, 0, Vec::new(), false));
        return Ok(Exit::InOrder);
    }
    if !load.parcels.is_empty() && !args.yes && !agreed(ui, "push")? {
        return Ok(Exit::InOrder);
    }
    let message = message(ui, common, &lab)?;
    let ledgers = lab.state.join("uploads");
    let _alone = alone(ui, &ledgers)?;
    let means = means(ui, &lab, args, (&bucket, &load, ledgers))?;
    // What was not selected this time may still be gone on with.
    if common.only.is_empty() {
        runtime.block_on(push::forget_stale(&load.parcels, &means));
    }
    let (sent, failures) = runtime.block_on(carry_out(&means, &load, &message, &key)).map_err(failed)?;
    let outcome = pushed(&bucket, &load, sent, failures, true);
    ui.text(&ending(&outcome));
    ui.object("push", &outcome);
    Ok(exit(&outcome))
}

/// Says first what this machine needs, so that nobody removes it meanwhile; then puts it, and looks once more.
async fn carry_out(
    means: &Means,
    load: &Load,
    message: &Message,
    key: &Key,
) -> Result<(usize, Vec<(String, PushError)>), BucketError> {
    if let Ok(first) = super::stop_signal() {
        let stop = means.stop.clone();
        tokio::spawn(async move {
            first.await;
            stop.cancel();
            if let Ok(second) = super::stop_signal() {
                second.await;
                // What has arrived is noted: the state on disk is that of a kill.
                crate::cli::exit::now(Exit::Interrupted);
            }
        });
    }
    push::tell(message, key, &means.bucket).await?;
    let mut failures = push::carry_out(&load.parcels, means).await;
    let vanished: Vec<Parcel> = push::vanished(load, &means.bucket).await?;
    failures.extend(push::carry_out(&vanished, means).await);
    Ok((load.parcels.len() + vanished.len() - failures.len(), failures))
}

/// The bucket called `name`, or the only one.
pub(in crate::cli) fn configured(lab: &Lab, name: Option<&str>) -> Result<BucketConfig, CliError> {
    let buckets = lab.inventory.sources_of(&lab.machine).buckets;
    let names = buckets.iter().map(|bucket| bucket.name.clone()).collect::<Vec<_>>().join(", ");
    let declare =
        "declare one: [sources] buckets = [{ name = \"fleet\", url = \"s3://BUCKET\", endpoint = \"https://…\" }]";
    match name {
        Some(name) => buckets.into_iter().find(|bucket| bucket.name == name).ok_or_else(|| {
            let hint = if names.is_empty() { declare.to_owned() } else { format!("it has {names}") };
            CliError::usage(format!("The inventory has no bucket `{name}`")).hint(hint)
        }),
        None if buckets.len() > 1 => Err(CliError::usage("Which bucket?").hint(format!("the inventory has {names}"))),
        None => buckets.into_iter().next().ok_or_else(|| CliError::usage("The inventory has no bucket").hint(declare)),
    }
}

/// The bucket, ready to be asked.
pub(in crate::cli) fn open(lab: &Lab, common: &Common, config: &BucketConfig) -> Result<Bucket, CliError> {
    let sources = lab.sources(common, &Limits::default())?;
    let bucket = sources.buckets().bucket(&config.name);
    bucket.cloned().map_err(|error| {
        let hint = error.hint();
        hint.into_iter().fold(CliError::failed(&error), CliError::hint)
    })
}

/// What a bucket refused, with what to do about it.
pub(in crate::cli) fn failed(error: BucketError) -> CliError {
    error.hint().into_iter().fold(CliError::failed(&error), CliError::hint)
}

fn state_key(machine: &str) -> Result<Key, CliError> {
    Key::state(machine).ok_or_else(|| {
        CliError::usage(format!("The machine's name {machine:?} cannot be part of a key"))
            .hint("give it one of letters, digits and . _ - with --machine, or `machine` in the inventory")
    })
}

/// Whoever pushes the same file twice at once from one machine would mix up what has arrived.
fn alone(ui: &Ui, ledgers: &Path) -> Result<FileLock, CliError> {
    let waiting = || ui.note("another push of this machine is under way; waiting for it");
    Ok(FileLock::acquire(&ledgers.join("push.lock"), None, PATIENCE, waiting)?)
}

fn means(
    ui: &Ui,
    lab: &Lab,
    args: &Args,
    (bucket, load, ledgers): (&Bucket, &Load, PathBuf),
) -> Result<Means, CliError> {
    let config = lab.inventory.sources_of(&lab.machine);
    Ok(Means {
        bucket: bucket.clone(),
        ledgers,
        monitor: ui.monitor(Some(load.bytes())),
        pacer: Pacer::new(args.max_rate.or(config.max_rate().map_err(CliError::usage)?)),
        connections: config.connections,
        stop: CancellationToken::new(),
    })
}

fn plan(lab: &Lab, args: &Args, config: &BucketConfig) -> Result<Load, CliError> {
    let sightings = lab.sight(false)?;
    let gated = if args.gated || config.gated { Vec::new() } else { super::serve::gated(lab, &sightings) };
    Ok(push::load(&sightings, &gated))
}

/// What this machine says of itself: all of its profile, whatever was selected for this run.
fn message(ui: &Ui, common: &Common, lab: &Lab) -> Result<Message, CliError> {
    let everything = Common { only: Vec::new(), ..common.clone() };
    // What was fetched meanwhile may have been learnt: the lock is read anew.
    let mut whole = Lab::read(ui, &everything)?;
    let lock_signature = signature(&lab.lock_path)?;
    let lock = match &lock_signature {
        // Not one byte of it may differ from what was signed.
        Some(_) => fs_err::read_to_string(&lab.lock_path)?,
        None => whole.stored.take().unwrap_or_else(|| whole.wanted.clone()).to_text(),
    };
    let report = overview(ui, &everything, &whole)?;
    let root = lab.inventory_path.parent().unwrap_or(Path::new("."));
    let mut manifests = Vec::new();
    let mut kept = Vec::new();
    for path in manifest_files(&lab.inventory_path, &lab.inventory)? {
        let text = fs_err::read_to_string(&path)?;
        let relative = path.strip_prefix(root).unwrap_or(&path);
        let (place, sha256) = (relative.display().to_string(), Sha256::of(text.as_bytes()));
        kept.push(KeptManifest { path: place, sha256, signature: signature(&path)? });
        manifests.push(text);
    }
    let state = State {
        version: VERSION,
        machine: lab.machine.clone(),
        at: now(),
        lock: Some(Sha256::of(lock.as_bytes())),
        lock_signature,
        manifests: kept,
        report: serde_json::to_value(&report).map_err(|error| CliError::failed(&error))?,
    };
    Ok(Message { state, lock: Some(lock), manifests })
}

/// What somebody signed goes with its signature: who takes it from the bucket can tell whose word it has.
fn signature(file: &Path) -> Result<Option<String>, CliError> {
    match fs_err::read_to_string(signature_of(file)) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn plan_text(load: &Load, bucket: &Bucket) -> String {
    let mut out = format!("to {}: ", bucket.what());
    let (files, there) = (count(load.parcels.len(), "content"), load.there.len());
    out.push_str(&format!("{files} ({}), {there} there already\n", Bytes(load.bytes())));
    let mut items: Vec<(&str, u64)> = load.parcels.iter().map(|parcel| (parcel.item.as_str(), parcel.bytes)).collect();
    // A content with two names is one thing for people.
    items.dedup();
    for (item, bytes) in items {
        out.push_str(&format!("  {item}: {}\n", Bytes(bytes)));
    }
    if !load.withheld.is_empty() {
        let names = load.withheld.join(", ");
        out.push_str(&format!(
            "withheld, because each user must accept the licence himself (--gated puts them): {names}\n"
        ));
    }
    for (item, reason) in &load.left {
        out.push_str(&format!("stays here: {item}: {reason}\n"));
    }
    out
}

fn pushed<'a>(
    bucket: &'a Bucket,
    load: &'a Load,
    pushed: usize,
    failures: Vec<(String, PushError)>,
    state: bool,
) -> Pushed<'a> {
    let interrupted = failures.iter().any(|(_, error)| matches!(error, PushError::Interrupted));
    let mut seen = HashSet::new();
    let failures = failures.into_iter().map(|(item, error)| Failure { item, reason: chain(&error) });
    let failures = failures.filter(|failure| seen.insert((failure.item.clone(), failure.reason.clone()))).collect();
    Pushed { bucket: bucket.name(), load, pushed, failures, state, interrupted }
}

fn ending(pushed: &Pushed<'_>) -> String {
    let mut out = format!("{} put and proven\n", count(pushed.pushed, "content"));
    for Failure { item, reason } in &pushed.failures {
        out.push_str(&format!("failed: {item}: {reason}\n"));
    }
    out
}

/// In order only if everything that was asked for is in the bucket.
fn exit(pushed: &Pushed<'_>) -> Exit {
    let lacks = !pushed.failures.is_empty() || !pushed.load.left.is_empty();
    match (lacks, pushed.pushed + pushed.load.there.len()) {
        _ if pushed.interrupted => Exit::Interrupted,
        (false, _) => Exit::InOrder,
        (true, 0) => Exit::Failed,
        (true, _) => Exit::Partly,
    }
}
