//! Answer that callers share: those that ask while it is made, and those that ask soon after. So the cost of an answer
//! does not grow with the number of its callers.

use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared, WeakShared},
};
use parking_lot::Mutex;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Age up to which an answer is given again.
const MAX_AGE: Duration = Duration::from_secs(1);

type Pending<T> = BoxFuture<'static, Option<T>>;

/// Answer that callers share.
pub(super) struct SharedAnswer<T: Clone>(Arc<Mutex<Slot<T>>>);

enum Slot<T: Clone> {
    Empty,
    /// Answer that is being made. It is dropped with the last caller that waits for it.
    Pending(WeakShared<Pending<T>>),
    Ready(T, Instant),
}

impl<T: Clone> Default for SharedAnswer<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Slot::Empty)))
    }
}

impl<T: Clone + Send + Sync + 'static> SharedAnswer<T> {
    /// Answer that is there or on its way, or else the one that `make` makes. The lack of one is not kept.
    pub(super) async fn get<F>(&self, make: impl FnOnce() -> F) -> Option<T>
    where
        F: Future<Output = Option<T>> + Send + 'static,
    {
        let pending = {
            let mut slot = self.0.lock();
            let current = match &*slot {
                Slot::Ready(answer, made_at) if made_at.elapsed() < MAX_AGE => {
                    return Some(answer.clone());
                }
                Slot::Pending(pending) => pending.upgrade(),
                Slot::Ready(..) | Slot::Empty => None,
            };
            current.unwrap_or_else(|| {
                let pending = self.stored(make());
                *slot = pending.downgrade().map_or(Slot::Empty, Slot::Pending);
                pending
            })
        };
        pending.await
    }

    /// Answer that is stored once it is made.
    fn stored<F>(&self, answer: F) -> Shared<Pending<T>>
    where
        F: Future<Output = Option<T>> + Send + 'static,
    {
        let slot = Arc::clone(&self.0);
        let stored = async move {
            let answer = answer.await;
            let ready = answer.clone();
            *slot.lock() = ready.map_or(Slot::Empty, |ready| Slot::Ready(ready, Instant::now()));
            answer
        };
        stored.boxed().shared()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn callers_share_one_answer() {
        let shared = SharedAnswer::default();
        let (sender, receiver) = oneshot::channel();
        let mut first = shared.get(move || receiver.map(Result::ok)).boxed();
        assert!((&mut first).now_or_never().is_none());
        let mut second = shared.get(pending).boxed();
        assert!((&mut second).now_or_never().is_none());
        sender.send(7).unwrap();
        // The first caller leaves; the second one goes on with the answer.
        drop(first);
        assert_eq!(second.await, Some(7));
        assert_eq!(shared.get(pending).await, Some(7), "it is kept for a while");
    }

    #[tokio::test]
    async fn answer_without_callers_is_made_again() {
        let shared = SharedAnswer::default();
        let mut first = shared.get(pending).boxed();
        assert!((&mut first).now_or_never().is_none());
        drop(first);
        assert_eq!(shared.get(|| ready(None)).await, None);
        assert_eq!(
            shared.get(|| ready(Some(1))).await,
            Some(1),
            "no lack is kept"
        );
    }

    #[tokio::test]
    async fn old_answer_is_made_again() {
        let shared = SharedAnswer::default();
        let made_at = Instant::now().checked_sub(MAX_AGE).unwrap();
        *shared.0.lock() = Slot::Ready(1, made_at);
        assert_eq!(shared.get(|| ready(Some(2))).await, Some(2));
    }
}
