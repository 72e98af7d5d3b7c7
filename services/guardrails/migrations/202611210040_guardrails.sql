-- migrate:up
CREATE SCHEMA guardrails AUTHORIZATION opsmesh_owner;

-- Immutable versions; one covers the rules and the inventory.
CREATE TABLE guardrails.policy_sets (
    version bigint PRIMARY KEY CHECK (version >= 1),
    policy_set bytea NOT NULL,
    inventory bytea NOT NULL,
    digest text NOT NULL,
    publisher text NOT NULL,
    publish_time timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What holds now, in the one row that leases, grants and publishes all read.
CREATE TABLE guardrails.state (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    policy_set_version bigint NOT NULL DEFAULT 0 CHECK (policy_set_version >= 0),
    kill_epoch bigint NOT NULL DEFAULT 0 CHECK (kill_epoch >= 0)
);
INSERT INTO guardrails.state DEFAULT VALUES;

-- Rows stay when a lock is free, so that fences only grow; an empty holder is nobody.
CREATE TABLE guardrails.locks (
    target_id text PRIMARY KEY,
    holder text NOT NULL,
    fence bigint NOT NULL CHECK (fence >= 1),
    expire_time timestamptz NOT NULL
);

CREATE TABLE guardrails.approvals (
    approval_id uuid PRIMARY KEY,
    state text NOT NULL CHECK (state IN ('PENDING', 'EXPIRED')),
    method text NOT NULL,
    request_id uuid NOT NULL,
    digest bytea NOT NULL,
    requester text NOT NULL,
    incident_id text NOT NULL,
    -- The serialised request, Judgement and ActionContext: what a person is asked about, exactly.
    request bytea NOT NULL,
    judgement bytea NOT NULL,
    context bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    expire_time timestamptz NOT NULL,
    UNIQUE (requester, method, request_id, digest)
);
CREATE INDEX approvals_pending ON guardrails.approvals (expire_time) WHERE state = 'PENDING';
CREATE INDEX approvals_newest ON guardrails.approvals (create_time DESC, approval_id DESC);

-- The ledger behind the hourly caps: a notice counts once, however often it is authorised.
CREATE TABLE guardrails.notices (
    channel text NOT NULL,
    method text NOT NULL,
    request_id uuid NOT NULL,
    reserve_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (channel, method, request_id)
);
CREATE INDEX notices_recent ON guardrails.notices (channel, reserve_time);

CREATE TABLE guardrails.requests (
    caller text NOT NULL,
    method text NOT NULL,
    request_id uuid NOT NULL,
    digest bytea NOT NULL,
    response bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (method, request_id)
);

CREATE TABLE guardrails.outbox (
    event_id uuid PRIMARY KEY,
    event bytea NOT NULL,
    ready_time timestamptz NOT NULL DEFAULT now(),
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_ready ON guardrails.outbox (ready_time);

GRANT USAGE ON SCHEMA guardrails TO opsmesh_guardrails, opsmesh_reader;
-- Published versions are never changed, fences and approvals never forgotten.
GRANT SELECT, INSERT ON guardrails.policy_sets TO opsmesh_guardrails;
GRANT SELECT, UPDATE ON guardrails.state TO opsmesh_guardrails;
GRANT SELECT, INSERT, UPDATE ON guardrails.locks, guardrails.approvals TO opsmesh_guardrails;
GRANT SELECT, INSERT, DELETE ON guardrails.notices TO opsmesh_guardrails;
GRANT SELECT, INSERT, UPDATE, DELETE ON guardrails.requests, guardrails.outbox TO opsmesh_guardrails;
GRANT SELECT ON ALL TABLES IN SCHEMA guardrails TO opsmesh_reader;

-- migrate:down
DROP SCHEMA guardrails CASCADE;
