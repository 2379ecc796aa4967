//! What a job gets of the cache, with a host that answers as a test says.

use super::*;
use crate::http::{metrics::MetricsRegistry, response::text};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};

const LIMIT: u64 = 16 << 20;

async fn cache_in(home: &TempDir, limit: Option<u64>) -> Arc<Cache> {
    let metrics = EgressMetrics::new(&MetricsRegistry::default());
    let cache = Cache::new(home.path(), limit, 0, &metrics);
    cache.open().await;
    Arc::new(cache)
}

fn target() -> Target {
    Target {
        host: "a.example".parse().unwrap(),
        port: 80,
    }
}

/// Asks for a path. The tag that the host is asked about, and what becomes of its answer.
async fn ask(job: &JobCache, path: &str, is_private: bool) -> (Option<HeaderValue>, Lookup) {
    let empty = text(StatusCode::OK, "").into_body();
    let request = http::Request::get(path).body(empty).unwrap();
    let target = target();
    let origin = Origin {
        scheme: "http",
        target: &target,
        is_private,
    };
    let (request, lookup) = job.look_up(request, &origin).await;
    let tag = request.headers().get(header::IF_NONE_MATCH).cloned();
    (tag, lookup)
}

/// Answer of a host with a strong tag.
fn answer(status: u16, tag: &str, body: &str) -> Response {
    let mut answer = text(StatusCode::from_u16(status).unwrap(), body);
    let headers = answer.headers_mut();
    headers.insert(header::ETAG, tag.parse().unwrap());
    headers.insert(header::CONTENT_LENGTH, body.len().into());
    answer
}

async fn read(answer: Response) -> io::Result<String> {
    let bytes = answer.into_body().collect().await?.to_bytes();
    Ok(String::from_utf8(bytes.to_vec()).unwrap())
}

/// Asks with a host that has this version; what the job gets.
async fn get(job: &JobCache, tag: &str, body: &str) -> String {
    let (asked, lookup) = ask(job, "/a", false).await;
    let is_known = asked.is_some_and(|asked| asked == tag);
    let answer = if is_known {
        answer(304, tag, "")
    } else {
        answer(200, tag, body)
    };
    let answer = lookup.answer(&target(), answer).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(
        answer.headers()[header::CONTENT_LENGTH],
        body.len().to_string()
    );
    read(answer).await.unwrap()
}

/// Waits until the cache has some bytes.
async fn wait_stored(cache: &Cache) {
    let stored = async {
        while cache.metrics.cache_bytes.get() == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), stored).await.unwrap();
}

fn counts(cache: &Cache) -> [u64; 3] {
    let metrics = &cache.metrics;
    let counters = [
        &metrics.cache_hits,
        &metrics.cache_misses,
        &metrics.cache_bypasses,
    ];
    counters.map(prometheus::IntCounter::get)
}

#[tokio::test]
async fn second_job_gets_what_the_first_fetched() {
    let home = tempfile::tempdir().unwrap();
    let cache = cache_in(&home, Some(LIMIT)).await;
    // More than one write, and more than one read.
    let body = "0123456789".repeat(30_000);
    assert_eq!(get(&cache.of_job(false), "\"v1\"", &body).await, body);
    wait_stored(&cache).await;
    assert_eq!(get(&cache.of_job(false), "\"v1\"", &body).await, body);
    assert_eq!(counts(&cache), [1, 1, 0]);
    let next = cache_in(&home, Some(LIMIT)).await;
    assert_eq!(get(&next.of_job(true), "\"v1\"", &body).await, body);
    assert_eq!(counts(&next), [1, 0, 0], "a job with secrets reads, too");
    assert_eq!(get(&next.of_job(false), "\"v2\"", "new").await, "new");
}

#[tokio::test]
async fn another_version_is_not_served() {
    let home = tempfile::tempdir().unwrap();
    let cache = cache_in(&home, Some(LIMIT)).await;
    let job = cache.of_job(false);
    get(&job, "\"v1\"", "one").await;
    wait_stored(&cache).await;
    let (asked, lookup) = ask(&job, "/a", false).await;
    assert_eq!(asked.unwrap(), "\"v1\"");
    let wrong = lookup.answer(&target(), answer(304, "\"v2\"", "")).await;
    let refusal = wrong.map(|_| ()).unwrap_err();
    assert!(refusal.detail.contains("try again") && !refusal.is_by_rule);
    assert_eq!(ask(&job, "/a", false).await.0, None, "it is gone");
}

#[tokio::test]
async fn other_answers_pass_as_they_are() {
    let home = tempfile::tempdir().unwrap();
    let cache = cache_in(&home, Some(LIMIT)).await;
    let job = cache.of_job(false);
    get(&job, "\"v1\"", "one").await;
    wait_stored(&cache).await;
    let (asked, lookup) = ask(&job, "/a", false).await;
    assert!(asked.is_some());
    let host = target();
    let gone = lookup.answer(&host, answer(404, "\"v1\"", "gone"));
    let gone = gone.await.unwrap();
    assert_eq!(gone.status(), StatusCode::NOT_FOUND);
    assert_eq!(read(gone).await.unwrap(), "gone");
    let (asked, lookup) = ask(&job, "/b", false).await;
    assert_eq!(asked, None);
    // To a question that nobody asked.
    let lie = lookup.answer(&host, answer(304, "\"v1\"", ""));
    assert_eq!(lie.await.unwrap().status(), StatusCode::NOT_MODIFIED);
    assert_eq!(get(&job, "\"v1\"", "one").await, "one");
    assert_eq!(counts(&cache), [1, 3, 0]);
}

#[tokio::test]
async fn secrets_are_not_stored() {
    let home = tempfile::tempdir().unwrap();
    let cache = cache_in(&home, Some(LIMIT)).await;
    get(&cache.of_job(true), "\"v1\"", "one").await;
    let (_, lookup) = ask(&cache.of_job(false), "/a", true).await;
    let passed = lookup.answer(&target(), answer(200, "\"v1\"", "one")).await;
    assert_eq!(read(passed.unwrap()).await.unwrap(), "one");
    assert_eq!(counts(&cache), [0, 1, 1]);
    assert_eq!(fs::read_dir(&cache.path).unwrap().count(), 0);
}

#[tokio::test]
async fn client_that_leaves_stores_nothing() {
    let home = tempfile::tempdir().unwrap();
    let cache = cache_in(&home, Some(LIMIT)).await;
    let job = cache.of_job(false);
    let (_, lookup) = ask(&job, "/a", false).await;
    let answered = lookup.answer(&target(), answer(200, "\"v1\"", "one")).await;
    let begun = || fs::read_dir(&cache.path).unwrap().count();
    assert_eq!(begun(), 1);
    drop(answered.unwrap());
    let removed = async {
        while begun() > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(30), removed).await.unwrap();
}

#[tokio::test]
async fn damaged_download_breaks_off() {
    let home = tempfile::tempdir().unwrap();
    let cache = cache_in(&home, Some(LIMIT)).await;
    let job = cache.of_job(false);
    get(&job, "\"v1\"", "one").await;
    wait_stored(&cache).await;
    let file = fs::read_dir(&cache.path).unwrap().next().unwrap().unwrap();
    let mut bytes = fs::read(file.path()).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(file.path(), bytes).unwrap();
    let (_, lookup) = ask(&job, "/a", false).await;
    let answered = lookup.answer(&target(), answer(304, "\"v1\"", "")).await;
    read(answered.unwrap()).await.unwrap_err();
    assert_eq!(get(&job, "\"v1\"", "one").await, "one");
    assert_eq!(counts(&cache), [1, 2, 0]);
}

#[tokio::test]
async fn cache_that_is_turned_off_is_removed() {
    let home = tempfile::tempdir().unwrap();
    let cache = cache_in(&home, Some(LIMIT)).await;
    get(&cache.of_job(false), "\"v1\"", "one").await;
    wait_stored(&cache).await;
    let off = cache_in(&home, None).await;
    assert!(!off.path.exists());
    assert_eq!(get(&off.of_job(false), "\"v1\"", "one").await, "one");
    assert_eq!(counts(&off), [0; 3]);
}
