-- From version 3 to 4: indexes for retention, the number of finished tasks, probes of the disk, and lanes of the queue, so that
-- the queue of one user doesn't delay another.

CREATE INDEX tasks_finished ON tasks (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX sessions_by_expiry ON sessions (expires_at);
CREATE INDEX refresh_tokens_by_expiry ON refresh_tokens (expires_at);
CREATE INDEX idempotency_keys_by_task ON idempotency_keys (task_id);
CREATE TABLE finished_tasks (finished INTEGER NOT NULL) STRICT;
INSERT INTO finished_tasks SELECT count(*) FROM tasks WHERE ended_at IS NOT NULL;
CREATE TRIGGER finished_tasks_enter AFTER UPDATE OF ended_at ON tasks
WHEN OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL BEGIN
    UPDATE finished_tasks SET finished = finished + 1;
END;
CREATE TRIGGER finished_tasks_leave AFTER DELETE ON tasks WHEN OLD.ended_at IS NOT NULL BEGIN
    UPDATE finished_tasks SET finished = finished - 1;
END;
CREATE TABLE probes (filler BLOB NOT NULL) STRICT;
ALTER TABLE jobs ADD COLUMN user_id TEXT;
ALTER TABLE jobs ADD COLUMN placement TEXT NOT NULL DEFAULT '{}';
ALTER TABLE jobs ADD COLUMN rank INTEGER NOT NULL DEFAULT 0;
UPDATE jobs SET user_id = (SELECT user_id FROM tasks WHERE id = task_id);
UPDATE jobs SET placement = (
    SELECT iif(count(*) > 0, json_object('labels', json_group_array(value)), '{}')
    FROM (SELECT DISTINCT label.value FROM tasks t, json_each(t.spec, '$.node_labels') label
          WHERE t.id = jobs.task_id ORDER BY label.value)
) WHERE status IN ('queued', 'running');
DROP INDEX jobs_queued;
CREATE INDEX jobs_queued ON jobs (user_id, placement, rank, id, not_before) WHERE status = 'queued';
DROP INDEX jobs_running;
CREATE INDEX jobs_running ON jobs (node_id, user_id) WHERE status = 'running';
