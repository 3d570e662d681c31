//! What is not taken, and what stays as it was.

use super::*;

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

#[test]
fn a_release_that_does_not_suit() {
    check!(TO_IDLE, @r#"
    timer
        checking to install: Check
    offer 2 arch=arm64
        idle: Tell [failed 2 Architecture: version 2 is for arm64, this host is x86-64]
    told 1
        idle
    status
        idle, error: version 2 is for arm64, this host is x86-64
    timer
        checking to install: Check
    offer 3 min=2
        idle: Tell [failed 3 MinimumSource: version 3 can only be reached from 2 on, 1 runs: update to 2 first]
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
        idle: Tell [failed 0.9 Older: version 0.9 is older than the running 1; not installed unless forced]
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

/// It came with its epoch, or lost what it knew. In the memory a code has the name that older releases can read.
#[test]
fn the_epoch_of_what_runs_counts_without_any_memory() {
    check!(NEW, @r#"
    reboot 1 volatile epoch=1
    found a=1*+2-1 b=-
        proving: WithdrawReboot
    good
        idle (first): Tell [running 1 before -]; Clean keep=-
    ask install
        checking to install: Check
    offer 3
        idle
    status
        idle, error: version 3 has epoch 0, this host has seen 1: releases of earlier epochs are withdrawn
    reboot 1
    found a=1*+2-1 b=-
        proving: WithdrawReboot
    good
        idle (first): Clean keep=-
    ask install
        checking to install: Tell [running 1 before -, failed 3 Older: version 3 has epoch 0, this host has seen 1: releases of earlier epochs are withdrawn]; Check
    offer 3
        idle
    "#);
}

/// The writer found something that the engine did not know, and wrote nothing.
#[test]
fn what_the_writer_refuses_leaves_what_was_staged() {
    check!(STAGED_2, @r#"
    ask install
        checking to install: Check
    offer 3 epoch=1
        downloading 3 0: Tell [download 3]; Clean keep=dc00579edec2; Download 3
    told 1
        downloading 3 0
    downloaded
        writing 3 0: Tell [downloaded 3]; WithdrawReboot; Stage 3 then Nothing
    told 1
        writing 3 0
    trouble epoch version 3 has epoch 1, this host has seen 2
        idle after 1 failures: Tell [failed 3 Epoch: version 3 has epoch 1, this host has seen 2]; ReadSlots
    found a=1*+3-0 b=2+3-0
        idle after 1 failures: AskReboot 2 Update
    "#);
}
