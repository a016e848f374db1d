//! Schedules and steps: what turns a denoiser's answers into a sample.

pub mod flow_match_euler;
