-- Version 2: each revision has a random token, so that a history that was forked (a fail-over to a replica that was
-- behind, a restored backup) is never taken for the former one although its numbers go on.
ALTER TABLE revision ADD COLUMN token BIGINT NOT NULL DEFAULT 0;
-- The token of the revision before.
ALTER TABLE revision ADD COLUMN previous BIGINT NOT NULL DEFAULT 0;
ALTER TABLE changes ADD COLUMN token BIGINT NOT NULL DEFAULT 0;
