//! `larder export`: the lab's files as other tools want to be told of them.

use std::path::PathBuf;

use clap::ValueEnum;
use serde::Serialize;
use url::Url;

use crate::cli::commands::report::write;
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, expand, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::export::{self, Entry, LeftOut, Places};
use crate::report::export::{Described, Naming, bom, metalink, sums};
use crate::report::table::count;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// What to write
    #[arg(long, value_enum)]
    format: Format,
    /// Only this store; its files are named below its root
    #[arg(long, value_name = "STORE")]
    store: Option<String>,
    /// Where to, in one go; to standard output without it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Read the files here that no sha256 is known of
    #[arg(long)]
    read: bool,
    /// Read the files and add digests of 4 MiB pieces to a metalink, so that aria2 can repair
    #[arg(long)]
    pieces: bool,
    /// A machine that runs `larder serve`, to be asked before upstream; may be repeated
    #[arg(long, value_name = "URL")]
    mirror: Vec<Url>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Sha256sums,
    Metalink,
    Cyclonedx,
}

#[derive(Serialize)]
struct Exported<'a> {
    entries: &'a [Entry],
    left_out: &'a [LeftOut],
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    if args.pieces && args.format != Format::Metalink {
        return Err(CliError::usage("--pieces is for --format metalink: the other formats have no place for them"));
    }
    let lab = Lab::read_wanted(ui, common)?;
    if let Some(store) = args.store.as_ref().filter(|name| lab.stores.get(name).is_none()) {
        let names: Vec<&str> = lab.stores.iter().map(|(name, _)| name).collect();
        return Err(CliError::usage(format!("The inventory has no store `{store}`"))
            .hint(format!("it has {}", names.join(", "))));
    }
    let mut sightings = lab.sight(false)?;
    sightings.retain(|sighting| args.store.as_ref().is_none_or(|store| sighting.artifact.store == *store));
    if args.read {
        let measured = export::measure_unknown(&sightings, &lab.stores, &lab.facts, now())?;
        ui.note(&format!("{} read", count(measured, "file")));
    }
    let hub = lab.hub()?;
    let places = Places { hub: &hub, mirrors: &args.mirror };
    let (mut entries, mut left_out) = export::entries(&sightings, (&lab.stores, &lab.facts), places)?;
    if args.pieces {
        export::add_pieces(&mut entries, &mut left_out);
    }
    let document = document(&lab, args, &entries, &mut left_out);
    match &args.out {
        Some(path) => write(ui, &expand(path, &lab.home), &document)?,
        None if !common.json => ui.raw(&document),
        None => {}
    }
    ui.object("export", &Exported { entries: &entries, left_out: &left_out });
    tell_left_out(ui, &left_out);
    Ok(if left_out.is_empty() { Exit::InOrder } else { Exit::Partly })
}

fn document(lab: &Lab, args: &Args, entries: &[Entry], left_out: &mut Vec<LeftOut>) -> Vec<u8> {
    match args.format {
        Format::Sha256sums if args.store.is_some() => sums(entries, Naming::WithinStore),
        Format::Sha256sums => sums(entries, Naming::Absolute),
        Format::Metalink => {
            let naming = if args.store.is_some() { Naming::WithinStore } else { Naming::ByStore };
            let (text, more) = metalink(entries, naming, now());
            left_out.extend(more);
            text.into_bytes()
        }
        Format::Cyclonedx => {
            let of_store = |store: &str| args.store.as_ref().is_none_or(|wanted| wanted == store);
            let wanted = lab.wanted.artifacts.iter().filter(|artifact| of_store(&artifact.store));
            let described: Vec<Described<'_>> = wanted.map(|artifact| described(lab, artifact)).collect();
            bom(&lab.machine, &described, entries, now()).into_bytes()
        }
    }
}

fn described<'a>(lab: &'a Lab, artifact: &'a crate::artifact::Artifact) -> Described<'a> {
    let declared = lab.manifests.artifact(&artifact.name);
    Described {
        name: &artifact.name,
        title: declared.and_then(|declared| declared.title.as_deref()),
        purpose: declared.and_then(|declared| declared.purpose.as_deref()),
        license: declared.and_then(|declared| declared.license.as_deref()),
        revision: artifact.revision.as_deref(),
        source: &artifact.source,
        store: &artifact.store,
        irreplaceable: artifact.irreplaceable,
    }
}

fn tell_left_out(ui: &Ui, left_out: &[LeftOut]) {
    for file in left_out.iter().take(10) {
        ui.warn(&format!("left out: {}/{}: {}", file.artifact, file.path, file.reason));
    }
    if left_out.len() > 10 {
        ui.warn(&format!("left out: {} more; see all of them with --json", count(left_out.len() - 10, "file")));
    }
}
