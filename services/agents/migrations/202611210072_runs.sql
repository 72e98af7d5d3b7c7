-- migrate:up
-- One row per run. Whoever holds its lease is the only one who writes its state; what others wish (cancel, a kill, to
-- be looked at sooner) has columns of its own.
CREATE TABLE agents.runs (
    run_id uuid PRIMARY KEY,
    template_id text NOT NULL,
    template_version bigint NOT NULL,
    -- Serialised TemplateVersion as it was at the start: a later publish changes no run that is under way.
    template bytea NOT NULL,
    state text NOT NULL CHECK (state IN ('PENDING', 'RUNNING', 'AWAITING_APPROVAL', 'AWAITING_CHILD', 'SUCCEEDED',
        'FAILED', 'CANCELLED', 'UNKNOWN', 'OBSERVED')),
    incident_id uuid NOT NULL,
    -- Serialised Incident as it was at the start.
    incident bytea NOT NULL,
    decision_id text NOT NULL DEFAULT '',
    parent_run_id uuid,
    -- First of its path: claims are kept in its name.
    root_run_id uuid NOT NULL,
    depth int NOT NULL CHECK (depth BETWEEN 1 AND 4),
    -- Levels of child runs that may still be below it.
    levels int NOT NULL CHECK (levels BETWEEN 0 AND 3),
    goal text NOT NULL,
    target_ids text[] NOT NULL,
    requester text NOT NULL,
    identity_token bytea NOT NULL DEFAULT '',
    execution_id text NOT NULL DEFAULT '',
    execution_trace text NOT NULL DEFAULT '',
    traceparent text NOT NULL DEFAULT '',
    -- Token of the marks around untrusted text: no text that is shown to this run's model can contain it.
    marks text NOT NULL,
    token_limit bigint NOT NULL,
    cost_limit_micros bigint NOT NULL,
    -- Seconds, without those that people take to approve.
    time_limit double precision NOT NULL,
    token_count bigint NOT NULL DEFAULT 0,
    cost_micros bigint NOT NULL DEFAULT 0,
    recorded boolean NOT NULL DEFAULT false,
    -- It, or a run below it, may have changed something.
    did boolean NOT NULL DEFAULT false,
    registered boolean NOT NULL DEFAULT false,
    report bytea,
    health_proved boolean NOT NULL DEFAULT false,
    reason text NOT NULL DEFAULT '',
    detail text NOT NULL DEFAULT '',
    approval_id text NOT NULL DEFAULT '',
    kill_id text NOT NULL DEFAULT '',
    cancel_requested boolean NOT NULL DEFAULT false,
    cancel_reason text NOT NULL DEFAULT '',
    due_time timestamptz NOT NULL DEFAULT now(),
    lease_id uuid,
    lease_until timestamptz,
    claim_until timestamptz,
    begin_time timestamptz,
    waited double precision NOT NULL DEFAULT 0,
    wait_since timestamptz,
    create_time timestamptz NOT NULL DEFAULT now(),
    end_time timestamptz,
    -- It has ended, and guardrails knows.
    closed boolean NOT NULL DEFAULT false
);
CREATE INDEX runs_due ON agents.runs (due_time) WHERE NOT closed;
CREATE INDEX runs_newest ON agents.runs (create_time DESC, run_id DESC);
CREATE INDEX runs_incident ON agents.runs (incident_id, create_time DESC);
CREATE INDEX runs_root ON agents.runs (root_run_id) WHERE NOT closed;
CREATE INDEX runs_ended ON agents.runs (end_time) WHERE closed;

-- Steps are numbered as they begin; a step is written in one transaction with its run's row.
CREATE TABLE agents.run_steps (
    run_id uuid NOT NULL REFERENCES agents.runs ON DELETE CASCADE,
    number int NOT NULL CHECK (number >= 1),
    kind text NOT NULL CHECK (kind IN ('MODEL', 'READ', 'ACTION', 'DELEGATE', 'REPORT', 'PROOF')),
    state text NOT NULL CHECK (state IN ('RUNNING', 'AWAITING_APPROVAL', 'SUCCEEDED', 'FAILED', 'UNKNOWN', 'OBSERVED',
        'CANCELLED')),
    tool text NOT NULL DEFAULT '',
    -- Of the model's call that it answers.
    call_id text NOT NULL DEFAULT '',
    target_id text NOT NULL DEFAULT '',
    -- Serialised request, as the model's call was read or as people amended it.
    request bytea,
    arguments_json text NOT NULL DEFAULT '',
    result_digest text NOT NULL DEFAULT '',
    result text NOT NULL DEFAULT '',
    -- Somebody outside answered: only such steps are evidence.
    answered boolean NOT NULL DEFAULT false,
    -- The call was not understood, or not allowed in its place: nobody outside was asked.
    dropped boolean NOT NULL DEFAULT false,
    -- The gateway may have seen it.
    sent boolean NOT NULL DEFAULT false,
    tries int NOT NULL DEFAULT 0,
    fence bigint NOT NULL DEFAULT 0,
    reason text NOT NULL DEFAULT '',
    detail text NOT NULL DEFAULT '',
    verdict text NOT NULL DEFAULT '',
    approval_id text NOT NULL DEFAULT '',
    child_run_id text NOT NULL DEFAULT '',
    -- Of a model: the serialised reply, and what it took.
    reply bytea,
    prompt_digest text NOT NULL DEFAULT '',
    model text NOT NULL DEFAULT '',
    input_tokens bigint NOT NULL DEFAULT 0,
    output_tokens bigint NOT NULL DEFAULT 0,
    estimated boolean NOT NULL DEFAULT false,
    cost_micros bigint NOT NULL DEFAULT 0,
    latency_seconds double precision NOT NULL DEFAULT 0,
    recorded boolean NOT NULL DEFAULT false,
    start_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    end_time timestamptz,
    PRIMARY KEY (run_id, number)
);

-- Runs that a kill stops, and what guardrails was last told of them.
CREATE TABLE agents.run_stops (
    kill_id uuid NOT NULL,
    run_id uuid NOT NULL REFERENCES agents.runs ON DELETE CASCADE,
    reported text NOT NULL DEFAULT '',
    PRIMARY KEY (kill_id, run_id)
);
CREATE INDEX run_stops_open ON agents.run_stops (kill_id) WHERE reported <> 'STOPPED';

GRANT SELECT, INSERT, UPDATE, DELETE ON agents.runs, agents.run_steps, agents.run_stops TO opsmesh_agents;
GRANT SELECT ON agents.run_stops TO opsmesh_reader;
-- What is left out may hold what is masked everywhere else.
GRANT SELECT (run_id, template_id, template_version, state, incident_id, decision_id, parent_run_id, root_run_id, depth,
    goal, target_ids, requester, execution_id, token_count, cost_micros, recorded, did, health_proved, reason, detail,
    approval_id, kill_id, cancel_requested, due_time, lease_until, begin_time, waited, create_time, end_time, closed)
    ON agents.runs TO opsmesh_reader;
GRANT SELECT (run_id, number, kind, state, tool, target_id, arguments_json, result_digest, result, reason, detail,
    verdict, approval_id, child_run_id, prompt_digest, model, input_tokens, output_tokens, cost_micros, recorded, sent,
    start_time, end_time) ON agents.run_steps TO opsmesh_reader;

-- migrate:down
DROP TABLE agents.run_stops, agents.run_steps, agents.runs;
