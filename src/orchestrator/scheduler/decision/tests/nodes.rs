//! Choice of a node for one job.

use super::*;
use crate::{api::nodes::SandboxCapability, orchestrator::scheduler::fair_share::MAX_IMAGES};

#[test]
fn image_breaks_ties_between_nodes() {
    let nodes = [
        candidate(&[], 0, 4),
        candidate(&[], 0, 4),
        candidate(&[], 1, 4),
    ];
    let ids = nodes.each_ref().map(|node| node.id);
    let (mut world, mut history) = (World::default(), History::default());
    let job = world.add(UserId::new(), &[], 0);
    let assigned =
        |history: &mut History| world.assign(free_slots(nodes.to_vec()), history, LANE_READ_LIMIT);
    history.images.record("a".to_owned(), ids[1]);
    history.images.record("b".to_owned(), ids[0]);
    assert_eq!(assigned(&mut history), [(job, ids[1])]);
    // A less loaded node is better than one with the image.
    let mut history = History::default();
    history.images.record("a".to_owned(), ids[2]);
    assert_eq!(assigned(&mut history), [(job, ids[0])]);
    assert_eq!(assigned(&mut history), [(job, ids[0])]);
    for n in 0..2 * MAX_IMAGES {
        history.images.record(n.to_string(), ids[0]);
        assert!(history.images.len() <= MAX_IMAGES);
    }
}

#[test]
fn inference_job_goes_only_to_serving_node() {
    let mut serves = candidate(&[], 0, 1);
    Arc::make_mut(&mut serves.report).inference = Some(crate::api::nodes::Inference {
        supported: true,
        running: Some(true),
        ..Default::default()
    });
    let mut down = serves.clone();
    down.id = NodeId::new();
    let report = Arc::make_mut(&mut down.report);
    report.inference.as_mut().unwrap().running = Some(false);
    let mut world = World::default();
    for _ in 0..2 {
        world.add(UserId::new(), &[], 0);
    }
    for job in &mut world.queue {
        job.lane.placement = Placement::new(Requirements {
            inference: true,
            ..Requirements::default()
        });
    }
    let nodes = vec![candidate(&[], 0, 1), down, serves.clone()];
    let slots = free_slots(nodes);
    let assigned = world.assign(slots, &mut History::default(), LANE_READ_LIMIT);
    assert_eq!(assigned, [(world.queue[0].job.id, serves.id)]);
}

fn one_job(requirements: Requirements) -> World {
    let (mut world, user) = (World::default(), UserId::new());
    world.add(user, &[], 0);
    world.queue[0].lane.placement = Placement::new(requirements);
    world
}

fn nodes_of(world: &World, nodes: &[Candidate]) -> Vec<NodeId> {
    let slots = free_slots(nodes.to_vec());
    let assigned = world.assign(slots, &mut History::default(), LANE_READ_LIMIT);
    assigned.into_iter().map(|(_, node)| node).collect()
}

fn sandbox(node: &mut Candidate) -> &mut SandboxCapability {
    let report = Arc::make_mut(&mut node.report);
    report.sandbox.as_mut().unwrap()
}

#[test]
fn job_goes_to_named_node_with_features() {
    let mut nodes = [(); 3].map(|()| candidate(&[], 0, 1));
    for (node, slug) in nodes.iter_mut().zip(["a", "b", "c"]) {
        Arc::make_mut(&mut node.report).node.node_slug = slug.to_owned();
    }
    sandbox(&mut nodes[2]).features = Some(vec!["files".to_owned(), "stdin".to_owned()]);
    let to = |node: Option<&str>, features: &[&str]| {
        let world = one_job(Requirements {
            node: node.map(str::to_owned),
            features: features.iter().map(|name| (*name).to_owned()).collect(),
            ..Requirements::default()
        });
        let assigned = nodes_of(&world, &nodes);
        let at = |id| nodes.iter().position(|node| node.id == id).unwrap();
        assigned.into_iter().map(at).next()
    };
    assert_eq!(to(Some("b"), &[]), Some(1));
    assert_eq!(to(Some("nowhere"), &[]), None);
    assert_eq!(to(None, &["files"]), Some(2));
    assert_eq!(to(None, &["files", "gpus"]), None);
    assert_eq!(to(Some("a"), &["files"]), None);
}

#[test]
fn long_job_waits_for_node_that_allows_it() {
    let long = 10 * 3600;
    let mut nodes = vec![candidate(&[], 0, 1), candidate(&[], 1, 1)];
    sandbox(&mut nodes[1]).max_timeout_seconds = Some(30 * 24 * 3600);
    let mut world = one_job(Requirements {
        time_limit: Some(12 * 3600),
        ..Requirements::default()
    });
    world.queue[0].timeout_seconds = Some(long);
    assert_eq!(
        nodes_of(&world, &nodes),
        [],
        "the node that allows it is full"
    );
    nodes[1].running = 0;
    assert_eq!(nodes_of(&world, &nodes), [nodes[1].id]);
    let waiting = vec![nodes[0].clone(), nodes[1].clone().backing_off()];
    assert_eq!(nodes_of(&world, &waiting), []);
    // Of nodes that don't allow it, the one that allows the most.
    sandbox(&mut nodes[1]).max_timeout_seconds = Some(4 * 3600);
    nodes[1].slots = 2;
    nodes[1].running = 1;
    assert_eq!(nodes_of(&world, &nodes), [nodes[1].id]);
    nodes[1].running = 2;
    assert_eq!(
        nodes_of(&world, &nodes),
        [nodes[0].id],
        "it does not wait for that"
    );
}

#[test]
fn node_that_denies_image_is_last() {
    let mut nodes = vec![candidate(&[], 0, 4), candidate(&[], 3, 4)];
    let to = |nodes: &[Candidate], image: &'static str| {
        let mut world = one_job(Requirements::default());
        world.queue[0].image = Some(image);
        let assigned = nodes_of(&world, nodes);
        nodes
            .iter()
            .position(|node| node.id == assigned[0])
            .unwrap()
    };
    let (local, public) = ("localhost/own:latest", "docker.io/library/alpine:latest");
    assert_eq!([to(&nodes, local), to(&nodes, public)], [0, 0]);
    sandbox(&mut nodes[0]).allowed_images = vec!["localhost/*".to_owned()];
    assert_eq!([to(&nodes, local), to(&nodes, public)], [0, 1]);
    sandbox(&mut nodes[0]).local_images = Some(vec!["localhost/other:latest".to_owned()]);
    assert_eq!(to(&nodes, local), 1);
    sandbox(&mut nodes[1]).local_images = Some(Vec::new());
    assert_eq!(
        to(&nodes, local),
        0,
        "asked all the same, for its own words"
    );
}

#[test]
fn job_of_snapshot_goes_only_to_its_node() {
    let mut nodes = [(); 2].map(|()| candidate(&[], 0, 1));
    let image = "localhost/cynode-snapshots/u:a".to_owned();
    let world = one_job(Requirements {
        snapshot: Some(image.clone()),
        ..Requirements::default()
    });
    assert!(
        nodes_of(&world, &nodes).is_empty(),
        "no list is no snapshot"
    );
    sandbox(&mut nodes[0]).local_images = Some(Vec::new());
    sandbox(&mut nodes[1]).local_images = Some(vec![image]);
    assert_eq!(nodes_of(&world, &nodes), [nodes[1].id]);
}
