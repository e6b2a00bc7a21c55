-- For SQLite and PostgreSQL alike. Times are Unix seconds; what is yes or no is 1 or 0. No secret stands here that
-- could be used as it is: passwords are argon2id hashes, tokens and codes SHA-256 hashes of random values.

CREATE TABLE users (
    name     TEXT     NOT NULL PRIMARY KEY,
    password TEXT,
    disabled SMALLINT NOT NULL,
    operator SMALLINT NOT NULL,
    created  BIGINT   NOT NULL
);

CREATE TABLE user_groups (
    user_name  TEXT NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    group_name TEXT NOT NULL,
    PRIMARY KEY (user_name, group_name)
);

-- One at a time for each user: a newer code replaces the older.
CREATE TABLE one_time_codes (
    user_name TEXT   NOT NULL PRIMARY KEY REFERENCES users (name) ON DELETE CASCADE,
    hash      TEXT   NOT NULL,
    expires   BIGINT NOT NULL
);

CREATE TABLE authorization_codes (
    hash         TEXT   NOT NULL PRIMARY KEY,
    user_name    TEXT   NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    client_id    TEXT   NOT NULL,
    redirect_uri TEXT   NOT NULL,
    challenge    TEXT   NOT NULL,
    expires      BIGINT NOT NULL,
    -- The family that its one use began; a second use ends it.
    family       TEXT
);

-- Everything that came from one sign-in.
CREATE TABLE refresh_families (
    id        TEXT   NOT NULL PRIMARY KEY,
    user_name TEXT   NOT NULL REFERENCES users (name) ON DELETE CASCADE,
    expires   BIGINT NOT NULL
);

CREATE TABLE refresh_tokens (
    hash    TEXT   NOT NULL PRIMARY KEY,
    family  TEXT   NOT NULL REFERENCES refresh_families (id) ON DELETE CASCADE,
    expires BIGINT NOT NULL,
    -- When it was first exchanged for a newer one.
    rotated BIGINT
);
CREATE INDEX refresh_tokens_family ON refresh_tokens (family);
CREATE INDEX refresh_families_user ON refresh_families (user_name);

CREATE TABLE projects (
    name    TEXT   NOT NULL PRIMARY KEY,
    created BIGINT NOT NULL
);

CREATE TABLE memberships (
    project            TEXT     NOT NULL REFERENCES projects (name),
    location           TEXT     NOT NULL,
    name               TEXT     NOT NULL,
    public_key         TEXT,
    -- Whether an agent has connected with this key; from then on it can't be redeemed again.
    key_used           SMALLINT NOT NULL,
    external_id        TEXT     NOT NULL,
    kubernetes_version TEXT     NOT NULL,
    agent_version      TEXT     NOT NULL,
    connected_since    BIGINT,
    disconnected_since BIGINT,
    -- JSON: {"env": "prod"}
    labels             TEXT     NOT NULL DEFAULT '{}',
    created            BIGINT   NOT NULL,
    PRIMARY KEY (project, location, name)
);

CREATE TABLE registration_tokens (
    hash        TEXT    NOT NULL PRIMARY KEY,
    project     TEXT    NOT NULL,
    location    TEXT    NOT NULL,
    name        TEXT    NOT NULL,
    expires     BIGINT  NOT NULL,
    -- The key that it was redeemed for.
    redeemed_by TEXT,
    FOREIGN KEY (project, location, name) REFERENCES memberships (project, location, name) ON DELETE CASCADE
);
