-- From version 8 to 9: API keys, the use of models, the key by which an audited call was made, and whether an artifact
-- was executable.

CREATE TABLE api_keys (
    id TEXT PRIMARY KEY, user_id TEXT NOT NULL REFERENCES users (id), name TEXT NOT NULL, prefix TEXT NOT NULL,
    key_sha256 TEXT NOT NULL UNIQUE, scopes TEXT NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER,
    last_used_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX api_keys_by_user ON api_keys (user_id, id);
CREATE INDEX api_keys_by_expiry ON api_keys (expires_at) WHERE expires_at IS NOT NULL;
CREATE TABLE inference_usage (
    user_id TEXT NOT NULL REFERENCES users (id), day INTEGER NOT NULL, key_id TEXT NOT NULL DEFAULT '',
    task_id TEXT NOT NULL DEFAULT '', model TEXT NOT NULL, key_name TEXT NOT NULL DEFAULT '',
    requests INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    PRIMARY KEY (user_id, day, key_id, task_id, model)
) STRICT, WITHOUT ROWID;
CREATE INDEX inference_usage_by_day ON inference_usage (day);
CREATE INDEX inference_usage_by_task ON inference_usage (task_id) WHERE task_id <> '';
ALTER TABLE audit_log ADD COLUMN api_key TEXT;
ALTER TABLE artifacts ADD COLUMN is_executable INTEGER NOT NULL DEFAULT 0;
