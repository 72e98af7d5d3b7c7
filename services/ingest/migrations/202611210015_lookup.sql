-- migrate:up
-- A serialised ingest.v1.Delivery with nothing but its headers; empty where none were kept.
ALTER TABLE ingest.deliveries ADD COLUMN headers bytea NOT NULL DEFAULT '';

-- Whoever asks what became of signals reads from the newest on, a page and no more: of a source (or of each in turn) ...
CREATE INDEX signals_source ON ingest.signals (source, disposition, record_time, signal_id);
-- ... or of an alert. Those of an incident have their index.
CREATE INDEX signals_dedup_key ON ingest.signals (dedup_key, record_time) WHERE dedup_key <> '';

-- migrate:down
DROP INDEX ingest.signals_dedup_key;
DROP INDEX ingest.signals_source;
ALTER TABLE ingest.deliveries DROP COLUMN headers;
