//! Networks, and that no value of theirs gets into another line of networkd's files.
#![no_main]

use cloudinit::network::{Format, render};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(converted) = Format::Packet.convert(text) else {
        return;
    };
    for file in render(&converted.network) {
        assert!(!file.name.contains('/'), "{}", file.name);
        for line in file.text.lines() {
            let plain = line.is_empty() || line.starts_with('[') || line.starts_with('#');
            assert!(plain || line.contains('='), "{line:?}");
        }
    }
});
