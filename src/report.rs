//! What the commands say, as text for people. The same data goes out as JSON unchanged.

pub mod adopt;
pub mod doctor;
pub mod export;
pub mod fleet;
pub mod html;
pub mod list;
pub mod markdown;
pub mod overview;
mod phrases;
pub mod plain;
pub mod plan;
pub mod prometheus;
pub mod repair;
pub mod smoke;
pub mod status;
pub mod table;
pub mod verdict;
