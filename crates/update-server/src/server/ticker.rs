//! What happens by itself: waves open, grants expire, pings are written down, the past is tidied.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use release::Version;

use super::database::Database;
use super::error::ApiError;
use super::ops::{self, By};
use super::plan::{Current, Group, Plan};
use super::sql::Db;
use super::{Shared, records};
use crate::rollout::{Canary, Event, HostEvent, Status};

/// So many in one transaction: others wait meanwhile.
const AT_ONCE: usize = 500;
const EVERY: Duration = Duration::from_secs(1);
/// In rounds of [`EVERY`].
const FLUSH: u64 = 2;
const TICK: u64 = 5;
const HISTORY: u64 = 60;
const TIDY: u64 = 3600;

/// Hosts that were here with nothing new to say, until they are written down.
#[derive(Default)]
pub(super) struct Pings(Mutex<HashMap<String, i64>>);

impl Pings {
    pub(super) fn note(&self, machine_id: String, now: Timestamp) {
        let mut pings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pings.insert(machine_id, now.as_second());
    }

    /// What could not be written down is kept for the next time.
    fn put_back(&self, unwritten: impl Iterator<Item = (String, i64)>) {
        let mut pings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (machine_id, seen) in unwritten {
            // It may have been here again meanwhile.
            pings.entry(machine_id).or_insert(seen);
        }
    }

    fn take(&self) -> Vec<(String, i64)> {
        let mut pings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *pings).into_iter().collect()
    }
}

/// Until the other end of `stops` is dropped.
pub(super) async fn run(server: Shared, mut stops: tokio::sync::watch::Receiver<()>) {
    let mut clock = tokio::time::interval(EVERY);
    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for round in 0_u64.. {
        tokio::select! {
            _ = clock.tick() => {}
            _ = stops.changed() => return,
        }
        let now = (server.clock)();
        let mut results = vec![server.database.refresh().await];
        if round % FLUSH == 0 {
            results.push(flush(&server).await);
        }
        if round % TICK == 0 {
            let ticked = server
                .database
                .write_plan(move |db, plan| tick(db, plan, now))
                .await;
            results.push(ticked);
        }
        if round % HISTORY == 0 {
            results.push(
                server
                    .database
                    .write(move |db| records::note_history(db, now))
                    .await,
            );
        }
        if round % TIDY == 0 {
            results.push(
                server
                    .database
                    .write(move |db| records::tidy(db, now))
                    .await,
            );
        }
        if round % TIDY == 0
            && let Some(days) = server.forget_after
        {
            results.push(forget_unseen(&server.database, days, now).await);
        }
        for error in results.into_iter().filter_map(Result::err) {
            tracing::error!("cannot do the regular work: {error}");
        }
    }
}

/// Writes down who was here.
pub(super) async fn flush(server: &Shared) -> Result<(), ApiError> {
    write_down(&server.pings, &server.database).await
}

async fn write_down(pings: &Pings, database: &Database) -> Result<(), ApiError> {
    let mut left = pings.take();
    while !left.is_empty() {
        let part: Arc<[_]> = left.split_off(left.len().saturating_sub(AT_ONCE)).into();
        let written = Arc::clone(&part);
        let result = database
            .write(move |db| records::pinged(db, &written))
            .await;
        if result.is_err() {
            pings.put_back(left.into_iter().chain(part.iter().cloned()));
            return result;
        }
    }
    Ok(())
}

/// Forgets who was not here for so many days.
async fn forget_unseen(database: &Database, days: u16, now: Timestamp) -> Result<(), ApiError> {
    let limit = SignedDuration::from_hours(24 * i64::from(days));
    let limit = now.checked_sub(limit).unwrap_or(Timestamp::MIN);
    let most = u32::try_from(AT_ONCE).unwrap_or(u32::MAX);
    loop {
        // Looked for without keeping others from writing: it may take a look at every host.
        let hosts = database
            .read(move |db| records::unseen(db, limit, most))
            .await?;
        if hosts.is_empty() {
            return Ok(());
        }
        database
            .write_plan(move |db, plan| {
                let by = By {
                    actor: String::new(),
                    now,
                };
                let why = format!("not seen for {days} days");
                for host in hosts {
                    // It may be back since.
                    if records::is_unseen(db, &host, limit)? {
                        ops::forget_host(db, plan, &by, &host, &why)?;
                    }
                }
                Ok(())
            })
            .await?;
    }
}

fn tick(db: &Db, plan: &mut Plan, now: Timestamp) -> Result<(), ApiError> {
    expire(db, plan, now)?;
    records::fold_census(db)?;
    let groups: Vec<_> = plan.groups.values().cloned().collect();
    for group in groups {
        let goes_on = |current: &&Arc<Current>| {
            let status = &current.rollout.status;
            matches!(status, Status::AwaitingCanary | Status::Active)
        };
        let own = plan.rollouts_of(&group.name).filter(goes_on);
        let own: Vec<Version> = own.map(|current| current.version.clone()).collect();
        if own.is_empty() {
            continue;
        }
        let census = records::census(db, &group.name)?;
        for version in own {
            let event = Event::Tick {
                hosts: census.iter().map(|(_, hosts)| hosts).sum(),
                behind: older(&census, &version),
                canary: canary(db, plan, &group, &version)?,
            };
            plan.step(db, &group.name, &version, event, now)?;
        }
    }
    Ok(())
}

/// How many hosts of a census run something older.
fn older(census: &[(String, u64)], than: &Version) -> u64 {
    let older = |text: &str| text.parse().is_ok_and(|version: Version| version < *than);
    let hosts = census.iter().filter(|(version, _)| older(version));
    hosts.map(|(_, hosts)| hosts).sum()
}

/// Something becomes of every grant.
fn expire(db: &Db, plan: &mut Plan, now: Timestamp) -> Result<(), ApiError> {
    let limit = u32::try_from(AT_ONCE).unwrap_or(u32::MAX);
    for due in records::due_grants(db, now, limit)? {
        let of = plan
            .all_rollouts()
            .find(|(_, current)| current.id == due.rollout)
            .map(|(group, current)| (group.to_owned(), current.version.clone()));
        match of {
            Some((group, version)) => {
                let event = Event::Host {
                    id: &due.machine_id,
                    grant: Some(due.grant),
                    what: HostEvent::Expired { heard: due.heard },
                };
                plan.step(db, &group, &version, event, now)?;
            }
            // Of a rollout that is over nothing is to be learned.
            None => {
                let grant = crate::rollout::Grant {
                    expires: None,
                    ..due.grant
                };
                records::save_grant(db, due.rollout, &due.machine_id, &grant, now)?;
            }
        }
    }
    Ok(())
}

/// How the group that goes first does with a release.
fn canary(db: &Db, plan: &Plan, group: &Group, version: &Version) -> Result<Canary, ApiError> {
    let canary = group.policy.canary.as_ref();
    let Some(canary) = canary.and_then(|name| plan.groups.get(name)) else {
        return Ok(Canary::None);
    };
    let first = plan.rollout(&canary.name, version);
    if first.is_some_and(|first| first.rollout.went_well(&canary.policy)) {
        return Ok(Canary::Passed);
    }
    // A stop that no host of it needs says nothing, however long one waits.
    let main = plan.main(&group.name);
    let is_stop = main.is_some_and(|main| main.version != *version);
    let untouched = first.is_none_or(|first| first.rollout.total().granted == 0);
    if is_stop && untouched && older(&records::census(db, &canary.name)?, version) == 0 {
        return Ok(Canary::None);
    }
    Ok(Canary::Running)
}

#[cfg(test)]
mod tests {
    use tokio::runtime::Handle;

    use super::*;
    use crate::server::sql::{Place, params};

    #[tokio::test]
    async fn who_was_not_seen_for_so_long_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (place, runtime) = (Place::File(dir.path().join("server.db")), Handle::current());
        let open = move || Database::open(&place, Timestamp::UNIX_EPOCH, &runtime);
        let database = tokio::task::spawn_blocking(open).await.unwrap().unwrap();
        let day = |n: i64| n * 86_400;
        let hosts = [("old", 9), ("on-the-edge", 10), ("here", 99)];
        database
            .write(move |db| {
                for (name, seen) in hosts {
                    db.execute(
                        "INSERT INTO hosts (machine_id, version, channel, first_seen, last_seen, grp) \
                         VALUES ($1, '1', 'stable', 1, $2, 'stable')",
                        params![name, day(seen)],
                    )?;
                }
                for n in 0..1200 {
                    db.execute(
                        "INSERT INTO hosts (machine_id, version, channel, first_seen, last_seen, grp) \
                         VALUES ($1, '1', 'stable', 1, 2, 'stable')",
                        params![format!("gone-{n}")],
                    )?;
                }
                Ok(())
            })
            .await
            .unwrap();
        let now = Timestamp::from_second(day(100)).unwrap();
        forget_unseen(&database, 90, now).await.unwrap();
        let left = database
            .read(|db| {
                let sql = "SELECT machine_id FROM hosts ORDER BY machine_id";
                let left = db.rows(sql, &[], |row| row.get::<String>(0))?;
                let sql = "SELECT count(*) FROM activity WHERE actor = '' \
                           AND action = 'host forgotten' AND detail = 'not seen for 90 days'";
                Ok((left, db.value::<i64>(sql, &[])?))
            })
            .await
            .unwrap();
        let expect = ["here".to_owned(), "on-the-edge".to_owned()];
        assert_eq!(left, (expect.to_vec(), 1201));
    }

    #[tokio::test]
    async fn who_was_here_is_written_down_when_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let (place, runtime) = (Place::File(dir.path().join("server.db")), Handle::current());
        let open = move || Database::open(&place, Timestamp::UNIX_EPOCH, &runtime);
        let database = tokio::task::spawn_blocking(open).await.unwrap().unwrap();
        let pings = Pings::default();
        let at = |second| Timestamp::from_second(second).unwrap();
        for n in 0..AT_ONCE + 10 {
            pings.note(format!("{n}"), at(5));
        }
        let rename = |from: &'static str, to: &'static str| {
            let sql = format!("ALTER TABLE {from} RENAME TO {to}");
            database.write(move |db| Ok(db.batch(&sql)?))
        };
        rename("hosts", "away").await.unwrap();
        write_down(&pings, &database).await.unwrap_err();
        // It was here again since, and that is what counts.
        pings.note("0".into(), at(7));
        pings.put_back([("0".into(), 5)].into_iter());
        rename("away", "hosts").await.unwrap();
        let add = "INSERT INTO hosts (machine_id, version, channel, first_seen, last_seen, grp) \
                   VALUES ('0', '1', 'stable', 1, 1, 'stable'), ('509', '1', 'stable', 1, 1, 'stable')";
        database.write(|db| Ok(db.batch(add)?)).await.unwrap();
        write_down(&pings, &database).await.unwrap();
        let seen = database
            .read(|db| {
                let sql = "SELECT last_seen FROM hosts ORDER BY machine_id";
                Ok(db.rows(sql, &[], |row| row.get::<i64>(0))?)
            })
            .await;
        assert_eq!(seen.unwrap(), [7, 5]);
        assert_eq!(pings.take(), []);
    }
}
