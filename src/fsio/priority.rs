//! How much this process may be in others' way.

use std::io;

/// Lets everybody else go first: the processor by `nice` 19, and the disk by the idle class, which counts where
/// its scheduler has one (bfq, mq-deadline).
///
/// It holds for this thread and those it starts afterwards, so it is called before any does.
pub fn be_idle() -> io::Result<()> {
    let refused = |error: io::Error| io::Error::new(error.kind(), format!("the priority cannot be lowered: {error}"));
    rustix::process::nice(19).map_err(|error| refused(error.into()))?;
    larder_metal::read_when_idle().map_err(refused)
}
