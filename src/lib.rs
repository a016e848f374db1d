//! larder keeps the AI models of a lab: it knows what every machine must have, gets it there,
//! proves it is intact, and proves that it works.
//!
//! Modules stand on floors and import only from floors below their own; `tests/layers.rs` keeps it.

// Floor 0: words.
pub mod digest;
pub mod monitor;
pub mod relpath;
pub mod size;
// Floor 1: ground.
pub mod artifact;
pub mod fsio;
// Floor 2: what is wanted, what is known.
pub mod inventory;
pub mod lock;
pub mod manifest;
// Floor 3: ports.
pub mod sources;
pub mod stores;
// Floor 4: looking.
pub mod conditions;
// Floor 8: what the reports say.
pub mod report;
