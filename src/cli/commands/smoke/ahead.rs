//! What a smoke test is about to compute, said before it begins.

use serde::Serialize;

use crate::report::table::count;
use crate::size::Bytes;
use crate::smoke::{Device, Level, Need, available_memory};

/// One artifact that will be computed with.
#[derive(Serialize)]
pub(super) struct Ahead {
    artifact: String,
    levels: Vec<Level>,
    makes: Vec<&'static str>,
    #[serde(flatten)]
    need: Need,
}

impl Ahead {
    /// `levels`, with what is made at each and what each takes.
    pub(super) fn new(artifact: &str, levels: impl Iterator<Item = (Level, Option<&'static str>, Need)>) -> Self {
        let need = Need { memory: 0, device_memory: 0 };
        let mut ahead = Self { artifact: artifact.to_owned(), levels: Vec::new(), makes: Vec::new(), need };
        for (level, makes, need) in levels {
            ahead.levels.push(level);
            ahead.makes.extend(makes);
            ahead.need.memory = ahead.need.memory.max(need.memory);
            ahead.need.device_memory = ahead.need.device_memory.max(need.device_memory);
        }
        ahead
    }
}

/// A line for each artifact, below what can be used of the memory.
pub(super) fn text(ahead: &[Ahead], device: Device) -> String {
    let place = match device {
        Device::Cpu => "the processor",
        Device::Cuda => "the GPU",
    };
    let free = available_memory();
    let room = free.map(|free| format!(", of whose memory {} can be used", Bytes(free))).unwrap_or_default();
    let mut lines =
        vec![format!("{} to compute with, one after the other, on {place}{room}", count(ahead.len(), "artifact"))];
    lines.extend(ahead.iter().map(|one| {
        let levels: Vec<&str> = one.levels.iter().map(|level| level.name()).collect();
        let lacks = if free.is_some_and(|free| free < one.need.memory) { ", which is not there" } else { "" };
        let makes = if one.makes.is_empty() { String::new() } else { format!("; makes {}", one.makes.join(", ")) };
        format!("  {}: {}; needs {}{lacks}{makes}", one.artifact, levels.join(", "), needed(&one.need))
    }));
    lines.join("\n")
}

/// What is needed, in words.
pub(super) fn needed(need: &Need) -> String {
    match need.device_memory {
        0 => format!("{} of memory", Bytes(need.memory)),
        device => format!("{} of memory, {} of the GPU's", Bytes(need.memory), Bytes(device)),
    }
}
