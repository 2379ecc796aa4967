//! Bodies on a tunnel, without empty frames.
//!
//! hyper sends a DATA frame for each chunk of a body, also for an empty one. The HTTP/2 of its peer takes many of these for an
//! attack, counts them over the whole life of a connection, and closes it at the 101st. A tunnel lives for months and
//! carries all calls of a node, so the chunks that say nothing are left out, whoever makes them.

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

/// Empty chunks in a row after which other tasks get their turn.
const MAX_SKIPPED: u32 = 64;

/// Body that leaves out the empty chunks of another one.
pub(super) struct NonEmptyFrames<B>(pub(super) B);

impl<B: Body<Data = Bytes> + Unpin> Body for NonEmptyFrames<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let body = &mut self.get_mut().0;
        for _ in 0..MAX_SKIPPED {
            let frame = ready!(Pin::new(&mut *body).poll_frame(context));
            let is_empty = match &frame {
                Some(Ok(frame)) => frame.data_ref().is_some_and(Bytes::is_empty),
                Some(Err(_)) | None => false,
            };
            if !is_empty {
                return Poll::Ready(frame);
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt as _, StreamBody};
    use std::convert::Infallible;

    #[tokio::test]
    async fn only_empty_chunks_are_left_out() {
        let some = Bytes::from_static(b"some");
        let empty = std::iter::repeat_n(Bytes::new(), 1000);
        let chunks = empty.clone().chain([some.clone()]).chain(empty);
        let frames = chunks.map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
        let mut body = NonEmptyFrames(StreamBody::new(futures_util::stream::iter(frames)));
        let first = body.frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), some);
        assert!(body.frame().await.is_none());
    }
}
