-- migrate:up
ALTER TABLE automation.executions
    -- the signed identity of the person who asked for it in a chat; handed on with every action, shown to nobody
    ADD COLUMN identity_token bytea NOT NULL DEFAULT ''::bytea CHECK (length(identity_token) <= 4096);

-- migrate:down
ALTER TABLE automation.executions DROP COLUMN identity_token;
