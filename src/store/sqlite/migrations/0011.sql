-- From version 10 to 11: tokens with which new nodes join, and the nodes that joined by them.

CREATE TABLE join_tokens (
    id TEXT PRIMARY KEY, secret_sha256 TEXT NOT NULL UNIQUE, slug TEXT, max_uses INTEGER NOT NULL,
    created_by TEXT NOT NULL REFERENCES users (id), created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    removed_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE join_token_uses (
    token_id TEXT NOT NULL REFERENCES join_tokens (id), node_key_sha256 TEXT NOT NULL, slug TEXT NOT NULL,
    used_at INTEGER NOT NULL, PRIMARY KEY (token_id, node_key_sha256, slug)
) STRICT, WITHOUT ROWID;
