//! Bytes that may be anything: the reader of YAML, of Ignition, of archives, of includes.
#![no_main]

use cloudinit::pipeline::{Input, validate};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let input = Input {
        user_data: Some(bytes),
        ..Input::default()
    };
    // YAML ends a line at a carriage return alone, too.
    let lines = bytes.split(|byte| b"\r\n".contains(byte)).count();
    for finding in validate(&input) {
        // Gzip has lines of its own.
        assert!(
            finding.pos.line <= lines + 1 || bytes.starts_with(&[0x1f, 0x8b]),
            "{finding}"
        );
    }
});
