-- From version 11 to 12: secrets for jobs, encrypted.

CREATE TABLE secrets (
    owner TEXT NOT NULL, name TEXT NOT NULL, key_id TEXT NOT NULL, sealed BLOB NOT NULL,
    set_by TEXT NOT NULL REFERENCES users (id), created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL,
    PRIMARY KEY (owner, name)
) STRICT;
