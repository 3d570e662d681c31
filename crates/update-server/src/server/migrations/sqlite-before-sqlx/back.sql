-- What had stepped aside comes into the tables of today.
DELETE FROM channels;
INSERT INTO releases SELECT version, id, manifest, envelope_size, envelope_sha256, published_at,
                            withdrawn_at, withdrawn_reason FROM old_releases;
INSERT INTO channels SELECT name, version, changed_at FROM old_channels;
INSERT INTO hosts SELECT machine_id, hostname, version, slot, channel, health, board, boot_id,
                         first_seen, last_seen, assigned, grp FROM old_hosts;
INSERT INTO census SELECT grp, channel, version, coalesce(health, ''), count(*) FROM hosts GROUP BY 1, 2, 3, 4;
INSERT INTO events SELECT id, machine_id, at, event_type, event_result, meaning, version,
                          previous_version, error_code, reason FROM old_events;
INSERT INTO failures SELECT machine_id, release_id, version, reason,
                            CASE WHEN instr(reason, char(10)) > 0
                                 THEN substr(reason, 1, instr(reason, char(10)) - 1) ELSE reason END,
                            at FROM old_failures;
INSERT INTO groups SELECT name, channel, description, policy, changed_at FROM old_groups;
INSERT INTO rollouts SELECT id, grp, channel, version, release_id, status, started_at, changed_at, state
                     FROM old_rollouts;
INSERT INTO grants SELECT rollout, machine_id, wave, state, granted_at, changed_at, expires_at FROM old_grants;
INSERT INTO activity SELECT id, at, actor, action, subject, detail FROM old_activity;
INSERT INTO history SELECT at, version, hosts FROM old_history;
INSERT INTO tokens SELECT name, role, digest, made_at FROM old_tokens;
DROP TABLE old_channels;
DROP TABLE old_releases;
DROP TABLE old_hosts;
DROP TABLE old_events;
DROP TABLE old_failures;
DROP TABLE old_groups;
DROP TABLE old_rollouts;
DROP TABLE old_grants;
DROP TABLE old_activity;
DROP TABLE old_history;
DROP TABLE old_tokens;
PRAGMA user_version = 0;
