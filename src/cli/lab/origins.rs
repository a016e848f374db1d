//! Where a lab takes from: peers, buckets, the hub, and how they are asked.

use std::path::Path;
use std::sync::Arc;

use url::Url;

use super::{Lab, state_dir};
use crate::bucket::Place;
use crate::cli::error::CliError;
use crate::cli::{Common, buckets, env};
use crate::inventory::{self, Peer, SourceConfig, SourceKind, expand_home};
use crate::retry::RetryPolicy;
use crate::size::Bytes;
use crate::sources::{Manners, PUBLIC_HUB, PeerConfig, SourceSettings, Sources, Timeouts};

impl Lab {
    /// The other machines that this one may take from.
    fn peers(&self) -> Result<Vec<PeerConfig>, CliError> {
        let config = self.inventory.sources_of(&self.machine);
        if !config.order.contains(&SourceKind::Peer) {
            return Ok(Vec::new());
        }
        let peer = |peer: Peer| {
            let of_file = peer.token_file.map(|path| read_token(&expand_home(&path, &self.home))).transpose()?;
            let token = peer.token.or(of_file);
            Ok(PeerConfig {
                name: peer.name,
                url: peer.url,
                token,
                certificate: peer.certificate,
                sockets: peer.sockets,
            })
        };
        config.peers.into_iter().map(peer).collect()
    }

    /// The object stores of the lab; where the order of sources leaves them out, they are still put into.
    fn buckets(&self) -> Result<Vec<Place>, CliError> {
        let config = self.inventory.sources_of(&self.machine);
        let retry = retry_policy(&config);
        config.buckets.iter().map(|bucket| buckets::place(bucket, &self.home, retry)).collect()
    }

    /// Peers and buckets whose content counts as downloaded, as upstream's does.
    pub(super) fn metered(&self) -> Vec<String> {
        let config = self.inventory.sources_of(&self.machine);
        let peers = config.peers.iter().filter(|peer| peer.metered).map(|peer| format!("peer:{}", peer.name));
        let buckets = config.buckets.iter().filter(|bucket| bucket.metered);
        peers.chain(buckets.map(|bucket| format!("bucket:{}", bucket.name))).collect()
    }

    /// The same lab, from now on without upstream where the command line says so.
    pub(in crate::cli) fn within(mut self, locality: Locality) -> Self {
        if locality.only_local {
            self.only_local = true;
            let machines = self.inventory.machines.values_mut().filter_map(|machine| machine.order.as_mut());
            let orders = std::iter::once(&mut self.inventory.sources.order).chain(machines);
            orders.for_each(|order| order.retain(|kind| *kind != SourceKind::Upstream));
        }
        self
    }

    /// Whether peers may be asked to fetch from upstream what they lack.
    pub(in crate::cli) fn peers_may_bring(&self) -> bool {
        !self.only_local
    }

    /// From now on, nothing is taken from anywhere but from `sources`, which people call `name`.
    pub(in crate::cli) fn take_only_from(&mut self, name: &str, sources: inventory::SourceConfig) {
        self.only_from = Some(name.to_owned());
        if let Some(machine) = self.inventory.machines.get_mut(&self.machine) {
            machine.order = None;
        }
        self.inventory.sources = sources;
    }

    /// The hub that `hf:` means here.
    pub(in crate::cli) fn hub(&self) -> Result<Url, CliError> {
        let public = || Url::parse(PUBLIC_HUB).map_err(|error| CliError::failed(&error));
        self.hub_endpoint()?.map_or_else(public, Ok)
    }

    fn hub_endpoint(&self) -> Result<Option<Url>, CliError> {
        match (&self.inventory.sources_of(&self.machine).hub, env::hub_endpoint()) {
            (Some(url), _) => Ok(Some(url.clone())),
            (None, Some(text)) => address(&text).map(Some),
            (None, None) => Ok(None),
        }
    }

    /// Where bytes may come from; nobody is asked yet.
    pub(in crate::cli) fn sources(&self, common: &Common, limits: &Limits) -> Result<Arc<Sources>, CliError> {
        if let Some(sources) = self.sources.get() {
            return Ok(Arc::clone(sources));
        }
        let sources = Arc::new(self.make_sources(common, limits)?);
        Ok(Arc::clone(self.sources.get_or_init(|| sources)))
    }

    fn make_sources(&self, common: &Common, limits: &Limits) -> Result<Sources, CliError> {
        let config = self.inventory.sources_of(&self.machine);
        let settings = SourceSettings {
            hub_endpoint: self.hub_endpoint()?,
            hub_token: env::hub_token(&self.home),
            offline: common.offline || env::hub_is_offline(),
            ollama_registry: config.ollama.clone(),
            peers: self.peers()?,
            sftp: self.by_sftp.clone(),
            buckets: self.buckets()?,
            metered: self.metered(),
            only_local: self.only_local,
            ollama_version: config.ollama_version.clone(),
            xet: (config.xet && !env::xet_is_off()).then(|| state_dir(common, &self.home).join("xet")),
            manners: Manners {
                connections: config.connections,
                max_rates: config.max_rates().map_err(|(_, message)| CliError::usage(message))?,
                max_download: limits.max_download.or(config.max_download),
                timeouts: Timeouts { connect: config.connect_timeout.0, stall: config.stall_timeout.0 },
            },
            // Somebody waits for the plan or the lock: fewer tries than for a file.
            retry: RetryPolicy { retries: config.retries.min(2), ..retry_policy(&config) },
        };
        Ok(Sources::new(&settings)?)
    }

    /// How passing errors of a file are tried again.
    pub(in crate::cli) fn retry(&self) -> RetryPolicy {
        retry_policy(&self.inventory.sources_of(&self.machine))
    }
}

/// What the command line says about where bytes may come from.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(in crate::cli) struct Locality {
    /// Take nothing from upstream: only from the lab's own drives, machines and buckets
    #[arg(long)]
    pub(in crate::cli) only_local: bool,
}

/// What the command line says about how much may be downloaded.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(in crate::cli) struct Limits {
    /// Download at most so much from upstream, such as 20GB: whole artifacts, in their order, as many as fit
    #[arg(long, value_name = "SIZE")]
    pub(in crate::cli) max_download: Option<Bytes>,
}

fn retry_policy(config: &SourceConfig) -> RetryPolicy {
    let first = config.retry_pause.0;
    let default = RetryPolicy::default();
    RetryPolicy { first, longest: default.longest.max(first), retries: config.retries, ..default }
}

/// A token that the inventory names a file for.
pub(in crate::cli) fn read_token(path: &Path) -> Result<String, CliError> {
    let text = fs_err::read_to_string(path)?;
    let mut words = text.split_whitespace();
    match (words.next(), words.next()) {
        (Some(token), None) => Ok(token.to_owned()),
        _ => Err(CliError::usage(format!("{} holds no token: one word is needed", path.display()))
            .hint("make one with: head -c 24 /dev/urandom | base64 | tr -d / > FILE")),
    }
}

/// The value of `HF_ENDPOINT` as an address.
fn address(text: &str) -> Result<Url, CliError> {
    let url = Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    url.ok_or_else(|| {
        CliError::usage(format!("HF_ENDPOINT is {text:?}, which is no address of a server"))
            .hint("begin it with http:// or https://, or unset it")
    })
}
