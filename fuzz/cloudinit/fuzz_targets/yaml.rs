//! A cloud-config behind its first line.
#![no_main]

use cloudinit::pipeline::{Input, validate};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let text = format!("#cloud-config\n{text}");
    let input = Input {
        user_data: Some(text.as_bytes()),
        ..Input::default()
    };
    let lines = text.split(['\r', '\n']).count();
    for finding in validate(&input) {
        assert!(finding.pos.line <= lines + 1, "{finding}");
    }
});
