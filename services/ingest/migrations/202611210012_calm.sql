-- migrate:up
ALTER TABLE ingest.incidents
    -- firings that belong to it; with too many of them, or too old, it is sealed and the next one opens another
    ADD COLUMN alert_count bigint NOT NULL DEFAULT 0,
    ADD COLUMN sealed boolean NOT NULL DEFAULT false,
    ADD COLUMN flapping boolean NOT NULL DEFAULT false,
    -- of correlation.yaml; empty when none took its alerts
    ADD COLUMN correlation_rule_id text NOT NULL DEFAULT '';
DROP INDEX ingest.incidents_open;
CREATE UNIQUE INDEX incidents_open ON ingest.incidents (correlation_key)
    WHERE state NOT IN ('RESOLVED', 'STALE') AND NOT sealed;
-- what may open again
CREATE INDEX incidents_resolved ON ingest.incidents (correlation_key, resolve_time) WHERE state = 'RESOLVED';

-- How often an alert fired anew after it was over, since when; alerts that never did have no row.
CREATE TABLE ingest.turns (
    source text NOT NULL,
    dedup_key text NOT NULL,
    count integer NOT NULL,
    since timestamptz NOT NULL,
    PRIMARY KEY (source, dedup_key)
);
CREATE INDEX turns_since ON ingest.turns (since);

-- A serialised ingest.v1.Delivery without its body: what handing in again needs. Empty where it could not be read.
ALTER TABLE ingest.dead_letters ADD COLUMN delivery bytea NOT NULL DEFAULT '';

GRANT SELECT, INSERT, UPDATE, DELETE ON ingest.turns TO opsmesh_ingest;
GRANT SELECT ON ingest.turns TO opsmesh_reader;

-- migrate:down
ALTER TABLE ingest.dead_letters DROP COLUMN delivery;
DROP TABLE ingest.turns;
DROP INDEX ingest.incidents_resolved;
DROP INDEX ingest.incidents_open;
UPDATE ingest.incidents SET state = 'STALE', state_detail = 'another incident of its key is open' WHERE sealed
    AND state NOT IN ('RESOLVED', 'STALE');
CREATE UNIQUE INDEX incidents_open ON ingest.incidents (correlation_key) WHERE state NOT IN ('RESOLVED', 'STALE');
ALTER TABLE ingest.incidents
    DROP COLUMN alert_count,
    DROP COLUMN sealed,
    DROP COLUMN flapping,
    DROP COLUMN correlation_rule_id;
