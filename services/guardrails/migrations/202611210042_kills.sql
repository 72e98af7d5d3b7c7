-- migrate:up
-- A kill stops all of its scope while it holds, and makes void for ever what was granted in it under a lower epoch.
CREATE TABLE guardrails.kills (
    kill_id uuid PRIMARY KEY,
    epoch bigint NOT NULL UNIQUE CHECK (epoch >= 1),
    -- The field of KillScope that is set, and its value; everything has none.
    kind text NOT NULL
        CHECK (kind IN ('everything', 'environment', 'target_id', 'tool', 'playbook_id', 'execution_id', 'run_id')),
    value text NOT NULL CHECK ((kind = 'everything') = (value = '')),
    reason text NOT NULL,
    engager text NOT NULL,
    engage_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- How many different people had to release it when it was last asked for; 0 before that.
    releasers_needed smallint NOT NULL DEFAULT 0,
    release_time timestamptz
);
CREATE INDEX kills_active ON guardrails.kills (epoch) WHERE release_time IS NULL;
CREATE INDEX kills_released ON guardrails.kills (release_time) WHERE release_time IS NOT NULL;

-- One row per person, however often they say it.
CREATE TABLE guardrails.kill_releases (
    kill_id uuid NOT NULL REFERENCES guardrails.kills (kill_id),
    releaser text NOT NULL,
    reason text NOT NULL,
    release_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kill_id, releaser)
);

-- That a service has reported, also when nothing of it was in scope.
CREATE TABLE guardrails.kill_reports (
    kill_id uuid NOT NULL REFERENCES guardrails.kills (kill_id),
    reporter text NOT NULL,
    report_time timestamptz NOT NULL,
    PRIMARY KEY (kill_id, reporter)
);

-- The numbers are those of Stop.Kind and Stop.State.
CREATE TABLE guardrails.kill_stops (
    kill_id uuid NOT NULL REFERENCES guardrails.kills (kill_id),
    reporter text NOT NULL,
    kind smallint NOT NULL,
    subject text NOT NULL,
    state smallint NOT NULL,
    detail text NOT NULL,
    deadline_time timestamptz,
    report_time timestamptz NOT NULL,
    PRIMARY KEY (kill_id, reporter, kind, subject)
);
-- Whatever was ever told to be stopped is asked for at each of its actions.
CREATE INDEX kill_stops_subjects ON guardrails.kill_stops (subject);

-- Who waits for a lock; rank 1 is a person, 2 a rule, 3 an agent. Whoever is not seen for a while waits no more.
CREATE TABLE guardrails.lock_waiters (
    target_id text NOT NULL,
    holder text NOT NULL,
    rank smallint NOT NULL CHECK (rank BETWEEN 1 AND 3),
    wait_time timestamptz NOT NULL,
    seen_time timestamptz NOT NULL,
    PRIMARY KEY (target_id, holder)
);

CREATE TABLE guardrails.claims (
    target_id text PRIMARY KEY,
    run_id uuid NOT NULL,
    expire_time timestamptz NOT NULL
);

-- The ledger behind the caps of effects: a request counts once, however often it is authorised.
CREATE TABLE guardrails.effects_ledger (
    method text NOT NULL,
    request_id uuid NOT NULL,
    target_id text NOT NULL,
    environment text NOT NULL,
    reserve_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (method, request_id)
);
CREATE INDEX effects_ledger_of_target ON guardrails.effects_ledger (target_id, reserve_time);
CREATE INDEX effects_ledger_of_environment ON guardrails.effects_ledger (environment, reserve_time);
CREATE INDEX effects_ledger_recent ON guardrails.effects_ledger (reserve_time);

-- What a kill may still make void; asked for twice a second.
CREATE INDEX approvals_open ON guardrails.approvals (kill_epoch)
    WHERE state = 'PENDING' OR (state = 'APPROVED' AND execute_time IS NULL);

-- Kills, who released them and who reported are never forgotten.
GRANT SELECT, INSERT, UPDATE ON guardrails.kills, guardrails.kill_reports, guardrails.kill_stops
    TO opsmesh_guardrails;
GRANT SELECT, INSERT ON guardrails.kill_releases TO opsmesh_guardrails;
GRANT SELECT, INSERT, UPDATE, DELETE ON guardrails.lock_waiters, guardrails.claims, guardrails.effects_ledger
    TO opsmesh_guardrails;
GRANT SELECT ON guardrails.kills, guardrails.kill_releases, guardrails.kill_reports, guardrails.kill_stops,
    guardrails.lock_waiters, guardrails.claims, guardrails.effects_ledger TO opsmesh_reader;

-- migrate:down
DROP INDEX guardrails.approvals_open;
DROP TABLE guardrails.effects_ledger, guardrails.claims, guardrails.lock_waiters, guardrails.kill_stops,
    guardrails.kill_reports, guardrails.kill_releases, guardrails.kills;
