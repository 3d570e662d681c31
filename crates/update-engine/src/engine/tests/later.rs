//! What was downloaded first and is written later, and wishes that have to wait.

use super::*;

#[test]
fn what_was_downloaded_is_written_without_asking_again() {
    let transcript = r#"
    ask install apply
        refused: nothing was downloaded to be installed later: orlop update --download-only does that
    ask install download-only
        checking to download: Check
    offer 2
        downloading 2 0: Tell [download 2]; Clean keep=7909b0e90f6e; Download 2
    told 1
        downloading 2 0
    downloaded
        idle
    status
        idle, available 2
    restart 1
    found a=1*+3-0 b=-
        proving: WithdrawReboot; LookForGood
    good
        idle (first): Clean keep=7909b0e90f6e
    ask install apply
        checking to install: Reopen
    offer 2
        downloading 2 0: Clean keep=7909b0e90f6e; Download 2
    downloaded
        writing 2 0: Tell [downloaded 2]; WithdrawReboot; Stage 2 then Nothing
    told 1
        writing 2 0
    staged b
        idle: Tell [staged 2]; ReadSlots; AskReboot 2 Update; Clean keep=-
    told 1
        idle
    ask install apply
        refused: nothing was downloaded to be installed later: orlop update --download-only does that
    "#;
    same(TO_IDLE, transcript);
}

#[test]
fn another_release_takes_the_place_of_what_was_downloaded() {
    let transcript = r#"
    ask install download-only
        checking to download: Check
    offer 2
        downloading 2 0: Tell [download 2]; Clean keep=7909b0e90f6e; Download 2
    told 1
        downloading 2 0
    downloaded
        idle
    ask install apply
        checking to install: Reopen
    ask install
        checking to install: LookForExtensions
    offer 2
        checking to install: Check
    offer 3
        downloading 3 0: Tell [download 3]; Clean keep=b4b3df22a758; Download 3
    trouble download cut off
        idle after 1 failures
    ask install apply
        refused: nothing was downloaded to be installed later: orlop update --download-only does that
    "#;
    same(TO_IDLE, transcript);
}

#[test]
fn going_back_waits_for_the_end_of_a_check() {
    let to_two = [
        "reboot 2",
        "found a=1+3-0 b=2*+2-1",
        "good",
        "told 1",
        "found a=1+3-0 b=2*+3-0",
    ];
    let to_two = [STAGED_2, &to_two].concat();
    let transcript = r#"
    timer
        checking to install: Check
    rollback
        checking to install
    ask install
        checking to install: LookForExtensions
    offer 3
        rolling back: RollBack
    rolled-back a
        idle: Tell [failed 2 RolledBack: rolled back by the operator to version 1]; ReadSlots; AskReboot 1 Rollback
    "#;
    same(&to_two, transcript);
}

/// The release that was staged before is there still, which only the disk tells.
#[test]
fn going_back_is_refused_while_nobody_knows_what_is_staged() {
    let transcript = r#"
    ask install
        checking to install: Check
    offer 3
        downloading 3 0: Tell [download 3]; Clean keep=b4b3df22a758; Download 3
    told 1
        downloading 3 0
    downloaded
        writing 3 0: Tell [downloaded 3]; WithdrawReboot; Stage 3 then Nothing
    told 1
        writing 3 0
    trouble write no room
        idle after 1 failures: Tell [failed 3 Write: no room]; ReadSlots
    rollback
        refused: the slots are being looked at; try again in a moment
    timer
        checking to install: ReadSlots; Check
    rollback
        checking to install
    found a=1*+3-0 b=2+3-0
        checking to install: AskReboot 2 Update
    nothing
        idle after 1 failures
    status
        error, staged 2 in b, error: an update is staged in the other slot, so there is nothing to go back to; a reboot boots it
    "#;
    same(STAGED_2, transcript);
}

fn same(prelude: &[&str], transcript: &str) {
    let unindented = |text: &str| {
        let lines = text
            .lines()
            .map(|line| line.strip_prefix("    ").unwrap_or(line));
        lines.collect::<Vec<_>>().join("\n").trim().to_owned()
    };
    assert_eq!(replay(prelude, transcript).trim(), unindented(transcript));
}
