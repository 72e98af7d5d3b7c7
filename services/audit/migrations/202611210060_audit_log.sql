-- migrate:up
CREATE SCHEMA audit;

-- One row per AuditEvent: every field has its column, so that a filter is typed and an edited column breaks the hash.
CREATE TABLE audit.events (
    sequence           bigint      PRIMARY KEY CHECK (sequence >= 1),
    event_id           uuid        NOT NULL UNIQUE,
    phase              smallint    NOT NULL,
    actor              text        NOT NULL,
    on_behalf_of       text        NOT NULL,
    action             text        NOT NULL,
    target             text        NOT NULL,
    environment        text        NOT NULL,
    region             text        NOT NULL,
    incident_id        text        NOT NULL,
    decision_id        text        NOT NULL,
    execution_id       text        NOT NULL,
    step_id            text        NOT NULL,
    rule_set_version   bigint      NOT NULL,
    policy_set_version bigint      NOT NULL,
    outcome            smallint    NOT NULL,
    reason             text        NOT NULL,
    details            jsonb       NOT NULL,
    request_id         text        NOT NULL,
    request_digest     text        NOT NULL,
    trace_id           text        NOT NULL,
    event_time         timestamptz NOT NULL,
    append_time        timestamptz NOT NULL,
    writer             text        NOT NULL,
    previous_hash      bytea       NOT NULL CHECK (octet_length(previous_hash) = 32),
    hash               bytea       NOT NULL CHECK (octet_length(hash) = 32)
);
CREATE INDEX events_incident ON audit.events (incident_id, sequence) WHERE incident_id <> '';
CREATE INDEX events_execution ON audit.events (execution_id, sequence) WHERE execution_id <> '';
CREATE INDEX events_request ON audit.events (request_id, sequence) WHERE request_id <> '';
CREATE INDEX events_target ON audit.events (target, sequence) WHERE target <> '';

CREATE FUNCTION audit.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is append-only: % refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.events
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();

-- Whoever inserts must know the hash of the row before: two appenders cannot both be right, so the log cannot fork.
CREATE FUNCTION audit.refuse_fork() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (
        SELECT 1 FROM added LEFT JOIN audit.events AS before ON before.sequence = added.sequence - 1
        WHERE added.previous_hash IS DISTINCT FROM
            CASE WHEN added.sequence = 1 THEN decode(repeat('00', 32), 'hex') ELSE before.hash END
    ) THEN
        RAISE EXCEPTION 'the row does not follow the head of the audit log' USING ERRCODE = 'serialization_failure';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER one_chain AFTER INSERT ON audit.events REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_fork();

GRANT USAGE ON SCHEMA audit TO opsmesh_audit, opsmesh_reader;
GRANT SELECT, INSERT ON audit.events TO opsmesh_audit;
GRANT SELECT ON audit.events TO opsmesh_reader;

-- migrate:down
DO $$ BEGIN RAISE EXCEPTION 'no migration drops the audit log'; END $$;
