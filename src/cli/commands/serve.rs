//! `larder serve`: hands this machine's artifacts to others, read-only.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::cli::error::CliError;
use crate::cli::lab::Lab;
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit};
use crate::observe::{Proof, Sighting};
use crate::report::table::count;
use crate::serve::{Index, Served, Server, Traffic, router};
use crate::stores::FileState;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Args {
    /// Where to listen; port 0 lets the system choose
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8014")]
    address: SocketAddr,
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Lab::read(ui, common)?;
    let index = index(&lab.sight(false)?, lab.stored.as_ref().map(crate::lock::Lock::to_text));
    let files: usize = index.artifacts.iter().map(|served| served.content.iter().flatten().count()).sum();
    let artifacts = index.artifacts.len();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let server = Server::bind(args.address).await.map_err(|error| CliError::failed(&error))?;
        let address = server.local_addr();
        ui.note(&format!("serving {} ({}) at http://{address}", count(artifacts, "artifact"), count(files, "file")));
        if !address.ip().is_loopback() {
            ui.warn("everybody who can reach this address can read these models, gated ones too");
        }
        let shutdown = super::stop_signal()?;
        server
            .run(router(index, Arc::new(Traffic::default())), shutdown)
            .await
            .map_err(|error| CliError::failed(&error))
    })?;
    Ok(Exit::InOrder)
}

/// Everything that is here and not known to be wrong.
fn index(sightings: &[Sighting<'_>], lock: Option<String>) -> Index {
    let served = sightings.iter().map(|sighting| {
        let files = sighting.observed.files.iter().zip(&sighting.proofs);
        let content = files.map(|(state, proof)| match (state, proof) {
            (_, Proof::Refuted { .. }) => None,
            (FileState::Present(found), _) => Some(found.path.clone()),
            _ => None,
        });
        Served { artifact: sighting.artifact.clone(), content: content.collect() }
    });
    Index { artifacts: served.collect(), lock }
}
