-- Tokens that an operator took back before they ran out: one by its `jti`, or all of a user's that were
-- issued before an instant. No part of the ledger: they make no revision, and a restore may lose some.
-- Numbers rise in the order of commits, so that a reader who knows up to n finds what is new behind it.

CREATE TABLE revocations (
    revocation    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    jti           text CHECK (length(jti) BETWEEN 1 AND 255),
    user_id       text COLLATE "C" CHECK (length(user_id) BETWEEN 1 AND 255),
    issued_before timestamptz,
    -- No such token is good any more by then, whether revoked or not.
    expires_at    timestamptz NOT NULL,
    revoked_by    text NOT NULL CHECK (length(revoked_by) BETWEEN 1 AND 255),
    reason        text CHECK (length(reason) <= 500),
    revoked_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (num_nonnulls(jti, user_id) = 1),
    CHECK ((user_id IS NULL) = (issued_before IS NULL))
);
CREATE TRIGGER revocations_append_only BEFORE UPDATE OR TRUNCATE ON revocations
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER revocations_kept BEFORE DELETE ON revocations
    FOR EACH ROW WHEN (OLD.expires_at > clock_timestamp()) EXECUTE FUNCTION refuse_change();
