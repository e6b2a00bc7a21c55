-- Running copies of the gateway. One whose beat stands still is gone.
CREATE TABLE replicas (
    id       TEXT     NOT NULL PRIMARY KEY,
    -- Where the others reach it, HOST:PORT; empty: not at all.
    address  TEXT     NOT NULL,
    beat     BIGINT   NOT NULL,
    -- 1: it takes no new sessions.
    draining SMALLINT NOT NULL
);

-- Which of them holds which session of an agent's.
CREATE TABLE sessions (
    id       TEXT     NOT NULL PRIMARY KEY,
    replica  TEXT     NOT NULL REFERENCES replicas (id) ON DELETE CASCADE,
    project  TEXT     NOT NULL,
    location TEXT     NOT NULL,
    name     TEXT     NOT NULL,
    -- 0: it waits for a connection.
    up       SMALLINT NOT NULL,
    FOREIGN KEY (project, location, name) REFERENCES memberships (project, location, name) ON DELETE CASCADE
);
CREATE INDEX sessions_membership ON sessions (project, location, name);
CREATE INDEX sessions_replica ON sessions (replica);

-- Certificates from the root to each key that signs tokens: so that every replica knows the others'.
CREATE TABLE signing_keys (
    id    TEXT   NOT NULL PRIMARY KEY,
    chain TEXT   NOT NULL,
    until BIGINT NOT NULL
);
