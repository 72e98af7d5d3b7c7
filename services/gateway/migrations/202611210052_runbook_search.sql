-- migrate:up

-- The runbooks of the folder as they were last read; the files are the truth, this is only their index.
CREATE TABLE gateway.runbooks (
    runbook_id text PRIMARY KEY,
    title text NOT NULL,
    size_bytes bigint NOT NULL,
    digest bytea NOT NULL
);

-- A section is what stands under one heading; found by its words, its heading and the runbook's title.
CREATE TABLE gateway.runbook_sections (
    runbook_id text NOT NULL REFERENCES gateway.runbooks ON DELETE CASCADE,
    line integer NOT NULL,
    heading text NOT NULL,
    body text NOT NULL,
    document tsvector NOT NULL,
    PRIMARY KEY (runbook_id, line)
);
CREATE INDEX runbook_sections_document ON gateway.runbook_sections USING gin (document);

GRANT SELECT, INSERT, UPDATE, DELETE ON gateway.runbooks, gateway.runbook_sections TO opsmesh_gateway;
GRANT SELECT ON gateway.runbooks, gateway.runbook_sections TO opsmesh_reader;

-- migrate:down
DROP TABLE gateway.runbook_sections;
DROP TABLE gateway.runbooks;
