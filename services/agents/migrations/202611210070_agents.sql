-- migrate:up
CREATE SCHEMA agents AUTHORIZATION opsmesh_owner;

-- One row per call to a provider, made before it: the reservation of what it may use, then what it used.
CREATE TABLE agents.model_calls (
    call_id uuid PRIMARY KEY,
    request_id uuid NOT NULL,
    -- Certificate's identity of who asked, and for whom it said it asks.
    caller text NOT NULL,
    requester text NOT NULL,
    incident_id text NOT NULL,
    decision_id text NOT NULL,
    run_id text NOT NULL,
    conversation_id text NOT NULL,
    role text NOT NULL,
    model text NOT NULL,
    provider text NOT NULL,
    recorded boolean NOT NULL,
    -- SHA-256, hex, of everything the model was shown.
    prompt_digest text NOT NULL CHECK (length(prompt_digest) = 64),
    -- UNKNOWN: it may have been answered and paid for; its reservation stays spent.
    state text NOT NULL CHECK (state IN ('RUNNING', 'SUCCEEDED', 'FAILED', 'UNKNOWN')),
    detail text NOT NULL DEFAULT '',
    input_tokens bigint NOT NULL CHECK (input_tokens >= 0),
    output_tokens bigint NOT NULL CHECK (output_tokens >= 0),
    -- Not the provider's own figures.
    estimated boolean NOT NULL DEFAULT true,
    cost_micros bigint NOT NULL CHECK (cost_micros >= 0),
    -- Day (UTC) whose budgets it counts in.
    day date NOT NULL,
    start_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- Who asked is gone by then.
    deadline timestamptz NOT NULL,
    end_time timestamptz
);
-- A request is answered once at a time, whichever process answers.
CREATE UNIQUE INDEX model_calls_running ON agents.model_calls (request_id) WHERE state = 'RUNNING';
CREATE INDEX model_calls_incident ON agents.model_calls (incident_id, start_time);
CREATE INDEX model_calls_run ON agents.model_calls (run_id, start_time) WHERE run_id <> '';
CREATE INDEX model_calls_start ON agents.model_calls (start_time);

-- What is spent or reserved, per budget. An incident's has no day: it is for its whole life.
CREATE TABLE agents.spending (
    scope text NOT NULL CHECK (scope IN ('INCIDENT', 'DAY', 'REQUESTER')),
    subject text NOT NULL,
    day date NOT NULL,
    tokens bigint NOT NULL,
    cost_micros bigint NOT NULL,
    update_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (scope, subject, day)
);

CREATE TABLE agents.requests (
    caller text NOT NULL,
    method text NOT NULL,
    request_id uuid NOT NULL,
    digest bytea NOT NULL,
    response bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (method, request_id)
);

CREATE TABLE agents.outbox (
    event_id uuid PRIMARY KEY,
    event bytea NOT NULL,
    ready_time timestamptz NOT NULL DEFAULT now(),
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_ready ON agents.outbox (ready_time);

GRANT USAGE ON SCHEMA agents TO opsmesh_agents, opsmesh_reader;
GRANT SELECT, INSERT, UPDATE, DELETE ON agents.model_calls, agents.spending TO opsmesh_agents;
GRANT SELECT, INSERT, UPDATE, DELETE ON agents.requests, agents.outbox TO opsmesh_agents;
GRANT SELECT ON ALL TABLES IN SCHEMA agents TO opsmesh_reader;

-- migrate:down
DROP SCHEMA agents CASCADE;
