-- migrate:up

-- Deployments and configuration changes, each once however often it is told; what is looked at when a cause is sought.
CREATE TABLE ingest.changes (
    source text NOT NULL,
    dedup_key text NOT NULL,
    signal_id uuid NOT NULL,
    target_ids text[] NOT NULL,
    change_time timestamptz NOT NULL,
    record_time timestamptz NOT NULL DEFAULT now(),
    signal bytea NOT NULL,
    PRIMARY KEY (source, dedup_key)
);
CREATE INDEX changes_newest ON ingest.changes (change_time DESC, signal_id DESC);
CREATE INDEX changes_targets ON ingest.changes USING gin (target_ids);
CREATE INDEX changes_record_time ON ingest.changes (record_time);

GRANT SELECT, INSERT, DELETE ON ingest.changes TO opsmesh_ingest;
GRANT SELECT ON ingest.changes TO opsmesh_reader;

-- migrate:down
DROP TABLE ingest.changes;
