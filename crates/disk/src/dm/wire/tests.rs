//! Against bytes written out by hand from `<linux/dm-ioctl.h>` (little-endian machines only).

use super::*;

#[test]
fn a_create_request_byte_by_byte() {
    let buf = create("usr", "CRYPT-VERITY-00-usr");
    assert_eq!(buf.len(), 312);
    let mut want = vec![0; 312];
    want[0] = 4;
    want[12..14].copy_from_slice(&[0x38, 0x01]);
    want[16..18].copy_from_slice(&[0x38, 0x01]);
    want[28] = 1;
    want[48..51].copy_from_slice(b"usr");
    want[176..195].copy_from_slice(b"CRYPT-VERITY-00-usr");
    assert_eq!(buf, want);
}

#[test]
fn a_load_request_byte_by_byte() {
    let params = "1 /dev/vda3 /dev/vda4";
    let buf = load("usr", "verity", 0x0102_0304, params);
    // 40 + 21 + NUL = 62, rounded up to 64.
    assert_eq!(buf.len(), 312 + 64);
    assert_eq!(buf[12..16], (312u32 + 64).to_le_bytes());
    assert_eq!(buf[16..20], 312u32.to_le_bytes());
    assert_eq!(buf[20..24], 1u32.to_le_bytes());
    assert_eq!(buf[28..32], 1u32.to_le_bytes());
    assert_eq!(buf[176..312], [0; 136], "no UUID besides a name");
    let spec = &buf[312..];
    assert_eq!(spec[0..8], [0; 8], "sector_start");
    assert_eq!(spec[8..16], [4, 3, 2, 1, 0, 0, 0, 0], "length");
    assert_eq!(spec[16..20], [0; 4], "status");
    assert_eq!(spec[20..24], [64, 0, 0, 0], "next");
    assert_eq!(&spec[24..40], b"verity\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(&spec[40..61], params.as_bytes());
    assert_eq!(spec[61..64], [0; 3]);
}

#[test]
fn a_string_is_always_terminated() {
    for len in 0..32 {
        let buf = load("usr", "verity", 8, &"x".repeat(len));
        assert_eq!(buf.len() % 8, 0);
        assert_eq!(buf.last(), Some(&0));
    }
    let buf = request(&"n".repeat(300), 0, 0);
    assert_eq!((buf[174], buf[175], buf[176]), (b'n', 0, 0));
}

#[test]
fn device_numbers() {
    let number = |dev: u64| {
        let mut answer = request("x", 0, 0);
        answer[40..48].copy_from_slice(&dev.to_le_bytes());
        device(&answer).to_string()
    };
    assert_eq!(number(0xfd00), "253:0");
    assert_eq!(number(0xfe03), "254:3");
    // 253:256 as stat(1) would encode it.
    assert_eq!(number(0x10_fd00), "253:256");
    assert_eq!(number(0xffff_ffff), "4095:1048575");
}

fn answer(flags: u32, targets: &[(u64, u64, &str, &str)]) -> Vec<u8> {
    let mut buf = request("usr", flags, 0);
    buf[20..24].copy_from_slice(&u32::try_from(targets.len()).unwrap().to_le_bytes());
    buf[24] = 2;
    buf[40..42].copy_from_slice(&[0, 0xfd]);
    for (start, length, kind, text) in targets {
        let len = (40 + text.len() + 1).next_multiple_of(8);
        let at = buf.len();
        buf.resize(at + len, 0);
        let next = u32::try_from(at + len - 312).unwrap();
        buf[at..at + 8].copy_from_slice(&start.to_le_bytes());
        buf[at + 8..at + 16].copy_from_slice(&length.to_le_bytes());
        buf[at + 20..at + 24].copy_from_slice(&next.to_le_bytes());
        buf[at + 24..at + 24 + kind.len()].copy_from_slice(kind.as_bytes());
        buf[at + 40..at + 40 + text.len()].copy_from_slice(text.as_bytes());
    }
    buf
}

#[test]
fn a_status_with_two_targets() {
    let bytes = answer(1 | 1 << 5, &[(0, 8, "verity", "V"), (8, 16, "error", "")]);
    let status = status(&bytes).unwrap().unwrap();
    assert_eq!(status.device.to_string(), "253:0");
    assert_eq!(status.open_count, 2);
    assert!(status.read_only && status.active && !status.suspended);
    let targets: Vec<_> = status
        .targets
        .iter()
        .map(|t| (t.start, t.length, t.kind.as_str(), t.text.as_str()))
        .collect();
    assert_eq!(targets, [(0, 8, "verity", "V"), (8, 16, "error", "")]);
}

#[test]
fn answers_that_are_too_large_or_wrong() {
    assert_eq!(status(&answer(1 << 8, &[])).unwrap(), None);

    let mut cut = answer(0, &[(0, 8, "verity", "V")]);
    cut.truncate(312 + 39);
    assert!(status(&cut).is_err());
    assert!(status(&cut[..311]).is_err());

    let mut outside = answer(0, &[]);
    outside[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(status(&outside).is_err());
}
