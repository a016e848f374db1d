//! Exit codes: the contract that scripts rely on.

use std::process::ExitCode;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything is in order.
    InOrder = 0,
    /// It could not be done.
    Failed = 1,
    /// Wrong usage, or a mistake in an input file.
    Usage = 2,
    /// There are differences or faults.
    Differences = 3,
    /// Done, but some items failed.
    Partly = 4,
    /// Stopped by the user; running again continues.
    Interrupted = 130,
}

/// The table in `--help`.
pub(super) const TABLE: &str = "Exit codes:
  0    in order
  1    could not be done
  2    wrong usage, or a mistake in an input file
  3    there are differences or faults
  4    done, but some items failed
  130  interrupted; running again continues";

/// Which code `apply` ends with, in its `--help`.
pub(super) const OF_APPLY: &str = "The exit code is 4 where a part was done and a part failed, and where the plan says \
    of something that it cannot be had. It is 1 where things were tried and every one of them failed.";

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Ends the process at once.
#[expect(clippy::exit, clippy::disallowed_methods, reason = "the one place that ends the process early")]
pub(super) fn now(exit: Exit) -> ! {
    std::process::exit(exit as i32)
}
