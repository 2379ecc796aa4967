-- The database of the orchestrator: schema version 7.
--
-- SQLite stands in for PostgreSQL, so types and names are those that PostgreSQL would use:
-- ids are uuid text, times are integer milliseconds since 1970 (UTC), flags are 0 or 1,
-- documents are JSON text. No secret is stored in the clear: passwords are argon2id,
-- tokens and keys of others are SHA-256. Keys of our own are files, never rows.
--
-- This file makes an empty database of the present version. An older database gets there by the
-- steps in src/store/sqlite/migrations, which append columns: a new one is the last of its table here too.
-- The version of a database is its PRAGMA user_version.

-- The identity of this orchestrator, in its one row: made at the first start, kept by a backup. Nodes
-- keep it with each job, so that no other orchestrator touches what this one started.
CREATE TABLE orchestrator (
    id TEXT NOT NULL
) STRICT;

CREATE TABLE users (
    id            TEXT PRIMARY KEY,
    handle        TEXT NOT NULL UNIQUE,
    email         TEXT,
    password_hash TEXT NOT NULL,                 -- PHC string, argon2id
    is_active     INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    is_admin      INTEGER NOT NULL DEFAULT 0 CHECK (is_admin IN (0, 1)),
    created_at    INTEGER NOT NULL,
    updated_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One login. Access tokens name their session and end with it.
CREATE TABLE sessions (
    id         TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL REFERENCES users (id),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_by_user ON sessions (user_id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

-- A refresh token is good for one use. Used ones stay until they expire: the second use of
-- one is how a theft shows.
CREATE TABLE refresh_tokens (
    token_sha256 TEXT PRIMARY KEY,
    session_id   TEXT NOT NULL REFERENCES sessions (id),
    expires_at   INTEGER NOT NULL,
    used_at      INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX refresh_tokens_by_session ON refresh_tokens (session_id, expires_at);
CREATE INDEX refresh_tokens_by_expiry ON refresh_tokens (expires_at);

CREATE TABLE nodes (
    id                TEXT PRIMARY KEY,
    slug              TEXT NOT NULL UNIQUE,
    registered_at     INTEGER NOT NULL,
    last_seen_at      INTEGER NOT NULL,
    draining          INTEGER NOT NULL DEFAULT 0 CHECK (draining IN (0, 1)),
    capability        TEXT NOT NULL,             -- JSON, the last report
    capability_sha256 TEXT NOT NULL,
    worker_url        TEXT,                      -- where dispatch reaches it
    config            TEXT,                      -- JSON, what the node was last served
    config_version    INTEGER NOT NULL DEFAULT 0,
    ack_version       INTEGER,
    ack_status        TEXT CHECK (ack_status IN ('applied', 'failed')),
    ack_error         TEXT,
    ack_at            INTEGER,
    node_key_sha256   TEXT,                      -- whose slug it is; NULL where it came without a key
    registration      INTEGER NOT NULL DEFAULT 0 -- a random number for each: tokens name theirs, and end with it
) STRICT, WITHOUT ROWID;

-- Machines that were draining when an admin had them forgotten: they drain again when they come back.
CREATE TABLE drained_keys (
    node_key_sha256 TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

CREATE TABLE tasks (
    id         TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL REFERENCES users (id),
    status     TEXT NOT NULL CHECK (status IN ('queued', 'running', 'completed', 'failed', 'canceled')),
    name       TEXT,
    spec       TEXT NOT NULL,                    -- JSON, what was asked for
    summary    TEXT,
    exit_code  INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at   INTEGER
) STRICT, WITHOUT ROWID;
-- Lists seek by all that they filter and read in the order of ids. One without a status reads each status
-- and merges them. The numbered tasks of a name, such as build-2, are those whose name without its last
-- digits is build-; that is an index alone and no column, so that an upgrade rewrites no task.
CREATE INDEX tasks_by_user ON tasks (user_id, status, id);
CREATE INDEX tasks_by_status ON tasks (status, id);
CREATE INDEX tasks_by_name ON tasks (name, user_id) WHERE name IS NOT NULL;
CREATE INDEX tasks_by_stem ON tasks (rtrim(name, '0123456789'), status, id) WHERE rtrim(name, '0123456789') IS NOT NULL;
CREATE INDEX tasks_by_user_stem ON tasks (user_id, rtrim(name, '0123456789'), status, id) WHERE rtrim(name, '0123456789') IS NOT NULL;
CREATE INDEX tasks_finished ON tasks (ended_at) WHERE ended_at IS NOT NULL;

-- What a node runs. Ids are version 7, so their order is the order of arrival.
CREATE TABLE jobs (
    id               TEXT PRIMARY KEY,
    task_id          TEXT NOT NULL REFERENCES tasks (id),
    status           TEXT NOT NULL CHECK
                     (status IN ('queued', 'running', 'completed', 'failed', 'timeout', 'canceled', 'lost')),
    attempt          INTEGER NOT NULL DEFAULT 0, -- the one that counts; fences every write about the job
    max_attempts     INTEGER NOT NULL,
    not_before       INTEGER NOT NULL,           -- backoff between attempts
    node_id          TEXT REFERENCES nodes (id),
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    result           TEXT,                       -- JSON, as the Worker API answered it
    outline          TEXT,                       -- JSON, how stdout and stderr came as events
    created_at       INTEGER NOT NULL,
    started_at       INTEGER,
    ended_at         INTEGER,
    node_slug        TEXT,                       -- of a node that was forgotten; node_id is NULL then
    user_id          TEXT,                       -- its task's, for whose turn it is
    placement        TEXT NOT NULL DEFAULT '{}', -- JSON, what it asks of a node; the same text for the same
    rank             INTEGER NOT NULL DEFAULT 0, -- lower first among a user's own: minus the task's priority
    last_attempt     INTEGER NOT NULL DEFAULT 0, -- the highest that any node may have heard of; one that was refused is free again
    offered_node_id  TEXT REFERENCES nodes (id), -- who is offered last_attempt while attempt's node is silent
    refusals         TEXT,                       -- JSON, which nodes can never run it, each with its reason
    CHECK (status <> 'running' OR node_id IS NOT NULL)
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_by_task ON jobs (task_id);
-- In the order in which the scheduler reads it; whoever is in a backoff is stepped over within the index.
CREATE INDEX jobs_queued ON jobs (user_id, placement, rank, id, not_before) WHERE status = 'queued';
CREATE INDEX jobs_backoff ON jobs (not_before) WHERE status = 'queued';
CREATE INDEX jobs_running ON jobs (node_id, user_id) WHERE status = 'running';
CREATE INDEX jobs_offered ON jobs (offered_node_id) WHERE offered_node_id IS NOT NULL;

-- What is still known of jobs whose task was deleted: a node that was away may run or keep what this
-- database gave out, and is told to end and forget it when it is back.
CREATE TABLE deleted_jobs (
    id           TEXT PRIMARY KEY,
    task_id      TEXT NOT NULL,
    last_attempt INTEGER NOT NULL,
    ended_at     INTEGER NOT NULL                -- kept so long after this
) STRICT, WITHOUT ROWID;
CREATE INDEX deleted_jobs_by_age ON deleted_jobs (ended_at);

CREATE TABLE idempotency_keys (
    user_id     TEXT NOT NULL REFERENCES users (id),
    key         TEXT NOT NULL,
    body_sha256 TEXT NOT NULL,
    task_id     TEXT NOT NULL REFERENCES tasks (id),
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (user_id, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);
CREATE INDEX idempotency_keys_by_task ON idempotency_keys (task_id);

-- Who did what, and who tried to: logins, sessions, registrations, administration. Never a secret, and
-- no reference to what may be gone later: names are kept as they were.
CREATE TABLE audit_log (
    seq        INTEGER PRIMARY KEY,              -- order of arrival; the oldest go first
    at         INTEGER NOT NULL,
    action     TEXT NOT NULL,                    -- such as auth.login
    outcome    TEXT NOT NULL CHECK (outcome IN ('success', 'failure', 'denied')),
    actor_id   TEXT,                             -- a user's or a node's id
    actor      TEXT,                             -- their handle or slug
    target     TEXT,                             -- the handle or slug that it was done to
    address    TEXT,                             -- where from
    request_id TEXT,
    reason     TEXT
) STRICT;
-- Lists by handle or slug read what it did and what was done to it, and merge the two.
CREATE INDEX audit_by_action ON audit_log (action, seq);
CREATE INDEX audit_by_actor ON audit_log (actor, action, seq) WHERE actor IS NOT NULL;
CREATE INDEX audit_by_target ON audit_log (target, action, seq) WHERE target IS NOT NULL;

-- How many queued tasks each user has, and how many bytes their specs take. Kept by triggers, so that it
-- holds whoever moves a task, and costs the same however long the queue is.
CREATE TABLE queue_depths (
    user_id TEXT PRIMARY KEY REFERENCES users (id),
    queued  INTEGER NOT NULL,
    bytes   INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
CREATE TRIGGER queue_depths_enter AFTER INSERT ON tasks WHEN NEW.status = 'queued' BEGIN
    INSERT INTO queue_depths VALUES (NEW.user_id, 1, octet_length(NEW.spec))
    ON CONFLICT (user_id) DO UPDATE SET queued = queued + 1, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER queue_depths_move AFTER UPDATE OF status ON tasks
WHEN (OLD.status = 'queued') <> (NEW.status = 'queued') BEGIN
    INSERT INTO queue_depths
    VALUES (NEW.user_id, iif(NEW.status = 'queued', 1, -1),
            iif(NEW.status = 'queued', 1, -1) * octet_length(NEW.spec))
    ON CONFLICT (user_id) DO UPDATE SET queued = queued + excluded.queued, bytes = bytes + excluded.bytes;
END;
CREATE TRIGGER queue_depths_leave AFTER DELETE ON tasks WHEN OLD.status = 'queued' BEGIN
    UPDATE queue_depths SET queued = queued - 1, bytes = bytes - octet_length(OLD.spec)
    WHERE user_id = OLD.user_id;
END;

-- How many finished tasks there are, in its one row; kept by triggers, as above. Once a task has ended,
-- it stays so.
CREATE TABLE finished_tasks (
    finished INTEGER NOT NULL
) STRICT;
INSERT INTO finished_tasks VALUES (0);
CREATE TRIGGER finished_tasks_enter AFTER UPDATE OF ended_at ON tasks
WHEN OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL BEGIN
    UPDATE finished_tasks SET finished = finished + 1;
END;
CREATE TRIGGER finished_tasks_leave AFTER DELETE ON tasks WHEN OLD.ended_at IS NOT NULL BEGIN
    UPDATE finished_tasks SET finished = finished - 1;
END;

-- What is written, and deleted at once, to see whether the disk has room again.
CREATE TABLE probes (
    filler BLOB NOT NULL
) STRICT;
