-- How often each kind of thing was written, and a random mark of the last time: so that every replica can tell whether
-- it missed a change, also when a server that lacks the last ones takes over.
CREATE TABLE changes (
    kind    TEXT   NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL,
    mark    TEXT   NOT NULL
);

INSERT INTO changes (kind, version, mark) VALUES ('rights', 0, ''), ('sessions', 0, '');
