use super::*;

/// A machine with these files in sysfs and proc.
fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = match *path {
            "cmdline" => dir.path().join("proc/cmdline"),
            name => dir.path().join("sys/class/dmi/id").join(name),
        };
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{text}\n")).unwrap();
    }
    dir
}

#[track_caller]
fn check(files: &[(&str, &str)], first: &str, later: &str) {
    let machine = machine(files);
    let hint = detect(machine.path());
    let show = |sources: &[Remote]| {
        let names: Vec<String> = sources.iter().map(ToString::to_string).collect();
        names.join(" ")
    };
    let found = (show(&hint.first), show(&hint.later));
    assert_eq!(found, (first.to_owned(), later.to_owned()), "{files:?}");
}

#[test]
fn platforms_by_their_firmware() {
    check(&[], "", "");
    check(&[("sys_vendor", "QEMU")], "", "");
    for (name, value, expect) in [
        ("sys_vendor", "Amazon EC2", "ec2"),
        ("bios_version", "4.11.amazon", "ec2"),
        ("product_name", "Google Compute Engine", "gce"),
        (
            "chassis_asset_tag",
            "7783-7084-3265-9085-8269-3286-77",
            "azure",
        ),
        ("chassis_asset_tag", "OracleCloud.com", "oracle"),
        ("sys_vendor", "DigitalOcean", "digitalocean"),
        ("sys_vendor", "Hetzner", "hetzner"),
        ("sys_vendor", "Vultr", "vultr"),
        ("sys_vendor", "Akamai", "akamai"),
        ("sys_vendor", "Linode", "akamai"),
        ("sys_vendor", "Scaleway", "scaleway"),
        ("sys_vendor", "Exoscale", "exoscale"),
        ("product_name", "CloudStack KVM Hypervisor", "cloudstack"),
        ("sys_vendor", "Alibaba Cloud", "alibaba"),
        ("product_name", "OpenStack Nova", "openstack"),
        ("chassis_asset_tag", "OpenTelekomCloud", "openstack"),
        ("sys_vendor", "Packet", "packet"),
        (
            "product_serial",
            "ds=nocloud;h=a;s=http://seed.example/",
            "http://seed.example/",
        ),
        ("product_serial", "ds=nocloud;h=a", ""),
    ] {
        check(&[(name, value)], "", expect);
    }
}

#[test]
fn the_command_line_wins() {
    let ec2 = ("sys_vendor", "Amazon EC2");
    check(&[ec2, ("cmdline", "orlop.platform=gcp")], "", "gce");
    check(&[ec2, ("cmdline", "flatcar.oem.id=qemu")], "", "");
    check(
        &[ec2, ("cmdline", "cloud-config-url=http://x/y quiet")],
        "http://x/y",
        "ec2",
    );
    check(
        &[("cmdline", "ds=nocloud-net;s=https://x/ ro")],
        "https://x/",
        "",
    );
    check(&[("cmdline", "cloud-config-url= ds=nocloud")], "", "");
    let machine = machine(&[(
        "cmdline",
        "cloud-config-url=http://x/ cloud-config-sha256=ab",
    )]);
    let pinned = Remote::Url {
        url: "http://x/".to_owned(),
        sha256: Some("ab".to_owned()),
    };
    assert_eq!(detect(machine.path()).first, [pinned]);
}

#[test]
fn what_is_noted_down_survives() {
    let dir = tempfile::tempdir().unwrap();
    let request = Request {
        sources: vec![
            Remote::Ec2,
            Remote::NoCloud {
                seed: "http://x/".to_owned(),
            },
        ],
        imports: vec![Import::new("https://x/keys", Purpose::Keys)],
        disc: Some(Found {
            user_data: Some(vec![0, 255]),
            ..Found::default()
        }),
    };
    request.write(dir.path()).unwrap();
    let read = Request::read(dir.path()).unwrap();
    assert_eq!(
        (read.sources, read.imports),
        (request.sources, request.imports)
    );
    assert_eq!(read.disc.unwrap().user_data.unwrap(), [0, 255]);
    Request::default().write(dir.path()).unwrap();
    assert!(Request::read(dir.path()).is_none());
}

#[test]
fn passwords_are_not_shown() {
    let check = |url: &str, expect: &str| assert_eq!(shown(url), expect);
    check("https://ann:secret@x.example/a@b", "https://x.example/a@b");
    check("https://x.example/a@b", "https://x.example/a@b");
    check("http://a@b:c@x", "http://x");
    check("x", "x");
    let url = "http://ann:secret@x/".to_owned();
    let remote = Remote::Url { url, sha256: None };
    assert_eq!(remote.to_string(), "http://x/");
}
