//! Why a file could not be brought.

use std::io;

use crate::fsio::ProofError;
use crate::ollama_api::OllamaApiError;
use crate::sources::SourceError;
use crate::stores::StoreError;
use crate::text::chain;

/// One file could not be brought.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The run was stopped; what arrived is kept.
    #[error("The run was stopped")]
    Interrupted,
    /// The source refused, or did not recover.
    #[error("It cannot be fetched")]
    Source(#[from] SourceError),
    /// The bytes that came are not the file, from every source there is.
    #[error("What {from} sends is not the file")]
    Wrong {
        /// The source.
        from: String,
        /// What differs.
        #[source]
        source: ProofError,
    },
    /// Reading or writing here failed.
    #[error("{what}")]
    Io {
        /// What was attempted.
        what: String,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The store refused.
    #[error("It cannot be placed")]
    Store(#[from] StoreError),
    /// The running Ollama server refused.
    #[error("It cannot be installed")]
    Install(#[source] Box<OllamaApiError>),
    /// The server has it now, and nobody has compared all of it.
    #[error("It is installed, but not proven: {path} was there before, and only the server can read it")]
    Unproven {
        /// The file.
        path: String,
    },
    /// Placed and published, and still not found by the layout's own rules.
    #[error("It was placed, but is not found afterwards: {state}")]
    NotFoundAfterwards {
        /// What was seen instead.
        state: String,
    },
}

impl From<OllamaApiError> for JobError {
    fn from(error: OllamaApiError) -> Self {
        Self::Install(Box::new(error))
    }
}

impl JobError {
    /// Wraps an I/O error with what was attempted.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// The message with all its causes on one line.
    pub fn chain(&self) -> String {
        chain(self)
    }

    /// What a sysadmin can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            JobError::Source(error) => error.hint(),
            JobError::Wrong { .. } => Some(
                "a proxy changes the content, the source is damaged, or the pin is wrong; larder verify tells which files are right here"
                    .to_owned(),
            ),
            JobError::Io { source, .. } | JobError::Store(StoreError::Io { source, .. }) => io_hint(source),
            JobError::Install(error) => install_hint(error).map(str::to_owned),
            JobError::Unproven { .. } => Some("run larder as a user who may read the store's folder".to_owned()),
            _ => None,
        }
    }
}

fn install_hint(error: &OllamaApiError) -> Option<&'static str> {
    Some(match error {
        OllamaApiError::Refused { message, .. } if message.contains("digest mismatch") => {
            "what it was given is not the image: run larder verify on the machine or drive that it came from"
        }
        OllamaApiError::Refused { message, .. } if message.contains("127.0.0.1") => {
            "a server in a container does not reach this machine's loopback: share the network with it (--network host), or \
             name a mirror that it reaches in [sources] ollama"
        }
        OllamaApiError::Unreachable { .. } | OllamaApiError::BrokeOff { .. } => {
            "see that the server runs, then run larder apply again"
        }
        OllamaApiError::Different { .. } => {
            "the tag names another image now: follow it with larder lock --update NAME, or let the server pull from a mirror that has the locked one ([sources] ollama)"
        }
        _ => return None,
    })
}

fn io_hint(error: &io::Error) -> Option<String> {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room, then run larder apply again: it continues where it stopped"
        }
        io::ErrorKind::PermissionDenied => "run larder as the user who owns the store, or as root",
        io::ErrorKind::ReadOnlyFilesystem => "mount the file system for writing, then run larder apply again",
        _ => return None,
    };
    Some(hint.to_owned())
}
