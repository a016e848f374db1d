//! Layers over videos: tensors (batch, channels, frames, height, width).
//!
//! candle has no convolution in three dimensions. A kernel of several frames is a sum of convolutions over single frames,
//! one for each frame of the kernel: exact, and with one frame laid out at a time its memory is that of a picture.
//!
//! Reference: `WanCausalConv3d` of diffusers (Apache-2.0), which Wan's and Qwen-Image's autoencoders are made of.

use candle_core::{Result, Tensor, bail};

use crate::layers::{Steps, add_channels, over_images};
use crate::weights::{Param, Weights};

/// How a convolution over videos moves over the frames.
#[derive(Debug, Clone, Copy)]
pub struct Time {
    /// Frames that one output is made of.
    pub kernel: usize,
    /// Distance between outputs, in frames.
    pub stride: usize,
    /// Frames before the first: remembered ones, or zeros. Behind the last there are none.
    pub before: usize,
}

impl Time {
    /// As many outputs as frames, each made of its own frame and those before it.
    pub fn causal(kernel: usize) -> Self {
        Self { kernel, stride: 1, before: kernel.saturating_sub(1) }
    }
}

/// Convolution over videos in which no output knows a later frame.
pub struct CausalConv3d {
    weight: Param,
    bias: Param,
    time: Time,
    space: Steps,
}

impl CausalConv3d {
    /// Claims `weight` (outputs, inputs, frames of the kernel, kernel, kernel) and `bias` (outputs).
    ///
    /// `time` says how it moves over frames; `kernel` and `space` how wide it is in pictures and how it moves there.
    pub fn new(inputs: usize, outputs: usize, time: Time, (kernel, space): (usize, Steps), weights: &Weights) -> Self {
        let weight = weights.param("weight", &[outputs, inputs, time.kernel, kernel, kernel]);
        Self { weight, bias: weights.param("bias", &[outputs]), time, space }
    }

    /// (batch, inputs, frames, height, width) to (batch, outputs, frames', height', width').
    ///
    /// `past` (batch, inputs, at most [`Time::before`], height, width) are the frames before the first; what lacks of them
    /// is zeros. With what [`Self::remembered`] gave, a video in parts becomes what it becomes as a whole.
    ///
    /// # Errors
    /// Also when there are fewer frames than the kernel has, and more in `past` than can be before the first.
    pub fn forward(&self, x: &Tensor, past: Option<&Tensor>) -> Result<Tensor> {
        let x = with_past(x, past)?;
        let frames = x.dim(2)?;
        let zeros = self.zeros(past)?;
        let Some(beyond) = (zeros + frames).checked_sub(self.time.kernel) else {
            bail!("a convolution over {frames} frames has a kernel of {}", self.time.kernel)
        };
        let weight = self.weight.tensor()?;
        let mut made: Vec<Option<Tensor>> = vec![None; beyond / self.time.stride + 1];
        for frame in 0..frames {
            self.add(&x.narrow(2, frame, 1)?.squeeze(2)?, frame + zeros, &weight, &mut made)?;
        }
        let made: Option<Vec<Tensor>> = made.into_iter().collect();
        let Some(made) = made else { bail!("an output is made of zeros alone: the kernel is shorter than its stride") };
        add_channels(Tensor::stack(&made, 2)?, Some(&self.bias))
    }

    /// What [`Self::forward`] needs as `past` of the frames that follow these; none where it needs nothing.
    pub fn remembered(&self, x: &Tensor, past: Option<&Tensor>) -> Result<Option<Tensor>> {
        let x = with_past(x, past)?;
        let frames = x.dim(2)?;
        let kept = self.time.before.min(frames);
        if kept == 0 { Ok(None) } else { x.narrow(2, frames - kept, kept)?.contiguous().map(Some) }
    }

    /// Frames of zeros before what is remembered.
    fn zeros(&self, past: Option<&Tensor>) -> Result<usize> {
        let known = past.map_or(Ok(0), |past| past.dim(2))?;
        let zeros = self.time.before.checked_sub(known);
        zeros.map_or_else(|| bail!("{known} frames are before the first, where {} can be", self.time.before), Ok)
    }

    /// Adds what a frame gives to each output that it is in the kernel of. `place`: its own, zeros before it counted.
    fn add(&self, frame: &Tensor, place: usize, weight: &Tensor, made: &mut [Option<Tensor>]) -> Result<()> {
        let Time { kernel, stride, .. } = self.time;
        let reached = |tap: &usize| {
            place.checked_sub(*tap).is_some_and(|first| first % stride == 0 && first / stride < made.len())
        };
        let taps: Vec<usize> = (0..kernel).filter(reached).collect();
        if taps.is_empty() {
            return Ok(());
        }
        // All of them at once: the frame is laid out for the product but once.
        let parts: Vec<Tensor> = taps.iter().map(|tap| weight.narrow(2, *tap, 1)?.squeeze(2)).collect::<Result<_>>()?;
        let given = over_images(frame, &Tensor::cat(&parts, 0)?, self.space)?;
        let outputs = weight.dim(0)?;
        for (i, tap) in taps.into_iter().enumerate() {
            let part = given.narrow(1, i * outputs, outputs)?;
            let output = &mut made[(place - tap) / stride];
            *output = Some(match output.take() {
                Some(sum) => (sum + part)?,
                None => part.contiguous()?,
            });
        }
        Ok(())
    }
}

fn with_past(x: &Tensor, past: Option<&Tensor>) -> Result<Tensor> {
    past.map_or_else(|| Ok(x.clone()), |past| Tensor::cat(&[past, x], 2))
}
