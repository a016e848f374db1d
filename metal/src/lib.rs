//! What larder needs from the machine and safe Rust cannot say, behind interfaces that are safe.
//!
//! [`Sha256`] hashes one stream like any other, and [`update_together`] several of them at once on one processor: SHA
//! instructions wait for their own results much of the time, so a second, independent stream costs little; and the wide
//! registers of AVX-512 hold sixteen of them. [`Way`] is how one stream alone is hashed. [`cached_pages`] asks the kernel
//! how much of a file its page cache holds, [`unwritten`] which parts of it were allocated and never written;
//! [`read_when_idle`] tells it whose requests may wait, and [`begin_writing`] what need not wait for a sync.

mod cache;
mod extents;
mod one;
mod priority;
mod sha256;
#[cfg(target_arch = "x86_64")]
mod sha_ni;
#[cfg(target_arch = "x86_64")]
mod sha_wide;
mod together;
mod writeback;

pub use cache::cached_pages;
pub use extents::unwritten;
pub use one::Way;
pub use priority::read_when_idle;
pub use sha256::{BLOCK, Sha256};
pub use together::{streams_at_once, update_together};
pub use writeback::begin_writing;
