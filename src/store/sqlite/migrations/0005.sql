-- From version 4 to 5: offers of an attempt to another node while the node of the job is silent.

ALTER TABLE jobs ADD COLUMN last_attempt INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN offered_node_id TEXT REFERENCES nodes (id);
UPDATE jobs SET last_attempt = attempt;
CREATE INDEX jobs_offered ON jobs (offered_node_id) WHERE offered_node_id IS NOT NULL;
