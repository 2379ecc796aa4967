-- From version 9 to 10: sandboxes that stay, which are tasks without a command.

ALTER TABLE tasks ADD COLUMN sandbox TEXT;
DROP INDEX tasks_by_user;
DROP INDEX tasks_by_status;
CREATE INDEX tasks_by_user ON tasks (user_id, status, id, sandbox) WHERE sandbox IS NULL;
CREATE INDEX tasks_by_status ON tasks (status, id, sandbox) WHERE sandbox IS NULL;
CREATE INDEX sandboxes_by_id ON tasks (id) WHERE sandbox IS NOT NULL;
CREATE INDEX sandboxes_by_user ON tasks (user_id, id) WHERE sandbox IS NOT NULL;
CREATE INDEX sandboxes_by_name ON tasks (sandbox ->> '$.name', user_id, ended_at IS NULL, id) WHERE sandbox IS NOT NULL;
CREATE INDEX sandboxes_live ON tasks (user_id, id) WHERE sandbox IS NOT NULL AND ended_at IS NULL;
