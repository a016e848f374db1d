//! One file per command: its arguments, and what it does with the library.

pub(super) mod adopt;
pub(super) mod after;
pub(super) mod apply;
pub(super) mod completions;
pub(super) mod copy;
pub(super) mod dedupe;
pub(super) mod demo;
pub(super) mod diff;
pub(super) mod doctor;
pub(super) mod export;
pub(super) mod fleet;
pub(super) mod list;
pub(super) mod lock;
pub(super) mod man;
pub(super) mod plan;
pub(super) mod prune;
pub(super) mod push;
pub(super) mod remote;
pub(super) mod repair;
pub(super) mod report;
pub(super) mod schedule;
pub(super) mod serve;
pub(super) mod sign;
pub(super) mod smoke;
pub(super) mod status;
pub(super) mod verify;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Says, from another thread, whether a signal asked this run to stop: every signal that comes once this has returned.
pub(super) fn stopped_by_signals() -> std::io::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    // Not in the thread: a signal that came before it runs would end the program as if nobody listened.
    let signal = runtime.block_on(async { stop_signal() })?;
    let listen = move || {
        runtime.block_on(signal);
        flag.store(true, Ordering::Relaxed);
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen)?;
    Ok(stop)
}
