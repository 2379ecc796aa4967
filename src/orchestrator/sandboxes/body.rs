//! Body of a call on its way to a node: as it comes, no faster than the node reads it.

use crate::{
    api::problem::Problem,
    http::{body::BodyChunks, budget::BodyReservation, client::CallBody},
};
use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use parking_lot::Mutex;
use std::{convert::Infallible, io, sync::Arc, time::Duration};

/// Longest pause in the body of a call: of one that a person may type, and of others.
const TYPED_PAUSE: Duration = Duration::from_hours(24);
const PAUSE: Duration = Duration::from_secs(30);

/// Problem of a body that broke off.
#[derive(Clone, Default)]
pub(super) struct BodyFault(Arc<Mutex<Option<Problem>>>);

impl BodyFault {
    pub(super) fn take(&self) -> Option<Problem> {
        self.0.lock().take()
    }
}

/// Body of these bytes. Their memory is reserved until they are sent, also while a node does not read them.
pub(super) fn whole(bytes: Vec<u8>, reservation: Option<BodyReservation>) -> CallBody {
    let never = |error: Infallible| match error {};
    let bytes = Bytes::from_owner(ReservedBytes {
        bytes,
        _reservation: reservation,
    });
    Full::new(bytes).map_err(never).boxed_unsync()
}

struct ReservedBytes {
    bytes: Vec<u8>,
    _reservation: Option<BodyReservation>,
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Body of a request as it comes. Where it breaks off, `fault` gets the reason.
pub(super) fn passing(chunks: BodyChunks, is_typed: bool, fault: BodyFault) -> CallBody {
    let body = PassingBody {
        chunks: Some(chunks),
        pause: if is_typed { TYPED_PAUSE } else { PAUSE },
        fault,
    };
    let frames = stream::unfold(body, |mut body| async move {
        let next = body.next().await?;
        Some((next.map(Frame::data), body))
    });
    StreamBody::new(frames).boxed_unsync()
}

struct PassingBody {
    /// `None` at the end.
    chunks: Option<BodyChunks>,
    pause: Duration,
    fault: BodyFault,
}

impl PassingBody {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        match self.chunks.as_mut()?.next_within(self.pause).await {
            Ok(Some(chunk)) => Some(Ok(chunk)),
            Ok(None) => {
                self.chunks = None;
                None
            }
            Err(problem) => {
                self.chunks = None;
                let error = io::Error::other(problem.detail.clone());
                *self.fault.0.lock() = Some(problem);
                Some(Err(error))
            }
        }
    }
}
