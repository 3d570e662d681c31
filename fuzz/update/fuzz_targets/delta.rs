#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| update_fuzz::COUNT.add(update_fuzz::delta(data)));
