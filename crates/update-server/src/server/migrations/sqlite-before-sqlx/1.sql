-- Times are Unix seconds, release ids lowercase hex, versions text.

CREATE TABLE releases (
    version         TEXT PRIMARY KEY,
    id              TEXT NOT NULL UNIQUE,
    -- The signed payload as JSON, so that nothing is read from disk at a check-in.
    manifest        TEXT NOT NULL,
    envelope_size   INTEGER NOT NULL,
    envelope_sha256 TEXT NOT NULL,
    published_at    INTEGER NOT NULL
) STRICT;

CREATE TABLE channels (
    name       TEXT PRIMARY KEY,
    version    TEXT REFERENCES releases (version),
    changed_at INTEGER
) STRICT;

INSERT INTO channels (name) VALUES ('alpha'), ('beta'), ('stable');

CREATE TABLE hosts (
    machine_id TEXT PRIMARY KEY,
    hostname   TEXT,
    version    TEXT NOT NULL,
    slot       TEXT,
    channel    TEXT NOT NULL,
    health     TEXT,
    board      TEXT,
    boot_id    TEXT,
    first_seen INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL
) STRICT;

CREATE TABLE events (
    id               INTEGER PRIMARY KEY,
    machine_id       TEXT NOT NULL,
    at               INTEGER NOT NULL,
    event_type       INTEGER NOT NULL,
    event_result     INTEGER NOT NULL,
    meaning          TEXT NOT NULL,
    version          TEXT,
    previous_version TEXT,
    error_code       INTEGER,
    reason           TEXT
) STRICT;

CREATE INDEX events_by_host ON events (machine_id, id);
CREATE INDEX events_by_time ON events (at);

-- Releases a host tried and left again; release_id is empty when nobody knows it, then the
-- version stands for it.
CREATE TABLE failures (
    machine_id TEXT NOT NULL,
    release_id TEXT NOT NULL,
    version    TEXT NOT NULL,
    reason     TEXT NOT NULL,
    at         INTEGER NOT NULL,
    PRIMARY KEY (machine_id, release_id, version)
) STRICT;
