-- The database of the orchestrator: schema version 13.
--
-- SQLite stands in for PostgreSQL, so types and names are those that PostgreSQL would use:
-- ids are uuid text, times are integer milliseconds since 1970 (UTC), flags are 0 or 1,
-- documents are JSON text. No secret is stored in the clear: passwords are argon2id,
-- tokens and keys of others are SHA-256. Keys of the orchestrator are files, never rows.
--
-- This file creates an empty database of the current version. An older database gets there by the
-- steps in src/store/sqlite/migrations, which append columns: a new one is the last of its table here, too.
-- The version of a database is its PRAGMA user_version.

-- Id of this orchestrator, in a single row: created at the first start, kept by a backup. Nodes store it
-- with each job, so that no other orchestrator touches the jobs of this one.
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

-- Logins. Access tokens name their session and end with it.
CREATE TABLE sessions (
    id         TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL REFERENCES users (id),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    revoked_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_by_user ON sessions (user_id);
CREATE INDEX sessions_by_expiry ON sessions (expires_at);

-- Refresh tokens, each valid for one use. Used ones stay until they expire: a second use shows a theft.
CREATE TABLE refresh_tokens (
    token_sha256 TEXT PRIMARY KEY,
    session_id   TEXT NOT NULL REFERENCES sessions (id),
    expires_at   INTEGER NOT NULL,
    used_at      INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX refresh_tokens_by_session ON refresh_tokens (session_id, expires_at);
CREATE INDEX refresh_tokens_by_expiry ON refresh_tokens (expires_at);

-- API keys of users, for programs. A revoked key is deleted.
CREATE TABLE api_keys (
    id           TEXT PRIMARY KEY,
    user_id      TEXT NOT NULL REFERENCES users (id),
    name         TEXT NOT NULL,
    prefix       TEXT NOT NULL,                  -- beginning of the key, by which its user recognizes it
    key_sha256   TEXT NOT NULL UNIQUE,
    scopes       TEXT NOT NULL,                  -- JSON, array of names
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER,                        -- NULL of a key that does not expire
    last_used_at INTEGER                         -- to the minute
) STRICT, WITHOUT ROWID;
CREATE INDEX api_keys_by_user ON api_keys (user_id, id);
CREATE INDEX api_keys_by_expiry ON api_keys (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE nodes (
    id                TEXT PRIMARY KEY,
    slug              TEXT NOT NULL UNIQUE,
    registered_at     INTEGER NOT NULL,
    last_seen_at      INTEGER NOT NULL,
    draining          INTEGER NOT NULL DEFAULT 0 CHECK (draining IN (0, 1)),
    capability        TEXT NOT NULL,             -- JSON, last capability report
    capability_sha256 TEXT NOT NULL,
    worker_url        TEXT,                      -- URL of the Worker API
    config            TEXT,                      -- JSON, last served configuration
    config_version    INTEGER NOT NULL DEFAULT 0,
    ack_version       INTEGER,
    ack_status        TEXT CHECK (ack_status IN ('applied', 'failed')),
    ack_error         TEXT,
    ack_at            INTEGER,
    node_key_sha256   TEXT,                      -- owner of the slug; NULL where it was registered without a key
    registration      INTEGER NOT NULL DEFAULT 0 -- random number of the last one; tokens name theirs and end with it
) STRICT, WITHOUT ROWID;

-- Machines that were drained when their node was deleted: they are drained again when they return.
CREATE TABLE drained_keys (
    node_key_sha256 TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- Tokens with which new nodes join. A removed one stays for a while, so that its holders learn that it was removed.
CREATE TABLE join_tokens (
    id            TEXT PRIMARY KEY,
    secret_sha256 TEXT NOT NULL UNIQUE,
    slug          TEXT,                          -- the only node that can join by it; NULL for any
    max_uses      INTEGER NOT NULL,
    created_by    TEXT NOT NULL REFERENCES users (id),
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,              -- for new nodes
    removed_at    INTEGER,                       -- NULL while its nodes may register again
    url           TEXT                           -- of the control plane, as the token holds it; NULL before version 13
) STRICT, WITHOUT ROWID;

-- Nodes that joined by a token: a machine and its slug count once, and may register again.
CREATE TABLE join_token_uses (
    token_id        TEXT NOT NULL REFERENCES join_tokens (id),
    node_key_sha256 TEXT NOT NULL,
    slug            TEXT NOT NULL,
    used_at         INTEGER NOT NULL,
    PRIMARY KEY (token_id, node_key_sha256, slug)
) STRICT, WITHOUT ROWID;

CREATE TABLE tasks (
    id         TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL REFERENCES users (id),
    status     TEXT NOT NULL CHECK (status IN ('queued', 'running', 'completed', 'failed', 'canceled')),
    name       TEXT,
    spec       TEXT NOT NULL,                    -- JSON, the task as it was submitted
    summary    TEXT,
    exit_code  INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at   INTEGER,
    sandbox    TEXT                              -- JSON, what a sandbox adds; NULL of a task. A sandbox has no name above
) STRICT, WITHOUT ROWID;
-- Lists seek by all columns that they filter by and read in the order of ids. A list without a status reads each
-- status and merges them. The numbered tasks of a name, such as build-2, are those whose name without its last
-- digits is build-; that is an index alone and no column, so that an upgrade rewrites no task.
CREATE INDEX tasks_by_user ON tasks (user_id, status, id, sandbox) WHERE sandbox IS NULL;
CREATE INDEX tasks_by_status ON tasks (status, id, sandbox) WHERE sandbox IS NULL;
CREATE INDEX tasks_by_name ON tasks (name, user_id) WHERE name IS NOT NULL;
CREATE INDEX tasks_by_stem ON tasks (rtrim(name, '0123456789'), status, id) WHERE rtrim(name, '0123456789') IS NOT NULL;
CREATE INDEX tasks_by_user_stem ON tasks (user_id, rtrim(name, '0123456789'), status, id) WHERE rtrim(name, '0123456789') IS NOT NULL;
CREATE INDEX tasks_finished ON tasks (ended_at) WHERE ended_at IS NOT NULL;
-- Sandboxes, of which few live: their names are unique only among those, and the newest of a name comes first.
CREATE INDEX sandboxes_by_id ON tasks (id) WHERE sandbox IS NOT NULL;
CREATE INDEX sandboxes_by_user ON tasks (user_id, id) WHERE sandbox IS NOT NULL;
CREATE INDEX sandboxes_by_name ON tasks (sandbox ->> '$.name', user_id, ended_at IS NULL, id) WHERE sandbox IS NOT NULL;
CREATE INDEX sandboxes_live ON tasks (user_id, id) WHERE sandbox IS NOT NULL AND ended_at IS NULL;

-- Jobs, which run on nodes. Ids are version 7, so their order is the order of arrival.
CREATE TABLE jobs (
    id               TEXT PRIMARY KEY,
    task_id          TEXT NOT NULL REFERENCES tasks (id),
    status           TEXT NOT NULL CHECK
                     (status IN ('queued', 'running', 'completed', 'failed', 'timeout', 'canceled', 'lost')),
    attempt          INTEGER NOT NULL DEFAULT 0, -- current attempt; fences every write about the job
    max_attempts     INTEGER NOT NULL,
    not_before       INTEGER NOT NULL,           -- backoff between attempts
    node_id          TEXT REFERENCES nodes (id),
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    result           TEXT,                       -- JSON, as the Worker API answered it
    outline          TEXT,                       -- JSON, order of stdout and stderr as events
    created_at       INTEGER NOT NULL,
    started_at       INTEGER,
    ended_at         INTEGER,
    node_slug        TEXT,                       -- of a node that was deleted; node_id is NULL then
    user_id          TEXT,                       -- owner of the task, for fair shares
    placement        TEXT NOT NULL DEFAULT '{}', -- JSON, requirements on the node; one text for equal requirements
    rank             INTEGER NOT NULL DEFAULT 0, -- order within a lane, lower first: minus the priority of the task
    last_attempt     INTEGER NOT NULL DEFAULT 0, -- highest attempt that any node may know; a refused one is free again
    offered_node_id  TEXT REFERENCES nodes (id), -- node that is offered last_attempt while the node of attempt is silent
    refusals         TEXT,                       -- JSON, nodes that can never run the job, each with its reason
    effective_timeout_seconds INTEGER,           -- time limit in force; NULL until it is known
    CHECK (status <> 'running' OR node_id IS NOT NULL)
) STRICT, WITHOUT ROWID;
CREATE INDEX jobs_by_task ON jobs (task_id);
-- In the order in which the scheduler reads the queue; jobs in a backoff are stepped over within the index.
CREATE INDEX jobs_queued ON jobs (user_id, placement, rank, id, not_before) WHERE status = 'queued';
CREATE INDEX jobs_backoff ON jobs (not_before) WHERE status = 'queued';
CREATE INDEX jobs_running ON jobs (node_id, user_id) WHERE status = 'running';
CREATE INDEX jobs_offered ON jobs (offered_node_id) WHERE offered_node_id IS NOT NULL;

-- Attempts of jobs whose task was deleted: a node that was unreachable may still have them, and is ordered to
-- stop and delete them when it returns.
CREATE TABLE deleted_jobs (
    id           TEXT PRIMARY KEY,
    task_id      TEXT NOT NULL,
    last_attempt INTEGER NOT NULL,
    ended_at     INTEGER NOT NULL                -- kept for a time after this
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

-- Artifacts: files that users uploaded, and those that were collected when tasks ended. Their bytes are in the store
-- of contents, in a file named by the SHA-256.
CREATE TABLE artifacts (
    id         TEXT PRIMARY KEY,
    user_id    TEXT NOT NULL REFERENCES users (id),
    task_id    TEXT REFERENCES tasks (id),       -- NULL of an upload
    name       TEXT NOT NULL,                    -- of an upload as the user chose it, else the path in the workspace
    sha256     TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    created_at INTEGER NOT NULL,                 -- of an upload that was sent again, the last time
    is_executable INTEGER NOT NULL DEFAULT 0     -- whether a collected file was executable in the workspace
) STRICT, WITHOUT ROWID;
CREATE INDEX artifacts_by_user ON artifacts (user_id, id);
CREATE INDEX artifacts_by_user_name ON artifacts (user_id, name, id);
CREATE INDEX artifacts_by_name ON artifacts (name, id);
CREATE INDEX artifacts_by_task ON artifacts (task_id, id) WHERE task_id IS NOT NULL;
CREATE INDEX artifacts_by_content ON artifacts (sha256, user_id);
CREATE INDEX artifacts_uploaded ON artifacts (created_at) WHERE task_id IS NULL;

-- Contents that queued and running tasks need.
CREATE TABLE task_contents (
    task_id TEXT NOT NULL REFERENCES tasks (id),
    sha256  TEXT NOT NULL,
    PRIMARY KEY (task_id, sha256)
) STRICT, WITHOUT ROWID;
CREATE INDEX task_contents_by_content ON task_contents (sha256);

-- Contents that lost a reference. Triggers enter them; those without any other one are deleted from the disk.
CREATE TABLE released_contents (
    sha256 TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;
CREATE TRIGGER task_contents_end AFTER UPDATE OF ended_at ON tasks
WHEN OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL BEGIN
    DELETE FROM task_contents WHERE task_id = NEW.id;
END;
CREATE TRIGGER task_contents_release AFTER DELETE ON task_contents BEGIN
    INSERT OR IGNORE INTO released_contents VALUES (OLD.sha256);
END;
CREATE TRIGGER artifacts_release AFTER DELETE ON artifacts BEGIN
    INSERT OR IGNORE INTO released_contents VALUES (OLD.sha256);
END;

-- Audit log: logins, sessions, registrations, administration, also failed ones. It has no secrets, and no
-- references to rows that may be deleted: names are kept as they were.
CREATE TABLE audit_log (
    seq        INTEGER PRIMARY KEY,              -- order of arrival; the oldest are deleted first
    at         INTEGER NOT NULL,
    action     TEXT NOT NULL,                    -- such as auth.login
    outcome    TEXT NOT NULL CHECK (outcome IN ('success', 'failure', 'denied')),
    actor_id   TEXT,                             -- id of a user or a node
    actor      TEXT,                             -- handle or slug of the actor
    target     TEXT,                             -- handle or slug of the target
    address    TEXT,                             -- address of the client
    request_id TEXT,
    reason     TEXT,
    api_key    TEXT                              -- prefix of the key by which the actor called
) STRICT;
-- Lists by handle or slug read the events by it and the events about it, and merge the two.
CREATE INDEX audit_by_action ON audit_log (action, seq);
CREATE INDEX audit_by_actor ON audit_log (actor, action, seq) WHERE actor IS NOT NULL;
CREATE INDEX audit_by_target ON audit_log (target, action, seq) WHERE target IS NOT NULL;

-- Use of models, summed up by day. Names are kept as they were; an empty id stands for none, since columns of a primary
-- key are never NULL. Rows of a task are added to those without a task when the task is deleted.
CREATE TABLE inference_usage (
    user_id           TEXT NOT NULL REFERENCES users (id),
    day               INTEGER NOT NULL,          -- its first millisecond (UTC)
    key_id            TEXT NOT NULL DEFAULT '',  -- API key of the requests
    task_id           TEXT NOT NULL DEFAULT '',  -- task whose sandbox sent them
    model             TEXT NOT NULL,
    key_name          TEXT NOT NULL DEFAULT '',
    requests          INTEGER NOT NULL,
    prompt_tokens     INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (user_id, day, key_id, task_id, model)
) STRICT, WITHOUT ROWID;
CREATE INDEX inference_usage_by_day ON inference_usage (day);
CREATE INDEX inference_usage_by_task ON inference_usage (task_id) WHERE task_id <> '';

-- Secrets for jobs. A value is encrypted with a key in keys/secrets.key, and bound to owner, name and key: a row that is
-- copied to another name can't be read. An empty owner stands for all users.
CREATE TABLE secrets (
    owner      TEXT NOT NULL,                       -- id of the user, or empty
    name       TEXT NOT NULL,
    key_id     TEXT NOT NULL,                       -- first 16 hex digits of the SHA-256 of the key
    sealed     BLOB NOT NULL,                       -- nonce (12 bytes), ciphertext, tag (16 bytes); AES-256-GCM
    set_by     TEXT NOT NULL REFERENCES users (id),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,                    -- of its value
    PRIMARY KEY (owner, name)
) STRICT;

-- Number of queued tasks by user, and the bytes of their specs. Maintained by triggers, so that every write keeps
-- it right, and a read costs the same for any length of the queue.
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

-- Number of finished tasks, in a single row; maintained by triggers, too. A task that has ended stays so.
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

-- Test rows, written and deleted at once, which show whether the disk has space again.
CREATE TABLE probes (
    filler BLOB NOT NULL
) STRICT;
