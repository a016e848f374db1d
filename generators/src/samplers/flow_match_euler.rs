//! Euler steps along the straight paths of rectified flow, with the timestep shift of Stable Diffusion 3.
//!
//! Paper: Esser et al., <https://arxiv.org/abs/2403.03206>, section 5.3.2. Reference:
//! `FlowMatchEulerDiscreteScheduler` of diffusers (Apache-2.0).

use candle_core::{Result, Tensor};
use serde::Deserialize;

use crate::samplers::ScheduleError;

/// `scheduler/scheduler_config.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Config {
    /// Steps of the training schedule.
    #[serde(default = "thousand")]
    pub num_train_timesteps: usize,
    /// How much of the schedule goes to high noise; 1 leaves it as it is.
    #[serde(default = "one")]
    pub shift: f64,
    /// Whether the shift is given for each image instead.
    #[serde(default)]
    pub use_dynamic_shifting: bool,
    /// Where the last noise level is moved to, if anywhere.
    #[serde(default)]
    pub shift_terminal: Option<f64>,
    /// The form of a shift given for each image.
    #[serde(default)]
    pub time_shift_type: TimeShift,
    /// Not supported.
    #[serde(default)]
    pub use_karras_sigmas: Option<bool>,
    /// Not supported.
    #[serde(default)]
    pub use_exponential_sigmas: Option<bool>,
    /// Not supported.
    #[serde(default)]
    pub use_beta_sigmas: Option<bool>,
    /// Not supported.
    #[serde(default)]
    pub invert_sigmas: bool,
    /// Not supported.
    #[serde(default)]
    pub stochastic_sampling: bool,
}

fn thousand() -> usize {
    1000
}

fn one() -> f64 {
    1.0
}

/// The form of a shift given for each image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeShift {
    /// By the exponential of the parameter.
    #[default]
    Exponential,
    /// By the parameter itself.
    Linear,
}

/// Noise levels from 1 down to 0, and the step between two of them.
#[derive(Debug, Clone)]
pub struct FlowMatchEuler {
    sigmas: Vec<f32>,
    train_steps: f32,
}

impl FlowMatchEuler {
    /// Makes a schedule of `steps`; `mu` is the shift of this image where the configuration wants one.
    pub fn new(config: &Config, steps: usize, mu: Option<f64>) -> std::result::Result<Self, ScheduleError> {
        config.check()?;
        let mu = mu.filter(|_| config.use_dynamic_shifting);
        match (steps, config.use_dynamic_shifting, mu) {
            (0, ..) => return Err(ScheduleError::NoSteps),
            (_, true, None) => return Err(ScheduleError::NoShift),
            _ => {}
        }
        let (first, last) = config.ends();
        let step = (last - first) / (steps.max(2) - 1) as f64;
        let levels = (0..steps).map(|i| config.shifted(first + i as f64 * step, mu));
        let levels = config.stretched(levels.collect());
        let sigmas = levels.into_iter().map(|sigma| sigma as f32).chain([0.0]);
        Ok(Self { sigmas: sigmas.collect(), train_steps: config.num_train_timesteps as f32 })
    }

    /// Steps of the schedule.
    pub fn steps(&self) -> usize {
        self.sigmas.len() - 1
    }

    /// The noise levels: one before each step, and 0 at the end.
    pub fn sigmas(&self) -> &[f32] {
        &self.sigmas
    }

    /// What the denoiser is told before step `i`, from 0 to the training steps (1000).
    pub fn timestep(&self, i: usize) -> f32 {
        self.sigmas[i] * self.train_steps
    }

    /// The sample after step `i`, from the one before it and the `velocity` there; all of the same shape.
    pub fn step(&self, i: usize, velocity: &Tensor, sample: &Tensor) -> Result<Tensor> {
        sample + (velocity * f64::from(self.sigmas[i + 1] - self.sigmas[i]))?
    }
}

impl Config {
    fn check(&self) -> std::result::Result<(), ScheduleError> {
        let options = [
            ("use_karras_sigmas", self.use_karras_sigmas == Some(true)),
            ("use_exponential_sigmas", self.use_exponential_sigmas == Some(true)),
            ("use_beta_sigmas", self.use_beta_sigmas == Some(true)),
            ("invert_sigmas", self.invert_sigmas),
            ("stochastic_sampling", self.stochastic_sampling),
        ];
        let wanted = options.into_iter().find(|(_, wanted)| *wanted);
        wanted.map_or(Ok(()), |(option, _)| Err(ScheduleError::Unsupported { option }))
    }

    /// The noise levels of the first and last training step, which a fixed shift moves too: the reference shifts
    /// once here and again at every step.
    fn ends(&self) -> (f64, f64) {
        let steps = self.num_train_timesteps as f32;
        let end = |sigma: f32| match self.use_dynamic_shifting {
            true => sigma,
            false => self.shift as f32 * sigma / (1.0 + (self.shift as f32 - 1.0) * sigma),
        };
        (f64::from(end(1.0)), f64::from(end(1.0 / steps)))
    }

    fn shifted(&self, sigma: f64, mu: Option<f64>) -> f64 {
        let Some(mu) = mu else { return self.shift * sigma / (1.0 + (self.shift - 1.0) * sigma) };
        let by = match self.time_shift_type {
            TimeShift::Exponential => mu.exp(),
            TimeShift::Linear => mu,
        };
        by / (by + (1.0 / sigma - 1.0))
    }

    fn stretched(&self, sigmas: Vec<f64>) -> Vec<f64> {
        let (Some(terminal), Some(last)) = (self.shift_terminal.filter(|&end| end != 0.0), sigmas.last()) else {
            return sigmas;
        };
        let factor = (1.0 - last) / (1.0 - terminal);
        sigmas.into_iter().map(|sigma| 1.0 - (1.0 - sigma) / factor).collect()
    }
}
