//! Cache of downloads, shared between the jobs of a node (`--egress-cache`).
//!
//! Plain HTTP, and HTTPS that a job lets the proxy terminate, passes through [`exchange`](super::exchange). There a
//! request whose answer is stored is sent to its host with `If-None-Match`, and only a 304 of the host has the stored
//! bytes sent to the job:
//!
//! ```text
//! job 1 ── GET /wheel ──▶ proxy ── GET /wheel ──────────────────────▶ host
//!       ◀── bytes ─────         ◀── 200, ETag: "x", bytes ──────────        bytes are stored
//! job 2 ── GET /wheel ──▶ proxy ── GET /wheel, If-None-Match: "x" ──▶ host
//!       ◀── bytes ─────         ◀── 304 ────────────────────────────        stored bytes are sent
//! ```
//!
//! # Who could do harm
//!
//! - **A job** that wants to put bytes before others. It can't say where bytes come from: the proxy resolves the name,
//!   checks the addresses and dials, and with HTTPS checks the certificate. What it asks for is in the
//!   [key](policy::Key), and whatever else could change the answer (`Authorization` and its like, `Cookie`, `Range`,
//!   conditions, a body) keeps the request [out of the cache](policy). A path that it makes up leads others nowhere.
//! - **A host**, or somebody on the way of plain HTTP, that answers one job with other bytes than others. It could do that
//!   to each job itself. What it has stored goes to a later job only where it says then, by a strong entity tag, that
//!   these are the bytes.
//!
//! So `Cache-Control: max-age` and `immutable` are not enough here. They would save the one short call, and an answer
//! that was forged once, at a moment of bad DNS or on an open network, would be served until it expires, when nobody could
//! tell where it came from. And each job would have to be trusted with what a host lets it see: with revalidation, the
//! host decides about each download of each job as without a cache, and a download that is taken back is gone at once.
//!
//! - **A job that wants to see** what others fetch. It gets nothing that the host does not grant to itself. It can find out,
//!   by the time that an answer takes, whether another job of the node has fetched the same URL. A job with secrets could
//!   have them in its URLs and answers, so it reads from the cache and stores nothing. A request into which the proxy has
//!   put one has no part in it at all. URLs are in no file: they may have passwords and signatures.
//! - **A job that wants to fill the disk.** All files together have a limit, the reserve of the disk stays free, and what
//!   was not used for longest goes. A job that fetches much can drive out what others use: that costs time, and no more.
//!
//! # What survives a crash
//!
//! Nothing has to: each file can be fetched again. A file has its name only when it is whole, and the [sums](reader) of
//! its bytes are checked before any of them are sent, so that one that lost its bytes with the power, or was changed,
//! breaks a download off, is removed, and is fetched again by the next try. What was sent until then is right.

mod disk;
mod entry;
mod policy;
mod reader;
mod store;
mod stored_body;
mod tee;

pub(super) use policy::Origin;

use super::{metrics::EgressMetrics, refusal::Refusal, request::Target};
use crate::http::response::{Body, Response};
use disk::{Disk, SHORT_TIMEOUT, discard};
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use policy::Key;
use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};
use store::{Found, Store};
use stored_body::StoredBody;
use tee::TeeBody;
use tokio::task::spawn_blocking;

/// Cache of a node.
pub(super) struct Cache {
    path: PathBuf,
    /// `None` where the operator wants no cache.
    store: Option<Arc<Store>>,
    disk: Disk,
    metrics: EgressMetrics,
}

impl Cache {
    /// Cache in the home of a worker, of at most so many bytes; none if `None`. Touches no file.
    pub(super) fn new(
        home: &Path,
        limit: Option<u64>,
        min_free: u64,
        metrics: &EgressMetrics,
    ) -> Self {
        let path = home.join("egress-cache");
        let store = limit.map(|limit| {
            let used = metrics.cache_bytes.clone();
            Arc::new(Store::new(path.clone(), limit, min_free, used))
        });
        Self {
            path,
            store,
            disk: Disk::new(),
            metrics: metrics.clone(),
        }
    }

    /// Opens what earlier processes have stored, or removes it where there is no cache any more.
    pub(super) async fn open(&self) {
        let (store, path) = (self.store.clone(), self.path.clone());
        let opened = spawn_blocking(move || match store {
            Some(store) => store.open(),
            None => match fs::remove_dir_all(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            },
        });
        if let Err(error) = opened.await.map_err(io::Error::from).flatten() {
            let outcome = match self.store {
                Some(_) => {
                    "egress cache not opened; nothing is stored until the next start; check the directory"
                }
                None => "egress cache of an earlier start not removed; remove the directory",
            };
            tracing::warn!(%error, path = %self.path.display(), "{outcome}");
        }
    }

    /// Removes downloads while the disk is short.
    pub(super) async fn make_room(&self) {
        let Some(store) = self.store.clone() else {
            return;
        };
        let made = spawn_blocking(move || store.make_room());
        if let Err(error) = made.await.map_err(io::Error::from).flatten() {
            tracing::warn!(%error, "downloads not removed from the egress cache; retrying");
        }
    }

    /// Cache as a job uses it. One that has secrets stores nothing.
    pub(super) fn of_job(self: &Arc<Self>, has_secrets: bool) -> JobCache {
        JobCache {
            cache: Arc::clone(self),
            stores: !has_secrets,
        }
    }
}

/// Cache as one job uses it.
pub(super) struct JobCache {
    cache: Arc<Cache>,
    stores: bool,
}

/// What the cache makes of the answer to a request.
pub(super) struct Lookup {
    cache: Arc<Cache>,
    way: Way,
    /// Whether the answer may be stored.
    stores: bool,
}

enum Way {
    /// Nothing.
    Bypass,
    /// It was not there.
    Miss(Key),
    /// It was there, and the host is asked whether it is still right.
    Found(Box<Found>),
}

impl JobCache {
    /// Looks for the answer to a request as its host will get it, and asks the host to confirm what was found.
    pub(super) async fn look_up(
        &self,
        request: http::Request<Body>,
        origin: &Origin<'_>,
    ) -> (http::Request<Body>, Lookup) {
        let (mut parts, body) = request.into_parts();
        let key = policy::key_of(&parts, !body.is_end_stream(), origin);
        let way = match (&self.cache.store, key) {
            (None, _) => Way::Bypass,
            (Some(_), None) => {
                self.cache.metrics.cache_bypasses.inc();
                Way::Bypass
            }
            (Some(store), Some(key)) => self.cache.find(store, key).await,
        };
        if let Way::Found(found) = &way
            && let Ok(tag) = HeaderValue::try_from(found.entry.etag.as_str())
        {
            parts.headers.insert(header::IF_NONE_MATCH, tag);
        }
        let lookup = Lookup {
            cache: Arc::clone(&self.cache),
            way,
            stores: self.stores,
        };
        (http::Request::from_parts(parts, body), lookup)
    }
}

impl Cache {
    async fn find(&self, store: &Arc<Store>, key: Key) -> Way {
        let (store, wanted) = (Arc::clone(store), key.clone());
        let found = self
            .disk
            .run(SHORT_TIMEOUT, move || store.find(&wanted))
            .await;
        match found {
            Ok(Some(found)) => Way::Found(Box::new(found)),
            Ok(None) => Way::Miss(key),
            Err(error) => {
                tracing::debug!(%error, "egress cache can't be read");
                Way::Miss(key)
            }
        }
    }
}

impl Lookup {
    /// Answer for the job: of the host, or of the cache where the host has confirmed it.
    pub(super) async fn answer(
        self,
        target: &Target,
        answer: Response,
    ) -> Result<Response, Refusal> {
        let key = match self.way {
            Way::Bypass => return Ok(answer),
            Way::Miss(key) => key,
            Way::Found(found) if answer.status() == StatusCode::NOT_MODIFIED => {
                return confirmed(&self.cache, target, *found, answer).await;
            }
            Way::Found(found) => {
                let key = found.reader.key().clone();
                discard(found);
                key
            }
        };
        self.cache.metrics.cache_misses.inc();
        let Some(store) = self.cache.store.clone().filter(|_| self.stores) else {
            return Ok(answer);
        };
        let most = store.max_entry_bytes();
        let Some(entry) = policy::entry_of(answer.status(), answer.headers(), most) else {
            return Ok(answer);
        };
        let (disk, length) = (self.cache.disk.clone(), entry.length);
        let writer = disk
            .run(SHORT_TIMEOUT, move || store.begin(&key, &entry))
            .await;
        match writer {
            Ok(Some(writer)) => {
                Ok(answer.map(|body| TeeBody::new(body, length, writer, disk).boxed_unsync()))
            }
            // No room.
            Ok(None) => Ok(answer),
            Err(error) => {
                tracing::debug!(%error, "download not stored in the egress cache");
                Ok(answer)
            }
        }
    }
}

/// Answer of the cache to a 304 of the host.
async fn confirmed(
    cache: &Cache,
    target: &Target,
    found: Found,
    answer: Response,
) -> Result<Response, Refusal> {
    let Found { entry, reader } = found;
    if !policy::confirms(&entry, answer.headers()) {
        let (key, store) = (reader.key().clone(), cache.store.clone());
        let removed = cache.disk.run(SHORT_TIMEOUT, move || {
            store.map_or(Ok(()), |store| store.remove(&key))
        });
        if let Err(error) = removed.await {
            tracing::debug!(%error, "download not removed from the egress cache");
        }
        discard(reader);
        let detail = format!(
            "{target} confirmed another version of this download than the one that this node has stored; try again"
        );
        return Err(Refusal::unreachable(StatusCode::BAD_GATEWAY, detail));
    }
    cache.metrics.cache_hits.inc();
    let (mut parts, _) = answer.into_parts();
    parts.status = StatusCode::OK;
    parts.headers = policy::merged(&entry, parts.headers);
    let body = StoredBody::new(reader, cache.disk.clone()).boxed_unsync();
    Ok(http::Response::from_parts(parts, body))
}

#[cfg(test)]
mod tests;
