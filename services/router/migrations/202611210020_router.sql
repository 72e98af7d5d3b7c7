-- migrate:up
CREATE SCHEMA router AUTHORIZATION opsmesh_owner;

-- Published rule sets: a version never changes.
CREATE TABLE router.rule_sets (
    version bigint PRIMARY KEY CHECK (version >= 1),
    -- SHA-256 of the deterministic serialisation, hex.
    digest text NOT NULL CHECK (length(digest) = 64),
    rule_count integer NOT NULL CHECK (rule_count >= 0),
    publisher text NOT NULL,
    publish_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- A serialised opsmesh.config.v1.RuleSet.
    content bytea NOT NULL
);

-- The one pointer to the version that decides; 0 until something is published. Publishing locks this row.
CREATE TABLE router.active_rule_set (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    version bigint NOT NULL CHECK (version >= 0)
);
INSERT INTO router.active_rule_set (version) VALUES (0);

-- Exactly one row per incident and revision.
CREATE TABLE router.decisions (
    decision_id uuid PRIMARY KEY,
    incident_id uuid NOT NULL,
    revision bigint NOT NULL CHECK (revision >= 1),
    state text NOT NULL CHECK (state IN ('AWAITING_MODEL', 'DECIDED', 'CLOSED')),
    outcome text NOT NULL,
    result text NOT NULL,
    rule_id text NOT NULL,
    rule_set_version bigint NOT NULL CHECK (rule_set_version >= 0),
    playbook_id text NOT NULL,
    reason text NOT NULL,
    execution_id text NOT NULL DEFAULT '',
    notice_execution_id text NOT NULL DEFAULT '',
    awaiting_approval boolean NOT NULL DEFAULT false,
    -- Which lane has work on it, when it looks next, and how often it has looked since the last news.
    stage text NOT NULL CHECK (stage IN ('NONE', 'START', 'FOLLOW', 'MODEL', 'NOTIFY')),
    due_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    attempts integer NOT NULL DEFAULT 0,
    -- W3C traceparent of the call that asked for it.
    traceparent text NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    close_time timestamptz,
    UNIQUE (incident_id, revision)
);
CREATE INDEX decisions_due ON router.decisions (stage, due_time) WHERE stage <> 'NONE';
CREATE INDEX decisions_newest ON router.decisions (create_time DESC, decision_id DESC);

CREATE TABLE router.requests (
    caller text NOT NULL,
    method text NOT NULL,
    request_id uuid NOT NULL,
    digest bytea NOT NULL,
    response bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (method, request_id)
);

CREATE TABLE router.outbox (
    event_id uuid PRIMARY KEY,
    event bytea NOT NULL,
    ready_time timestamptz NOT NULL DEFAULT now(),
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_ready ON router.outbox (ready_time);

GRANT USAGE ON SCHEMA router TO opsmesh_router, opsmesh_reader;
-- Versions are immutable for the service, too.
GRANT SELECT, INSERT ON router.rule_sets TO opsmesh_router;
GRANT SELECT, UPDATE ON router.active_rule_set TO opsmesh_router;
GRANT SELECT, INSERT, UPDATE ON router.decisions TO opsmesh_router;
GRANT SELECT, INSERT, UPDATE, DELETE ON router.requests, router.outbox TO opsmesh_router;
GRANT SELECT ON ALL TABLES IN SCHEMA router TO opsmesh_reader;

-- migrate:down
DROP SCHEMA router CASCADE;
