-- migrate:up
-- How often a playbook was started for the same trouble within an hour is counted over its incidents.
ALTER TABLE router.decisions ADD COLUMN correlation_key text NOT NULL DEFAULT '';
CREATE INDEX decisions_started ON router.decisions (correlation_key, create_time)
    WHERE outcome = 'TRIGGER_AUTOMATION' AND correlation_key <> '';

-- migrate:down
DROP INDEX router.decisions_started;
ALTER TABLE router.decisions DROP COLUMN correlation_key;
