-- Principals of a project that others are let to act as.
CREATE TABLE service_accounts (
    project           TEXT    NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    name              TEXT    NOT NULL,
    display_name      TEXT    NOT NULL,
    disabled          SMALLINT NOT NULL,
    -- Random; another one ends every token made before.
    generation        TEXT    NOT NULL,
    tokens_not_before BIGINT  NOT NULL,
    created           BIGINT  NOT NULL,
    PRIMARY KEY (project, name)
);

-- Where foreign workloads of a project are known.
CREATE TABLE workload_pools (
    project      TEXT    NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    name         TEXT    NOT NULL,
    display_name TEXT    NOT NULL,
    disabled     SMALLINT NOT NULL,
    created      BIGINT  NOT NULL,
    PRIMARY KEY (project, name)
);

-- Issuers that vouch for workloads of a pool.
CREATE TABLE workload_providers (
    project    TEXT    NOT NULL,
    pool       TEXT    NOT NULL,
    name       TEXT    NOT NULL,
    -- JSON: issuer, audiences, mapping, condition, keys.
    settings   TEXT    NOT NULL,
    disabled   SMALLINT NOT NULL,
    -- Random; another one ends every token that came of it before.
    generation TEXT    NOT NULL,
    created    BIGINT  NOT NULL,
    PRIMARY KEY (project, pool, name),
    FOREIGN KEY (project, pool) REFERENCES workload_pools (project, name) ON DELETE CASCADE
);

-- What an access token's `sid` names: who signed in, as their token was mapped, and whom they act as.
CREATE TABLE sign_ins (
    id        TEXT    NOT NULL PRIMARY KEY,
    -- The same for what was made of one another.
    family    TEXT    NOT NULL,
    -- Who signed in, as policies name them.
    principal TEXT    NOT NULL,
    -- The project whose pool knows them; empty for people.
    realm     TEXT    NOT NULL,
    -- JSON.
    standing  TEXT    NOT NULL,
    revoked   SMALLINT NOT NULL,
    created   BIGINT  NOT NULL,
    expires   BIGINT  NOT NULL
);
CREATE INDEX sign_ins_expires ON sign_ins (expires);
CREATE INDEX sign_ins_family ON sign_ins (family);
CREATE INDEX sign_ins_principal ON sign_ins (principal, created);
CREATE INDEX sign_ins_realm ON sign_ins (realm, created);
