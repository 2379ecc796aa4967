//! `cynode chat` through a real gateway and node, to a stand-in for a model server.

use crate::support::{
    client::fails,
    eventually,
    models::{DONE, STREAM, cluster, delta, model_server},
    process::{piped, run},
    terminal::Session,
};
use serde_json::json;
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

#[test]
fn chat_reaches_model_through_gateway() {
    let closed = Arc::<AtomicUsize>::default();
    let seen = Arc::clone(&closed);
    let (server, _calls) = model_server(move |call, mut answer| {
        let messages = call.body["messages"].as_array().unwrap();
        let text = messages.last().unwrap()["content"].as_str().unwrap();
        answer = answer.begin(STREAM);
        match text {
            "endless" => {
                answer.add(&delta("on and on"));
                answer.until_closed();
                seen.fetch_add(1, Ordering::SeqCst);
            }
            "broken" => answer.add(&delta("half")),
            _ => {
                let model = call.body["model"].as_str().unwrap();
                answer.add(&[&delta(&format!("{model}: {text}")), DONE].concat());
            }
        }
    });
    let cluster = cluster(&server);
    let done = piped(&mut cluster.cli(&["chat", "-m", "review"]), b"diff\n");
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (0, "loaded: review\n\ndiff\n"),
        "{done:?}"
    );
    let done = piped(&mut cluster.cli(&["chat", "a", "--json"]), b"q");
    let document: serde_json::Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(document["content"], json!("a: q"));
    fails(
        &run(&mut cluster.cli(&["chat", "missing", "-m", "x"])),
        4,
        "loaded",
    );
    let done = run(&mut cluster.cli(&["chat", "-m", "broken"]));
    assert_eq!((done.code, done.stdout.as_str()), (7, "half\n"), "{done:?}");

    let mut chat = Session::start(&cluster.cli(&["chat"]));
    chat.shows("loaded at http://");
    chat.types("endless\r");
    chat.shows("on and on");
    chat.types("\x03");
    chat.shows("[stopped]");
    eventually("the model server is told", || {
        (closed.load(Ordering::SeqCst) == 1).then_some(())
    });
    chat.types("hello\r");
    chat.shows("loaded: hello");
    assert_eq!(chat.leaves().code, 0);
}
