-- From version 5 to 6: the id of this orchestrator, drains that outlive a deleted node, refusals that outlive an attempt, and
-- tasks by name.

CREATE TABLE orchestrator (id TEXT NOT NULL) STRICT;
CREATE TABLE drained_keys (node_key_sha256 TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
ALTER TABLE jobs ADD COLUMN refusals TEXT;
CREATE INDEX tasks_by_name ON tasks (user_id, name) WHERE name IS NOT NULL;
