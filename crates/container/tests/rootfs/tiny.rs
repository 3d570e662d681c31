//! The one program in the test image, built without the standard library's help from outside:
//! linked statically, so the image needs nothing else. Its name says what it does (`/bin/echo`), or
//! its first argument does (`/bin/tiny echo`).

use std::io::{Read, Write};
use std::process::exit;
use std::time::Duration;

fn main() {
    let mut args: Vec<String> = std::env::args().collect();
    let name = args[0].rsplit('/').next().unwrap_or_default().to_owned();
    let applet = if name == "tiny" && args.len() > 1 { args.remove(1) } else { name };
    let args = &args[1..];
    match applet.as_str() {
        "echo" => println!("{}", args.join(" ")),
        "cat" if args.is_empty() => {
            let mut text = Vec::new();
            let _ = std::io::stdin().read_to_end(&mut text);
            let _ = std::io::stdout().write_all(&text);
        }
        "cat" => {
            for path in args {
                match std::fs::read(path) {
                    Ok(bytes) => drop(std::io::stdout().write_all(&bytes)),
                    Err(error) => fail(&format!("{path}: {error}")),
                }
            }
        }
        "write" if args.len() == 2 => {
            if let Err(error) = std::fs::write(&args[0], &args[1]) {
                fail(&format!("{}: {error}", args[0]));
            }
        }
        // What the user namespace does: our id inside and the map to the outside.
        "id" => {
            let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
            let uid = status.lines().find(|line| line.starts_with("Uid:")).unwrap_or_default();
            println!("{}", uid.split_whitespace().collect::<Vec<_>>().join(" "));
            print!("{}", std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default());
        }
        "hostname" => print!("{}", std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()),
        "interfaces" => {
            for entry in std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
                println!("{}", entry.file_name().to_string_lossy());
            }
        }
        "sleep" => std::thread::sleep(Duration::from_secs(number(args))),
        "exit" => exit(i32::try_from(number(args)).unwrap_or(1)),
        // Uses so many MiB, for limits on memory.
        "eat" => {
            let mut eaten = Vec::new();
            for n in 1..=number(args) {
                eaten.push(vec![u8::try_from(n % 255 + 1).unwrap_or(1); 1 << 20]);
                println!("{n}");
            }
        }
        // Uses a processor for so many seconds, for limits on time.
        "spin" => {
            let end = std::time::Instant::now() + Duration::from_secs(number(args));
            let mut n: u64 = 0;
            while std::time::Instant::now() < end {
                n = std::hint::black_box(n.wrapping_add(1));
            }
        }
        // Tries to start so many threads, for limits on processes; prints how many there were.
        "threads" => {
            let started = (0..number(args))
                .map_while(|_| std::thread::Builder::new().spawn(|| std::thread::sleep(Duration::from_secs(1))).ok())
                .count();
            println!("{started}");
        }
        other => fail(&format!("no applet {other:?}")),
    }
}

fn number(args: &[String]) -> u64 {
    args.first().and_then(|text| text.parse().ok()).unwrap_or_else(|| {
        eprintln!("tiny: a number is missing");
        exit(2)
    })
}

fn fail(text: &str) -> ! {
    eprintln!("tiny: {text}");
    exit(1)
}
