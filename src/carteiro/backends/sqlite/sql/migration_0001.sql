-- Times are microseconds since the epoch. `visible_at` is the one time that a delivery has: due, leased until, retried
-- at; `blocked` (the largest integer) where an earlier message of its lane is not done. A `record` is a whole message,
-- packed (see `records.py`); beside it stands only what SQL itself needs.

CREATE TABLE versions (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    routes INTEGER NOT NULL  -- one higher with each change of subscriptions or retentions: what caches check
);
INSERT INTO versions VALUES (1, 1);

CREATE TABLE subscriptions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    group_name TEXT NOT NULL,
    ordered INTEGER NOT NULL,
    expires_at INTEGER,  -- of an ephemeral one
    UNIQUE (topic, group_name)
);

CREATE TABLE retentions (
    topic TEXT PRIMARY KEY,
    duration INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE deliveries (
    id INTEGER PRIMARY KEY,
    subscription INTEGER NOT NULL,
    visible_at INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    token INTEGER NOT NULL DEFAULT 0,  -- of the claim that holds it; 0 where none does
    published INTEGER NOT NULL,
    lane TEXT,            -- of its key, in an ordered subscription
    due INTEGER,          -- when it may be seen once it heads its lane
    log_id INTEGER,       -- its place in the log, where its topic is retained
    history TEXT,         -- JSON list of failures; NULL where there are none
    record BLOB NOT NULL
);
CREATE INDEX deliveries_visible ON deliveries (subscription, visible_at);
CREATE INDEX deliveries_lane ON deliveries (subscription, lane) WHERE lane IS NOT NULL;

CREATE TABLE log (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    published INTEGER NOT NULL,
    due INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    lane TEXT,
    record BLOB NOT NULL
);
CREATE INDEX log_topic ON log (topic, published);
CREATE INDEX log_expires ON log (expires_at);

CREATE TABLE dead_letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    queue TEXT NOT NULL,
    subscription_topic TEXT NOT NULL,
    group_name TEXT NOT NULL,
    died_at INTEGER NOT NULL,
    reason TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    history TEXT,
    record BLOB NOT NULL
);
CREATE INDEX dead_letters_queue ON dead_letters (queue);
CREATE INDEX dead_letters_group ON dead_letters (subscription_topic, group_name);

CREATE TABLE marks (
    topic TEXT NOT NULL,
    message_id TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (topic, message_id)
) WITHOUT ROWID;
CREATE INDEX marks_expires ON marks (expires_at);

CREATE TABLE store (
    key TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    version INTEGER NOT NULL,
    expires_at INTEGER
);
CREATE INDEX store_expires ON store (expires_at) WHERE expires_at IS NOT NULL;

CREATE TABLE consumers (
    id TEXT NOT NULL,
    topic TEXT NOT NULL,
    group_name TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    PRIMARY KEY (id, topic, group_name)
) WITHOUT ROWID;
