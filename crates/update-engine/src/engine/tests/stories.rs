//! What happens to hosts, told as transcripts.

use super::*;

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
