-- migrate:up
ALTER TABLE automation.executions
    -- what whoever started it has to say to people: text from outside, for notices only
    ADD COLUMN note text NOT NULL DEFAULT '' CHECK (char_length(note) <= 1000);

-- migrate:down
ALTER TABLE automation.executions DROP COLUMN note;
