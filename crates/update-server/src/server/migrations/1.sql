-- For SQLite and PostgreSQL alike. Times are Unix seconds, digests lowercase hex. Text is compared by
-- its bytes: PostgreSQL is told so when this is read (`TEXT COLLATE "C"`).

-- How often the plan (channels, releases, groups, rollouts) was changed: a server that shares this
-- database sees by it that its own copy is old.
CREATE TABLE meta (
    name   TEXT NOT NULL PRIMARY KEY,
    number BIGINT NOT NULL
);

INSERT INTO meta (name, number) VALUES ('plan', 1);

CREATE TABLE releases (
    version          TEXT NOT NULL PRIMARY KEY,
    id               TEXT NOT NULL UNIQUE,
    -- The signed payload as JSON, so that nothing is read from disk at a check-in.
    manifest         TEXT NOT NULL,
    envelope_size    BIGINT NOT NULL,
    envelope_sha256  TEXT NOT NULL,
    published_at     BIGINT NOT NULL,
    withdrawn_at     BIGINT,
    withdrawn_reason TEXT
);

CREATE TABLE channels (
    name       TEXT NOT NULL PRIMARY KEY,
    version    TEXT REFERENCES releases (version),
    changed_at BIGINT
);

INSERT INTO channels (name) VALUES ('alpha'), ('beta'), ('stable');

CREATE TABLE hosts (
    machine_id TEXT NOT NULL PRIMARY KEY,
    hostname   TEXT,
    version    TEXT NOT NULL,
    slot       TEXT,
    channel    TEXT NOT NULL,
    health     TEXT,
    board      TEXT,
    boot_id    TEXT,
    first_seen BIGINT NOT NULL,
    last_seen  BIGINT NOT NULL,
    -- The group that an operator put the host into, and the one that it belongs to in effect.
    assigned   TEXT,
    grp        TEXT NOT NULL
);

-- Lists are in this order.
CREATE INDEX hosts_by_name ON hosts ((hostname IS NULL), hostname, machine_id);

-- How many hosts of a group run what, so that nobody has to count a million rows: the sum of what was
-- added and taken away, folded together now and then.
CREATE TABLE census (
    grp     TEXT NOT NULL,
    channel TEXT NOT NULL,
    version TEXT NOT NULL,
    health  TEXT NOT NULL,
    hosts   BIGINT NOT NULL
);

CREATE TABLE events (
    id               BIGINT NOT NULL PRIMARY KEY,
    machine_id       TEXT NOT NULL,
    at               BIGINT NOT NULL,
    event_type       BIGINT NOT NULL,
    event_result     BIGINT NOT NULL,
    meaning          TEXT NOT NULL,
    version          TEXT,
    previous_version TEXT,
    error_code       BIGINT,
    reason           TEXT
);

CREATE INDEX events_by_host ON events (machine_id, id);
CREATE INDEX events_by_time ON events (at);

-- Releases a host tried and left again; release_id is empty when nobody knows it, then the
-- version stands for it.
CREATE TABLE failures (
    machine_id TEXT NOT NULL,
    release_id TEXT NOT NULL,
    version    TEXT NOT NULL,
    reason     TEXT NOT NULL,
    -- The reason's first line.
    headline   TEXT NOT NULL,
    at         BIGINT NOT NULL,
    PRIMARY KEY (machine_id, release_id, version)
);

CREATE INDEX failures_by_version ON failures (version);

-- Hosts name it in GROUP=. Every channel is a group of the same name, with or without a row here.
CREATE TABLE groups (
    name        TEXT NOT NULL PRIMARY KEY,
    channel     TEXT NOT NULL,
    description TEXT NOT NULL,
    policy      TEXT NOT NULL,
    changed_at  BIGINT NOT NULL
);

-- The newest of a group is the one that counts; `state` is the rollout as JSON.
CREATE TABLE rollouts (
    id         BIGINT NOT NULL PRIMARY KEY,
    grp        TEXT NOT NULL,
    channel    TEXT NOT NULL,
    version    TEXT NOT NULL,
    release_id TEXT NOT NULL,
    status     TEXT NOT NULL,
    started_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    state      TEXT NOT NULL
);

CREATE INDEX rollouts_by_group ON rollouts (grp, id);

CREATE TABLE grants (
    rollout    BIGINT NOT NULL,
    machine_id TEXT NOT NULL,
    wave       BIGINT NOT NULL,
    state      TEXT NOT NULL,
    granted_at BIGINT NOT NULL,
    changed_at BIGINT NOT NULL,
    expires_at BIGINT,
    PRIMARY KEY (rollout, machine_id)
);

CREATE INDEX grants_due ON grants (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX grants_by_host ON grants (machine_id);

-- What operators did, and what the server did by itself (actor empty).
CREATE TABLE activity (
    id      BIGINT NOT NULL PRIMARY KEY,
    at      BIGINT NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail  TEXT NOT NULL
);

-- How many hosts ran what, every hour.
CREATE TABLE history (
    at      BIGINT NOT NULL,
    version TEXT NOT NULL,
    hosts   BIGINT NOT NULL,
    PRIMARY KEY (at, version)
);

-- Digests only: whoever reads this file cannot sign in with it.
CREATE TABLE tokens (
    name    TEXT NOT NULL PRIMARY KEY,
    role    TEXT NOT NULL,
    digest  TEXT NOT NULL UNIQUE,
    made_at BIGINT NOT NULL
);

-- `provider` is empty for who signed in with a token, and the issuer's address for the others.
CREATE TABLE sessions (
    digest     TEXT NOT NULL PRIMARY KEY,
    actor      TEXT NOT NULL,
    provider   TEXT NOT NULL,
    role       TEXT NOT NULL,
    csrf       TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);
