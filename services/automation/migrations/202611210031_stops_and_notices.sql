-- migrate:up
ALTER TABLE automation.executions
    ADD COLUMN rule_id text NOT NULL DEFAULT '',
    -- the kill that stopped it, since when it is being stopped, and whether it goes on at the engine all the same
    ADD COLUMN kill_id text NOT NULL DEFAULT '',
    ADD COLUMN kill_time timestamptz,
    ADD COLUMN unstopped boolean NOT NULL DEFAULT false;
CREATE INDEX executions_ended ON automation.executions (end_time) WHERE end_time IS NOT NULL;

ALTER TABLE automation.steps
    -- environment of the target, as guardrails derived it
    ADD COLUMN environment text NOT NULL DEFAULT '',
    -- how often this attempt was judged anew because the state of its target had changed
    ADD COLUMN renewals integer NOT NULL DEFAULT 0;
CREATE INDEX steps_observed ON automation.steps (execution_id) WHERE state = 'OBSERVED';

-- what is deleted when its time is over goes as a whole
ALTER TABLE automation.steps DROP CONSTRAINT steps_execution_id_fkey, ADD CONSTRAINT steps_execution_id_fkey
    FOREIGN KEY (execution_id) REFERENCES automation.executions (execution_id) ON DELETE CASCADE;
ALTER TABLE automation.locks DROP CONSTRAINT locks_execution_id_fkey, ADD CONSTRAINT locks_execution_id_fkey
    FOREIGN KEY (execution_id) REFERENCES automation.executions (execution_id) ON DELETE CASCADE;

-- every execution that was in the scope of a kill, until guardrails was told that it has stopped
CREATE TABLE automation.kill_stops (
    kill_id uuid NOT NULL,
    execution_id uuid NOT NULL REFERENCES automation.executions (execution_id) ON DELETE CASCADE,
    -- as last reported: empty, UNSTOPPED or STOPPED
    reported text NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (kill_id, execution_id)
);
CREATE INDEX kill_stops_open ON automation.kill_stops (kill_id) WHERE reported <> 'STOPPED';
CREATE INDEX kill_stops_execution ON automation.kill_stops (execution_id);

-- what people were told about an approval or a kill; kind CLOSED: nothing more will be said
CREATE TABLE automation.notices (
    subject uuid NOT NULL,
    kind text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (subject, kind)
);
CREATE INDEX notices_time ON automation.notices (create_time);

GRANT DELETE ON automation.executions TO opsmesh_automation;
GRANT SELECT, INSERT, UPDATE, DELETE ON automation.kill_stops, automation.notices TO opsmesh_automation;
GRANT SELECT ON automation.kill_stops, automation.notices TO opsmesh_reader;
GRANT SELECT (rule_id, kill_id, kill_time, unstopped) ON automation.executions TO opsmesh_reader;
GRANT SELECT (environment, renewals) ON automation.steps TO opsmesh_reader;

-- migrate:down
DROP TABLE automation.notices, automation.kill_stops;
REVOKE DELETE ON automation.executions FROM opsmesh_automation;
ALTER TABLE automation.steps DROP COLUMN environment, DROP COLUMN renewals;
ALTER TABLE automation.executions DROP COLUMN rule_id, DROP COLUMN kill_id, DROP COLUMN kill_time,
    DROP COLUMN unstopped;
