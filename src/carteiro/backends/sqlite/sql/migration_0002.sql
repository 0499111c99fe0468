-- Sets that are joined. Until one is full it has a row for each member; then only who completed it is kept.

CREATE TABLE joins (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    size INTEGER NOT NULL,  -- how many members it has
    completed TEXT,         -- JSON list of the member and the actor that filled it; NULL until then
    expires_at INTEGER
);
CREATE INDEX joins_expires ON joins (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE members (
    joined INTEGER NOT NULL,  -- id of the set
    member TEXT NOT NULL,
    PRIMARY KEY (joined, member)
) WITHOUT ROWID;
