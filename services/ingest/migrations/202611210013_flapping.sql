-- migrate:up
-- When each alert changed its state last, by its sender's clock; alerts that were over once and for all have no row.
ALTER TABLE ingest.turns ADD COLUMN times timestamptz[] NOT NULL DEFAULT '{}', DROP COLUMN count;

ALTER TABLE ingest.incidents
    -- while it flaps: when it is calm unless an alert of it changes
    ADD COLUMN calm_time timestamptz;
UPDATE ingest.incidents SET calm_time = now() WHERE flapping;
CREATE INDEX incidents_flapping ON ingest.incidents (calm_time) WHERE flapping;

-- migrate:down
DROP INDEX ingest.incidents_flapping;
ALTER TABLE ingest.incidents DROP COLUMN calm_time;
DELETE FROM ingest.turns;
ALTER TABLE ingest.turns DROP COLUMN times, ADD COLUMN count integer NOT NULL;
