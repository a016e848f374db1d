//! Stub until sources land.
use std::time::Duration;
/// Stub.
#[derive(Debug, Clone, Default)]
pub struct Backoff {}
impl Backoff {
    /// Stub.
    pub fn next(&mut self, server_wait: Option<Duration>) -> Option<Duration> {
        server_wait
    }
}
