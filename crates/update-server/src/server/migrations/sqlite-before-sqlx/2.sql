ALTER TABLE releases ADD COLUMN withdrawn_at INTEGER;
ALTER TABLE releases ADD COLUMN withdrawn_reason TEXT;

-- The group that an operator put the host into, and the one that it belongs to in effect.
ALTER TABLE hosts ADD COLUMN assigned TEXT;
ALTER TABLE hosts ADD COLUMN grp TEXT NOT NULL DEFAULT '';
UPDATE hosts SET grp = channel;

-- Lists are in this order.
CREATE INDEX hosts_by_name ON hosts (hostname IS NULL, hostname, machine_id);

-- How many hosts of a group run what: kept by triggers, so that nobody has to count a million rows.
CREATE TABLE census (
    grp     TEXT NOT NULL,
    channel TEXT NOT NULL,
    version TEXT NOT NULL,
    health  TEXT NOT NULL,
    hosts   INTEGER NOT NULL,
    PRIMARY KEY (grp, channel, version, health)
) STRICT, WITHOUT ROWID;

INSERT INTO census
    SELECT grp, channel, version, coalesce(health, ''), count(*) FROM hosts GROUP BY 1, 2, 3, 4;

CREATE TRIGGER hosts_added AFTER INSERT ON hosts BEGIN
    INSERT INTO census VALUES (new.grp, new.channel, new.version, coalesce(new.health, ''), 1)
        ON CONFLICT DO UPDATE SET hosts = hosts + 1;
END;

CREATE TRIGGER hosts_removed AFTER DELETE ON hosts BEGIN
    UPDATE census SET hosts = hosts - 1 WHERE (grp, channel, version, health)
        = (old.grp, old.channel, old.version, coalesce(old.health, ''));
END;

CREATE TRIGGER hosts_changed AFTER UPDATE OF grp, channel, version, health ON hosts
    WHEN old.grp <> new.grp OR old.channel <> new.channel OR old.version <> new.version
        OR old.health IS NOT new.health
BEGIN
    UPDATE census SET hosts = hosts - 1 WHERE (grp, channel, version, health)
        = (old.grp, old.channel, old.version, coalesce(old.health, ''));
    INSERT INTO census VALUES (new.grp, new.channel, new.version, coalesce(new.health, ''), 1)
        ON CONFLICT DO UPDATE SET hosts = hosts + 1;
END;

-- Hosts name it in GROUP=. Every channel is a group of the same name, with or without a row here.
CREATE TABLE groups (
    name        TEXT PRIMARY KEY,
    channel     TEXT NOT NULL,
    description TEXT NOT NULL,
    policy      TEXT NOT NULL,
    changed_at  INTEGER NOT NULL
) STRICT;

-- The newest of a group is the one that counts; `state` is the rollout as JSON.
CREATE TABLE rollouts (
    id         INTEGER PRIMARY KEY,
    grp        TEXT NOT NULL,
    channel    TEXT NOT NULL,
    version    TEXT NOT NULL,
    release_id TEXT NOT NULL,
    status     TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    state      TEXT NOT NULL
) STRICT;

CREATE INDEX rollouts_by_group ON rollouts (grp, id);

CREATE TABLE grants (
    rollout    INTEGER NOT NULL,
    machine_id TEXT NOT NULL,
    wave       INTEGER NOT NULL,
    state      TEXT NOT NULL,
    granted_at INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    expires_at INTEGER,
    PRIMARY KEY (rollout, machine_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX grants_due ON grants (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX failures_by_version ON failures (version);

-- What operators did, and what the server did by itself (actor empty).
CREATE TABLE activity (
    id      INTEGER PRIMARY KEY,
    at      INTEGER NOT NULL,
    actor   TEXT NOT NULL,
    action  TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail  TEXT NOT NULL
) STRICT;

-- How many hosts ran what, every hour.
CREATE TABLE history (
    at      INTEGER NOT NULL,
    version TEXT NOT NULL,
    hosts   INTEGER NOT NULL,
    PRIMARY KEY (at, version)
) STRICT, WITHOUT ROWID;

-- Digests only: whoever reads this file cannot sign in with it.
CREATE TABLE tokens (
    name    TEXT PRIMARY KEY,
    role    TEXT NOT NULL,
    digest  TEXT NOT NULL UNIQUE,
    made_at INTEGER NOT NULL
) STRICT;

CREATE TABLE sessions (
    digest     TEXT PRIMARY KEY,
    actor      TEXT NOT NULL,
    role       TEXT NOT NULL,
    csrf       TEXT NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
