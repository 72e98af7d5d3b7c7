-- migrate:up
ALTER TABLE router.decisions
    -- When it got its outcome: what waited hours for a model starts something now, and counts from now.
    ADD COLUMN made_time timestamptz,
    -- What kept a start back: the cap on starts, or an alert that flaps.
    ADD COLUMN brake text NOT NULL DEFAULT 'UNSPECIFIED' CHECK (brake IN ('UNSPECIFIED', 'CAP', 'FLAPPING'));
UPDATE router.decisions SET made_time = create_time;
ALTER TABLE router.decisions
    ALTER COLUMN made_time SET DEFAULT clock_timestamp(),
    ALTER COLUMN made_time SET NOT NULL;
DROP INDEX router.decisions_started;
CREATE INDEX decisions_started ON router.decisions (correlation_key, (coalesce(start_time, made_time)))
    WHERE outcome IN ('TRIGGER_AUTOMATION', 'DELEGATE_AGENT') AND correlation_key <> '';

-- migrate:down
DROP INDEX router.decisions_started;
ALTER TABLE router.decisions DROP COLUMN made_time, DROP COLUMN brake;
CREATE INDEX decisions_started ON router.decisions (correlation_key, create_time)
    WHERE outcome = 'TRIGGER_AUTOMATION' AND correlation_key <> '';
