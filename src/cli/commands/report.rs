//! `larder report`: the state of everything, for people, for pages and for machines.

use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::cli::error::CliError;
use crate::cli::lab::{Lab, expand, now};
use crate::cli::ui::{Ui, envelope};
use crate::cli::{Common, Exit};
use crate::facts::{Known, Runs};
use crate::fsio::{self, WriteOptions};
use crate::report::overview::{Overview, Subject};
use crate::report::{html, markdown, plain, prometheus};
use crate::smoke::LastTests;
use crate::text::chain;
use crate::verify;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// What to write
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Where to, in one go; to standard output without it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    #[default]
    Text,
    Json,
    Markdown,
    Html,
    Prometheus,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    if common.json && args.out.is_none() && ![Format::Text, Format::Json].contains(&args.format) {
        return Err(CliError::usage("--json and another --format cannot both go to standard output")
            .hint("name a file for the report with --out FILE"));
    }
    let lab = Lab::read_wanted(ui, common)?;
    let mut overview = overview(ui, common, &lab)?;
    overview.strays = super::verify::strays(&lab, common);
    let tests = LastTests::read(&lab.state).unwrap_or_else(|error| {
        ui.warn(&format!("what smoke tests made is not shown: {error}"));
        LastTests::default()
    });
    let text = text(&overview, &tests, args.format, ui.width());
    match &args.out {
        Some(path) => write(ui, &expand(path, &lab.home), text.as_bytes())?,
        None if args.format == Format::Json => ui.raw(text.as_bytes()),
        None => ui.text(&text),
    }
    if args.out.is_some() || args.format != Format::Json {
        ui.object("report", &overview);
    }
    Ok(if overview.is_in_order() { Exit::InOrder } else { Exit::Differences })
}

/// The state of everything on this machine, as it is now.
pub(in crate::cli) fn overview(ui: &Ui, common: &Common, lab: &Lab) -> Result<Overview, CliError> {
    let mut sightings = lab.sight(false)?;
    lab.hear_servers(common, &mut sightings)?;
    let mut verdict = verify::quick(&sightings, &lab.facts.harmless()?);
    let findings = lab.conditions(common);
    let runs = lab.facts.runs().unwrap_or_else(|error| {
        ui.warn(&format!("what earlier runs found is not shown: {}", chain(&error)));
        Runs::default()
    });
    verdict.recall(&sightings, runs.standing());
    let subject = Subject { machine: &lab.machine, profile: lab.profile(), at: now() };
    let mut overview = Overview::new(subject, &sightings, &verdict, findings, &runs);
    if sightings.iter().any(|sighting| sighting.artifact.irreplaceable) {
        let known = lab.facts.all().unwrap_or_else(|error| {
            ui.warn(&format!("what was measured is not known: {}", chain(&error)));
            Known::default()
        });
        let root_of = |name: &str| lab.stores.get(name).map(|open| open.store.root());
        overview.name_contents(&sightings, &known, root_of);
    }
    Ok(overview)
}

fn text(overview: &Overview, tests: &LastTests, format: Format, width: u16) -> String {
    match format {
        Format::Text => plain::text(overview, width),
        Format::Json => envelope("report", overview),
        Format::Markdown => markdown::text(overview),
        Format::Html => html::page(overview, &tests.shown()),
        Format::Prometheus => prometheus::text(overview),
    }
}

/// Writes a result where the user wants it: readers see the old file or the new one.
pub(in crate::cli) fn write(ui: &Ui, path: &Path, bytes: &[u8]) -> Result<(), CliError> {
    // The folder is the user's: a mistyped one is told, not made.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return Err(CliError::usage(format!("There is no folder {}", folder.display()))
            .hint("make it, or name another place with --out"));
    }
    let mode = Some(fsio::default_file_mode());
    fsio::write_atomic(path, bytes, &WriteOptions { mode, ..WriteOptions::default() })
        .map_err(|error| CliError::failed(&error).context(format!("{} cannot be written", path.display())))?;
    ui.note(&format!("written: {}", path.display()));
    Ok(())
}
