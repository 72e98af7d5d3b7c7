-- migrate:up
-- When the sender said that it was over, in nanoseconds since 1970: what began before that is the same firing.
ALTER TABLE ingest.alerts ADD COLUMN end_time bigint;

-- migrate:down
ALTER TABLE ingest.alerts DROP COLUMN end_time;
