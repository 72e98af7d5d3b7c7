-- migrate:up
-- What no rule knows: decisions that models make, that wait for a model, for a run or for a person's answer.
ALTER TABLE router.decisions
    DROP CONSTRAINT decisions_stage_check,
    ADD CONSTRAINT decisions_stage_check CHECK (stage IN (
        'NONE', 'START', 'FOLLOW', 'MODEL', 'NOTIFY', 'HELD', 'PARKED', 'START_RUN', 'FOLLOW_RUN')),
    ADD COLUMN run_id text NOT NULL DEFAULT '',
    ADD COLUMN template_id text NOT NULL DEFAULT '',
    ADD COLUMN conversation_id text NOT NULL DEFAULT '',
    -- Calls of models, and whether a reply was replayed from a file.
    ADD COLUMN model_call_count integer NOT NULL DEFAULT 0,
    ADD COLUMN recorded boolean NOT NULL DEFAULT false,
    -- Serialised opsmesh.router.v1.ModelOutcome, AskHuman, HumanAnswer; empty until there is one.
    ADD COLUMN model_outcome bytea NOT NULL DEFAULT '',
    ADD COLUMN question bytea NOT NULL DEFAULT '',
    ADD COLUMN answer bytea NOT NULL DEFAULT '',
    ADD COLUMN answerer text NOT NULL DEFAULT '',
    -- What a run or execution is started with: targets, goal, the failed execution whose trace it gets, the person's token.
    ADD COLUMN target_ids text[] NOT NULL DEFAULT '{}',
    ADD COLUMN goal text NOT NULL DEFAULT '',
    ADD COLUMN cause_execution_id text NOT NULL DEFAULT '',
    ADD COLUMN identity_token bytea NOT NULL DEFAULT '',
    -- Why it waits for a model that can be asked, since when, and from when it is worth another try.
    ADD COLUMN parked_words text NOT NULL DEFAULT '',
    ADD COLUMN parked_time timestamptz,
    ADD COLUMN resume_time timestamptz NOT NULL DEFAULT '-infinity',
    -- A kill ended what it had started.
    ADD COLUMN killed boolean NOT NULL DEFAULT false;
CREATE INDEX decisions_parked ON router.decisions (create_time) WHERE stage = 'PARKED';
-- At most one run for a failed execution, whatever is replayed: one that was started, or whose start was tried.
CREATE UNIQUE INDEX decisions_cause ON router.decisions (cause_execution_id)
    WHERE cause_execution_id <> '' AND (run_id <> '' OR start_time IS NOT NULL);

-- One attempt to have a model decide: what it was told and offered. `subject` is a decision, or a message of a conversation.
CREATE TABLE router.model_cases (
    subject uuid PRIMARY KEY,
    -- While open, a restart goes on with it instead of asking (and paying) again.
    open boolean NOT NULL,
    first_number integer NOT NULL CHECK (first_number >= 1),
    prompt_id text NOT NULL,
    -- The token of the marks in its prompts.
    token text NOT NULL,
    -- JSON: names of the playbooks, templates, targets and reads that were offered.
    offered text NOT NULL,
    -- A serialised opsmesh.router.v1.Decision with only its context_sources.
    sources bytea NOT NULL,
    begin_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    create_time timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX model_cases_age ON router.model_cases (create_time);
CREATE INDEX model_cases_open ON router.model_cases (begin_time) WHERE open;

-- Each call of a model, written before it is made: the same request again gets the stored answer of agents.
CREATE TABLE router.model_calls (
    subject uuid NOT NULL REFERENCES router.model_cases ON DELETE CASCADE,
    number integer NOT NULL CHECK (number >= 1),
    -- Serialised GenerateRequest and GenerateResponse of opsmesh.agents.v1; emptied when the case is closed.
    request bytea NOT NULL,
    response bytea NOT NULL DEFAULT '',
    -- A serialised opsmesh.router.v1.ModelCall; empty until it is answered.
    call bytea NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (subject, number)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON router.model_cases, router.model_calls TO opsmesh_router;
GRANT SELECT ON router.model_cases, router.model_calls TO opsmesh_reader;

-- migrate:down
DROP TABLE router.model_calls, router.model_cases;
DROP INDEX router.decisions_parked, router.decisions_cause;
UPDATE router.decisions SET stage = 'NONE' WHERE stage IN ('PARKED', 'START_RUN', 'FOLLOW_RUN');
ALTER TABLE router.decisions
    DROP CONSTRAINT decisions_stage_check,
    ADD CONSTRAINT decisions_stage_check CHECK (stage IN ('NONE', 'START', 'FOLLOW', 'MODEL', 'NOTIFY', 'HELD')),
    DROP COLUMN run_id,
    DROP COLUMN template_id,
    DROP COLUMN conversation_id,
    DROP COLUMN model_call_count,
    DROP COLUMN recorded,
    DROP COLUMN model_outcome,
    DROP COLUMN question,
    DROP COLUMN answer,
    DROP COLUMN answerer,
    DROP COLUMN target_ids,
    DROP COLUMN goal,
    DROP COLUMN cause_execution_id,
    DROP COLUMN identity_token,
    DROP COLUMN parked_words,
    DROP COLUMN parked_time,
    DROP COLUMN resume_time,
    DROP COLUMN killed;
