-- From version 1 to 2: owners of slugs, and slugs of deleted nodes.

ALTER TABLE nodes ADD COLUMN node_key_sha256 TEXT;
ALTER TABLE jobs ADD COLUMN node_slug TEXT;
