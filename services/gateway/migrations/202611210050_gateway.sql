-- migrate:up
CREATE SCHEMA gateway AUTHORIZATION opsmesh_owner;

-- One row per (tool, request id): what was done, at most once.
CREATE TABLE gateway.effects (
    method text NOT NULL,
    request_id uuid NOT NULL,
    state text NOT NULL CHECK (state IN ('STARTED', 'SUCCEEDED', 'FAILED', 'UNKNOWN', 'NOT_STARTED')),
    -- Counts how often it was started; names the audit intent of each try.
    tries integer NOT NULL CHECK (tries >= 1),
    digest bytea NOT NULL,
    caller text NOT NULL,
    -- The serialised request and grant: whoever resolves needs both.
    request bytea NOT NULL,
    authority bytea NOT NULL,
    target_id text NOT NULL,
    environment text NOT NULL,
    fence bigint NOT NULL CHECK (fence >= 0),
    incident_id text NOT NULL,
    execution_id text NOT NULL,
    step_id text NOT NULL,
    trace_id text NOT NULL,
    -- The stored answer of a success; reason and detail of everything else.
    response bytea,
    reason text NOT NULL DEFAULT '',
    detail text NOT NULL DEFAULT '',
    settler text NOT NULL DEFAULT '',
    start_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    deadline_time timestamptz NOT NULL,
    end_time timestamptz,
    -- How often the outcome was asked for in vain, and when to ask again.
    resolve_tries integer NOT NULL DEFAULT 0,
    resolve_time timestamptz NOT NULL,
    PRIMARY KEY (method, request_id)
);
CREATE INDEX effects_due ON gateway.effects (resolve_time) WHERE state = 'STARTED';
CREATE INDEX effects_at_work ON gateway.effects (target_id) WHERE state = 'STARTED';
CREATE INDEX effects_newest ON gateway.effects (start_time DESC, method, request_id);

-- The highest fence that ever acted on a target; only grows.
CREATE TABLE gateway.fences (
    target_id text PRIMARY KEY,
    fence bigint NOT NULL CHECK (fence >= 1)
);

CREATE TABLE gateway.requests (
    caller text NOT NULL,
    method text NOT NULL,
    request_id uuid NOT NULL,
    digest bytea NOT NULL,
    response bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (method, request_id)
);

CREATE TABLE gateway.outbox (
    event_id uuid PRIMARY KEY,
    event bytea NOT NULL,
    ready_time timestamptz NOT NULL DEFAULT now(),
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_ready ON gateway.outbox (ready_time);

GRANT USAGE ON SCHEMA gateway TO opsmesh_gateway, opsmesh_reader;
-- Effects are never deleted by the gateway itself: they are what makes a repeated request harmless.
GRANT SELECT, INSERT, UPDATE ON gateway.effects, gateway.fences TO opsmesh_gateway;
GRANT SELECT, INSERT, UPDATE, DELETE ON gateway.requests, gateway.outbox TO opsmesh_gateway;
GRANT SELECT ON ALL TABLES IN SCHEMA gateway TO opsmesh_reader;

-- migrate:down
DROP SCHEMA gateway CASCADE;
