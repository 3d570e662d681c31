use std::io::{self, Cursor, Write};
use std::time::Duration;

use super::disk::Volume;
use super::iso9660::{self, ReadAt};
use super::*;

/// A machine that is a directory: block devices by name.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new(disks: &[(&str, Vec<u8>)]) -> Self {
        let machine = Self(tempfile::tempdir().unwrap());
        std::fs::create_dir_all(machine.0.path().join("dev")).unwrap();
        for (name, image) in disks {
            std::fs::create_dir_all(machine.0.path().join("sys/class/block").join(name)).unwrap();
            machine.file(&format!("dev/{name}"), image);
        }
        machine
    }

    fn file(&self, path: &str, bytes: &[u8]) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    fn search(&self) -> Search {
        search(
            &Probe {
                root: self.0.path(),
            },
            Duration::ZERO,
        )
    }

    /// Origin (without the directory), user-data, and the metadata's parts.
    fn show(&self) -> String {
        let search = self.search();
        let root = self.0.path().to_str().unwrap();
        let Some(found) = search.found else {
            return search.tried.join("\n").replace(root, "");
        };
        let text = String::from_utf8(found.user_data.unwrap_or_default()).unwrap();
        let Metadata {
            instance_id,
            hostname,
            ssh_keys,
            ..
        } = found.metadata;
        let origin = found.origin.replace(root, "");
        format!("{origin}: {text:?} {instance_id:?} {hostname:?} {ssh_keys:?}")
    }
}

type Files<'a> = &'a [(&'a str, &'a str)];

enum Entry<'a> {
    File(&'a str),
    Directory(Vec<(&'a str, &'a str)>),
}

/// What the directory of `files` has in it itself, in their order.
fn entries<'a>(files: Files<'a>) -> Vec<(&'a str, Entry<'a>)> {
    let mut entries: Vec<(&str, Entry<'_>)> = Vec::new();
    for (path, text) in files {
        let Some((name, inner)) = path.split_once('/') else {
            entries.push((path, Entry::File(text)));
            continue;
        };
        match entries.iter_mut().find(|(other, _)| *other == name) {
            Some((_, Entry::Directory(within))) => within.push((inner, text)),
            _ => entries.push((name, Entry::Directory(vec![(inner, text)]))),
        }
    }
    entries
}

fn fat_image(label: &str, files: Files<'_>) -> Vec<u8> {
    let mut image = Cursor::new(vec![0; 1 << 20]);
    let mut padded = [b' '; 11];
    padded[..label.len()].copy_from_slice(label.as_bytes());
    let options = fatfs::FormatVolumeOptions::new().volume_label(padded);
    fatfs::format_volume(&mut image, options).unwrap();
    {
        let fs = fatfs::FileSystem::new(&mut image, fatfs::FsOptions::new()).unwrap();
        for (path, text) in files {
            let mut dir = fs.root_dir();
            let mut parts: Vec<&str> = path.split('/').collect();
            let name = parts.pop().unwrap();
            for part in parts {
                dir = dir.create_dir(part).unwrap();
            }
            dir.create_file(name)
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
        }
    }
    image.into_inner()
}

#[derive(Clone, Copy, PartialEq)]
enum Names {
    Plain,
    RockRidge,
    Joliet,
}

/// A small ISO 9660 image by the book (ECMA-119): directories of one sector each, depth first.
fn iso_image(label: &str, files: Files<'_>, names: Names) -> Vec<u8> {
    let mut image = vec![0; 20 * 2048];
    let root = iso_directory(&mut image, files, names);
    let mut descriptors = vec![(1u8, names != Names::Joliet)];
    if names == Names::Joliet {
        descriptors.push((2, true));
    }
    for (index, (kind, full)) in descriptors.iter().enumerate() {
        let at = (16 + index) * 2048;
        image[at] = *kind;
        image[at + 1..at + 6].copy_from_slice(b"CD001");
        if *kind == 2 {
            image[at + 88..at + 91].copy_from_slice(b"%/E");
        }
        image[at + 40..at + 72].fill(b' ');
        image[at + 40..at + 40 + label.len()].copy_from_slice(label.as_bytes());
        let extent = if *full { root } else { (19, 2048) };
        let record = iso_record(&[0], extent, true, None);
        image[at + 156..at + 156 + record.len()].copy_from_slice(&record);
    }
    let end = (16 + descriptors.len()) * 2048;
    image[end] = 255;
    image[end + 1..end + 6].copy_from_slice(b"CD001");
    image
}

/// Appends the directory of `files` and everything in it; returns its place.
fn iso_directory(image: &mut Vec<u8>, files: Files<'_>, names: Names) -> (u32, u32) {
    let mut records = Vec::new();
    for (index, (name, entry)) in entries(files).into_iter().enumerate() {
        let directory = matches!(entry, Entry::Directory(_));
        let extent = match entry {
            Entry::Directory(within) => iso_directory(image, &within, names),
            Entry::File(text) => append(image, text.as_bytes()),
        };
        let version = if directory { "" } else { ";1" };
        let raw = match names {
            Names::Joliet => format!("{name}{version}")
                .encode_utf16()
                .flat_map(u16::to_be_bytes)
                .collect(),
            Names::Plain => format!("{}{version}", name.to_ascii_uppercase()).into_bytes(),
            Names::RockRidge => format!("FILE{}{version}", index + 1).into_bytes(),
        };
        let real = (names == Names::RockRidge).then_some(name);
        records.extend(iso_record(&raw, extent, directory, real));
    }
    append(image, &records)
}

fn append(image: &mut Vec<u8>, bytes: &[u8]) -> (u32, u32) {
    let sector = u32::try_from(image.len() / 2048).unwrap();
    image.extend(bytes);
    image.resize(image.len().next_multiple_of(2048), 0);
    (sector, u32::try_from(bytes.len()).unwrap())
}

fn iso_record(
    name: &[u8],
    (sector, length): (u32, u32),
    directory: bool,
    rock_ridge: Option<&str>,
) -> Vec<u8> {
    let mut record = vec![0; 33];
    record[2..6].copy_from_slice(&sector.to_le_bytes());
    record[10..14].copy_from_slice(&length.to_le_bytes());
    record[25] = if directory { 2 } else { 0 };
    record[32] = u8::try_from(name.len()).unwrap();
    record.extend(name);
    if record.len() % 2 == 1 {
        record.push(0);
    }
    if let Some(real) = rock_ridge {
        // A time stamp first, and the name in two pieces, as long names come.
        record.extend([b'T', b'F', 5, 1, 0]);
        let (a, b) = real.split_at(real.len() / 2);
        for (part, more) in [(a, 1), (b, 0)] {
            record.extend([b'N', b'M', u8::try_from(5 + part.len()).unwrap(), 1, more]);
            record.extend(part.as_bytes());
        }
    }
    if record.len() % 2 == 1 {
        record.push(0);
    }
    record[0] = u8::try_from(record.len()).unwrap();
    record
}

/// How files are stored in UDF.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stored {
    /// In their entry.
    Within,
    /// In extents, each a block, with their names in 16 bits.
    Short,
    /// The same with descriptors that name the partition, in an extended entry.
    Long,
}

/// The first block of the one partition.
const PARTITION: usize = 262;

pub(crate) fn udf_image(label: &str, files: Files<'_>) -> Vec<u8> {
    udf_stored(label, files, Stored::Within)
}

/// A small UDF image by the book (ECMA-167): an anchor, three descriptors, and one partition.
fn udf_stored(label: &str, files: Files<'_>, stored: Stored) -> Vec<u8> {
    let mut image = vec![0; (PARTITION + 1) * 2048];
    let root = udf_directory(&mut image, files, stored);
    let mut put = |block: usize, tag: u16, fields: &[(usize, &[u8])]| {
        let block = &mut image[block * 2048..][..2048];
        for (at, bytes) in fields {
            block[*at..*at + bytes.len()].copy_from_slice(bytes);
        }
        udf_tag(block, tag);
    };
    let u32s =
        |values: &[u32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let mut name = [0; 128];
    name[0] = 8;
    name[1..=label.len()].copy_from_slice(label.as_bytes());
    name[127] = u8::try_from(label.len() + 1).unwrap();
    put(256, 2, &[(16, &u32s(&[3 * 2048, 257]))]);
    let start = u32::try_from(PARTITION).unwrap();
    put(257, 5, &[(22, &[7, 0]), (188, &u32s(&[start, 1000]))]);
    put(
        258,
        6,
        &[
            (84, &name),
            (212, &u32s(&[2048])),
            (248, &u32s(&[2048, 0, 0])),
            (264, &u32s(&[6, 1])),
            (440, &[1, 6, 1, 0, 7, 0]),
        ],
    );
    put(259, 8, &[]);
    put(PARTITION, 256, &[(400, &u32s(&[2048, root, 0]))]);
    image
}

fn udf_tag(descriptor: &mut [u8], tag: u16) {
    descriptor[..2].copy_from_slice(&tag.to_le_bytes());
    descriptor[4] = 0;
    descriptor[4] = descriptor[..16]
        .iter()
        .fold(0, |sum, b| sum.wrapping_add(*b));
}

/// Appends the directory of `files` and everything in it; returns the block of its entry.
fn udf_directory(image: &mut Vec<u8>, files: Files<'_>, stored: Stored) -> u32 {
    // Its parent, which has no name.
    let mut records = udf_name("", 0, 2 | 8, stored);
    for (name, entry) in entries(files) {
        records.extend(match entry {
            Entry::Directory(within) => {
                udf_name(name, udf_directory(image, &within, stored), 2, stored)
            }
            Entry::File(text) => {
                udf_name(name, udf_entry(image, text.as_bytes(), stored), 0, stored)
            }
        });
    }
    udf_entry(image, &records, stored)
}

fn udf_name(name: &str, entry: u32, kind: u8, stored: Stored) -> Vec<u8> {
    let name: Vec<u8> = match stored {
        _ if name.is_empty() => Vec::new(),
        Stored::Within => [&[8], name.as_bytes()].concat(),
        _ => {
            let units = name.encode_utf16().flat_map(u16::to_be_bytes);
            [16].into_iter().chain(units).collect()
        }
    };
    let mut record = vec![0; 38];
    record[18] = kind;
    record[19] = u8::try_from(name.len()).unwrap();
    record[24..28].copy_from_slice(&entry.to_le_bytes());
    record.extend(name);
    record.resize(record.len().next_multiple_of(4), 0);
    udf_tag(&mut record, 257);
    record
}

fn udf_entry(image: &mut Vec<u8>, bytes: &[u8], stored: Stored) -> u32 {
    let block = |sector: u32| sector - u32::try_from(PARTITION).unwrap();
    let mut area = Vec::new();
    match stored {
        Stored::Within => area.extend(bytes),
        Stored::Short | Stored::Long => {
            for part in bytes.chunks(2048) {
                let (sector, length) = append(image, part);
                area.extend(length.to_le_bytes());
                area.extend(block(sector).to_le_bytes());
                if stored == Stored::Long {
                    area.extend([0; 8]);
                }
            }
        }
    }
    let (tag, lengths, start) = match stored {
        Stored::Long => (266, 208, 216),
        _ => (261, 168, 176),
    };
    let mut entry = vec![0; start];
    entry[34] = match stored {
        Stored::Short => 0,
        Stored::Long => 1,
        Stored::Within => 3,
    };
    entry[56..64].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    entry[lengths + 4..lengths + 8]
        .copy_from_slice(&u32::try_from(area.len()).unwrap().to_le_bytes());
    entry.extend(area);
    udf_tag(&mut entry, tag);
    block(append(image, &entry).0)
}

const SEED: Files<'static> = &[
    ("user-data", "#cloud-config\n"),
    (
        "meta-data",
        "instance-id: i-1\nlocal-hostname: node1\npublic-keys:\n  - ssh-ed25519 AAAA a\n",
    ),
];

const SEEN: &str = r##""#cloud-config\n" Some("i-1") Some("node1") ["ssh-ed25519 AAAA a"]"##;

#[test]
fn nocloud_on_every_kind_of_disk() {
    for label in ["cidata", "CIDATA"] {
        let machine = Machine::new(&[("vda", vec![0; 1 << 20]), ("vdb", fat_image(label, SEED))]);
        assert_eq!(machine.show(), format!("nocloud /dev/vdb: {SEEN}"));
        for names in [Names::Plain, Names::RockRidge, Names::Joliet] {
            let machine = Machine::new(&[("sr0", iso_image(label, SEED, names))]);
            assert_eq!(machine.show(), format!("nocloud /dev/sr0: {SEEN}"));
        }
    }
}

#[test]
fn config_drive() {
    let json =
        r#"{"uuid":"u-1","hostname":"node2","public_keys":{"mine":"ssh-rsa AAAA b\n"},"x":[1]}"#;
    let files: Files<'_> = &[
        ("openstack/latest/meta_data.json", json),
        ("openstack/latest/user_data", "#!/bin/sh\n"),
    ];
    for names in [Names::RockRidge, Names::Joliet] {
        let machine = Machine::new(&[("vdb", iso_image("config-2", files, names))]);
        let expect = r##"config drive /dev/vdb: "#!/bin/sh\n" Some("u-1") Some("node2") ["ssh-rsa AAAA b"]"##;
        assert_eq!(machine.show(), expect);
    }
}

#[test]
fn precedence_is_fw_cfg_nocloud_config_drive() {
    let disks = [
        ("vdb", iso_image("config-2", &[], Names::RockRidge)),
        ("vdc", fat_image("CIDATA", SEED)),
    ];
    let machine = Machine::new(&disks);
    assert!(machine.show().starts_with("nocloud /dev/vdc"));
    machine.file(
        "sys/firmware/qemu_fw_cfg/by_name/opt/com.coreos/config/raw",
        b"#cloud-config\n",
    );
    assert!(
        machine.show().starts_with("fw_cfg opt/com.coreos/config"),
        "{}",
        machine.show()
    );
    machine.file(
        "sys/firmware/qemu_fw_cfg/by_name/opt/orlop/user-data/raw",
        b"#cloud-config\n",
    );
    assert!(machine.show().starts_with("fw_cfg opt/orlop/user-data"));
}

#[test]
fn the_search_says_what_it_tried() {
    let machine = Machine::new(&[
        ("vda", fat_image("EFI", &[])),
        ("dm-0", fat_image("CIDATA", SEED)),
    ]);
    insta::assert_snapshot!(machine.show(), @r"
    credentials: not here
    fw_cfg: not here
    vmware: not here
    virtualbox: not here
    xenstore: not here
    nocloud: not here
    config drive: not here
    ovf disc: not here
    file: not here
    ");
}

#[test]
fn hardware_that_is_still_coming_up_is_waited_for_and_named() {
    let check = |file: &str, content: &str, expect: Option<&str>| {
        let machine = Machine::new(&[]);
        machine.file(file, content.as_bytes());
        let tried = machine.search().tried;
        let waited = tried
            .iter()
            .find_map(|line| line.strip_prefix("waited 0 s for "));
        assert_eq!(waited, expect, "{file}");
    };
    check(
        "sys/class/ata_device/dev1.0/class",
        "atapi\n",
        Some("a CD-ROM drive"),
    );
    check("sys/class/ata_device/dev1.0/class", "none\n", None);
    check(
        "sys/bus/scsi/devices/0:0:0:0/type",
        "5\n",
        Some("a CD-ROM drive"),
    );
    check("sys/bus/scsi/devices/0:0:0:0/type", "0\n", None);
    check(
        "sys/bus/pci/devices/0000:00:1f.2/class",
        "0x010601\n",
        Some("the driver of an ATA controller"),
    );
    check("sys/bus/pci/devices/0000:00:02.0/class", "0x030000\n", None);
    check(
        "sys/bus/acpi/devices/QEMU0002:00/status",
        "15\n",
        Some("QEMU's fw_cfg"),
    );
}

#[test]
fn a_disk_that_appears_during_the_wait_is_found() {
    let machine = Machine::new(&[]);
    machine.file("sys/class/ata_device/dev1.0/class", b"atapi");
    let root = machine.0.path().to_owned();
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(120));
        std::fs::write(
            root.join("dev/sr0"),
            iso_image("cidata", SEED, Names::RockRidge),
        )
        .unwrap();
        std::fs::create_dir_all(root.join("sys/class/block/sr0")).unwrap();
    });
    let search = search(
        &Probe {
            root: machine.0.path(),
        },
        Duration::from_secs(5),
    );
    late.join().unwrap();
    assert!(search.found.is_some());
}

#[test]
fn bad_metadata_is_a_finding_and_the_user_data_still_counts() {
    let files: Files<'_> = &[
        ("user-data", "#cloud-config\n"),
        ("meta-data", "a: [\n"),
        ("network-config", "version: 3\n"),
    ];
    let found = Machine::new(&[("vdb", fat_image("cidata", files))])
        .search()
        .found
        .unwrap();
    assert!(found.user_data.is_some());
    let findings: Vec<String> = found.findings.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(findings.join("\n"), @r#"
    2:1: warning: meta-data: while parsing a node, did not find expected node content
    1:10: warning: network-config: version: version "3" is not supported
    "#);
}

/// The program that people make these disks with, where it is installed.
#[test]
fn images_of_xorriso_are_read() {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in SEED {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    for flags in [
        &["-joliet", "on", "-rockridge", "off"][..],
        &["-rockridge", "on"],
    ] {
        let image = dir.path().join("seed.iso");
        let _ = std::fs::remove_file(&image);
        let mut command = std::process::Command::new("xorriso");
        command
            .args(["-outdev", image.to_str().unwrap(), "-volid", "CIDATA"])
            .args(flags);
        for (name, _) in SEED {
            command.args([
                "-map",
                dir.path().join(name).to_str().unwrap(),
                &format!("/{name}"),
            ]);
        }
        match command.output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            output => assert!(output.unwrap().status.success()),
        }
        let machine = Machine::new(&[("sr0", std::fs::read(&image).unwrap())]);
        assert_eq!(
            machine.show(),
            format!("nocloud /dev/sr0: {SEEN}"),
            "{flags:?}"
        );
    }
}

impl ReadAt for Vec<u8> {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let from = self.get(start..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(512))]
    #[test]
    fn a_damaged_iso_never_panics(
        damage in proptest::collection::vec((0usize..60_000, proptest::prelude::any::<u8>()), 1..40),
        in_header in proptest::collection::vec((32_768usize..36_864, proptest::prelude::any::<u8>()), 0..10),
        names in proptest::sample::select(vec![Names::Plain, Names::RockRidge, Names::Joliet]),
        length in 0usize..60_000,
    ) {
        let mut image = iso_image("cidata", SEED, names);
        for (at, byte) in damage.into_iter().chain(in_header) {
            if let Some(place) = image.get_mut(at) {
                *place = byte;
            }
        }
        image.truncate(image.len().min(length.max(40_000)));
        if let Ok(Some(mut iso)) = iso9660::open(image) {
            let _ = iso.read("user-data");
            let _ = iso.read("openstack/latest/user_data");
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
    #[test]
    fn a_damaged_fat_never_panics(
        in_header in proptest::collection::vec((11usize..64, proptest::prelude::any::<u8>()), 0..4),
        damage in proptest::collection::vec((512usize..40_000, proptest::prelude::any::<u8>()), 1..40),
    ) {
        let mut image = fat_image("cidata", SEED);
        for (at, byte) in damage.into_iter().chain(in_header) {
            image[at] = byte;
        }
        let _ = Machine::new(&[("vdb", image)]).search();
    }
}

impl std::fmt::Debug for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Plain => "plain",
            Self::RockRidge => "Rock Ridge",
            Self::Joliet => "Joliet",
        })
    }
}

#[test]
fn credentials_files_and_discs() {
    let machine = Machine::new(&[]);
    machine.file(
        "run/credentials/cloudinit.service/cloudinit.user-data",
        b"#!/bin/sh\n",
    );
    let meta = "run/credentials/cloudinit.service/cloudinit.meta-data";
    machine.file(meta, b"local-hostname: c\n");
    insta::assert_snapshot!(machine.show(), @r##"credentials /run/credentials/cloudinit.service: "#!/bin/sh\n" None Some("c") []"##);

    let machine = Machine::new(&[]);
    machine.file(
        "var/lib/coreos-vagrant/vagrantfile-user-data",
        b"#!/bin/sh\n",
    );
    insta::assert_snapshot!(machine.show(), @r##"file /var/lib/coreos-vagrant/vagrantfile-user-data: "#!/bin/sh\n" None None []"##);

    let ovf = r#"<e xmlns:o="o"><Property o:key="guestinfo.userdata" o:value="x"/><Property o:key="guestinfo.hostname" o:value="v"/></e>"#;
    let machine = Machine::new(&[("sr0", fat_image("OVF ENV", &[("ovf-env.xml", ovf)]))]);
    insta::assert_snapshot!(machine.show(), @r#"ovf /dev/sr0: "x" None Some("v") []"#);
}

#[test]
fn udf_in_every_form() {
    let long = format!("#cloud-config\n{}", "# remark\n".repeat(1000));
    for stored in [Stored::Within, Stored::Short, Stored::Long] {
        let image = udf_stored("cidata", SEED, stored);
        let shown = Machine::new(&[("sr0", image)]).show();
        assert_eq!(shown, format!("nocloud /dev/sr0: {SEEN}"), "{stored:?}");
        let files = [("openstack/latest/user_data", "#!/bin/sh\n")];
        let machine = Machine::new(&[("sr0", udf_stored("config-2", &files, stored))]);
        let user_data = machine.search().found.unwrap().user_data.unwrap();
        assert_eq!(user_data, b"#!/bin/sh\n", "{stored:?}");
        if stored != Stored::Within {
            let files = [("user-data", long.as_str())];
            let machine = Machine::new(&[("sr0", udf_stored("cidata", &files, stored))]);
            let user_data = machine.search().found.unwrap().user_data.unwrap();
            assert_eq!(user_data, long.as_bytes());
        }
    }
}

#[test]
fn places_beyond_the_image_are_no_places() {
    for at in [20, 28] {
        let mut image = udf_image("cidata", SEED);
        image[256 * 2048 + 16..256 * 2048 + 32].fill(0);
        image[256 * 2048 + at - 4..256 * 2048 + at + 4].fill(0xff);
        assert!(!matches!(udf::open(image), Ok(Some(_))));
    }
}

/// UDF has the names that ISO 9660 had to shorten; the label may be in either.
#[test]
fn a_disc_that_is_both() {
    let both = |iso: Vec<u8>, mut udf: Vec<u8>| {
        assert!(iso.len() < 256 * 2048);
        udf[..iso.len()].copy_from_slice(&iso);
        Machine::new(&[("sr0", udf)]).show()
    };
    let short = iso_image("cidata", &[("USER_DAT", "")], Names::Plain);
    let shown = both(short, udf_image("cidata", SEED));
    assert_eq!(shown, format!("nocloud /dev/sr0: {SEEN}"));
    let labelled = iso_image("cidata", SEED, Names::RockRidge);
    let shown = both(labelled, udf_image("LinuxUDF", SEED));
    assert_eq!(shown, format!("nocloud /dev/sr0: {SEEN}"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(512))]
    #[test]
    fn a_damaged_udf_never_panics(
        damage in proptest::collection::vec((256usize * 2048..275 * 2048, proptest::prelude::any::<u8>()), 1..40),
        // Where the numbers are; the tags are set right again, or nothing of it would be looked at.
        in_fields in proptest::collection::vec((256usize..275, 16usize..280, proptest::prelude::any::<u8>()), 0..6),
        stored in proptest::sample::select(vec![Stored::Within, Stored::Short, Stored::Long]),
        end in 256usize * 2048..300 * 2048,
    ) {
        let mut image = udf_stored("cidata", SEED, stored);
        let fields = in_fields.into_iter().map(|(block, at, byte)| (block * 2048 + at, byte));
        for (at, byte) in damage.into_iter().filter(|(at, _)| at % 2048 > 16).chain(fields) {
            if let Some(place) = image.get_mut(at) {
                *place = byte;
            }
        }
        image.truncate(end);
        if let Ok(Some(mut udf)) = udf::open(image) {
            let _ = udf.read("user-data");
            let _ = udf.read("openstack/latest/user_data");
        }
    }
}

/// Azure's disc is only half of it: the metadata service is asked too.
#[test]
fn the_disc_of_azure() {
    let xml = "<Environment><wa:ProvisioningSection xmlns:wa=\"w\"><LinuxProvisioningConfigurationSet><HostName>az</HostName><CustomData>IyEvYmluL3NoCg==</CustomData></LinuxProvisioningConfigurationSet></wa:ProvisioningSection></Environment>";
    // A disk that cannot be read comes first.
    let mut broken = udf_image("data", SEED);
    let set = PARTITION * 2048;
    let root: [u8; 4] = broken[set + 404..set + 408].try_into().unwrap();
    let root = set + u32::from_le_bytes(root) as usize * 2048;
    broken[root..root + 2048].fill(0);
    let disc = udf_image("UDF Volume", &[("ovf-env.xml", xml)]);
    let machine = Machine::new(&[("sdb", broken), ("sr0", disc)]);
    assert!(machine.search().found.is_none());
    let root = machine.0.path();
    let disc = azure_disc(&Probe { root }).unwrap();
    assert_eq!(disc.user_data.unwrap(), b"#!/bin/sh\n");
    assert_eq!(disc.metadata.hostname.unwrap(), "az");
}

#[test]
fn networks_on_a_config_drive() {
    let meta = r#"{"network_config": {"content_path": "/content/0000"}}"#;
    let machine = Machine::new(&[(
        "vdb",
        fat_image(
            "config-2",
            &[
                ("openstack/latest/meta_data.json", meta),
                (
                    "openstack/content/0000",
                    "auto eth0\niface eth0 inet static\n  address 192.0.2.7\n  netmask 255.255.255.0\n",
                ),
            ],
        ),
    )]);
    let found = machine.search().found.unwrap();
    let network = found.metadata.network.unwrap();
    assert_eq!(network.links[0].addresses[0].to_string(), "192.0.2.7/24");
    assert_eq!(found.findings, []);
}

/// A stand-in for the program, which answers as it does and writes its calls down.
const VBOXCONTROL: &str = r#"#!/bin/sh
here=${0%/*}
echo "$*" >>"$here/calls"
[ "$1 $2 $3" = "--nologo guestproperty get" ] || { echo "Syntax error" >&2; exit 1; }
[ -e "$here/broken" ] && { echo "VBoxControl: error: Failed to contact the host/guest service" >&2; exit 1; }
if [ -e "$here/properties$4/value" ]; then printf 'Value: %s\n' "$(cat "$here/properties$4/value")"
else echo "No value set!"; fi
"#;

#[test]
fn guest_properties_of_virtualbox() {
    let machine = Machine::new(&[]);
    machine.file("sys/class/dmi/id/product_name", b"VirtualBox\n");
    let tried = machine.search().tried;
    let line = tried.iter().find(|line| line.starts_with("virtualbox"));
    assert!(
        line.unwrap()
            .contains("VBoxControl is not on this machine (looked in /usr/bin, ")
    );

    machine.file("opt/bin/VBoxControl", VBOXCONTROL.as_bytes());
    let program = machine.0.path().join("opt/bin/VBoxControl");
    std::fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    assert!(machine.show().contains("virtualbox: not here"));
    let set = |name: &str, value: &str| {
        machine.file(&format!("opt/bin/properties{name}/value"), value.as_bytes());
    };
    set("/Ignition/Config", r#"{"ignition":{"version":"3.0.0"}}"#);
    let ignition = r#""{\"ignition\":{\"version\":\"3.0.0\"}}" None None []"#;
    assert_eq!(
        machine.show(),
        format!("virtualbox /Ignition/Config: {ignition}")
    );
    set("/Orlop/CloudConfig", "#cloud-config\nhostname: a\n");
    set("/Orlop/Hostname", "v1");
    set("/Orlop/SSHKeys", "ssh-ed25519 AAAA a\nssh-ed25519 BBBB b");
    let rest = r#"None Some("v1") ["ssh-ed25519 AAAA a", "ssh-ed25519 BBBB b"]"#;
    let text = r##""#cloud-config\nhostname: a""##;
    assert_eq!(
        machine.show(),
        format!("virtualbox /Orlop/CloudConfig: {text} {rest}")
    );
    set("/Orlop/CloudConfig", "IyEvYmluL3NoCg==");
    set("/Orlop/CloudConfig/Encoding", "base64");
    let text = r##""#!/bin/sh\n""##;
    assert_eq!(
        machine.show(),
        format!("virtualbox /Orlop/CloudConfig: {text} {rest}")
    );
    let calls = std::fs::read_to_string(machine.0.path().join("opt/bin/calls")).unwrap();
    let last: Vec<&str> = calls.lines().rev().take(4).collect();
    let names = ["SSHKeys", "Hostname", "CloudConfig/Encoding", "CloudConfig"];
    let expect = names.map(|name| format!("--nologo guestproperty get /Orlop/{name}"));
    assert_eq!(last, expect);

    set("/Orlop/CloudConfig/Encoding", "rot13");
    let tried = machine.search().tried.join("\n");
    assert!(
        tried.contains("virtualbox: guest properties: /Orlop/CloudConfig: unknown encoding"),
        "{tried}"
    );
    machine.file("opt/bin/broken", b"");
    let tried = machine.search().tried.join("\n");
    assert!(
        tried.contains("Failed to contact the host/guest service"),
        "{tried}"
    );
}
