//! Fuzz targets as modules of a test, so that what a fuzzer would start is compiled and run with every test. The test
//! includes this at its root, says `extern crate self as libfuzzer_sys`, and names the files of `fuzz_targets` as modules.

/// In the place of libFuzzer's: a function that takes one input.
#[macro_export]
macro_rules! fuzz_target {
    (|$input:ident: &[u8]| $body:expr) => {
        pub fn run($input: &[u8]) {
            $body;
        }
    };
    // Of bytes that are no text, as much as is: so the fuzzer does it, too.
    (|$input:ident: &str| $body:expr) => {
        pub fn run(input: &[u8]) {
            let text = input.utf8_chunks().next().map_or("", |chunk| chunk.valid());
            let run = |$input: &str| $body;
            run(text);
        }
    };
}

/// The tried targets are the ones that there are: in `fuzz_targets` of this directory, and in its manifest.
pub fn assert_all(dir: &std::path::Path, tried: &[&str]) {
    let sorted = |mut names: Vec<String>| {
        names.sort();
        names
    };
    let tried = sorted(tried.iter().map(|name| (*name).to_owned()).collect());
    let files = std::fs::read_dir(dir.join("fuzz_targets")).unwrap();
    let files = files.map(|file| file.unwrap().path());
    let files = files.map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned());
    assert_eq!(sorted(files.collect()), tried, "{}", dir.display());
    let manifest = std::fs::read_to_string(dir.join("Cargo.toml")).unwrap();
    let listed = manifest.split("[[bin]]\n").skip(1).map(|bin| {
        let name = bin.split('"').nth(1).unwrap();
        let path = format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"\n");
        assert!(bin.starts_with(&path), "{bin}");
        name.to_owned()
    });
    assert_eq!(sorted(listed.collect()), tried, "{}", dir.display());
}
