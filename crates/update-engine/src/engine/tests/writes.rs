//! Writes that ended, and nobody saw how.

use super::*;

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
