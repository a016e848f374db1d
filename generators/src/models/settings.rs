//! Whether a configuration is one that a model can be made of: it is foreign input, and a zero in it must be an error
//! and no crash.

use crate::models::llama::Unsupported;

/// No size of a real model reaches this.
const ABSURD: usize = 1 << 24;
/// No real model has so many layers.
const ABSURD_LAYERS: usize = 1 << 12;

/// What is read from a model's own files and says how it is made.
pub trait Settings {
    /// Looks for what no model has: sizes of nothing, lists that do not fit each other, heads that do not divide a width.
    ///
    /// # Errors
    /// The first such key, with what it says.
    fn check(&self) -> Result<(), Unsupported>;
}

/// Every size is at least 1 and below [`ABSURD`].
pub(crate) fn sizes(sizes: &[(&str, usize)]) -> Result<(), Unsupported> {
    let most = |key: &str| if key.contains("layers") { ABSURD_LAYERS } else { ABSURD };
    match sizes.iter().find(|(key, size)| *size == 0 || *size >= most(key)) {
        Some((key, size)) => Err(Unsupported::new(*key, size)),
        None => Ok(()),
    }
}

/// The same of each number of a list, which has `wanted` of them; a wanted 0 means at least one.
pub(crate) fn list(key: &str, numbers: &[usize], wanted: usize) -> Result<(), Unsupported> {
    let has_right_length = if wanted == 0 { !numbers.is_empty() } else { numbers.len() == wanted };
    if !has_right_length || numbers.iter().any(|number| *number == 0 || *number >= ABSURD) {
        return Err(Unsupported::new(key, format!("{numbers:?}")));
    }
    Ok(())
}

/// `whole` consists of equal parts.
pub(crate) fn divided((key, whole): (&str, usize), parts: usize) -> Result<(), Unsupported> {
    if whole.checked_rem(parts) == Some(0) {
        Ok(())
    } else {
        Err(Unsupported::new(key, format!("{whole} in {parts} parts")))
    }
}
