//! Offers of a silent node's job to another node: accepted, refused, lost, withdrawn.

use super::*;
use rusqlite::Connection;

#[test]
fn refused_handoff_costs_no_attempt() {
    let scene = Scene::set();
    let (back, takes) = (Switch::default(), Switch::default());
    let away = scene.join("away", silent_until(&back));
    // With two attempts, a refusal that counted would leave none.
    let id = scene.create(json!({"max_attempts": 2}));
    away.call("run", Call::is_run);
    let (may, taking) = (takes.clone(), willing());
    let other = scene.join("other", move |call, answer| {
        if call.is_run() && !may.is_on() {
            answer.refuse(503);
        } else {
            taking(call, answer);
        }
    });
    eventually("the job is offered again", || {
        (attempts(&other).len() >= 2).then_some(())
    });
    takes.turn_on();
    let (attempt, node, _) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (2, "other"));
    assert!(attempts(&other).iter().all(|attempt| *attempt == 2));
}

/// Node that lacks the image of a job, which it notices after its answer.
fn without_image() -> impl Fn(&Call, Answer) + Send + Sync + use<> {
    move |call, answer| {
        if call.is_run() {
            let mut refused = call.result("");
            (refused["status"], refused["exit_code"]) = ("failed".into(), Value::Null);
            refused["error"] = json!({"type": "image-not-found", "message": "no such image"});
            let mut events = answer.stream();
            events.send(&json!({"event": "alive"}));
            events.end(1, &refused);
        } else {
            answer.status(204, &Value::Null);
        }
    }
}

#[test]
fn node_without_image_keeps_silent_attempt() {
    let scene = Scene::set();
    let (_away, back, id) = scene.silent_with_job(json!({"max_attempts": 2}));
    let other = scene.join("other", without_image());
    other.call("forget the offer", |call| call.method == "DELETE");
    let shown = scene.orchestrator.login();
    let job = shown.get(&format!("/v1/tasks/{id}/result")).json(200)["jobs"][0].clone();
    assert_eq!(
        (&job["attempt"], &job["status"]),
        (&json!(1), &json!("running"))
    );
    back.turn_on();
    let (attempt, node, job) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (1, "away"), "{job}");
    assert_eq!(
        (&job["status"], attempts(&other)),
        (&json!("completed"), vec![2])
    );
}

#[test]
fn job_refused_at_handoff_goes_to_third_node() {
    let scene = Scene::set();
    let away = scene.join("away", silent_until(&Switch::default()));
    let id = scene.create(json!({"max_attempts": 2}));
    away.call("run", Call::is_run);
    let other = scene.join("other", without_image());
    other.call("forget the offer", |call| call.method == "DELETE");
    let third = scene.join("third", willing());
    let (attempt, node, job) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (3, "third"), "{job}");
    assert_eq!((attempts(&other), attempts(&third)), (vec![2], vec![3]));
}

#[test]
fn handoff_is_resolved_after_orchestrator_kill() {
    let mut scene = Scene::set();
    let (away, _back, id) = scene.silent_with_job(json!({}));
    // The node accepts the offer, and its answer is lost.
    let answers = Switch::default();
    let (may_answer, last) = (answers.clone(), LastRun::default());
    let other = scene.join("other", move |call, answer| {
        if call.is_run() {
            last.note(call);
            may_answer.wait();
        } else if call.method == "GET" && call.path.contains("attempt=2") {
            last.end(answer, "taken\n");
        } else {
            answer.status(204, &Value::Null);
        }
    });
    other.call("take the offer", Call::is_run);
    let shown = scene.orchestrator.login();
    let job = shown.get(&format!("/v1/tasks/{id}/result")).json(200)["jobs"][0].clone();
    assert_eq!(
        job["attempt"], 1,
        "the offer counts once its acceptance is stored"
    );
    scene.restart();
    let (attempt, node, job) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (2, "other"));
    assert!(job["result"].as_str().unwrap().contains("taken"), "{job}");
    assert_eq!((attempts(&away), attempts(&other)), (vec![1], vec![2]));
    answers.turn_on();
}

#[test]
fn unresolved_handoff_consumes_its_attempt_number() {
    let scene = Scene::set();
    let (back, forgot) = (Switch::default(), Switch::default());
    let away = scene.join("away", silent_until(&back));
    let id = scene.create(json!({"max_attempts": 3}));
    away.call("run", Call::is_run);
    let (once, taking) = (forgot.clone(), willing());
    let other = scene.join("other", move |call, answer| {
        match (call.is_run(), once.is_on()) {
            // The node may have started it, and answers later that it doesn't have it.
            (true, false) => drop(answer),
            (false, false) if call.method == "GET" => {
                once.turn_on();
                answer.problem(404, "not-found");
            }
            _ => taking(call, answer),
        }
    });
    let (attempt, node, _) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (3, "other"));
    assert_eq!(attempts(&other), [2, 3]);
}

#[test]
fn cancel_reaches_silent_node_and_its_replacement() {
    let scene = Scene::set();
    let (away, _back, id) = scene.silent_with_job(json!({}));
    let last = LastRun::default();
    let canceled = Switch::default();
    let received = canceled.clone();
    let other = scene.join("other", move |call, answer| {
        if call.is_run() {
            last.note(call);
        }
        let run = last.0.lock().unwrap().clone().unwrap();
        if call.path.contains(":cancel") {
            received.turn_on();
            let state = json!({
                "version": 1, "task_id": run.body["task_id"], "job_id": run.body["job_id"], "attempt": 2,
                "status": "running",
            });
            answer.status(200, &state);
        } else if call.is_run() || call.method == "GET" {
            let mut events = answer.stream();
            events.send(&json!({"event": "started", "attempt": 2, "seq": 1}));
            received.wait();
            let mut result = run.result("");
            result["status"] = "canceled".into();
            result["exit_code"] = Value::Null;
            events.end(2, &result);
        } else {
            answer.status(204, &Value::Null);
        }
    });
    other.call("take the offer", Call::is_run);
    let user = scene.orchestrator.login();
    user.post(&format!("/v1/tasks/{id}/cancel"), &json!({}))
        .expect(200);
    eventually("the task is canceled", || {
        let task = user.get(&format!("/v1/tasks/{id}")).json(200);
        (task["status"] == "canceled").then_some(())
    });
    assert!(attaches(&away) > 0);
}

/// The silent node returns while an offer is open: with an event first, or directly with the result.
#[test]
fn superseded_copy_is_removed_despite_slow_store() {
    for first_word in [true, false] {
        let scene = Scene::set();
        let (back, ends, over) = (Switch::default(), Switch::default(), Switch::default());
        let (is_back, may_end, last) = (back.clone(), ends.clone(), LastRun::default());
        let away = scene.join("away", move |call, answer| {
            if call.is_run() {
                last.note(call);
            } else if call.method != "GET" {
                answer.status(204, &Value::Null);
            } else if is_back.is_on() && !first_word {
                last.end(answer, "late\n");
            } else if is_back.is_on() {
                let mut events = answer.stream();
                events.send(&json!({"event": "alive"}));
                may_end.wait();
                let run = last.0.lock().unwrap().clone().unwrap();
                events.end(2, &run.result("late\n"));
            }
        });
        let id = scene.create(json!({}));
        away.call("run", Call::is_run);
        let answers = over.clone();
        let other = scene.join("other", move |call, answer| match call.method.as_str() {
            "GET" => answer.problem(404, "not-found"),
            "DELETE" => answer.problem(409, "conflict"),
            _ if call.is_run() => answers.wait(),
            _ => answer.status(204, &Value::Null),
        });
        let run = other.call("take the offer", Call::is_run);
        let copy = json!({
            "version": 1, "task_id": run.body["task_id"], "job_id": run.body["job_id"], "attempt": 2,
            "status": "running",
        });
        *other.jobs.lock().unwrap() = vec![copy];

        // As with a slow disk: no write is committed from here on.
        let database = Connection::open(scene.orchestrator.data_dir.join("cynode.db")).unwrap();
        let user = scene.orchestrator.login();
        database.execute_batch("BEGIN IMMEDIATE").unwrap();
        let asked = attaches(&away);
        back.turn_on();
        eventually("the node is back", || {
            (attaches(&away) > asked).then_some(())
        });
        for _ in 0..50 {
            user.get(&format!("/v1/tasks/{id}")).json(200);
        }
        drop(database);
        let job = run.body["job_id"].as_str().unwrap();
        other.call("cancel the copy", |call| {
            call.path == format!("/v1/worker/jobs/{job}:cancel?attempt=2&force=true")
        });
        ends.turn_on();
        let (attempt, node, _) = scene.finish(&id);
        assert_eq!((attempt, node.as_str()), (1, "away"));
        over.turn_on();
    }
}

#[test]
fn returned_node_without_result_defers_to_replacement() {
    let scene = Scene::set();
    let (back, takes) = (Switch::default(), Switch::default());
    let (is_back, last) = (back.clone(), LastRun::default());
    let away = scene.join("away", move |call, answer| {
        if call.is_run() {
            last.note(call);
        } else if call.method != "GET" {
            answer.status(204, &Value::Null);
        } else if is_back.is_on() {
            // As after a reboot of the machine.
            let mut lost = last.0.lock().unwrap().clone().unwrap().result("");
            (lost["status"], lost["exit_code"]) = ("failed".into(), Value::Null);
            lost["error"] = json!({"type": "lost", "message": "the machine went down"});
            answer.stream().end(2, &lost);
        }
    });
    let id = scene.create(json!({"max_attempts": 2}));
    away.call("run", Call::is_run);
    let (may_take, taking) = (takes.clone(), willing());
    let other = scene.join("other", move |call, answer| {
        if call.is_run() {
            may_take.wait();
        }
        taking(call, answer);
    });
    other.call("take the offer", Call::is_run);
    let user = scene.orchestrator.login();
    let asked = attaches(&away);
    back.turn_on();
    eventually("the node is back", || {
        (attaches(&away) > asked).then_some(())
    });
    for _ in 0..50 {
        let task = user.get(&format!("/v1/tasks/{id}")).json(200);
        assert_eq!(task["status"], "running");
    }
    takes.turn_on();
    let (attempt, node, job) = scene.finish(&id);
    assert_eq!((attempt, node.as_str()), (2, "other"), "{job}");
}
