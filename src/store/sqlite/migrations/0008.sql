-- From version 7 to 8: artifacts, the contents that tasks need, and the time limit that is in force for a job.

CREATE TABLE artifacts (
    id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users (id), task_id TEXT REFERENCES tasks (id),
    name TEXT NOT NULL, sha256 TEXT NOT NULL, size_bytes INTEGER NOT NULL, created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX artifacts_by_user ON artifacts (user_id, id);
CREATE INDEX artifacts_by_user_name ON artifacts (user_id, name, id);
CREATE INDEX artifacts_by_name ON artifacts (name, id);
CREATE INDEX artifacts_by_task ON artifacts (task_id, id) WHERE task_id IS NOT NULL;
CREATE INDEX artifacts_by_content ON artifacts (sha256, user_id);
CREATE INDEX artifacts_uploaded ON artifacts (created_at) WHERE task_id IS NULL;
CREATE TABLE task_contents (
    task_id TEXT NOT NULL REFERENCES tasks (id), sha256 TEXT NOT NULL, PRIMARY KEY (task_id, sha256)
) STRICT, WITHOUT ROWID;
CREATE INDEX task_contents_by_content ON task_contents (sha256);
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
ALTER TABLE jobs ADD COLUMN effective_timeout_seconds INTEGER;
