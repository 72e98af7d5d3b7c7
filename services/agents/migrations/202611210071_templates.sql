-- migrate:up
-- Versions never change: only which one is active may.
CREATE TABLE agents.templates (
    template_id text NOT NULL,
    version bigint NOT NULL CHECK (version > 0),
    active boolean NOT NULL,
    -- SHA-256, hex, of the content and the pins.
    digest text NOT NULL CHECK (length(digest) = 64),
    content bytea NOT NULL,
    -- Tools as a model calls them, and in the same order the digests of what they were when this was published.
    tools text[] NOT NULL,
    pins text[] NOT NULL,
    publisher text NOT NULL,
    publish_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (template_id, version),
    CHECK (cardinality(tools) = cardinality(pins))
);
CREATE UNIQUE INDEX templates_active ON agents.templates (template_id) WHERE active;

GRANT SELECT, INSERT ON agents.templates TO opsmesh_agents;
GRANT UPDATE (active) ON agents.templates TO opsmesh_agents;
GRANT SELECT ON agents.templates TO opsmesh_reader;

-- migrate:down
DROP TABLE agents.templates;
