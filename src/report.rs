//! Reports: what the commands say, as plain data and as text.

pub mod list;
