-- How often what each kind of write concerns has changed: so that every replica can tell whether it missed a change.
CREATE TABLE changes (
    kind    TEXT   NOT NULL PRIMARY KEY,
    version BIGINT NOT NULL
);

INSERT INTO changes (kind, version) VALUES ('rights', 0), ('sessions', 0);
