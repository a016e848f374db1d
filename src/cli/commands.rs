//! One file per command: its arguments, and what it does with the library.

pub(super) mod apply;
pub(super) mod completions;
pub(super) mod demo;
pub(super) mod list;
pub(super) mod lock;
pub(super) mod man;
pub(super) mod plan;
pub(super) mod serve;
pub(super) mod status;
pub(super) mod verify;
