-- From version 6 to 7: registrations, which tokens belong to; an index for every list; attempts of deleted tasks; the size of
-- the queue by user.

ALTER TABLE nodes ADD COLUMN registration INTEGER NOT NULL DEFAULT 0;
DROP INDEX tasks_by_user;
CREATE INDEX tasks_by_user ON tasks (user_id, status, id);
CREATE INDEX tasks_by_status ON tasks (status, id);
DROP INDEX tasks_by_name;
CREATE INDEX tasks_by_name ON tasks (name, user_id) WHERE name IS NOT NULL;
CREATE INDEX tasks_by_stem ON tasks (rtrim(name, '0123456789'), status, id)
WHERE rtrim(name, '0123456789') IS NOT NULL;
CREATE INDEX tasks_by_user_stem ON tasks (user_id, rtrim(name, '0123456789'), status, id)
WHERE rtrim(name, '0123456789') IS NOT NULL;
CREATE TABLE deleted_jobs (
    id TEXT PRIMARY KEY, task_id TEXT NOT NULL, last_attempt INTEGER NOT NULL, ended_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX deleted_jobs_by_age ON deleted_jobs (ended_at);
CREATE INDEX audit_by_action ON audit_log (action, seq);
CREATE INDEX audit_by_actor ON audit_log (actor, action, seq) WHERE actor IS NOT NULL;
CREATE INDEX audit_by_target ON audit_log (target, action, seq) WHERE target IS NOT NULL;
ALTER TABLE queue_depths ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
DROP TRIGGER queue_depths_enter;
DROP TRIGGER queue_depths_move;
DROP TRIGGER queue_depths_leave;
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
UPDATE queue_depths SET bytes = (
    SELECT coalesce(sum(octet_length(spec)), 0) FROM tasks
    WHERE user_id = queue_depths.user_id AND status = 'queued'
);
