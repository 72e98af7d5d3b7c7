-- migrate:up
ALTER TABLE ingest.alerts
    -- of an alert whose newest word is an occurrence: when it was told last, and when it is over unless told again (null
    -- is never); both by our clock
    ADD COLUMN told_time timestamptz,
    ADD COLUMN expire_time timestamptz;
CREATE INDEX alerts_expiring ON ingest.alerts (expire_time) WHERE NOT over AND expire_time IS NOT NULL;
-- Also what of an incident lasts longest: nulls come first.
DROP INDEX ingest.alerts_active;
CREATE INDEX alerts_active ON ingest.alerts (incident_id, expire_time DESC) WHERE NOT over;

ALTER TABLE ingest.incidents
    -- since when its last alert was not told again; null while one is active, or when its sender resolved it
    ADD COLUMN expire_time timestamptz;

-- What was told before counts from now on; 64 is the bit of an occurrence, and who was told more has a resolve.
UPDATE ingest.alerts SET told_time = now(), expire_time = now() + interval '1 hour' WHERE seen = 64 AND NOT over;

-- migrate:down
ALTER TABLE ingest.incidents DROP COLUMN expire_time;
DROP INDEX ingest.alerts_active;
DROP INDEX ingest.alerts_expiring;
ALTER TABLE ingest.alerts DROP COLUMN told_time, DROP COLUMN expire_time;
CREATE INDEX alerts_active ON ingest.alerts (incident_id) WHERE NOT over;
