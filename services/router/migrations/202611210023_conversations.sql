-- migrate:up
-- Conversations of people; what is said in them goes with them.
CREATE TABLE router.conversations (
    conversation_id uuid PRIMARY KEY,
    -- The person whose it is; nobody else reads or writes it.
    person text NOT NULL,
    message_count integer NOT NULL DEFAULT 0 CHECK (message_count >= 0),
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    update_time timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX conversations_of_person ON router.conversations (person, create_time);
CREATE INDEX conversations_oldest ON router.conversations (update_time);

CREATE TABLE router.messages (
    message_id uuid PRIMARY KEY,
    conversation_id uuid NOT NULL REFERENCES router.conversations ON DELETE CASCADE,
    number integer NOT NULL CHECK (number >= 1),
    speaker text NOT NULL CHECK (speaker IN ('PERSON', 'OPSMESH')),
    text text NOT NULL,
    -- The message of the person that it answers: each has one reply.
    reply_to uuid UNIQUE,
    outcome text NOT NULL DEFAULT 'UNSPECIFIED',
    question_id uuid,
    incident_id text NOT NULL DEFAULT '',
    recorded boolean NOT NULL DEFAULT false,
    -- A serialised opsmesh.router.v1.Intent; empty without one.
    intent bytea NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (conversation_id, number)
);

CREATE TABLE router.questions (
    -- The message of the person that it was asked about.
    question_id uuid PRIMARY KEY,
    conversation_id uuid NOT NULL REFERENCES router.conversations ON DELETE CASCADE,
    -- A serialised opsmesh.router.v1.AskHuman.
    ask bytea NOT NULL,
    state text NOT NULL DEFAULT 'OPEN' CHECK (state IN ('OPEN', 'ANSWERED', 'WITHDRAWN')),
    -- The message that closed it, and why in words.
    closed_by uuid,
    detail text NOT NULL DEFAULT '',
    create_time timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- One question at a time: an answer can only mean that one.
CREATE UNIQUE INDEX questions_open ON router.questions (conversation_id) WHERE state = 'OPEN';
CREATE INDEX questions_of ON router.questions (conversation_id);

CREATE TABLE router.wishes (
    -- The message of the person that it was read from.
    wish_id uuid PRIMARY KEY,
    conversation_id uuid NOT NULL REFERENCES router.conversations ON DELETE CASCADE,
    person text NOT NULL,
    state text NOT NULL CHECK (state IN ('ASKED', 'CONFIRMED', 'HANDED_IN', 'DROPPED')),
    -- Why it was dropped.
    detail text NOT NULL DEFAULT '',
    -- The plan: one playbook or template in this version, on these targets, with this goal.
    outcome text NOT NULL CHECK (outcome IN ('TRIGGER_AUTOMATION', 'DELEGATE_AGENT')),
    name text NOT NULL,
    version bigint NOT NULL,
    digest text NOT NULL,
    target_ids text[] NOT NULL,
    goal text NOT NULL,
    title text NOT NULL,
    changes text[] NOT NULL,
    tells text[] NOT NULL,
    environments text[] NOT NULL,
    -- What its incident is called: the person's words, cut.
    subject text NOT NULL,
    -- A serialised opsmesh.router.v1.ModelOutcome, and whether it was replayed from a file.
    model_outcome bytea NOT NULL,
    recorded boolean NOT NULL,
    -- The message that confirmed it, and the digest of that message: what the identity token is made for.
    confirmed_by uuid UNIQUE,
    message_digest bytea,
    confirm_time timestamptz,
    signal_id text NOT NULL DEFAULT '',
    -- The one incident that it became.
    incident_id uuid UNIQUE,
    due_time timestamptz NOT NULL DEFAULT clock_timestamp(),
    create_time timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX wishes_due ON router.wishes (due_time) WHERE state = 'CONFIRMED';
CREATE INDEX wishes_of ON router.wishes (conversation_id);

GRANT SELECT, INSERT, UPDATE, DELETE ON router.conversations TO opsmesh_router;
-- What was said is not changed; it goes with its conversation.
GRANT SELECT, INSERT ON router.messages TO opsmesh_router;
GRANT SELECT, INSERT, UPDATE ON router.questions, router.wishes TO opsmesh_router;
GRANT SELECT ON router.conversations, router.messages, router.questions, router.wishes TO opsmesh_reader;

-- migrate:down
DROP TABLE router.wishes;
DROP TABLE router.questions;
DROP TABLE router.messages;
DROP TABLE router.conversations;
