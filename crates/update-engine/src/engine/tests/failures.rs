//! What failed, why, and what is remembered of it.

use super::*;

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
