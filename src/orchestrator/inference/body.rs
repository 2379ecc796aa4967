//! Body of a request: scanned while it arrives, passed on at once, and kept so that another node can get it from its
//! beginning. It is dropped when no attempt needs it any more, and its memory is charged to the caller: the length that
//! the client announced at once, else each chunk.

use crate::{
    api::{
        error::ApiError,
        problem::{Problem, ProblemKind},
    },
    background,
    http::{body::BodyChunks, budget::BodyReservation, request::Request},
    inference::{
        Endpoint, MAX_REQUEST_BYTES,
        head::{HeadError, Scanner},
    },
};
use bytes::Bytes;
use futures_util::{Stream, stream};
use http::header;
use parking_lot::Mutex;
use std::{io, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

/// Size from which received bytes are a chunk of their own.
const CHUNK_BYTES: usize = 16 * 1024;
/// Time for the whole body. A call may hold a node meanwhile.
const BODY_TIMEOUT: Duration = Duration::from_secs(60);

/// Body of a request as far as it has arrived.
pub(super) struct RequestBody {
    received: Mutex<Received>,
    /// Notifies that more has arrived, or that the body has ended.
    changed: watch::Sender<()>,
    /// Length that the client announced.
    length: Option<u64>,
}

struct Received {
    kept: Kept,
    /// Memory of these bytes, charged to the caller as long as they are kept.
    reservation: BodyReservation,
    state: BodyState,
    stream: Option<bool>,
}

/// Bytes that are kept. They are copies: what a client sends byte by byte arrives in a large buffer each.
#[derive(Default)]
struct Kept {
    chunks: Vec<Bytes>,
    /// Bytes after the chunks.
    tail: Vec<u8>,
}

/// Place of a reader.
#[derive(Clone, Copy, Default)]
struct Place {
    chunk: usize,
    offset: usize,
}

enum BodyState {
    Arriving,
    Complete,
    /// Invalid, or broken off.
    Failed(Problem),
}

/// Receiver of the rest of a body; ends when dropped.
pub(super) struct Receiving(JoinHandle<()>);

impl Drop for Receiving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Source of the chunks of a body.
struct Source {
    chunks: BodyChunks,
    scanner: Scanner,
    /// Time at which the body has to be complete.
    deadline: Instant,
    /// Whether the memory of the whole body is reserved.
    is_reserved: bool,
}

/// Body of a request whose model is known, the model, and the receiver of the rest, if any. Fails where the body is
/// invalid, as far as that shows by then.
pub(super) async fn receive(
    request: &mut Request,
    endpoint: Endpoint,
) -> Result<(Arc<RequestBody>, String, Option<Receiving>), ApiError> {
    let encoding = request.header(header::CONTENT_ENCODING.as_str());
    if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        let detail = "send the body without Content-Encoding: the model is read from it";
        return Err(Problem::new(ProblemKind::UnsupportedMediaType, detail).into());
    }
    let chunks = request.chunks();
    let length = chunks.announced_size();
    let mut source = Source {
        chunks,
        scanner: Scanner::new(endpoint),
        deadline: Instant::now() + BODY_TIMEOUT,
        is_reserved: length.is_some(),
    };
    let reservation = reserve(request, length)?;
    let body = Arc::new(RequestBody {
        received: Mutex::new(Received {
            kept: Kept::default(),
            reservation,
            state: BodyState::Arriving,
            stream: None,
        }),
        changed: watch::Sender::new(()),
        length,
    });
    let mut is_arriving = true;
    while is_arriving && source.scanner.model().is_none() {
        is_arriving = body.receive_chunk(&mut source).await?;
    }
    let Some(model) = source.scanner.model().map(str::to_owned) else {
        return Err(HeadError::NoModel.problem().into());
    };
    // Most bodies are complete by now, and need no task of their own.
    if is_arriving && source.scanner.finish().is_ok() {
        is_arriving = body.receive_chunk(&mut source).await?;
    }
    let receiving = is_arriving.then(|| {
        let body = Arc::clone(&body);
        let rest = async move {
            // A failure is stored in the body.
            while let Ok(true) = body.receive_chunk(&mut source).await {}
        };
        Receiving(background::spawn("receive_model_request", rest))
    });
    Ok((body, model, receiving))
}

/// Memory for a body. Fails where the announced length is too large, or does not fit now.
fn reserve(request: &Request, length: Option<u64>) -> Result<BodyReservation, Problem> {
    let announced = usize::try_from(length.unwrap_or(0)).unwrap_or(usize::MAX);
    if announced > MAX_REQUEST_BYTES {
        return Err(HeadError::TooLarge.problem());
    }
    request.reserve_for_models(announced)
}

impl RequestBody {
    /// Receives one more chunk. Returns whether there may be more.
    async fn receive_chunk(&self, source: &mut Source) -> Result<bool, Problem> {
        let next = source.next().await;
        let kept = next.and_then(|chunk| self.received.lock().keep(chunk, source));
        let problem = match kept {
            Ok(is_arriving) => {
                self.changed.send_replace(());
                return Ok(is_arriving);
            }
            Err(problem) => problem,
        };
        self.received.lock().state = BodyState::Failed(problem.clone());
        self.changed.send_replace(());
        Err(problem)
    }

    /// Output of work for which the body is needed. Where the body is invalid, or turns out to be, the work is dropped
    /// at once, with its place in a queue or at a node.
    pub(super) async fn while_valid<T>(
        &self,
        work: impl Future<Output = Result<T, ApiError>>,
    ) -> Result<T, ApiError> {
        tokio::select! {
            biased;
            problem = self.wait_for(BodyState::failure) => Err(problem.into()),
            done = work => done,
        }
    }

    /// First answer to a question about the state that is one.
    async fn wait_for<T>(&self, answer: impl Fn(&BodyState) -> Option<T>) -> T {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(answer) = answer(&self.received.lock().state) {
                return answer;
            }
            // The sender lives in `self`.
            let _ = changed.changed().await;
        }
    }

    /// Problem of a body that turned out to be invalid, or broke off.
    pub(super) fn failure(&self) -> Option<Problem> {
        self.received.lock().state.failure()
    }

    /// Length of the whole, where it is known.
    pub(super) fn length(&self) -> Option<u64> {
        let received = self.received.lock();
        let is_complete = matches!(received.state, BodyState::Complete);
        is_complete
            .then(|| received.kept.len() as u64)
            .or(self.length)
    }

    /// Value of `stream`, where it has arrived.
    pub(super) fn stream_field(&self) -> Option<bool> {
        self.received.lock().stream
    }

    /// The whole body from its beginning, as it arrives. Breaks off where the body turns out to be invalid, so that no
    /// model server takes it for complete.
    pub(super) fn read(self: &Arc<Self>) -> impl Stream<Item = io::Result<Bytes>> + Send + use<> {
        let start = (Arc::clone(self), self.changed.subscribe(), Place::default());
        stream::try_unfold(start, |(body, mut changed, mut place)| async move {
            loop {
                changed.mark_unchanged();
                let next = body.received.lock().read(&mut place)?;
                if let Some(next) = next {
                    return Ok(next.map(|chunk| (chunk, (body, changed, place))));
                }
                changed.changed().await.map_err(io::Error::other)?;
            }
        })
    }
}

impl BodyState {
    fn failure(&self) -> Option<Problem> {
        match self {
            Self::Failed(problem) => Some(problem.clone()),
            Self::Arriving | Self::Complete => None,
        }
    }
}

impl Received {
    /// Next bytes after a place, which moves on: `Some(None)` at the end, `None` before they have arrived.
    fn read(&self, place: &mut Place) -> io::Result<Option<Option<Bytes>>> {
        if let BodyState::Failed(problem) = &self.state {
            return Err(io::Error::other(problem.detail.clone()));
        }
        if let Some(next) = self.kept.read(place) {
            return Ok(Some(Some(next)));
        }
        Ok(matches!(self.state, BodyState::Complete).then_some(None))
    }

    /// Keeps a chunk, or notes the end. Returns whether there may be more. Fails where its memory is not
    /// reserved yet, and the caller has none left.
    fn keep(&mut self, chunk: Option<Bytes>, source: &Source) -> Result<bool, Problem> {
        self.stream = source.scanner.stream();
        let Some(chunk) = chunk else {
            self.state = BodyState::Complete;
            return Ok(false);
        };
        if !source.is_reserved {
            self.reservation.reserve(chunk.len())?;
        }
        self.kept.append(&chunk);
        Ok(true)
    }
}

impl Kept {
    fn len(&self) -> usize {
        self.chunks.iter().map(Bytes::len).sum::<usize>() + self.tail.len()
    }

    /// Adds bytes at the end.
    fn append(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        if self.tail.len() >= CHUNK_BYTES {
            let chunk = std::mem::take(&mut self.tail).into_boxed_slice();
            self.chunks.push(chunk.into());
        }
    }

    /// Next bytes after a place, which moves on.
    fn read(&self, place: &mut Place) -> Option<Bytes> {
        while let Some(chunk) = self.chunks.get(place.chunk) {
            // A reader may have had the beginning of a chunk before it was one.
            let rest = chunk.slice(place.offset.min(chunk.len())..);
            *place = Place {
                chunk: place.chunk + 1,
                offset: 0,
            };
            if !rest.is_empty() {
                return Some(rest);
            }
        }
        let rest = self.tail.get(place.offset..).unwrap_or_default();
        if rest.is_empty() {
            return None;
        }
        place.offset = self.tail.len();
        Some(Bytes::copy_from_slice(rest))
    }
}

impl Source {
    /// Next chunk of the body, scanned; `None` at its valid end.
    async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        let next = timeout_at(self.deadline, self.chunks.next()).await;
        let Some(chunk) = next.unwrap_or_else(|_| Err(too_slow()))? else {
            self.scanner.finish().map_err(HeadError::problem)?;
            return Ok(None);
        };
        self.scanner.feed(&chunk).map_err(HeadError::problem)?;
        Ok(Some(chunk))
    }
}

fn too_slow() -> Problem {
    let seconds = BODY_TIMEOUT.as_secs();
    let detail = format!("the body did not arrive within {seconds} s; send it again");
    Problem::new(ProblemKind::InvalidRequest, detail)
}

#[cfg(test)]
mod tests;
