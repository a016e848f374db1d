//! Schedules and steps: what turns a denoiser's answers into a sample.

pub mod cosine_dpm;
pub mod flow_match_euler;
pub mod noise;

/// A schedule that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// The configuration asks for something that is not supported.
    #[error("The schedule option {option} is not supported")]
    Unsupported {
        /// The option's name in the configuration.
        option: &'static str,
    },
    /// The configuration wants a shift for each image and none was given.
    #[error("The schedule shifts by image size, and no shift was given")]
    NoShift,
    /// A schedule needs at least one step.
    #[error("A schedule needs at least one step")]
    NoSteps,
}
