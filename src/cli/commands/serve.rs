//! `larder serve`: hands this machine's artifacts to others, read-only.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use listenfd::ListenFd;
use tokio::signal::unix::{SignalKind, signal};

mod renewal;
mod stdio;
mod supply;
mod units;

use crate::cli::error::CliError;
use crate::cli::lab::{Lab, read_token};
use crate::cli::ui::Ui;
use crate::cli::{Common, Exit, env};
use crate::inventory::{ServeConfig, expand_home, parse_rate};
use crate::observe::{Proof, Sighting};
use crate::report::table::count;
use crate::serve::{
    Guests, Index, Rates, Renewed, Seal, Served, Server, Shelf, Terms, Tls, Token, Traffic, answer_on, router,
};
use crate::stores::FileState;

/// Where to listen when nobody says it: reachable from this machine only.
const USUAL_ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8014);

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "options of a command line")]
pub(in crate::cli) struct Args {
    /// Where to listen; port 0 lets the system choose [default: 127.0.0.1:8014]
    #[arg(long, value_name = "IP:PORT")]
    address: Option<SocketAddr>,

    /// Show units for systemd that serve with these options, its socket first; or write them into DIR
    #[arg(long, value_name = "DIR", num_args = 0..=1, conflicts_with = "stdio")]
    units: Option<Option<PathBuf>>,

    /// The user that the units' server runs as [default: who asked]
    #[arg(long = "as", value_name = "USER", requires = "units")]
    user: Option<String>,

    /// Serve one client on standard input and output, as larder copy does over ssh
    #[arg(long, conflicts_with_all = ["address", "allow", "token_file", "tls", "certificate", "key", "gated", "fetch_missing"])]
    stdio: bool,

    /// Network whose machines may read without a token, such as 192.168.7.0/24; may be repeated
    #[arg(long, value_name = "NETWORK")]
    allow: Vec<IpNet>,

    /// File with the token that everybody else must send (for Hugging Face's tools: HF_TOKEN)
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,

    /// Speak https, with a certificate that larder makes where none is given
    #[arg(long)]
    tls: bool,

    /// Certificate chain for https, as PEM
    #[arg(long, value_name = "FILE", requires = "key")]
    certificate: Option<PathBuf>,

    /// The certificate's private key, as PEM
    #[arg(long, value_name = "FILE", requires = "certificate")]
    key: Option<PathBuf>,

    /// Also hand out artifacts whose licence every user must accept himself
    #[arg(long)]
    gated: bool,

    /// Fetch what others of the lab ask for and this machine lacks: upstream is asked once for all of them
    #[arg(long)]
    fetch_missing: bool,

    /// Send at most at this rate to all clients together, such as 200MB/s
    #[arg(long, value_name = "RATE")]
    max_rate: Option<String>,

    /// Send at most at this rate to one client
    #[arg(long, value_name = "RATE")]
    max_rate_per_client: Option<String>,
}

impl Args {
    /// What was asked for, completed by what the inventory says.
    fn over(&self, config: &ServeConfig) -> ServeConfig {
        let given = |file: &Option<PathBuf>, config: &Option<PathBuf>| file.clone().or_else(|| config.clone());
        ServeConfig {
            address: self.address.or(config.address),
            allow: if self.allow.is_empty() { config.allow.clone() } else { self.allow.clone() },
            token_file: given(&self.token_file, &config.token_file),
            tls: self.tls || config.tls,
            certificate: given(&self.certificate, &config.certificate),
            key: given(&self.key, &config.key),
            gated: self.gated || config.gated,
            fetch_missing: self.fetch_missing || config.fetch_missing,
            xet: config.xet,
            max_rate: self.max_rate.clone().or_else(|| config.max_rate.clone()),
            max_rate_per_client: self.max_rate_per_client.clone().or_else(|| config.max_rate_per_client.clone()),
        }
    }
}

pub(in crate::cli) fn run(ui: &Ui, common: &Common, args: &Args) -> Result<Exit, CliError> {
    let lab = Arc::new(Lab::read(ui, common)?);
    if args.stdio {
        return serve_stdio(&lab);
    }
    if let Some(folder) = &args.units {
        return units::tell(ui, common, &lab, args, folder.as_deref());
    }
    let looks = renewal::looks_of(&lab);
    let config = args.over(&lab.inventory.serve);
    let terms = terms(&lab, &config)?;
    let upstream = config.fetch_missing.then(|| supply::Upstream::new(ui, common, &lab)).transpose()?;
    let stock = Stock::of(&lab, &config)?;
    let (artifacts, files) = (stock.index.artifacts.len(), stock.files());
    let tls = tls(&config, &lab, &env::state_dir(&lab.home))?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(async {
        let traffic = Arc::new(Traffic::default());
        let mut server = listen(&config, &terms.guests).await?.counting_in(Arc::clone(&traffic));
        let address = server.local_addr();
        let scheme = if tls.is_some() { "https" } else { "http" };
        ui.note(&format!(
            "serving {} ({}) at {scheme}://{address}",
            count(artifacts, "artifact"),
            count(files, "file")
        ));
        if let Some(tls) = tls {
            ui.note(&format!("certificate: sha256:{}", tls.fingerprint()));
            server = server.with_tls(tls);
        }
        if !stock.withheld.is_empty() {
            let withheld = stock.withheld.join(", ");
            ui.note(&format!("withheld, because each user must accept the licence himself: {withheld}"));
        }
        let first = Renewed { index: stock.index, supply: upstream.as_ref().map(|upstream| upstream.over(&lab)) };
        let renewal = renewal::FromLab::new(ui, common, config, upstream, (lab, looks));
        let shelf = Shelf::renewed_by(Arc::new(renewal), first);
        let shutdown = super::stop_signal()?;
        let asked = renew_when_asked(shelf.clone())?;
        server.run(router(shelf, terms, traffic), shutdown).await;
        asked.abort();
        Ok::<_, CliError>(())
    })?;
    Ok(Exit::InOrder)
}

/// SIGHUP: what is served is looked at again, whether something seems to have changed or not.
fn renew_when_asked(shelf: Shelf) -> Result<tokio::task::JoinHandle<()>, CliError> {
    let mut asked = signal(SignalKind::hangup())?;
    Ok(tokio::spawn(async move {
        while asked.recv().await.is_some() {
            shelf.renew().await;
        }
    }))
}

/// What a server hands out, and what it withholds.
struct Stock {
    index: Index,
    /// Names of the artifacts that are withheld.
    withheld: Vec<String>,
}

impl Stock {
    fn of(lab: &Lab, config: &ServeConfig) -> Result<Self, CliError> {
        let sightings = lab.sight(false)?;
        let withheld = if config.gated { Vec::new() } else { gated(lab, &sightings) };
        let mut index = index_of(lab, artifacts(&sightings, &withheld));
        if config.xet == Some(false) {
            forget_xet(&mut index.artifacts);
        }
        Ok(Self { index, withheld })
    }

    /// How many files are here.
    fn files(&self) -> usize {
        self.index.artifacts.iter().map(|served| served.content.iter().flatten().count()).sum()
    }
}

fn index_of(lab: &Lab, artifacts: Vec<Served>) -> Index {
    let lock = lab.stored.as_ref().map(crate::lock::Lock::to_text);
    let within = lab.stores.iter().map(|(_, open)| open.store.root().to_owned()).collect();
    Index { lock, facts: Some(Arc::clone(&lab.facts)), artifacts, within }
}

/// Whoever could start this reads the files themselves, so nothing is withheld.
fn serve_stdio(lab: &Lab) -> Result<Exit, CliError> {
    let router = router(index(lab)?, Guests::default(), Arc::new(Traffic::default()));
    // One client, who waits for every read anyway: a second thread would only pass on what the first one has.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async { answer_on(router, stdio::input(), stdio::output()).await })?;
    // Standard input that is neither a pipe nor a socket is read by a thread that nothing can interrupt.
    runtime.shutdown_background();
    Ok(Exit::InOrder)
}

/// Everything that is here and not known to be wrong.
pub(super) fn index(lab: &Lab) -> Result<Index, CliError> {
    Ok(index_of(lab, artifacts(&lab.sight(false)?, &[])))
}

fn terms(lab: &Lab, config: &ServeConfig) -> Result<Terms, CliError> {
    let rate = |text: &Option<String>| text.as_deref().map(parse_rate).transpose().map_err(CliError::usage);
    let rates = Rates { total: rate(&config.max_rate)?, per_client: rate(&config.max_rate_per_client)? };
    Ok(Terms { guests: guests(config, &lab.home)?, rates, seal: seal(config, &env::state_dir(&lab.home)) })
}

/// With a token, passes must outlive the process: Python's client does not ask for another one.
fn seal(config: &ServeConfig, state: &Path) -> Seal {
    if config.token_file.is_none() {
        return Seal::default();
    }
    Seal::kept_in(state).unwrap_or_else(|error| {
        tracing::warn!(%error, "after a restart, downloads by Xet that are under way will fail");
        Seal::default()
    })
}

fn guests(config: &ServeConfig, home: &Path) -> Result<Guests, CliError> {
    let token = config.token_file.as_ref().map(|path| token(&expand_home(path, home))).transpose()?;
    Ok(Guests { networks: config.allow.clone(), token })
}

fn token(path: &Path) -> Result<Token, CliError> {
    let text = read_token(path)?;
    let unfit = || CliError::usage(format!("The token in {} has characters that no header can carry", path.display()));
    Token::new(&text).ok_or_else(unfit)
}

/// Takes the socket that systemd handed over, or the configured address.
async fn listen(config: &ServeConfig, guests: &Guests) -> Result<Server, CliError> {
    if let Some(listener) = ListenFd::from_env().take_tcp_listener(0)? {
        let server = Server::inherit(listener)?;
        check_reach(server.local_addr(), guests)?;
        return Ok(server);
    }
    let address = config.address.unwrap_or(USUAL_ADDRESS);
    check_reach(address, guests)?;
    Server::bind(address).await.map_err(|error| CliError::failed(&error))
}

/// Models are not put on a network for everybody by one short option.
fn check_reach(address: SocketAddr, guests: &Guests) -> Result<(), CliError> {
    if address.ip().is_loopback() || !guests.are_everybody() {
        return Ok(());
    }
    Err(CliError::usage(format!("Everybody who can reach {address} could read these models")).hint(
        "say who may: --allow 192.168.7.0/24, or --token-file FILE (or both; or --allow 0.0.0.0/0 for everybody)",
    ))
}

fn tls(config: &ServeConfig, lab: &Lab, state: &Path) -> Result<Option<Tls>, CliError> {
    let made = match (&config.certificate, &config.key) {
        (Some(certificate), Some(key)) => {
            Some(Tls::read(&expand_home(certificate, &lab.home), &expand_home(key, &lab.home)))
        }
        _ => config.tls.then(|| Tls::of_own(state, vec![lab.machine.clone(), "localhost".to_owned()])),
    };
    made.transpose().map_err(|error| CliError::failed(&error))
}

/// Names of the artifacts here whose licence every user must accept himself.
pub(super) fn gated(lab: &Lab, sightings: &[Sighting<'_>]) -> Vec<String> {
    let declared = lab.manifests.artifacts.iter().filter(|declared| declared.gated);
    let here = |name: &str| sightings.iter().any(|sighting| sighting.artifact.name == name);
    declared.filter(|declared| here(&declared.name)).map(|declared| declared.name.clone()).collect()
}

/// What has no name in Xet is asked for plainly.
fn forget_xet(artifacts: &mut [Served]) {
    artifacts.iter_mut().flat_map(|served| &mut served.artifact.files).for_each(|file| file.xet = None);
}

/// Everything that is here, not known to be wrong, and not withheld.
fn artifacts(sightings: &[Sighting<'_>], withheld: &[String]) -> Vec<Served> {
    let served = sightings.iter().filter(|sighting| !withheld.contains(&sighting.artifact.name)).map(|sighting| {
        let files = sighting.observed.files.iter().zip(&sighting.proofs);
        let content = files.map(|(state, proof)| match (state, proof) {
            (_, Proof::Refuted(_)) => None,
            (FileState::Present(found) | FileState::Staged(found), _) => Some(found.path.clone()),
            _ => None,
        });
        Served { artifact: sighting.artifact.clone(), content: content.collect() }
    });
    served.collect()
}
