//! What happens to hosts, told as transcripts.

use super::*;

macro_rules! check {
    ($prelude:expr, @$transcript:literal) => {
        insta::assert_snapshot!(replay($prelude, $transcript), @$transcript)
    };
}

#[test]
fn from_one_version_to_the_next() {
    check!(NEW, @r#"
    found a=1*+2-1 b=-
        proving: WithdrawReboot
    timer
        proving: LookForGood
    good
        idle (first): Tell [running 1 before -]; Clean keep=-
    told 1
        idle (first)
    found a=1*+3-0 b=-
        idle (first)
    timer
        checking to install: Check
    offer 2
        downloading 2 0: Tell [download 2]; Clean keep=7909b0e90f6e; Download 2
    told 1
        downloading 2 0
    progress 50
        downloading 2 50
    status
        downloading 0.5
    downloaded
        writing 2 0: Tell [downloaded 2]; WithdrawReboot; Stage 2 then Nothing
    progress 819200
        writing 2 819200
    staged b
        idle: ReadSlots; AskReboot 2 Update; Clean keep=-
    told 2
        idle
    told 1
        idle
    found a=1*+3-0 b=2+3-0
        idle
    status
        staged, staged 2 in b
    reboot 2
    found a=1+3-0 b=2*+2-1
        proving: WithdrawReboot
    good
        idle (first): Tell [running 2 before 1]; Clean keep=7909b0e90f6e
    found a=1+3-0 b=2*+3-0
        idle (first)
    status
        idle, rollback 1 in a
    "#);
}

/// Also after it was begun to be written: the larger download starts, nothing is given up.
#[test]
fn a_closed_way_leads_to_the_next() {
    check!(TO_IDLE, @r#"
    timer
        checking to install: Check
    offer 2 ways=blocks,whole
        downloading 2 0: Tell [download 2]; Clean keep=7909b0e90f6e; Download 2 by the blocks that are not here
    told 1
        downloading 2 0
    status
        downloading 0
    closed the server has no usr.index
        downloading 2 0: Discard the blocks that are not here; Download 2
    closed and no image
        idle after 1 failures: Tell [failed 2 Write: and no image]; ReadSlots
    told 1
        idle after 1 failures
    timer
        checking to install: ReadSlots; Check
    offer 2 ways=blocks,whole
        downloading 2 0: Clean keep=7909b0e90f6e; Download 2 by the blocks that are not here
    downloaded
        writing 2 0: Tell [downloaded 2]; WithdrawReboot; Stage 2 then Nothing
    told 1
        writing 2 0
    closed block 7 is missing
        downloading 2 0: ReadSlots; Discard the blocks that are not here; Download 2
    downloaded
        writing 2 0: Tell [downloaded 2]; WithdrawReboot; Stage 2 then Nothing
    told 1
        writing 2 0
    staged b
        idle: Tell [staged 2]; ReadSlots; AskReboot 2 Update; Clean keep=-
    "#);
}

/// It would be downloaded, and the other slot written, at each check.
#[test]
fn a_way_that_the_writer_closed_is_not_tried_again() {
    check!(TO_IDLE, @r#"
    timer
        checking to install: Check
    offer 2 ways=blocks,whole
        downloading 2 0: Tell [download 2]; Clean keep=7909b0e90f6e; Download 2 by the blocks that are not here
    told 1
        downloading 2 0
    downloaded
        writing 2 0: Tell [downloaded 2]; WithdrawReboot; Stage 2 then Nothing
    told 1
        writing 2 0
    closed block 7 is missing
        downloading 2 0: ReadSlots; Discard the blocks that are not here; Download 2
    trouble download no room
        idle after 1 failures: Tell [failed 2 Download: no room]
    told 1
        idle after 1 failures
    timer
        checking to install: ReadSlots; Check
    offer 2 ways=blocks,whole
        downloading 2 0: Clean keep=7909b0e90f6e; Discard the blocks that are not here; Download 2
    "#);
}

/// Nothing was written of 3, so 2 is still there and boots.
#[test]
fn a_release_that_is_refused_leaves_the_staged_one() {
    check!(STAGED_2, @r#"
    timer
        checking to install: Check
    offer 3
        downloading 3 0: Tell [download 3]; Clean keep=b4b3df22a758; Download 3
    told 1
        downloading 3 0
    downloaded
        writing 3 0: Tell [downloaded 3]; WithdrawReboot; Stage 3 then Nothing
    told 1
        writing 3 0
    trouble write refused
        idle after 1 failures: Tell [failed 3 Write: refused]; ReadSlots
    told 1
        idle after 1 failures
    found a=1*+3-0 b=2+3-0
        idle after 1 failures: AskReboot 2 Update
    status
        error, staged 2 in b
    reboot 2
    found a=1+3-0 b=2*+2-1
        proving: WithdrawReboot
    good
        idle (first): Tell [running 2 before 1]; Clean keep=b4b3df22a758
    "#);
    // By its first way, and then it could not be fetched by the next.
    check!(STAGED_2, @r#"
    timer
        checking to install: Check
    offer 3 ways=blocks,whole
        downloading 3 0: Tell [download 3]; Clean keep=b4b3df22a758; Download 3 by the blocks that are not here
    told 1
        downloading 3 0
    downloaded
        writing 3 0: Tell [downloaded 3]; WithdrawReboot; Stage 3 then Nothing
    told 1
        writing 3 0
    closed the index is no index
        downloading 3 0: ReadSlots; Discard the blocks that are not here; Download 3
    found a=1*+3-0 b=2+3-0
        downloading 3 0: AskReboot 2 Update
    trouble download truncated
        idle after 1 failures: Tell [failed 3 Download: truncated]
    status
        error, staged 2 in b, error: truncated
    "#);
    // The power failed before anybody looked.
    check!(STAGED_2, @r#"
    timer
        checking to install: Check
    offer 3
        downloading 3 0: Tell [download 3]; Clean keep=b4b3df22a758; Download 3
    downloaded
        writing 3 0: WithdrawReboot; Stage 3 then Nothing
    reboot 2
    found a=1+3-0 b=2*+2-1
        proving: WithdrawReboot
    good
        idle (first): Tell [download 3, downloaded 3, running 2 before 1]; Clean keep=b4b3df22a758
    "#);
}

/// It was written, but the running one was not exhausted: the boot loader would not take it.
#[test]
fn an_older_release_that_is_not_the_next_yet() {
    check!(TO_IDLE, @r#"
    ask install force
        checking to install, forced: Check, forced
    offer 0.9
        downloading 0.9 0: Tell [download 0.9]; Clean keep=d13c64200feb; Download 0.9
    told 1
        downloading 0.9 0
    downloaded
        writing 0.9 0: Tell [downloaded 0.9]; WithdrawReboot; Stage 0.9 then ExhaustRunning
    told 1
        writing 0.9 0
    trouble write hung up
        idle after 1 failures: Tell [failed 0.9 Write: hung up]; ReadSlots
    told 1
        idle after 1 failures
    found a=1*+3-0 b=0.9+3-0
        idle after 1 failures: WithdrawReboot; RollBack
    trouble write hung up
        idle after 1 failures
    timer
        checking to install: ReadSlots; Check
    nothing
        idle
    found a=1*+3-0 b=0.9+3-0
        idle: WithdrawReboot; RollBack
    rolled-back b
        idle: ReadSlots
    found a=1*+0-3 b=0.9+3-0
        idle: AskReboot 0.9 Update
    reboot 0.9
    found a=1+0-3 b=0.9*+2-1
        proving: WithdrawReboot
    good
        idle (first): Tell [running 0.9 before 1]; Clean keep=d13c64200feb
    "#);
    check!(TO_IDLE, @r#"
    ask install force
        checking to install, forced: Check, forced
    offer 0.9
        downloading 0.9 0: Tell [download 0.9]; Clean keep=d13c64200feb; Download 0.9
    downloaded
        writing 0.9 0: WithdrawReboot; Stage 0.9 then ExhaustRunning
    reboot 1
    found a=1*+2-1 b=0.9+3-0
        proving: WithdrawReboot
    status
        idle, rollback 0.9 in b
    "#);
}

#[test]
fn nothing_new_in_several_ways() {
    check!(TO_IDLE, @r#"
    timer
        checking to install: Check
    nothing
        idle
    timer
        checking to install: Check
    offer 1
        idle
    status
        idle
    ask
        checking to look: Check
    offer 2
        idle
    status
        idle, available 2
    "#);
}

#[test]
fn a_release_that_does_not_suit() {
    check!(TO_IDLE, @r#"
    timer
        checking to install: Check
    offer 2 arch=arm64
        idle: Tell [failed 2 Unsuitable: version 2 is for arm64, this host is x86-64]
    told 1
        idle
    status
        idle, error: version 2 is for arm64, this host is x86-64
    timer
        checking to install: Check
    offer 3 min=2
        idle: Tell [failed 3 Unsuitable: version 3 can only be reached from 2 on, 1 runs: update to 2 first]
    told 1
        idle
    timer
        checking to install: Check
    offer 3 min=2
        idle
    status
        idle, error: version 3 can only be reached from 2 on, 1 runs: update to 2 first
    ask install
        checking to install: Check
    offer 0.9
        idle: Tell [failed 0.9 Unsuitable: version 0.9 is older than the running 1; not installed unless forced]
    told 1
        idle
    status
        idle, error: version 0.9 is older than the running 1; not installed unless forced
    ask install force
        checking to install, forced: Check, forced
    offer 0.9
        downloading 0.9 0: Tell [download 0.9]; Clean keep=d13c64200feb; Download 0.9
    downloaded
        writing 0.9 0: WithdrawReboot; Stage 0.9 then ExhaustRunning
    "#);
}

#[test]
fn a_broken_release_is_left_and_not_tried_again() {
    check!(STAGED_2, @r#"
    reboot 1 attempts=2:3 failure=2:ssh.service_failed
    found a=1*+2-1 b=2+0-3
        proving: Tell [failed 2 FellBack: ssh.service failed]; WithdrawReboot
    good
        idle (first): Clean keep=7909b0e90f6e
    told 1
        idle (first)
    timer
        checking to install: Check
    offer 2
        idle
    status
        idle, failed 2: ssh.service failed, error: version 2 failed here before (ssh.service failed); not tried again unless forced
    timer
        checking to install: Check
    offer 2 build=again
        downloading 2 0: Tell [download 2]; Clean keep=ea175bef724c; Download 2
    "#);
}

#[test]
fn the_reason_is_as_good_as_the_evidence() {
    check!(STAGED_2, @r"
        reboot 1 attempts=2:3 failure=1:old_story
        found a=1*+2-1 b=2+0-3
            proving: Tell [failed 2 FellBack: userspace started 3 times but never reached boot-complete.target]; WithdrawReboot
        status
            idle, failed 2: userspace started 3 times but never reached boot-complete.target, error: version 2 failed: userspace started 3 times but never reached boot-complete.target
    ");
    check!(STAGED_2, @r"
        reboot 1
        found a=1*+2-1 b=2+0-3
            proving: Tell [failed 2 FellBack: no trace of a started userspace in 3 tries (kernel or initrd failed)]; WithdrawReboot
        status
            idle, failed 2: no trace of a started userspace in 3 tries (kernel or initrd failed), error: version 2 failed: no trace of a started userspace in 3 tries (kernel or initrd failed)
    ");
    check!(STAGED_2, @r"
        reboot 1
        found a=1*+2-1 b=2+3-0
            proving: Tell [failed 2 FellBack: the host was rebooted, but the boot loader chose version 1 although 3 tries were left]; WithdrawReboot
        status
            idle, rollback 2 in b, failed 2: the host was rebooted, but the boot loader chose version 1 although 3 tries were left, error: version 2 failed: the host was rebooted, but the boot loader chose version 1 although 3 tries were left
    ");
}

#[test]
fn a_cut_write_is_no_failure() {
    check!(NEW, @r"
        found a=1*+3-0 b=-
            proving: WithdrawReboot
        good
            idle (first): Tell [running 1 before -]; Clean keep=-
        timer
            checking to install: Check
        offer 2
            downloading 2 0: Clean keep=7909b0e90f6e; Download 2
        downloaded
            writing 2 0: WithdrawReboot; Stage 2 then Nothing
        reboot 1
        found a=1*+2-1 b=-
            proving: WithdrawReboot
        status
            idle
        good
            idle (first): Clean keep=7909b0e90f6e
        timer
            checking to install: Tell [running 1 before -, download 2, downloaded 2]; Check
        offer 2
            downloading 2 0: Clean keep=7909b0e90f6e; Download 2
    ");
}

#[test]
fn a_writer_that_dies_after_its_last_write_has_staged() {
    check!(TO_IDLE, @r"
        timer
            checking to install: Check
        offer 2
            downloading 2 0: Tell [download 2]; Clean keep=7909b0e90f6e; Download 2
        downloaded
            writing 2 0: WithdrawReboot; Stage 2 then Nothing
        trouble write the writer hung up
            idle after 1 failures: ReadSlots
        found a=1*+3-0 b=2+3-0
            idle after 1 failures: AskReboot 2 Update
        status
            error, staged 2 in b
    ");
    check!(TO_IDLE, @r"
        timer
            checking to install: Check
        offer 2
            downloading 2 0: Tell [download 2]; Clean keep=7909b0e90f6e; Download 2
        downloaded
            writing 2 0: WithdrawReboot; Stage 2 then Nothing
        trouble write the writer hung up
            idle after 1 failures: ReadSlots
        found a=1*+3-0 b=-
            idle after 1 failures: WithdrawReboot
        status
            error, error: the writer hung up
    ");
}

#[test]
fn a_restart_between_staging_and_reboot_changes_nothing() {
    check!(STAGED_2, @r#"
    restart 1
    found a=1*+3-0 b=2+3-0
        proving: AskReboot 2 Update; LookForGood
    good
        idle (first): Clean keep=7909b0e90f6e
    status
        staged, staged 2 in b
    timer
        checking to install: Check
    offer 2
        idle
    "#);
}

#[test]
fn a_newer_release_replaces_the_staged_one() {
    check!(STAGED_2, @r#"
    timer
        checking to install: Check
    offer 3
        downloading 3 0: Tell [download 3]; Clean keep=b4b3df22a758; Download 3
    downloaded
        writing 3 0: WithdrawReboot; Stage 3 then Nothing
    status
        writing 0
    staged b
        idle: ReadSlots; AskReboot 3 Update; Clean keep=-
    status
        staged, staged 3 in b
    timer
        checking to install: Check
    offer 2
        idle
    status
        staged, staged 3 in b, error: version 2 is older than the staged 3; not installed unless forced
    "#);
}

#[test]
fn a_good_release_that_rots() {
    check!(STAGED_2, @r#"
    reboot 2
    found a=1+3-0 b=2*+2-1
        proving: WithdrawReboot
    good
        idle (first): Tell [running 2 before 1]; Clean keep=7909b0e90f6e
    told 1
        idle (first)
    reboot 1 attempts=2:3
    found a=1*+2-1 b=2+0-3
        proving: Tell [failed 2 FellBack: userspace started 3 times but never reached boot-complete.target]; WithdrawReboot
    good
        idle (first): Clean keep=7909b0e90f6e
    status
        idle, failed 2: userspace started 3 times but never reached boot-complete.target, error: version 2 failed: userspace started 3 times but never reached boot-complete.target
    timer
        checking to install: Check
    offer 2
        idle
    status
        idle, failed 2: userspace started 3 times but never reached boot-complete.target, error: version 2 failed here before (userspace started 3 times but never reached boot-complete.target); not tried again unless forced
    "#);
}

#[test]
fn rollback_by_hand() {
    check!(STAGED_2, @r#"
    rollback
        refused: an update is staged in the other slot, so there is nothing to go back to; a reboot boots it
    reboot 2
    rollback
        refused: this boot has not been marked good yet; wait for boot-complete.target, or see what failed with systemctl --failed
    found a=1+3-0 b=2*+2-1
        proving: WithdrawReboot
    good
        idle (first): Tell [running 2 before 1]; Clean keep=7909b0e90f6e
    rollback
        rolling back: RollBack
    rolled-back a
        idle: ReadSlots; AskReboot 1 Rollback
    status
        idle, rollback 1 in a, failed 2: rolled back by the operator to version 1
    rollback
        refused: a rollback is being written, or waits for a reboot
    timer
        checking to install: Check
    offer 3
        idle
    status
        idle, rollback 1 in a, failed 2: rolled back by the operator to version 1, error: version 3 is not written: a rollback waits for a reboot, and would boot the slot it goes to
    restart 2
    found a=1+3-0 b=2*+0-3
        proving: AskReboot 1 Rollback; LookForGood
    reboot 1
    found a=1*+2-1 b=2+0-3
        proving: WithdrawReboot
    good
        idle (first): Clean keep=7909b0e90f6e
    status
        idle, failed 2: rolled back by the operator to version 1
    timer
        checking to install: Tell [running 2 before 1, failed 2 RolledBack: rolled back by the operator to version 1]; Check
    offer 2
        idle
    clear
        idle
    timer
        checking to install: Check
    offer 2
        downloading 2 0: Clean keep=7909b0e90f6e; Download 2
    "#);
    check!(TO_IDLE, @r"
        rollback
            refused: the other slot holds nothing that can be booted
    ");
}

#[test]
fn trouble_is_retried_later_and_told_once() {
    check!(TO_IDLE, @r#"
    timer
        checking to install: Check
    trouble server connection refused
        idle after 1 failures
    status
        error, error: connection refused
    timer
        checking to install: Check
    offer 2
        downloading 2 0: Tell [download 2]; Clean keep=7909b0e90f6e; Download 2
    told 1
        downloading 2 0
    trouble download truncated
        idle after 2 failures: Tell [failed 2 Download: truncated]
    timer
        checking to install: Check
    offer 2
        downloading 2 0: Clean keep=7909b0e90f6e; Download 2
    trouble download truncated
        idle after 3 failures
    not-told
        idle after 3 failures
    status
        error, error: truncated
    timer
        checking to install: Tell [failed 2 Download: truncated]; Check
    nothing
        idle
    status
        idle
    "#);
}

#[test]
fn who_asks_meanwhile_joins() {
    check!(TO_IDLE, @r#"
    ask
        checking to look: Check
    ask install
        checking to install
    offer 2
        downloading 2 0: Tell [download 2]; Clean keep=7909b0e90f6e; Download 2
    ask install
        downloading 2 0
    rollback
        refused: an update is being downloaded or written; try again when it is done
    downloaded
        writing 2 0: WithdrawReboot; Stage 2 then Nothing
    ask
        writing 2 0
    rollback
        refused: an update is being downloaded or written; try again when it is done
    "#);
    check!(NEW, @r"
        ask install
            refused: this boot has not been marked good yet; wait for boot-complete.target, or see what failed with systemctl --failed
        found a=1*+3-0 b=-
            proving: WithdrawReboot
        ask install
            refused: this boot has not been marked good yet; wait for boot-complete.target, or see what failed with systemctl --failed
    ");
}

#[test]
fn without_slots_nothing_is_written() {
    check!(NEW, @r#"
    found error no disk with usrhash
        proving
    good
        idle (first): Tell [running 1 before -]; Clean keep=-; ReadSlots
    timer
        checking to install: ReadSlots; Check
    found a=1 b=-
        checking to install: WithdrawReboot
    offer 2
        idle
    status
        idle, error: version 2 cannot be written: this system does not run from one of the disk's slots
    "#);
    check!(NEW, @r#"
    found error the writer does not answer
        proving
    good
        idle (first): Tell [running 1 before -]; Clean keep=-; ReadSlots
    timer
        checking to install: ReadSlots; Check
    offer 2
        idle
    status
        idle, error: version 2 cannot be written: the writer does not answer
    "#);
}

#[test]
fn events_out_of_place_change_nothing() {
    check!(TO_IDLE, @r#"
    progress 3
        idle (first)
    downloaded
        idle (first)
    staged b
        idle (first)
    good
        idle (first)
    offer 2
        idle (first)
    nothing
        idle (first)
    rolled-back b
        idle (first): ReadSlots
    "#);
}

#[test]
fn an_epoch_is_never_left() {
    check!(NEW, @r#"
    found a=1*+3-0 b=-
        proving: WithdrawReboot
    good
        idle (first): Tell [running 1 before -]; Clean keep=-
    timer
        checking to install: Check
    offer 2 epoch=1
        downloading 2 0: Clean keep=784ad0b1d287; Download 2
    downloaded
        writing 2 0: WithdrawReboot; Stage 2 then Nothing
    staged b
        idle: ReadSlots; AskReboot 2 Update; Clean keep=-
    reboot 2
    found a=1+3-0 b=2*+2-1
        proving: WithdrawReboot
    good
        idle (first): Tell [running 1 before -, download 2, downloaded 2, staged 2, running 2 before 1]; Clean keep=784ad0b1d287
    timer
        checking to install: Check
    offer 3
        idle
    status
        idle, rollback 1 in a, error: version 3 has epoch 0, this host has seen 1: releases of earlier epochs are withdrawn
    "#);
}

/// The failed release lies in slot b, exhausted, until it is written again.
#[test]
fn a_cleared_list_stays_clear() {
    check!(STAGED_2, @r#"
    reboot 1
    found a=1*+2-1 b=2+0-3
        proving: Tell [failed 2 FellBack: no trace of a started userspace in 3 tries (kernel or initrd failed)]; WithdrawReboot
    good
        idle (first): Clean keep=7909b0e90f6e
    told 1
        idle (first)
    clear
        idle (first): Tell [failures cleared]
    told 1
        idle (first)
    status
        idle
    restart 1
    found a=1*+3-0 b=2+0-3
        proving: WithdrawReboot; LookForGood
    good
        idle (first): Clean keep=7909b0e90f6e
    status
        idle
    timer
        checking to install: Check
    offer 2
        downloading 2 0: Clean keep=7909b0e90f6e; Download 2
    told 1
        downloading 2 0
    downloaded
        writing 2 0: Tell [downloaded 2]; WithdrawReboot; Stage 2 then Nothing
    told 1
        writing 2 0
    staged b
        idle: Tell [staged 2]; ReadSlots; AskReboot 2 Update; Clean keep=-
    told 1
        idle
    reboot 1 attempts=2:3
    found a=1*+2-1 b=2+0-3
        proving: Tell [failed 2 FellBack: userspace started 3 times but never reached boot-complete.target]; WithdrawReboot
    "#);
}

#[test]
fn force_is_told_to_the_server() {
    check!(TO_IDLE, @r#"
    ask install force
        checking to install, forced: Check, forced
    offer 0.9
        downloading 0.9 0: Tell [download 0.9]; Clean keep=d13c64200feb; Download 0.9
    downloaded
        writing 0.9 0: WithdrawReboot; Stage 0.9 then ExhaustRunning
    staged b
        idle: ReadSlots; AskReboot 0.9 Update; Clean keep=-
    told 1
        idle: Tell [downloaded 0.9, staged 0.9]
    reboot 0.9
    found a=1+0-0 b=0.9*+2-1
        proving: WithdrawReboot
    good
        idle (first): Tell [downloaded 0.9, staged 0.9, running 0.9 before 1]; Clean keep=d13c64200feb
    reboot 0.9
    found a=1+0-0 b=0.9*+2-1
        proving: WithdrawReboot
    good
        idle (first): Clean keep=d13c64200feb
    timer
        checking to install: Tell [downloaded 0.9, staged 0.9, running 0.9 before 1]; Check
    offer 1
        downloading 1 0: Clean keep=37c2910f44e3; Download 1
    "#);
    // The server was asked without it already.
    check!(TO_IDLE, @r#"
    timer
        checking to install: Check
    ask install force
        checking to install, forced
    nothing
        checking to install, forced: Check, forced
    ask install force
        checking to install, forced
    offer 0.9
        downloading 0.9 0: Tell [download 0.9]; Clean keep=d13c64200feb; Download 0.9
    "#);
    check!(TO_IDLE, @r#"
    timer
        checking to install: Check
    ask install force
        checking to install, forced
    trouble server connection refused
        checking to install, forced: Check, forced
    trouble server connection refused
        idle after 1 failures
    "#);
}

#[test]
fn without_a_memory_only_by_hand() {
    check!(NEW, @r#"
    reboot 1 volatile
    found a=1*+3-0 b=-
        proving: WithdrawReboot
    good
        idle (first): Tell [running 1 before -]; Clean keep=-
    told 1
        idle (first)
    status
        idle, error: state is volatile: updates only by hand (orlop update)
    timer
        checking to look: Check
    offer 2
        idle
    status
        idle, available 2, error: state is volatile: updates only by hand (orlop update)
    ask install
        checking to install: Check
    offer 2
        downloading 2 0: Tell [download 2]; Clean keep=7909b0e90f6e; Download 2
    downloaded
        writing 2 0: WithdrawReboot; Stage 2 then Nothing
    staged b
        idle: ReadSlots; AskReboot 2 Update; Clean keep=-
    reboot 1 volatile
    found a=1*+2-1 b=2+0-3
        proving: WithdrawReboot
    good
        idle (first): Tell [running 1 before -]; Clean keep=-
    timer
        checking to look: Check
    offer 2
        idle
    status
        idle, available 2, error: state is volatile: updates only by hand (orlop update)
    "#);
}

#[test]
fn waiting_is_a_function_of_the_state() {
    let mut engine = engine("1", 1, Memory::default());
    let mut check = |phase: Phase, expect: [u64; 2]| {
        engine.phase = phase;
        let got = [0.0, 1.0].map(|luck| engine.delay(luck).map_or(0, |d| d.as_secs()));
        assert_eq!(got, expect, "{}", show_phase(&engine));
    };
    check(Phase::Starting, [0, 0]);
    check(Phase::Proving, [1, 1]);
    check(
        Phase::Idle {
            failures: 0,
            first: true,
        },
        [48, 72],
    );
    check(
        Phase::Idle {
            failures: 0,
            first: false,
        },
        [2430, 2970],
    );
    check(
        Phase::Idle {
            failures: 1,
            first: false,
        },
        [18, 30],
    );
    check(
        Phase::Idle {
            failures: 3,
            first: false,
        },
        [72, 120],
    );
    check(
        Phase::Idle {
            failures: 4_000_000_000,
            first: false,
        },
        [1620, 2700],
    );
    engine.settings.interval = Duration::from_secs(10);
    engine.phase = Phase::Idle {
        failures: 0,
        first: true,
    };
    assert_eq!(engine.delay(0.5), Some(Duration::from_secs(5)));
    engine.settings.server = None;
    assert_eq!(engine.delay(0.5), None);
}

#[test]
fn the_memory_stays_small() {
    let mut memory = Memory::default();
    for n in 0..100 {
        let version: Version = n.to_string().parse().unwrap();
        let id = Some(Sha256::of(n.to_string()));
        for _ in 0..2 {
            let failed = FailedRelease {
                version: version.clone(),
                id,
                reason: "x".into(),
                at: Timestamp::UNIX_EPOCH,
            };
            memory.remember_failure(failed);
        }
        memory.report(Report::Staged { version });
    }
    assert_eq!((memory.failed.len(), memory.reports.len()), (32, 32));
    assert_eq!(memory.failed.last().unwrap().version, "99".parse().unwrap());
    assert_eq!(memory.failed[0].version, "68".parse().unwrap());
}

/// What update_engine_client -reset_status asks for.
#[test]
fn nobody_reboots_for_what_was_reset() {
    check!(STAGED_2, @r#"
    reset
        idle: WithdrawReboot
    status
        idle, staged 2 in b
    restart 1
    found a=1*+3-0 b=2+3-0
        proving: WithdrawReboot; LookForGood
    good
        idle (first): Clean keep=7909b0e90f6e
    ask install
        checking to install: Check; AskReboot 2 Update
    status
        checking, staged 2 in b
    "#);
}
