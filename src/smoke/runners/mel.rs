//! Mel spectrograms as BigVGAN is trained on them: magnitudes, Slaney's bands, natural logarithm.

use std::f32::consts::PI;

use serde::Deserialize;

/// The part of a vocoder's `config.json` that says what its spectrograms are.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Settings {
    pub(super) sampling_rate: u32,
    pub(super) num_mels: usize,
    pub(super) n_fft: usize,
    pub(super) hop_size: usize,
    pub(super) win_size: usize,
    #[serde(default)]
    pub(super) fmin: f32,
    pub(super) fmax: Option<f32>,
}

impl Settings {
    /// Whether a spectrogram can be made by them.
    pub(super) fn make_sense(&self) -> bool {
        let sizes = 2..=1 << 16;
        sizes.contains(&self.n_fft)
            && (1..=self.n_fft).contains(&self.hop_size)
            && (2..=self.n_fft).contains(&self.win_size)
            && (1..=self.n_fft).contains(&self.num_mels)
            && (1_000..=1_000_000).contains(&self.sampling_rate)
    }

    /// The spectrogram of `wave`, band after band: `num_mels` times as many numbers as frames.
    pub(super) fn spectrogram(&self, wave: &[f32]) -> Vec<f32> {
        let frames = self.frames(wave);
        let bands = self.bands();
        let level = |band: &[f32], frame: &[f32]| {
            let sum: f32 = band.iter().zip(frame).map(|(weight, magnitude)| weight * magnitude).sum();
            sum.max(1e-5).ln()
        };
        bands.iter().flat_map(|band| frames.iter().map(move |frame| level(band, frame))).collect()
    }

    /// The magnitudes of each frame, by frequency.
    fn frames(&self, wave: &[f32]) -> Vec<Vec<f32>> {
        let (size, before) = (self.n_fft, (self.n_fft - self.hop_size) / 2);
        let length = wave.len() as isize;
        // The wave goes on beyond its ends as in a mirror.
        let at = |index: isize| {
            let index = if index < 0 { -index } else { index };
            let index = if index >= length { 2 * (length - 1) - index } else { index };
            wave.get(usize::try_from(index).unwrap_or(usize::MAX)).copied().unwrap_or(0.0)
        };
        let gap = (size - self.win_size) / 2;
        let window: Vec<f32> =
            (0..self.win_size).map(|i| 0.5 - 0.5 * (2.0 * PI * i as f32 / self.win_size as f32).cos()).collect();
        let turn: Vec<(f32, f32)> = (0..size).map(|i| (2.0 * PI * i as f32 / size as f32).sin_cos()).collect();
        let frame = |number: usize| {
            let start = (number * self.hop_size) as isize - before as isize;
            let sound: Vec<f32> =
                window.iter().enumerate().map(|(i, weight)| weight * at(start + (gap + i) as isize)).collect();
            (0..=size / 2).map(|frequency| magnitude(&sound, &turn, frequency, gap)).collect()
        };
        (0..wave.len() / self.hop_size).map(frame).collect()
    }

    /// The weights of each band, by frequency; each band has the same area.
    fn bands(&self) -> Vec<Vec<f32>> {
        let rate = self.sampling_rate as f32;
        let (low, high) = (mel(self.fmin), mel(self.fmax.unwrap_or(rate / 2.0)));
        let edges: Vec<f32> =
            (0..self.num_mels + 2).map(|i| hertz(low + (high - low) * i as f32 / (self.num_mels + 1) as f32)).collect();
        let of_band = |band: usize| {
            let (left, middle, right) = (edges[band], edges[band + 1], edges[band + 2]);
            let weight = move |frequency: f32| {
                let slope = ((frequency - left) / (middle - left)).min((right - frequency) / (right - middle));
                slope.max(0.0) * 2.0 / (right - left)
            };
            (0..=self.n_fft / 2).map(|i| weight(i as f32 * rate / self.n_fft as f32)).collect()
        };
        (0..self.num_mels).map(of_band).collect()
    }
}

/// Three tones at once.
pub(super) fn chord(rate: u32, tones: [f32; 3], seconds: f32) -> Vec<f32> {
    let tone = |at: f32, hertz: f32| 0.2 * (2.0 * PI * hertz * at).sin();
    let length = (seconds * rate as f32) as usize;
    (0..length).map(|i| tones.iter().map(|hertz| tone(i as f32 / rate as f32, *hertz)).sum()).collect()
}

/// How far two spectrograms are apart, on average over their numbers.
pub(super) fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() / a.len().max(1) as f32
}

fn magnitude(sound: &[f32], turn: &[(f32, f32)], frequency: usize, gap: usize) -> f32 {
    let mut sum = (0.0, 0.0);
    for (i, sample) in sound.iter().enumerate() {
        let (sin, cos) = turn[(i + gap) * frequency % turn.len()];
        sum = (sum.0 + sample * cos, sum.1 - sample * sin);
    }
    (sum.0 * sum.0 + sum.1 * sum.1 + 1e-9).sqrt()
}

/// Slaney's scale: straight up to 1000 Hz, then logarithmic.
fn mel(hertz: f32) -> f32 {
    if hertz < 1000.0 { hertz * 3.0 / 200.0 } else { 15.0 + (hertz / 1000.0).ln() * 27.0 / 6.4_f32.ln() }
}

fn hertz(mel: f32) -> f32 {
    if mel < 15.0 { mel * 200.0 / 3.0 } else { 1000.0 * ((mel - 15.0) * 6.4_f32.ln() / 27.0).exp() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_is_loudest_in_its_own_band() {
        let settings = Settings {
            sampling_rate: 8000,
            num_mels: 20,
            n_fft: 256,
            hop_size: 64,
            win_size: 256,
            fmin: 0.0,
            fmax: None,
        };
        let wave: Vec<f32> = (0..2560).map(|i| 0.5 * (2.0 * PI * 1000.0 * i as f32 / 8000.0).sin()).collect();
        let spectrogram = settings.spectrogram(&wave);
        let frames = wave.len() / 64;
        assert_eq!(spectrogram.len(), 20 * frames);
        let loudest = |frame: usize| {
            (0..20).max_by(|a, b| spectrogram[a * frames + frame].total_cmp(&spectrogram[b * frames + frame]))
        };
        let own = (0..20).min_by(|a, b| {
            let far = |band: &usize| (hertz(mel(4000.0) * (*band as f32 + 1.0) / 21.0) - 1000.0).abs();
            far(a).total_cmp(&far(b))
        });
        assert!((3..frames - 3).all(|frame| loudest(frame) == own));
        // A wave of half the height has half the magnitudes.
        let half: Vec<f32> = wave.iter().map(|sample| sample / 2.0).collect();
        let quieter = settings.spectrogram(&half);
        let at = own.unwrap() * frames + frames / 2;
        assert!((spectrogram[at] - quieter[at] - 2_f32.ln()).abs() < 1e-3);
    }
}
