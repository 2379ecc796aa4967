-- From version 2 to 3: the audit log, and the number of queued tasks by user.

CREATE TABLE audit_log (
    seq        INTEGER PRIMARY KEY,
    at         INTEGER NOT NULL,
    action     TEXT NOT NULL,
    outcome    TEXT NOT NULL CHECK (outcome IN ('success', 'failure', 'denied')),
    actor_id   TEXT,
    actor      TEXT,
    target     TEXT,
    address    TEXT,
    request_id TEXT,
    reason     TEXT
) STRICT;
CREATE TABLE queue_depths (
    user_id TEXT PRIMARY KEY REFERENCES users (id),
    queued  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TRIGGER queue_depths_enter AFTER INSERT ON tasks WHEN NEW.status = 'queued' BEGIN
    INSERT INTO queue_depths VALUES (NEW.user_id, 1)
    ON CONFLICT (user_id) DO UPDATE SET queued = queued + 1;
END;
CREATE TRIGGER queue_depths_move AFTER UPDATE OF status ON tasks
WHEN (OLD.status = 'queued') <> (NEW.status = 'queued') BEGIN
    INSERT INTO queue_depths VALUES (NEW.user_id, iif(NEW.status = 'queued', 1, -1))
    ON CONFLICT (user_id) DO UPDATE SET queued = queued + excluded.queued;
END;
CREATE TRIGGER queue_depths_leave AFTER DELETE ON tasks WHEN OLD.status = 'queued' BEGIN
    UPDATE queue_depths SET queued = queued - 1 WHERE user_id = OLD.user_id;
END;
DROP INDEX refresh_tokens_by_session;
CREATE INDEX refresh_tokens_by_session ON refresh_tokens (session_id, expires_at);
INSERT INTO queue_depths
SELECT user_id, count(*) FROM tasks WHERE status = 'queued' GROUP BY user_id;
