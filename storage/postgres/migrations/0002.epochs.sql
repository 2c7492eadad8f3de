-- Which run of which server the topics and the copies were last compared with. A restored ledger is a
-- server started anew or a table written anew, and nobody reads or writes it before it was compared:
-- what was shown of a later revision would be shown again with other content.

CREATE TABLE compared (
    only_row      boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    incarnation   text NOT NULL,
    -- A new epoch began, and erasures that were lost with its forerunner are not carried out yet.
    erasures_due  boolean NOT NULL DEFAULT false
);
INSERT INTO compared (incarnation) VALUES ('');
