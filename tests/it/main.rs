//! Black-box tests: the real binary, real containers, the wire.
//!
//! One module per promise of the contract. `support` is the harness; everything else is tests.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "a failed test panics"
)]

mod artifacts;
mod audit;
mod auth;
mod backup;
mod bad_input;
mod bodies;
mod cancels;
mod client;
mod client_failures;
mod client_tasks;
mod control_plane;
mod data_dirs;
mod database;
mod deletes;
mod dev;
mod devices;
mod disk;
mod disk_room;
mod dispatch;
mod docs;
mod doctor;
mod duplicates;
mod escapes;
mod file_transfers;
mod files;
mod first_start;
mod gpus;
mod grace;
mod greedy_nodes;
mod happy_path;
mod help;
mod host_settings;
mod hostile_images;
mod hosts;
mod hung_disk;
mod image_gc;
mod image_push;
mod inference;
mod inference_refused;
mod init_alone;
mod job_ends;
mod job_limits;
mod job_logs;
mod kept_logs;
mod kernel;
mod leases;
mod limits;
mod log_lines;
mod logs;
mod long_jobs;
mod metrics;
mod model_api;
mod model_server;
mod model_streams;
mod node_address;
mod node_claims;
mod node_faults;
mod node_file;
mod node_guards;
mod node_life;
mod node_report;
mod node_start;
mod node_words;
mod odd_images;
mod old_names;
mod open_sandboxes;
mod openapi;
mod output;
mod ownership;
mod passwords;
mod peer_node;
mod peer_orchestrator;
mod peer_worker;
mod placement;
mod podman_moods;
mod proxies;
mod pulls;
mod races;
mod recovery;
mod refusals;
mod registrations;
mod registries;
mod reserve;
mod retention;
mod run_files;
mod sandbox;
mod scheduling;
mod secrets;
mod shims;
mod slugs;
mod soak;
mod stdin;
mod strangers;
mod support;
mod systemd;
mod tables;
mod task_files;
mod task_names;
mod trees;
mod typed_secrets;
mod upgrade;
mod uploads;
mod users;
mod users_cli;
mod warnings;
mod worker_api;
mod zero_flags;
