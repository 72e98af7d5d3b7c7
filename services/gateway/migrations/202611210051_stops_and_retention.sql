-- migrate:up

-- Effects that were under way when a kill came: kept until guardrails was told how each ended, whatever dies meanwhile.
CREATE TABLE gateway.stops (
    kill_id uuid NOT NULL,
    method text NOT NULL,
    request_id uuid NOT NULL,
    PRIMARY KEY (kill_id, method, request_id)
);
GRANT SELECT, INSERT, DELETE ON gateway.stops TO opsmesh_gateway;
GRANT SELECT ON gateway.stops TO opsmesh_reader;

-- Finished effects are deleted after OPSMESH_EFFECT_RETENTION_DAYS, when no grant for them can be in force any more.
GRANT DELETE ON gateway.effects TO opsmesh_gateway;
CREATE INDEX effects_finished ON gateway.effects (end_time) WHERE state IN ('SUCCEEDED', 'FAILED', 'NOT_STARTED');

-- migrate:down
DROP INDEX gateway.effects_finished;
REVOKE DELETE ON gateway.effects FROM opsmesh_gateway;
DROP TABLE gateway.stops;
