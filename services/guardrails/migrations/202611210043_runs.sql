-- migrate:up
-- What a run may ever do follows from this row: it is written once, and then only ended.
CREATE TABLE guardrails.runs (
    run_id uuid PRIMARY KEY,
    -- The runs above it, the one that a service started first; empty for that one.
    ancestors uuid[] NOT NULL CHECK (cardinality(ancestors) <= 3),
    template_id text NOT NULL,
    incident_id text NOT NULL,
    decision_id text NOT NULL,
    target_ids text[] NOT NULL,
    registrar text NOT NULL,
    -- Of the identity token; empty without one. Not proved when the token was over already.
    person text NOT NULL,
    proved boolean NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    expire_time timestamptz NOT NULL,
    end_time timestamptz
);
CREATE INDEX runs_of_incident ON guardrails.runs (incident_id);
CREATE INDEX runs_below ON guardrails.runs USING gin (ancestors);
CREATE INDEX runs_expired ON guardrails.runs (expire_time);

GRANT SELECT, INSERT, DELETE ON guardrails.runs TO opsmesh_guardrails;
GRANT UPDATE (end_time) ON guardrails.runs TO opsmesh_guardrails;
GRANT SELECT ON guardrails.runs TO opsmesh_reader;

-- migrate:down
DROP TABLE guardrails.runs;
