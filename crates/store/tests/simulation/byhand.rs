//! Members led through an order of events that chance finds too rarely.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use prost::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeType, ConfChangeV2, HardState, Message, MessageType,
};
use store::machine::checkpoint::{Replaced, Source};
use store::machine::{Machine, Shared};
use store::node::core::Write;
use store::node::{Core, Event, Options};
use store::pb::etcdserverpb as rpc;
use store::pb::orlop::store::command::Op;
use store::pb::orlop::store::{Command, MemberChange};

use crate::cluster::{Disk, fresh};

struct Member {
    core: Core,
    machine: Shared,
    disk: Disk,
    unsynced: VecDeque<Write>,
    sent: Vec<Message>,
    now: Duration,
}

impl Member {
    fn start(id: u64, machine: Machine, disk: Disk) -> Self {
        let machine = Arc::new(RwLock::new(machine));
        let options = Options {
            member: id,
            election_ticks: 10,
            heartbeat_ticks: 1,
            pre_vote: true,
            seed: id,
        };
        let (hard_state, entries) = (disk.hard_state.clone(), disk.entries.clone());
        let core = Core::new(&options, machine.clone(), hard_state, entries).expect("sound");
        Self {
            core,
            machine,
            disk,
            unsynced: VecDeque::new(),
            sent: Vec::new(),
            now: Duration::ZERO,
        }
    }

    /// All at once, and nothing gets to the disk.
    fn take(&mut self, events: impl IntoIterator<Item = Event>) {
        for event in events {
            self.core.take(event, self.now);
        }
        let actions = self.core.act(self.now);
        self.sent.extend(actions.send);
        self.unsynced.extend(actions.write);
    }

    /// The disk does what waits, until nothing does.
    fn sync(&mut self) {
        while let Some(write) = self.unsynced.pop_front() {
            self.disk.write(&write);
            self.take([Event::Persisted(write.number)]);
        }
    }

    fn tick(&mut self) {
        self.now += Duration::from_millis(100);
        self.take([Event::Tick]);
    }
}

/// What is there before anything happened.
fn first_disk() -> Disk {
    Disk {
        hard_state: HardState {
            term: 1,
            commit: 1,
            ..HardState::default()
        },
        ..Disk::default()
    }
}

fn addition(id: u64) -> Event {
    let mut single = ConfChangeSingle::default();
    single.set_change_type(ConfChangeType::AddNode);
    single.node_id = id;
    let mut change = ConfChangeV2::default();
    change.mut_changes().push(single);
    let context = MemberChange {
        id,
        member: Some(rpc::Member {
            id,
            peer_ur_ls: vec![format!("http://member-{id}")],
            ..rpc::Member::default()
        }),
        ..MemberChange::default()
    };
    Event::Change(context, change)
}

/// The second could have found a third meanwhile, and the two of them have gone on.
#[test]
fn the_first_member_does_not_forget_the_second_in_a_crash() {
    let mut member = Member::start(1, fresh(1), first_disk());
    member.take([Event::Campaign]);
    member.sync();
    member.take([addition(2)]);
    member.sync();
    assert_eq!(member.machine.read().conf.voters, [1, 2]);

    let mut member = Member::start(1, fresh(1), member.disk);
    member.take([Event::Campaign]);
    for _ in 0..100 {
        member.sync();
        assert!(!member.core.is_leader(), "elected by itself");
        member.tick();
    }
    assert_eq!(member.machine.read().conf.voters, [1, 2]);
}

/// What a leader sends, which has come that far, and the state that comes with it.
fn snapshot(place: (u64, u64)) -> (Message, Box<Machine>) {
    let mut machine = fresh(3);
    (machine.applied, machine.applied_term) = place;
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgSnapshot);
    (message.from, message.to, message.term) = (2, 1, place.1);
    let metadata = message.mut_snapshot().mut_metadata();
    (metadata.index, metadata.term) = place;
    metadata.set_conf_state(machine.conf.clone());
    (message, Box::new(machine))
}

fn install(place: (u64, u64)) -> Event {
    let (message, machine) = snapshot(place);
    Event::Install(message, machine)
}

#[test]
fn the_state_of_a_snapshot_is_the_one_that_raft_took() {
    let mut member = Member::start(1, fresh(3), first_disk());
    let place = |member: &Member| {
        let applied = member.machine.read().applied;
        (applied, member.core.standing().commit)
    };
    // On its way for long, or of one that does not lead any more.
    member.take([install((20, 2)), install((10, 2))]);
    assert_eq!(place(&member), (20, 20));
    member.sync();
    member.take([install((15, 2))]);
    member.take([Event::Message(snapshot((30, 2)).0)]);
    let (message, _) = snapshot((30, 2));
    member.take([Event::Install(message, snapshot((29, 2)).1)]);
    member.sync();
    assert_eq!(place(&member), (20, 20));
    member.take([install((30, 2))]);
    member.sync();
    assert_eq!(place(&member), (30, 30));
}

#[test]
fn a_backup_of_a_state_that_was_replaced_has_no_end() {
    let mut member = Member::start(1, fresh(3), first_disk());
    let mut source = Source::new(&member.machine);
    assert!(source.next().is_some_and(|head| head.is_ok()));
    member.take([install((20, 2))]);
    assert_eq!(source.next(), Some(Err(Replaced)));
    assert_eq!(source.next(), None);
    assert!(Source::new(&member.machine).all(|piece| piece.is_ok()));
}

/// Messages arrive at once; one disk may do nothing.
struct Trio {
    members: Vec<Member>,
    stalled: Option<usize>,
}

impl Trio {
    fn start() -> Self {
        Self {
            members: (1..=3)
                .map(|id| Member::start(id, fresh(3), first_disk()))
                .collect(),
            stalled: None,
        }
    }

    fn settle(&mut self) {
        loop {
            for (at, member) in self.members.iter_mut().enumerate() {
                if self.stalled != Some(at) {
                    member.sync();
                }
            }
            let sent = |member: &mut Member| std::mem::take(&mut member.sent);
            let messages: Vec<_> = self.members.iter_mut().flat_map(sent).collect();
            if messages.is_empty() {
                return;
            }
            for message in messages {
                let to = usize::try_from(message.to - 1).expect("a member");
                self.members[to].take([Event::Message(message)]);
            }
        }
    }

    fn tick(&mut self, times: usize) {
        for _ in 0..times {
            self.members.iter_mut().for_each(Member::tick);
            self.settle();
        }
    }

    fn leader(&self) -> Option<usize> {
        let leads = |member: &Member| member.core.is_leader();
        self.members.iter().position(leads)
    }

    fn propose(&mut self, at: usize, op: Op) {
        let command = Command {
            op: Some(op),
            ..Command::default()
        };
        self.members[at].take([Event::Propose(command.encode_to_vec())]);
        self.settle();
    }
}

#[test]
fn who_leads_no_more_ends_no_leases() {
    let mut trio = Trio::start();
    trio.tick(40);
    let before = trio.leader().expect("a leader");
    trio.propose(
        before,
        Op::LeaseGrant(rpc::LeaseGrantRequest { id: 7, ttl: 2 }),
    );
    assert!(trio.members[before].machine.read().leases.exists(7));

    // Its time is over by the leader's clock, but the end of it waits for the disk.
    trio.stalled = Some(before);
    let put = rpc::PutRequest {
        key: b"a".to_vec(),
        ..rpc::PutRequest::default()
    };
    trio.propose(before, Op::Put(put));
    trio.tick(25);
    assert_eq!(trio.leader(), Some(before));
    let next = (before + 1) % 3;
    trio.members[before].take([Event::Transfer(next as u64 + 1)]);
    trio.settle();
    assert_eq!(trio.leader(), Some(next));

    // Here it has all its time again, and whoever renews it is told so.
    trio.stalled = None;
    trio.settle();
    let machine = trio.members[next].machine.read();
    assert!(machine.leases.exists(7), "ended by one that does not lead");
    assert_eq!(machine.kv.revision(), 2);
    drop(machine);
    trio.tick(30);
    assert!(!trio.members[before].machine.read().leases.exists(7));
}
