-- From version 1 to 2: whose slug a node has, and the slug of a node that is gone.

ALTER TABLE nodes ADD COLUMN node_key_sha256 TEXT;
ALTER TABLE jobs ADD COLUMN node_slug TEXT;
