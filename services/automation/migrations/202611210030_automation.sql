-- migrate:up
CREATE SCHEMA automation;

CREATE TABLE automation.playbooks (
    playbook_id text NOT NULL,
    version bigint NOT NULL CHECK (version > 0),
    active boolean NOT NULL,
    digest text NOT NULL,
    content bytea NOT NULL,
    publisher text NOT NULL,
    publish_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (playbook_id, version)
);
CREATE UNIQUE INDEX playbooks_active ON automation.playbooks (playbook_id) WHERE active;

CREATE TABLE automation.executions (
    execution_id uuid PRIMARY KEY,
    playbook_id text NOT NULL,
    playbook_version bigint NOT NULL,
    playbook_digest text NOT NULL,
    state text NOT NULL DEFAULT 'PENDING',
    incident_id uuid NOT NULL,
    incident bytea NOT NULL,
    decision_id text NOT NULL,
    rule_set_version bigint NOT NULL,
    requester text NOT NULL,
    on_behalf_of text NOT NULL,
    traceparent text NOT NULL,
    health_proved boolean NOT NULL DEFAULT false,
    detail text NOT NULL DEFAULT '',
    cancel_requested boolean NOT NULL DEFAULT false,
    cancel_reason text NOT NULL DEFAULT '',
    -- how often the engine was given it, and when to look after it next; who inserts it starts it at once by itself
    engine_starts integer NOT NULL DEFAULT 0,
    check_time timestamptz NOT NULL DEFAULT now() + interval '2 seconds',
    create_time timestamptz NOT NULL DEFAULT now(),
    start_time timestamptz,
    end_time timestamptz,
    FOREIGN KEY (playbook_id, playbook_version) REFERENCES automation.playbooks (playbook_id, version)
);
CREATE INDEX executions_newest ON automation.executions (create_time DESC, execution_id DESC);
CREATE INDEX executions_incident ON automation.executions (incident_id);
CREATE INDEX executions_open ON automation.executions (check_time)
    WHERE state IN ('PENDING', 'RUNNING', 'AWAITING_APPROVAL');

CREATE TABLE automation.steps (
    execution_id uuid NOT NULL REFERENCES automation.executions (execution_id),
    step_id text NOT NULL,
    position integer NOT NULL,
    state text NOT NULL,
    tool text NOT NULL,
    attempt integer NOT NULL DEFAULT 0,
    request_id text NOT NULL DEFAULT '',
    target_id text NOT NULL DEFAULT '',
    reason text NOT NULL DEFAULT '',
    detail text NOT NULL DEFAULT '',
    approval_id text NOT NULL DEFAULT '',
    -- whether the gateway may have seen the effect of this attempt
    sent boolean NOT NULL DEFAULT false,
    request_json text NOT NULL DEFAULT '',
    response_json text NOT NULL DEFAULT '',
    response bytea,
    start_time timestamptz,
    end_time timestamptz,
    PRIMARY KEY (execution_id, step_id)
);

CREATE TABLE automation.locks (
    execution_id uuid NOT NULL REFERENCES automation.executions (execution_id),
    target_id text NOT NULL,
    fence bigint NOT NULL,
    PRIMARY KEY (execution_id, target_id)
);

CREATE TABLE automation.requests (
    caller text NOT NULL,
    method text NOT NULL,
    request_id uuid NOT NULL,
    digest bytea NOT NULL,
    response bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (method, request_id)
);

CREATE TABLE automation.outbox (
    event_id uuid PRIMARY KEY,
    event bytea NOT NULL,
    ready_time timestamptz NOT NULL DEFAULT now(),
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX outbox_ready ON automation.outbox (ready_time);

GRANT USAGE ON SCHEMA automation TO opsmesh_automation, opsmesh_reader;
GRANT SELECT, INSERT ON automation.playbooks, automation.executions, automation.steps TO opsmesh_automation;
-- versions are immutable: only which one is active may change
GRANT UPDATE (active) ON automation.playbooks TO opsmesh_automation;
GRANT UPDATE ON automation.executions, automation.steps TO opsmesh_automation;
GRANT SELECT, INSERT, UPDATE, DELETE ON automation.locks, automation.requests, automation.outbox TO opsmesh_automation;
GRANT SELECT ON automation.playbooks, automation.locks, automation.requests, automation.outbox TO opsmesh_reader;
-- what is left out may hold fields that are masked everywhere else
GRANT SELECT (execution_id, playbook_id, playbook_version, playbook_digest, state, incident_id, decision_id,
    rule_set_version, requester, on_behalf_of, traceparent, health_proved, detail, cancel_requested, cancel_reason,
    engine_starts, check_time, create_time, start_time, end_time) ON automation.executions TO opsmesh_reader;
GRANT SELECT (execution_id, step_id, position, state, tool, attempt, request_id, target_id, reason, detail, approval_id,
    sent, request_json, response_json, start_time, end_time) ON automation.steps TO opsmesh_reader;

-- migrate:down
DROP SCHEMA automation CASCADE;
