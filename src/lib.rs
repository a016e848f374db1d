//! larder keeps the AI models of a lab: it knows what every machine must have, gets it there,
//! proves it is intact, and proves that it works.
//!
//! Modules stand on floors and import only from floors below their own; `tests/layers.rs` keeps it.

// Floor 0: words.
pub mod digest;
pub mod monitor;
pub mod relpath;
pub mod size;
pub mod span;
mod text;
// Floor 1: ground.
pub mod artifact;
pub mod fsio;
pub mod pace;
pub mod retry;
pub mod weights;
// Floor 2: what is wanted, what is known.
pub mod facts;
pub mod inventory;
pub mod lock;
pub mod manifest;
pub mod trust;
// What the lab shares.
pub mod bucket;
pub mod fleet;
// Floor 3: ports.
pub mod ollama_api;
pub mod sources;
pub mod stores;
// Floor 4: looking.
pub mod conditions;
pub mod observe;
pub mod resolve;
// Floor 5: thinking and judging.
pub mod adopt;
pub mod doctor;
pub mod plan;
pub mod verify;
// Floor 6: doing.
pub mod apply;
pub mod dedupe;
pub mod export;
pub mod nightly;
pub mod prune;
pub mod push;
pub mod repair;
pub mod serve;
pub mod smoke;
pub mod sweep;
// Floor 7: showing.
pub mod demo;
pub mod drive;
// Floor 8: what is said.
pub mod report;
// Floor 9: the program.
pub mod cli;
