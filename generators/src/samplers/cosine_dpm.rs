//! DPM-Solver++ with fresh noise (second order, multistep) over the noise levels of EDM, as Stable Audio uses it.
//!
//! Papers: Lu et al., "DPM-Solver++", <https://arxiv.org/abs/2211.01095>; Karras et al., "Elucidating the Design Space
//! of Diffusion-Based Generative Models", <https://arxiv.org/abs/2206.00364>. Reference:
//! `CosineDPMSolverMultistepScheduler` of diffusers (Apache-2.0).

use std::f64::consts::PI;

use candle_core::{Result, Tensor};
use serde::Deserialize;

use crate::samplers::ScheduleError;

/// `scheduler/scheduler_config.json`.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Lowest noise level.
    pub sigma_min: f64,
    /// Highest noise level.
    pub sigma_max: f64,
    /// Standard deviation of the data.
    pub sigma_data: f64,
    /// How the levels lie between the two.
    pub sigma_schedule: SigmaSchedule,
    /// The form of the levels of Karras.
    pub rho: f64,
    /// 1 or 2.
    pub solver_order: usize,
    /// What the denoiser predicts.
    pub prediction_type: Prediction,
    /// How the second order is taken.
    pub solver_type: Solver,
    /// The noise level after the last step.
    pub final_sigmas_type: FinalSigma,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sigma_min: 0.3,
            sigma_max: 500.0,
            sigma_data: 1.0,
            sigma_schedule: SigmaSchedule::Exponential,
            rho: 7.0,
            solver_order: 2,
            prediction_type: Prediction::VPrediction,
            solver_type: Solver::Midpoint,
            final_sigmas_type: FinalSigma::Zero,
        }
    }
}

/// How noise levels lie between the lowest and the highest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SigmaSchedule {
    /// Geometrically.
    Exponential,
    /// By a power.
    Karras,
}

/// What a denoiser predicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// The velocity between data and noise.
    VPrediction,
}

/// How the second order is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Solver {
    /// By the middle of the step.
    Midpoint,
    /// By Heun's rule.
    Heun,
}

/// The noise level after the last step. (From the lowest level to itself the reference divides zero by zero.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    /// None.
    Zero,
}

/// Noise levels, and the steps between them; remembers the last two answers.
#[derive(Debug, Clone)]
pub struct CosineDpm {
    sigmas: Vec<f64>,
    config: Config,
    previous: Option<Tensor>,
}

impl CosineDpm {
    /// Makes a schedule of `steps`.
    pub fn new(config: &Config, steps: usize) -> std::result::Result<Self, ScheduleError> {
        match (steps, config.solver_order) {
            (0, _) => return Err(ScheduleError::NoSteps),
            (_, 1 | 2) => {}
            _ => return Err(ScheduleError::Unsupported { option: "solver_order" }),
        }
        let share = |i: usize| i as f64 / (steps.max(2) - 1) as f64;
        let sigmas = (0..steps).map(|i| config.level(share(i), steps)).chain([0.0]);
        // The reference keeps its levels in single precision.
        Ok(Self {
            sigmas: sigmas.map(|sigma| f64::from(sigma as f32)).collect(),
            config: config.clone(),
            previous: None,
        })
    }

    /// Steps of the schedule.
    pub fn steps(&self) -> usize {
        self.sigmas.len() - 1
    }

    /// The noise levels: one before each step, and the last.
    pub fn sigmas(&self) -> &[f64] {
        &self.sigmas
    }

    /// What unit noise is multiplied by to be the first sample.
    pub fn initial_scale(&self) -> f64 {
        self.config.sigma_max.hypot(1.0)
    }

    /// What the denoiser is told before step `i`, from 0 to 1.
    pub fn timestep(&self, i: usize) -> f32 {
        (self.sigmas[i].atan() / PI * 2.0) as f32
    }

    /// What the denoiser is shown before step `i`. Same shape as `sample`.
    pub fn input(&self, i: usize, sample: &Tensor) -> Result<Tensor> {
        sample / self.sigmas[i].hypot(self.config.sigma_data)
    }

    /// The sample after step `i`, from the one before it, the denoiser's `answer` there and fresh unit `noise`; all of
    /// the same shape. Steps are taken in order.
    pub fn step(&mut self, i: usize, answer: &Tensor, sample: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let denoised = self.denoised(i, answer, sample)?;
        let (now, next) = (self.sigmas[i], self.sigmas[i + 1]);
        // h is infinite in the last step to 0: nothing of the sample remains, and no noise is added.
        let h = now.ln() - next.ln();
        let gone = 1.0 - (-2.0 * h).exp();
        let mut after = ((sample * (next / now * (-h).exp()))? + (&denoised * gone)?)?;
        if let Some(previous) = self.previous.take().filter(|_| i > 0 && !self.in_first_order(i)) {
            let r = (self.sigmas[i - 1].ln() - now.ln()) / h;
            let weight = match self.config.solver_type {
                Solver::Midpoint => 0.5 * gone,
                Solver::Heun => 1.0 - gone / (2.0 * h),
            };
            after = (after + ((&denoised - previous)? * (weight / r))?)?;
        }
        self.previous = Some(denoised);
        after + (noise * (next * gone.sqrt()))?
    }

    /// The last step ends without noise, where only the first order is defined.
    fn in_first_order(&self, i: usize) -> bool {
        self.config.solver_order == 1 || i + 1 == self.steps()
    }

    /// The data that the denoiser sees in the sample.
    fn denoised(&self, i: usize, answer: &Tensor, sample: &Tensor) -> Result<Tensor> {
        let (sigma, data) = (self.sigmas[i], self.config.sigma_data);
        let variance = sigma * sigma + data * data;
        let of_answer = match self.config.prediction_type {
            Prediction::Epsilon => sigma * data / variance.sqrt(),
            Prediction::VPrediction => -sigma * data / variance.sqrt(),
        };
        (sample * (data * data / variance))? + (answer * of_answer)?
    }
}

impl Config {
    /// The noise level at `share` of a schedule, from the highest down.
    fn level(&self, share: f64, steps: usize) -> f64 {
        match self.sigma_schedule {
            // The reference counts upwards and turns the list over: of one step it keeps the lowest.
            SigmaSchedule::Exponential if steps == 1 => self.sigma_min,
            SigmaSchedule::Exponential => {
                (self.sigma_max.ln() + share * (self.sigma_min.ln() - self.sigma_max.ln())).exp()
            }
            SigmaSchedule::Karras => {
                let (low, high) = (self.sigma_min.powf(1.0 / self.rho), self.sigma_max.powf(1.0 / self.rho));
                (high + share * (low - high)).powf(self.rho)
            }
        }
    }
}
