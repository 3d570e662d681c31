//! A way to a release that leads nowhere.

use super::*;

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
