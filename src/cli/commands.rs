//! One file per command: its arguments, and what it does with the library.

pub(super) mod adopt;
pub(super) mod after;
pub(super) mod apply;
pub(super) mod completions;
pub(super) mod copy;
pub(super) mod dedupe;
pub(super) mod demo;
pub(super) mod doctor;
pub(super) mod export;
pub(super) mod list;
pub(super) mod lock;
pub(super) mod man;
pub(super) mod plan;
pub(super) mod prune;
pub(super) mod report;
pub(super) mod schedule;
pub(super) mod serve;
pub(super) mod status;
pub(super) mod verify;

use std::future::Future;

use tokio::signal::unix::{SignalKind, signal};

/// Completes at the first Ctrl-C or SIGTERM.
pub(super) fn stop_signal() -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
