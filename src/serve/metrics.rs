//! What the server counts, and how Prometheus reads it.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::StatusCode;

/// The text format that every Prometheus reads.
pub(crate) const MEDIA_TYPE: &str = "text/plain; version=0.0.4";

/// Counts what a router was asked and what it sent.
#[derive(Debug, Default)]
pub struct Traffic {
    /// By the first figure of the status, from 1 to 5.
    answers: [AtomicU64; 5],
    bytes: AtomicU64,
    /// Answers with content that are on their way.
    sending: AtomicU64,
}

impl Traffic {
    /// Requests so far, whatever they were answered with.
    pub fn requests(&self) -> u64 {
        self.answers.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// Bytes of file contents handed to the network so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
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

    pub(crate) fn count_answer(&self, status: StatusCode) {
        let class = usize::from(status.as_u16() / 100);
        if let Some(count) = class.checked_sub(1).and_then(|class| self.answers.get(class)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn to_prometheus(&self) -> String {
        let mut text = String::from(
            "# HELP larder_serve_requests_total Requests, by the class of their answer.\n\
             # TYPE larder_serve_requests_total counter\n",
        );
        for (class, count) in (1..).zip(&self.answers) {
            let count = count.load(Ordering::Relaxed);
            let _ = writeln!(text, "larder_serve_requests_total{{status=\"{class}xx\"}} {count}");
        }
        let _ = write!(
            text,
            "# HELP larder_serve_sent_bytes_total Bytes of file contents handed to the network.\n\
             # TYPE larder_serve_sent_bytes_total counter\n\
             larder_serve_sent_bytes_total {}\n",
            self.bytes()
        );
        text
    }
}
