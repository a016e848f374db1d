//! Passes to the store: got from the hub by our own client, renewed before they run out and when refused.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Mutex;
use xet::xet_session::{
    HeaderMap, HeaderValue, XetConfig, XetDownloadStreamGroup, XetSession, XetSessionBuilder, header,
};

use super::reading::{BUDGET, LONGEST_STRETCH};
use super::trouble::Trouble;
use crate::artifact::Remote;
use crate::sources::hub::Pass;
use crate::sources::{HubSource, Timeouts};

/// A pass is renewed so long before it runs out, or when three quarters of its time are over.
const MARGIN: Duration = Duration::from_secs(60);
/// A pass that seems to have run out already is used all the same: the clocks may differ.
const SHORTEST_LIFE: Duration = Duration::from_secs(20);
/// No pass is believed to live longer.
const LONGEST_LIFE: Duration = Duration::from_secs(24 * 3600);

/// All passes of a run.
pub(super) struct Passes {
    scratch: PathBuf,
    timeouts: Timeouts,
    connections: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    session: Option<XetSession>,
    /// By repository and revision.
    granted: HashMap<String, Arc<Granted>>,
    count: u64,
}

/// A pass in use.
pub(super) struct Granted {
    /// Opens streams with this pass.
    pub(super) group: XetDownloadStreamGroup,
    /// Differs for every pass of the run.
    pub(super) number: u64,
    renew_at: Instant,
}

impl Passes {
    /// At most `connections` requests to the store at the same time.
    pub(super) fn new(scratch: PathBuf, timeouts: Timeouts, connections: usize) -> Self {
        Self { scratch, timeouts, connections: connections.max(1), state: Mutex::default() }
    }

    /// A pass for `remote` that is valid now, and not the `refused` one.
    ///
    /// Whoever comes while one is being got waits for it: each is asked for once.
    pub(super) async fn granted(
        &self,
        hub: &HubSource,
        remote: &Remote,
        refused: Option<u64>,
    ) -> Result<Arc<Granted>, Trouble> {
        let realm = hub.realm(remote)?;
        let mut state = self.state.lock().await;
        if let Some(granted) = state.granted.get(&realm)
            && Instant::now() < granted.renew_at
            && refused != Some(granted.number)
        {
            return Ok(Arc::clone(granted));
        }
        let session = match &state.session {
            Some(session) => session.clone(),
            None => state.session.insert(self.session()?).clone(),
        };
        let pass = hub.pass(remote).await?;
        let renew_at = Instant::now() + life(pass.expires);
        let group = group(&session, &pass).await?;
        state.count += 1;
        let granted = Arc::new(Granted { group, number: state.count, renew_at });
        state.granted.insert(realm, Arc::clone(&granted));
        Ok(granted)
    }

    fn session(&self) -> Result<XetSession, Trouble> {
        let handle = Handle::current();
        if handle.runtime_flavor() != RuntimeFlavor::MultiThread {
            // The library would start threads of its own.
            return Err(Trouble::new("it needs a runtime of several threads"));
        }
        let builder = XetSessionBuilder::new_with_config(config(self.timeouts, self.connections));
        Ok(builder.with_cache_dir(&self.scratch).with_tokio_handle(handle).build()?)
    }
}

/// How long a pass can be used.
fn life(expires: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let left = Duration::from_secs(expires).saturating_sub(now);
    // Nobody promises more honestly, and a clock has an end.
    (left - MARGIN.min(left / 4)).clamp(SHORTEST_LIFE, LONGEST_LIFE)
}

async fn group(session: &XetSession, pass: &Pass) -> Result<XetDownloadStreamGroup, Trouble> {
    let agent = HeaderValue::from_static(concat!("larder/", env!("CARGO_PKG_VERSION")));
    let builder = session.new_download_stream_group()?;
    // Renewing is our business: to the library, the pass never runs out.
    let builder = builder.with_endpoint(&pass.address).with_token_info(&pass.token, u64::MAX);
    Ok(builder.with_custom_headers(HeaderMap::from_iter([(header::USER_AGENT, agent)])).build().await?)
}

/// The library's defaults are meant for a program that has the machine to itself: gigabytes of buffers,
/// minutes of patience, and reports about every transfer. Nothing of it is read from the environment.
fn config(timeouts: Timeouts, connections: usize) -> XetConfig {
    let mut config = XetConfig::default();
    config.telemetry.enabled = false;
    config.client.connect_timeout = timeouts.connect;
    config.client.read_timeout = timeouts.stall;
    // Plain ranges are at hand, so patience with the store is short.
    config.client.retry_max_attempts = 2;
    config.client.retry_base_delay = Duration::from_millis(300);
    config.client.retry_max_duration = Duration::from_secs(3);
    config.client.ac_min_download_concurrency = 1;
    config.client.ac_initial_download_concurrency = connections;
    config.client.ac_max_download_concurrency = connections;
    config.reconstruction.download_buffer_size = BUDGET.into();
    config.reconstruction.download_buffer_perfile_size = 0.into();
    config.reconstruction.download_buffer_limit = BUDGET.into();
    // One question to the store for each stretch.
    config.reconstruction.min_reconstruction_fetch_size = LONGEST_STRETCH.into();
    config.reconstruction.max_reconstruction_fetch_size = LONGEST_STRETCH.into();
    config.reconstruction.min_prefetch_buffer = 0.into();
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_now(seconds: i64) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        now.saturating_add_signed(seconds)
    }

    #[test]
    fn passes_are_renewed_in_good_time() {
        let about = |expires, seconds: u64| {
            let life = life(expires).as_secs();
            assert!(life == seconds || life + 1 == seconds, "{life}, not {seconds}");
        };
        about(from_now(3600), 3540);
        about(from_now(100), 75);
        about(from_now(-500), 20);
        about(0, 20);
        assert!(Instant::now().checked_add(life(u64::MAX)).is_some());
    }

    #[test]
    fn nothing_is_reported_to_anybody() {
        let config = config(Timeouts::default(), 3);
        assert!(!config.telemetry.enabled && !config.system_monitor.enabled);
        assert_eq!(config.client.ac_max_download_concurrency, 3);
    }
}
