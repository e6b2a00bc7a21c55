-- What is in use at each replica of several: places of streams and watches, and requests in a minute at the pace of the
-- last seconds. Says what is so, not what changed, so that what gets lost is put right by what comes next.
CREATE TABLE quota_usage (
    project TEXT   NOT NULL REFERENCES projects (name) ON DELETE CASCADE,
    -- `project`, or a principal: `user:alice`.
    holder  TEXT   NOT NULL,
    quota   TEXT   NOT NULL,
    replica TEXT   NOT NULL REFERENCES replicas (id) ON DELETE CASCADE,
    used    BIGINT NOT NULL,
    PRIMARY KEY (project, holder, quota, replica)
);
CREATE INDEX quota_usage_replica ON quota_usage (replica, quota);
