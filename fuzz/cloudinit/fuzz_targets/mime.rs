//! A MIME archive behind its first lines.
#![no_main]

use cloudinit::pipeline::{Input, validate};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let text = format!("Content-Type: multipart/mixed; boundary=x\n{text}");
    let input = Input {
        user_data: Some(text.as_bytes()),
        ..Input::default()
    };
    validate(&input);
});
