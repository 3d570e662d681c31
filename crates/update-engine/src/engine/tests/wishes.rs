//! What people ask for.

use super::*;

#[test]
fn who_asks_meanwhile_joins() {
    check!(TO_IDLE, @r#"
    ask
        checking to look: Check
    ask install
        checking to install: LookForExtensions
    offer 2
        downloading 2 0: Tell [download 2]; Clean keep=7909b0e90f6e; Download 2
    ask install
        downloading 2 0: LookForExtensions
    looked
        downloading 2 0
    rollback
        refused: an update is being downloaded or written; try again when it is done
    downloaded
        writing 2 0: WithdrawReboot; Stage 2 then Nothing
    ask
        writing 2 0: LookForExtensions
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
        checking to install, forced: LookForExtensions
    nothing
        checking to install, forced: Check, forced
    ask install force
        checking to install, forced: LookForExtensions
    offer 0.9
        downloading 0.9 0: Tell [download 0.9]; Clean keep=d13c64200feb; Download 0.9
    "#);
    check!(TO_IDLE, @r#"
    timer
        checking to install: Check
    ask install force
        checking to install, forced: LookForExtensions
    trouble server connection refused
        checking to install, forced: Check, forced
    trouble server connection refused
        idle after 1 failures
    "#);
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
