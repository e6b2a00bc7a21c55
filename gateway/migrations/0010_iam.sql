-- Policies of projects and of what is in them, by the resource's name. A document each: a policy is always read and
-- written as a whole, under its etag.
CREATE TABLE policies (
    resource TEXT NOT NULL PRIMARY KEY,
    project  TEXT NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    etag     TEXT NOT NULL,
    -- JSON: [{"role": …, "members": […], "condition": {"title": …, "description": …, "expression": …}}]
    bindings TEXT NOT NULL
);

-- A project's own roles.
CREATE TABLE roles (
    project     TEXT   NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    name        TEXT   NOT NULL,
    title       TEXT   NOT NULL,
    description TEXT   NOT NULL,
    -- Names, separated by spaces.
    permissions TEXT   NOT NULL,
    etag        TEXT   NOT NULL,
    created     BIGINT NOT NULL,
    PRIMARY KEY (project, name)
);
