//! What the commands say, as text for people. The same data goes out as JSON unchanged.

pub mod list;
pub mod plan;
pub mod smoke;
pub mod status;
pub mod table;
pub mod verdict;
