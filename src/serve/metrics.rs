//! What the server counts, and how Prometheus reads it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use axum::http::StatusCode;

/// The text format that every Prometheus reads.
pub(crate) const MEDIA_TYPE: &str = "text/plain; version=0.0.4";

/// Whose questions are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Face {
    Hub,
    Xet,
    Registry,
    Larder,
}

impl Face {
    fn name(self) -> &'static str {
        match self {
            Face::Hub => "hub",
            Face::Xet => "xet",
            Face::Registry => "registry",
            Face::Larder => "larder",
        }
    }
}

/// Counts what a router was asked and what it sent, and who is connected to its server.
#[derive(Debug, Default)]
pub struct Traffic {
    answers: Mutex<BTreeMap<(Face, u16), u64>>,
    bytes: AtomicU64,
    /// Answers with content that are on their way.
    sending: AtomicU64,
    connections: AtomicU64,
    /// Connections that were closed at once, because their address had too many.
    turned_away: AtomicU64,
}

impl Traffic {
    /// Requests so far, whatever they were answered with.
    pub fn requests(&self) -> u64 {
        self.answers().values().sum()
    }

    /// Bytes of file contents handed to the network so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Connections that are open, where a [`Server`](crate::serve::Server) counts them here.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    pub(crate) fn add_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Returns how many answers were on their way before this one.
    pub(crate) fn begin_to_send(&self) -> u64 {
        self.sending.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn end_sending(&self) {
        self.sending.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn count_answer(&self, face: Face, status: StatusCode) {
        *self.answers().entry((face, status.as_u16())).or_default() += 1;
    }

    pub(crate) fn connect(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn disconnect(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn turn_away(&self) {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn to_prometheus(&self) -> String {
        let mut text = String::new();
        let labels = |face: &Face, status: &u16| format!("{{face=\"{}\",status=\"{status}\"}}", face.name());
        let answers = self.answers().iter().map(|((face, status), count)| (labels(face, status), *count)).collect();
        tell(&mut text, "requests_total", "counter", "Requests, by the face they were for and their answer.", answers);
        let one = |value: u64| vec![(String::new(), value)];
        let load = |count: &AtomicU64| one(count.load(Ordering::Relaxed));
        let sent = "Bytes of file contents handed to the network.";
        tell(&mut text, "sent_bytes_total", "counter", sent, load(&self.bytes));
        tell(&mut text, "answers_under_way", "gauge", "Answers with content that are being sent.", load(&self.sending));
        tell(&mut text, "connections", "gauge", "Connections that are open.", load(&self.connections));
        let away = "Connections closed at once, because their address had too many.";
        tell(&mut text, "connections_refused_total", "counter", away, load(&self.turned_away));
        text
    }

    fn answers(&self) -> MutexGuard<'_, BTreeMap<(Face, u16), u64>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell(text: &mut String, name: &str, kind: &str, help: &str, values: Vec<(String, u64)>) {
    let name = format!("larder_serve_{name}");
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (labels, value) in values {
        let _ = writeln!(text, "{name}{labels} {value}");
    }
}
