//! What was asked and what became of it: a line of the access log, and counters, once the answer has ended.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::Body;
use axum::http::header::CONTENT_LENGTH;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::serve::metrics::{Face, Traffic};

/// One request, told of before its last byte goes out, or when the client has gone.
pub(crate) struct Account {
    pub(crate) peer: String,
    pub(crate) method: Method,
    /// Without the query, which may carry a token; still percent-encoded.
    pub(crate) path: String,
    pub(crate) face: Face,
    pub(crate) begun: Instant,
    pub(crate) status: StatusCode,
    pub(crate) bytes: u64,
    pub(crate) is_told: bool,
    pub(crate) traffic: Arc<Traffic>,
}

impl Account {
    /// The same answer, kept account of.
    pub(crate) fn over(mut self, response: Response) -> Response {
        self.status = response.status();
        self.traffic.count_answer(self.face, self.status);
        let told = response.headers().get(CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok());
        let len = response.body().size_hint().exact().or(told);
        if response.body().is_end_stream() {
            self.tell();
            return response;
        }
        response.map(|body| Body::new(Accounted { body, len, account: self }))
    }

    fn tell(&mut self) {
        if std::mem::replace(&mut self.is_told, true) {
            return;
        }
        let Self { peer, method, path, status, bytes, .. } = self;
        let ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(peer, %method, path, status = status.as_u16(), bytes, ms, "request");
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.tell();
    }
}

/// A body whose bytes are counted.
struct Accounted {
    body: Body,
    len: Option<u64>,
    account: Account,
}

impl HttpBody for Accounted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            self.account.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
            // Whoever has the whole answer finds it in the log and in the counters.
            if self.len == Some(self.account.bytes) {
                self.account.tell();
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
