//! What is served follows what is on the machine: a lock that moved, files that arrived.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use super::Stock;
use super::supply::Upstream;
use crate::cli::Common;
use crate::cli::error::CliError;
use crate::cli::lab::Lab;
use crate::cli::ui::Ui;
use crate::inventory::ServeConfig;
use crate::report::table::count;
use crate::serve::{Renewal, Renewed};

/// Reads the lab again where its files say something else than before.
pub(super) struct FromLab {
    ui: Ui,
    common: Common,
    /// What the server was started with, which stays.
    config: ServeConfig,
    upstream: Option<Upstream>,
    seen: Mutex<Seen>,
}

/// The lab that was read last, and how its files looked just before.
struct Seen {
    lab: Arc<Lab>,
    looks: Looks,
}

/// By path: when a file was changed, and how long it is; `None` for one that is not there.
type Looks = BTreeMap<PathBuf, Option<(SystemTime, u64)>>;

impl FromLab {
    /// Goes on from `lab`, which `looks` was taken before.
    pub(super) fn new(
        ui: &Ui,
        common: &Common,
        config: ServeConfig,
        upstream: Option<Upstream>,
        (lab, looks): (Arc<Lab>, Looks),
    ) -> Self {
        let seen = Mutex::new(Seen { lab, looks });
        Self { ui: ui.for_a_part(), common: common.clone(), config, upstream, seen }
    }

    fn read(&self) -> Result<(Arc<Lab>, Renewed), CliError> {
        let lab = Arc::new(Lab::read(&self.ui, &self.common)?);
        let stock = Stock::of(&lab, &self.config)?;
        let files = stock.files();
        self.ui.note(&format!(
            "serving {} ({}) now",
            count(stock.index.artifacts.len(), "artifact"),
            count(files, "file")
        ));
        let supply = self.upstream.as_ref().map(|upstream| upstream.over(&lab));
        Ok((lab, Renewed { index: stock.index, supply }))
    }
}

impl Renewal for FromLab {
    fn renew(&self, is_asked_for: bool) -> Option<Renewed> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let looks = looks_of(&seen.lab);
        if looks == seen.looks && !is_asked_for {
            return None;
        }
        // Files that are being written make no sense for a moment: the next change is the reason to look again.
        seen.looks = looks;
        match self.read() {
            Ok((lab, renewed)) => {
                seen.lab = lab;
                Some(renewed)
            }
            Err(error) => {
                for (message, _) in error.messages() {
                    tracing::warn!("what is served stays as it was: {message}");
                }
                None
            }
        }
    }
}

/// How everything looks that the index is made from: inventory, manifests, lock, and what was measured.
pub(super) fn looks_of(lab: &Lab) -> Looks {
    let facts = ["facts.sqlite", "facts.sqlite-wal"].map(|name| lab.state.join(name));
    let declared = lab.signed_files().unwrap_or_default();
    let files = [lab.inventory_path.clone(), lab.lock_path.clone()].into_iter().chain(facts).chain(declared);
    let look = |path: PathBuf| {
        let found = fs_err::metadata(&path).ok().and_then(|found| Some((found.modified().ok()?, found.len())));
        (path, found)
    };
    files.map(look).collect()
}
