//! What turns a verification into a nightly one: remembering what runs found, telling when it changes,
//! waiting while the machine is needed, and the systemd units that start it.

mod busy;
mod notify;
mod runs;
mod serving;
mod units;

pub use busy::{Busy, Probe, ProbeError};
pub use notify::{NotifyError, run_with_input};
pub use runs::{Change, Known, remember, run_of};
pub use serving::{SERVE_SERVICE, SERVE_SOCKET, Serving, serve_service, serve_socket};
pub use units::{FULL_SERVICE, FULL_TIMER, Network, Pair, SERVICE, Schedule, Scope, TIMER, WRITTEN_BY, service, timer};
