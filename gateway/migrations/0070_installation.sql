-- Whose database it is: the public half of the root key, which all replicas have. One row.
CREATE TABLE installation (
    id   SMALLINT NOT NULL PRIMARY KEY,
    root TEXT     NOT NULL
);
