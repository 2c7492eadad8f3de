-- Where an operator told a partition to go on that had stopped, and what is lost by it: records
-- `was` to `from_offset` − 1 were never judged. Rows of the ledger from an earlier batch, at that
-- offset or later, are of records that the log may not hold any more.

CREATE TABLE resumptions (
    resumption  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    log         integer NOT NULL REFERENCES logs,
    partition   integer NOT NULL,
    was         bigint NOT NULL,
    from_offset bigint NOT NULL CHECK (from_offset >= 0),
    batch       bigint NOT NULL,
    resumed_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX resumptions_partition ON resumptions (log, partition);
CREATE TRIGGER resumptions_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON resumptions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
