-- What a project has set; what stands nowhere follows from the gateway's configuration.
CREATE TABLE quotas (
    project     TEXT   NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    -- `project`, `default` for each principal, or one: `user:alice`.
    holder      TEXT   NOT NULL,
    quota       TEXT   NOT NULL,
    quota_limit BIGINT NOT NULL,
    PRIMARY KEY (project, holder, quota)
);
