-- migrate:up
-- A decision whose start a kill (or a missing lease) refuses waits here, not in a process.
ALTER TABLE router.decisions
    DROP CONSTRAINT decisions_stage_check,
    ADD CONSTRAINT decisions_stage_check CHECK (stage IN ('NONE', 'START', 'FOLLOW', 'MODEL', 'NOTIFY', 'HELD')),
    -- Age of the incident above which its rule does not act, for the look after a release.
    ADD COLUMN max_age interval NOT NULL DEFAULT interval '1 hour',
    -- The kill that held it last; empty when it was a missing lease.
    ADD COLUMN held_by text NOT NULL DEFAULT '',
    ADD COLUMN held_words text NOT NULL DEFAULT '',
    -- Since when it was held; stays after it was started.
    ADD COLUMN held_time timestamptz,
    -- Since when its start is tried after a release: it may have begun, whatever is known of it.
    ADD COLUMN start_time timestamptz;
CREATE INDEX decisions_held ON router.decisions (create_time) WHERE stage = 'HELD';

-- When the next held decision may be started: one row for all replicas, so that together they keep the pace.
CREATE TABLE router.pace (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    next_time timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO router.pace DEFAULT VALUES;

-- The service may not delete decisions, only those of one incident that were all closed long ago.
CREATE FUNCTION router.forget_decisions(forgotten uuid, age interval) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER SET search_path = router, pg_temp AS $$
    WITH gone AS (
        DELETE FROM router.decisions WHERE incident_id = forgotten AND NOT EXISTS (
            SELECT FROM router.decisions kept WHERE kept.incident_id = forgotten AND (
                kept.state <> 'CLOSED' OR kept.close_time >= clock_timestamp() - greatest(age, interval '1 day')))
        RETURNING 1)
    SELECT count(*) FROM gone
$$;
REVOKE ALL ON FUNCTION router.forget_decisions(uuid, interval) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION router.forget_decisions(uuid, interval) TO opsmesh_router;
GRANT SELECT, UPDATE ON router.pace TO opsmesh_router;
GRANT SELECT ON router.pace TO opsmesh_reader;

-- migrate:down
DROP TABLE router.pace;
DROP FUNCTION router.forget_decisions(uuid, interval);
DROP INDEX router.decisions_held;
UPDATE router.decisions SET stage = 'START' WHERE stage = 'HELD';
ALTER TABLE router.decisions
    DROP CONSTRAINT decisions_stage_check,
    ADD CONSTRAINT decisions_stage_check CHECK (stage IN ('NONE', 'START', 'FOLLOW', 'MODEL', 'NOTIFY')),
    DROP COLUMN max_age,
    DROP COLUMN held_by,
    DROP COLUMN held_words,
    DROP COLUMN held_time,
    DROP COLUMN start_time;
