//! Bodies of requests that come in time, or not at all: who sends a byte now and then would keep a seat for ever.

use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::{Sleep, sleep};

/// A body that ends with an error once its time is over.
pub(crate) struct Patient {
    body: Incoming,
    over: Pin<Box<Sleep>>,
}

impl Patient {
    /// `body`, which must have come within `patience`.
    pub(crate) fn over(body: Incoming, patience: Duration) -> Body {
        if body.is_end_stream() { Body::empty() } else { Body::new(Self { body, over: Box::pin(sleep(patience)) }) }
    }
}

impl HttpBody for Patient {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        // First the time: somebody who always has one more byte ready would never be late.
        if self.over.as_mut().poll(context).is_ready() {
            return Poll::Ready(Some(Err(Box::new(io::Error::from(io::ErrorKind::TimedOut)))));
        }
        Pin::new(&mut self.body).poll_frame(context).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Whether reading a body failed because its time was over.
pub(crate) fn is_late(error: &(dyn Error + 'static)) -> bool {
    let causes = std::iter::successors(Some(error), |error: &&(dyn Error + 'static)| (*error).source());
    let mut causes = causes.filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.kind() == io::ErrorKind::TimedOut)
}
