-- migrate:up
ALTER TABLE guardrails.approvals
    DROP CONSTRAINT approvals_state_check,
    DROP CONSTRAINT approvals_requester_method_request_id_digest_key,
    -- A changed state of the target is asked about once more, with the same bytes.
    ADD COLUMN renewal smallint NOT NULL DEFAULT 0 CHECK (renewal BETWEEN 0 AND 1),
    -- Who changed the arguments, beside the requester and the person of the context.
    ADD COLUMN amenders text[] NOT NULL DEFAULT '{}',
    ADD COLUMN approvers_needed smallint NOT NULL DEFAULT 2 CHECK (approvers_needed >= 1),
    ADD COLUMN groups_needed text[] NOT NULL DEFAULT '{}',
    -- The second clock: how long after approval, and until when.
    ADD COLUMN execute_seconds double precision NOT NULL DEFAULT 300,
    ADD COLUMN execute_before_time timestamptz,
    ADD COLUMN execute_time timestamptz,
    ADD COLUMN close_reason text NOT NULL DEFAULT '',
    ADD COLUMN close_detail text NOT NULL DEFAULT '',
    -- [{"field", "before", "after"}]
    ADD COLUMN changes jsonb NOT NULL DEFAULT '[]',
    ADD COLUMN amends_approval_id uuid REFERENCES guardrails.approvals (approval_id),
    ADD COLUMN superseded_by uuid REFERENCES guardrails.approvals (approval_id),
    ADD COLUMN update_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    -- What a kill may be about, and the epoch under which it was asked.
    ADD COLUMN kill_epoch bigint NOT NULL DEFAULT 0,
    ADD COLUMN environment text NOT NULL DEFAULT '',
    ADD COLUMN target_id text NOT NULL DEFAULT '',
    ADD COLUMN playbook_id text NOT NULL DEFAULT '',
    ADD COLUMN execution_id text NOT NULL DEFAULT '',
    ADD COLUMN run_id text NOT NULL DEFAULT '';

-- Nobody could answer these, and who must was not stored: no answer means no.
UPDATE guardrails.approvals
SET state = 'EXPIRED', close_reason = 'APPROVAL_EXPIRED', close_detail = 'nobody answered in time',
    expire_time = least(expire_time, clock_timestamp()), update_time = clock_timestamp();

ALTER TABLE guardrails.approvals
    ALTER COLUMN approvers_needed DROP DEFAULT,
    ALTER COLUMN execute_seconds DROP DEFAULT,
    ADD CONSTRAINT approvals_state_check
        CHECK (state IN ('PENDING', 'EXPIRED', 'APPROVED', 'REJECTED', 'AMENDED', 'VOID')),
    ADD CONSTRAINT approvals_clock_check CHECK (state <> 'APPROVED' OR execute_before_time IS NOT NULL),
    ADD CONSTRAINT approvals_close_check CHECK ((state IN ('PENDING', 'APPROVED')) = (close_reason = '')),
    ADD UNIQUE (requester, method, request_id, digest, renewal);
CREATE INDEX approvals_waiting ON guardrails.approvals (execute_before_time)
    WHERE state = 'APPROVED' AND execute_time IS NULL;
CREATE INDEX approvals_changed ON guardrails.approvals (update_time);
CREATE INDEX approvals_by_state ON guardrails.approvals (state, create_time DESC, approval_id DESC);
CREATE INDEX approvals_of_incident ON guardrails.approvals (incident_id, create_time DESC, approval_id DESC);

-- One answer per person.
CREATE TABLE guardrails.votes (
    approval_id uuid NOT NULL REFERENCES guardrails.approvals (approval_id),
    person text NOT NULL,
    answer text NOT NULL CHECK (answer IN ('APPROVE', 'REJECT')),
    groups text[] NOT NULL,
    comment text NOT NULL,
    vote_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (approval_id, person)
);
-- What a person answered is never changed.
GRANT SELECT, INSERT ON guardrails.votes TO opsmesh_guardrails;
GRANT SELECT ON guardrails.votes TO opsmesh_reader;

-- migrate:down
DROP INDEX guardrails.approvals_by_state, guardrails.approvals_of_incident;
DROP TABLE guardrails.votes;
UPDATE guardrails.approvals
SET superseded_by = NULL, amends_approval_id = NULL,
    close_reason = CASE WHEN state = 'PENDING' THEN '' ELSE 'APPROVAL_EXPIRED' END,
    state = CASE WHEN state = 'PENDING' THEN 'PENDING' ELSE 'EXPIRED' END;
DELETE FROM guardrails.approvals WHERE renewal > 0;
ALTER TABLE guardrails.approvals
    DROP CONSTRAINT approvals_state_check,
    DROP CONSTRAINT approvals_clock_check,
    DROP CONSTRAINT approvals_close_check,
    DROP COLUMN renewal, DROP COLUMN amenders, DROP COLUMN approvers_needed, DROP COLUMN groups_needed,
    DROP COLUMN execute_seconds, DROP COLUMN execute_before_time, DROP COLUMN execute_time, DROP COLUMN close_reason,
    DROP COLUMN close_detail, DROP COLUMN changes, DROP COLUMN amends_approval_id, DROP COLUMN superseded_by,
    DROP COLUMN update_time, DROP COLUMN kill_epoch, DROP COLUMN environment, DROP COLUMN target_id,
    DROP COLUMN playbook_id, DROP COLUMN execution_id, DROP COLUMN run_id,
    ADD CONSTRAINT approvals_state_check CHECK (state IN ('PENDING', 'EXPIRED')),
    ADD UNIQUE (requester, method, request_id, digest);
