//! `larder demo`: the main job from end to end on a miniature lab, without internet.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use tokio::runtime::Runtime;

use super::{apply, list, lock, plan, status, verify};
use crate::cli::error::CliError;
use crate::cli::lab::{Lab, now};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::demo::{Damage, Miniature, plant};
use crate::serve::{Guests, Server, Traffic, router};
use crate::verify::{Reading, Verdict, contents};

/// Where the server of a lab that is kept listens: beside the usual port of `larder serve`.
const KEPT_PORT: u16 = 8114;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Make the lab in this folder, which must be empty or new, and leave it there
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

#[derive(Serialize)]
struct Shown {
    folder: Option<PathBuf>,
    planted: usize,
    found: usize,
    mended: bool,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let (root, _temporary) = folder(args)?;
    let miniature = Miniature::make(&root)?;
    let runtime = Runtime::new()?;
    let traffic = Arc::new(Traffic::default());
    let server = runtime.block_on(bind(args.keep.is_some()))?;
    let address = server.local_addr();
    // Ends with the runtime, when the demo ends.
    runtime.spawn(server.run(router(miniature.index(), Guests::default(), traffic.clone()), std::future::pending()));
    let inventory = miniature.write_lab(address)?;
    if args.keep.is_some() {
        miniature.write_server(address)?;
    }
    ui.text(&format!("A miniature lab is served at http://{address}, its machine lives in {}\n", root.display()));
    let shown = Common { inventory: Some(inventory), state: Some(root.join("state")), ..here(common) };
    let outcome = walk(&ui.for_a_part(), &shown, &root, &traffic)?;
    if let Some(folder) = &args.keep {
        let (lab, upstream) = (folder.join("lab/inventory.toml"), folder.join("upstream/inventory.toml"));
        ui.text(&format!(
            "\nIt is left in {} to play with: larder status --inventory {} --state {}\n\
             What it comes from is served, again at http://{address}, by: larder serve --inventory {}\n",
            folder.display(),
            lab.display(),
            // What was proven is known there, and nothing of this lab gets into the user's own.
            folder.join("state").display(),
            upstream.display()
        ));
    }
    let exit = if outcome.mended && outcome.found == outcome.planted { Exit::InOrder } else { Exit::Failed };
    ui.object("demo", &Shown { folder: args.keep.clone(), ..outcome });
    Ok(exit)
}

/// A lab that is kept names its server: at a port that no connection takes by chance, unless something else has it.
async fn bind(is_kept: bool) -> Result<Server, CliError> {
    if is_kept && let Ok(server) = Server::bind((Ipv4Addr::LOCALHOST, KEPT_PORT).into()).await {
        return Ok(server);
    }
    Server::bind((Ipv4Addr::LOCALHOST, 0).into()).await.map_err(|error| CliError::failed(&error))
}

/// Nothing of the caller's lab or selection reaches the demo's.
fn here(common: &Common) -> Common {
    Common { machine: None, only: Vec::new(), offline: false, json: false, ..common.clone() }
}

/// Everything a sysadmin would do, in order, each command printed as it would be typed.
fn walk(ui: &Ui, common: &Common, root: &Path, traffic: &Traffic) -> Result<Shown, CliError> {
    let yes = apply::Args { yes: true, ..apply::Args::default() };
    typed(ui, "larder list", || list::run(ui, common, &list::Args::default()))?;
    typed(ui, "larder lock", || lock::run(ui, common, &lock::Args::default()))?;
    typed(ui, "larder plan", || plan::run(ui, common, &plan::Args::default()))?;
    typed(ui, "larder apply --yes", || apply::run(ui, common, &yes))?;
    typed(ui, "larder verify", || verify::run(ui, common, &verify::Args::default()))?;
    let asked = traffic.requests();
    typed(ui, "larder apply --yes", || apply::run(ui, common, &yes))?;
    ui.text(&format!("({} requests were made for that)\n", traffic.requests() - asked));

    ui.text("\nNow four things go wrong:\n");
    let planted = plant(root)?;
    for damage in &planted {
        let path = damage.path.strip_prefix(root.join("machine")).unwrap_or(&damage.path);
        ui.text(&format!("  {}: {}\n", path.display(), damage.what));
    }
    typed(ui, "larder verify", || verify::run(ui, common, &verify::Args::default()))?;
    let lab = Lab::read(ui, common)?;
    let verdict = contents(&lab.sight(false)?, &Reading::new(&lab.facts, &crate::monitor::Silent, now, &|| false))?;
    let found = planted.iter().filter(|damage| is_named(damage, &verdict)).count();
    typed(ui, "larder apply --yes", || apply::run(ui, common, &yes))?;
    typed(ui, "larder verify", || verify::run(ui, common, &verify::Args::default()))?;
    let last = typed(ui, "larder status", || status::run(ui, common, &status::Args::default()))?;
    ui.text(&format!("\n{found} of {} faults were found and named, ", planted.len()));
    let mended = last == Exit::InOrder;
    ui.text(if mended { "and everything is mended\n" } else { "but not everything could be mended\n" });
    Ok(Shown { folder: None, planted: planted.len(), found, mended })
}

fn is_named(damage: &Damage, verdict: &Verdict) -> bool {
    verdict.faults.iter().any(|fault| fault.artifact == damage.artifact && fault.kind == damage.kind)
}

fn typed(ui: &Ui, command: &str, run: impl FnOnce() -> Result<Exit, CliError>) -> Result<Exit, CliError> {
    ui.text(&format!("\n$ {command}\n"));
    run()
}

/// The folder to work in; a temporary one is removed when the second value is dropped.
fn folder(args: &Args) -> Result<(PathBuf, Option<tempfile::TempDir>), CliError> {
    let Some(folder) = &args.keep else {
        let temporary = tempfile::Builder::new().prefix("larder-demo-").tempdir()?;
        return Ok((temporary.path().canonicalize()?, Some(temporary)));
    };
    crate::fsio::create_dir_all(folder, None)?;
    if fs_err::read_dir(folder)?.next().is_some() {
        return Err(CliError::usage(format!("{} is not empty", folder.display())).hint("name a new folder"));
    }
    Ok((folder.canonicalize()?, None))
}
