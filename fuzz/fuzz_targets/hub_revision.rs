//! See `tests/support/fuzz_entries.rs`.
#![no_main]

#[path = "../../tests/support/fuzz_entries.rs"]
#[allow(dead_code, reason = "each target runs one of the entries")]
mod fuzz_entries;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_entries::hub_revision(bytes));
