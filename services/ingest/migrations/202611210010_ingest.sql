-- migrate:up
CREATE SCHEMA ingest;

-- What senders sent, byte for byte.
CREATE TABLE ingest.deliveries (
    delivery_id uuid PRIMARY KEY,
    source text NOT NULL,
    body bytea NOT NULL,
    sha256 bytea NOT NULL,
    content_type text NOT NULL,
    authenticity text NOT NULL,
    verified boolean NOT NULL,
    traceparent text NOT NULL,
    receive_time timestamptz NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX deliveries_create_time ON ingest.deliveries (create_time);

-- Every accepted signal has exactly one row here, with what became of it.
CREATE TABLE ingest.signals (
    signal_id uuid PRIMARY KEY,
    delivery_id uuid NOT NULL,
    index integer NOT NULL,
    source text NOT NULL,
    dedup_key text NOT NULL,
    event_key text NOT NULL,
    status text NOT NULL,
    severity text NOT NULL,
    disposition text NOT NULL,
    incident_id uuid,
    event_time timestamptz,
    receive_time timestamptz,
    record_time timestamptz NOT NULL DEFAULT now(),
    signal bytea NOT NULL
);
CREATE INDEX signals_incident ON ingest.signals (incident_id, record_time DESC) WHERE incident_id IS NOT NULL;
CREATE INDEX signals_delivery ON ingest.signals (delivery_id);
CREATE INDEX signals_record_time ON ingest.signals (record_time);

-- One firing of an alert. Times are nanoseconds since 1970: senders tell two firings apart by less than a microsecond.
CREATE TABLE ingest.alerts (
    source text NOT NULL,
    dedup_key text NOT NULL,
    episode text NOT NULL,
    start_time bigint,
    incident_id uuid,
    seen integer NOT NULL,
    over boolean NOT NULL,
    event_time bigint NOT NULL,
    first_seen timestamptz NOT NULL,
    update_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (source, dedup_key, episode)
);
CREATE INDEX alerts_latest ON ingest.alerts (source, dedup_key, start_time DESC NULLS LAST);
CREATE INDEX alerts_active ON ingest.alerts (incident_id) WHERE NOT over;
CREATE INDEX alerts_update_time ON ingest.alerts (update_time);

CREATE TABLE ingest.incidents (
    incident_id uuid PRIMARY KEY,
    state text NOT NULL,
    state_detail text NOT NULL DEFAULT '',
    source text NOT NULL,
    title text NOT NULL,
    severity text NOT NULL,
    correlation_key text NOT NULL,
    target_ids text[] NOT NULL DEFAULT '{}',
    firing boolean NOT NULL,
    signal_count bigint NOT NULL DEFAULT 0,
    duplicate_count bigint NOT NULL DEFAULT 0,
    revision bigint NOT NULL DEFAULT 1,
    decision_id text NOT NULL DEFAULT '',
    execution_id text NOT NULL DEFAULT '',
    started_rule_ids text[] NOT NULL DEFAULT '{}',
    -- the router must decide this revision, from due_time on
    needs_decision boolean NOT NULL DEFAULT true,
    -- its decision is open: the router is asked again at due_time
    following boolean NOT NULL DEFAULT false,
    due_time timestamptz NOT NULL DEFAULT now(),
    attempts integer NOT NULL DEFAULT 0,
    traceparent text NOT NULL DEFAULT '',
    -- the inventory its targets were looked up in; a newer one is looked into while nothing works on it
    inventory_version bigint NOT NULL DEFAULT 0,
    open_time timestamptz NOT NULL DEFAULT now(),
    update_time timestamptz NOT NULL DEFAULT now(),
    resolve_time timestamptz,
    -- ingest.v1.Incident with what only describes it
    snapshot bytea NOT NULL
);
CREATE UNIQUE INDEX incidents_open ON ingest.incidents (correlation_key) WHERE state NOT IN ('RESOLVED', 'STALE');
CREATE INDEX incidents_due ON ingest.incidents (due_time) WHERE needs_decision OR following;
CREATE INDEX incidents_waiting ON ingest.incidents (inventory_version)
    WHERE state IN ('OPEN', 'AWAITING_MODEL', 'AWAITING_PERSON');
CREATE INDEX incidents_newest ON ingest.incidents (open_time DESC, incident_id DESC);
CREATE INDEX incidents_closed ON ingest.incidents (update_time) WHERE state IN ('RESOLVED', 'STALE');

CREATE TABLE ingest.dead_letters (
    delivery_id uuid PRIMARY KEY,
    source text NOT NULL,
    reason text NOT NULL,
    delivery_count integer NOT NULL,
    body bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX dead_letters_newest ON ingest.dead_letters (create_time DESC, delivery_id DESC);

-- The last inventory that guardrails has published; one row.
CREATE TABLE ingest.inventory (
    single_row boolean PRIMARY KEY DEFAULT true CHECK (single_row),
    version bigint NOT NULL,
    inventory bytea NOT NULL,
    update_time timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE ingest.requests (
    caller text NOT NULL,
    method text NOT NULL,
    request_id uuid NOT NULL,
    digest bytea NOT NULL,
    response bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (method, request_id)
);
CREATE TABLE ingest.outbox (
    event_id uuid PRIMARY KEY,
    event bytea NOT NULL,
    ready_time timestamptz NOT NULL DEFAULT now(),
    create_time timestamptz NOT NULL DEFAULT now()
);

GRANT USAGE ON SCHEMA ingest TO opsmesh_ingest, opsmesh_reader;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA ingest TO opsmesh_ingest;
GRANT SELECT ON ALL TABLES IN SCHEMA ingest TO opsmesh_reader;

-- migrate:down
DROP SCHEMA ingest CASCADE;
