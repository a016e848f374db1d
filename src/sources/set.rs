//! All sources of a run, and which of them serves a reference.

use super::{Source, SourceError};
use crate::artifact::Reference;

/// What the command line and the inventory say about sources.
///
/// The library reads no environment: `cli::env` fills this in.
#[derive(Debug, Clone, Default)]
pub struct SourceSettings {
    /// `[sources] hub`, else `HF_ENDPOINT`, else the public hub.
    pub hub_endpoint: Option<url::Url>,
    /// `HF_TOKEN`, or the token file's content. Never logged, never written.
    pub hub_token: Option<String>,
    /// `HF_HUB_OFFLINE` or `--offline`: no network source answers.
    pub offline: bool,
    /// `[sources] ollama`: base address instead of the host in the name.
    pub ollama_registry: Option<url::Url>,
    /// The Ollama version to present.
    pub ollama_version: Option<String>,
}

/// All sources of a run. One HTTP client and one pacing budget for all of them.
pub struct Sources {}

impl Sources {
    /// Prepares the sources; no request is made.
    pub fn new(_settings: &SourceSettings) -> Result<Self, SourceError> {
        todo!()
    }

    /// The source that serves `reference`.
    pub fn for_reference(&self, _reference: &Reference) -> Result<&dyn Source, SourceError> {
        todo!()
    }
}
