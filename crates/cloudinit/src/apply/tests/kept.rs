//! What was there before stays as long as nobody says otherwise.

use crate::datasource::Found;
use crate::imports::Imported;
use crate::metadata::Metadata;
use crate::remote::{Fetched, Remote, Request};
use crate::status::{METADATA, USER_DATA};

use super::*;

fn found(instance: &str, user_data: Option<&str>) -> Found {
    Found {
        origin: "a disk".into(),
        user_data: user_data.map(|text| text.as_bytes().to_vec()),
        metadata: Metadata {
            instance_id: Some(instance.into()),
            hostname: Some("platform".into()),
            ssh_keys: vec!["ssh-ed25519 AAAA platform".into()],
            ..Metadata::default()
        },
        ..Found::default()
    }
}

impl Host {
    fn apply(&self, found: &Found) -> Status {
        let root = self.dir.path();
        service::run(root, Origin::Given(found), SystemTime::UNIX_EPOCH, None).unwrap()
    }
}

const GOOD: &str = "#cloud-config\nhostname: mine\n";
const WRONG: &str = "#cloud-config\nhostname: [a]\n";

/// A typo must not change a name that others know the host by.
#[test]
fn user_data_that_became_wrong_does_not_change_the_name() {
    let host = Host::new();
    assert_eq!(host.apply(&found("i", Some(GOOD))).state, State::Applied);
    assert_eq!(host.apply(&found("i", Some(WRONG))).state, State::Invalid);
    assert_eq!(host.text("etc/hostname"), "mine\n");
    assert_eq!(host.text("proc/sys/kernel/hostname").trim(), "mine");
    // Where it was another machine's, or user-data never gave one, the platform's counts.
    assert_eq!(host.apply(&found("j", Some(WRONG))).state, State::Invalid);
    assert_eq!(host.text("etc/hostname"), "platform\n");
    let host = Host::new();
    host.apply(&found("i", Some("#cloud-config\n")));
    host.apply(&found("i", Some(WRONG)));
    assert_eq!(host.text("etc/hostname"), "platform\n");
}

#[test]
fn a_copy_goes_when_somebody_says_that_there_is_nothing() {
    let host = Host::new();
    let copy = || host.path(USER_DATA).exists();
    host.apply(&found("i", Some(GOOD)));
    assert!(copy());
    // The kernel command line alone says nothing about it.
    host.put("proc/cmdline", "sshkey=\"ssh-ed25519 AAAA console\"");
    let metadata = host.text(METADATA);
    let status = service::run(
        host.dir.path(),
        Origin::Machine(Duration::ZERO),
        SystemTime::UNIX_EPOCH,
        None,
    );
    assert_eq!(status.unwrap().state, State::Applied);
    assert!(copy());
    assert_eq!(host.text(METADATA), metadata);
    let silent = |instance| Found {
        silent: true,
        ..found(instance, None)
    };
    host.apply(&silent("i"));
    assert!(copy());
    host.apply(&silent("j"));
    assert!(!copy());
    host.apply(&found("j", Some(GOOD)));
    assert!(copy());
    host.apply(&found("j", None));
    assert!(!copy());
}

/// What lets people in stays too.
#[test]
fn keys_stay_where_nobody_says_that_there_is_no_user_data() {
    let host = Host::new();
    let keys = "#cloud-config\nssh_authorized_keys: [ssh-ed25519 AAAA mine]\n";
    host.apply(&found("i", Some(keys)));
    let silent = Found {
        silent: true,
        ..found("i", None)
    };
    host.apply(&silent);
    let text = host.text("home/core/.ssh/authorized_keys");
    assert!(text.contains("mine") && text.contains("platform"), "{text}");
    host.apply(&found("i", None));
    assert!(!host.text("home/core/.ssh/authorized_keys").contains("mine"));
}

/// The disc of Azure is there at the first boot only.
#[test]
fn the_disc_of_azure_counts_when_it_is_gone() {
    let host = Host::new();
    host.put("sys/class/dmi/id/product_uuid", "UUID-1\n");
    host.put(
        "sys/class/dmi/id/chassis_asset_tag",
        "7783-7084-3265-9085-8269-3286-77\n",
    );
    let disc = |text: &str| {
        let xml = format!(
            "<Environment><wa:ProvisioningSection xmlns:wa=\"w\"><A><HostName>az</HostName>{text}</A></wa:ProvisioningSection></Environment>"
        );
        let image = crate::datasource::udf_image("UDF Volume", &[("ovf-env.xml", &xml)]);
        std::fs::create_dir_all(host.path("dev")).unwrap();
        std::fs::create_dir_all(host.path("sys/class/block/sr0")).unwrap();
        std::fs::write(host.path("dev/sr0"), image).unwrap();
    };
    let boot = || {
        let root = host.dir.path();
        let now = SystemTime::UNIX_EPOCH;
        service::run(root, Origin::Machine(Duration::ZERO), now, None).unwrap();
        let request = Request::read(root).unwrap();
        assert_eq!(request.sources, [Remote::Azure]);
        // What the service answers.
        let service = Found {
            silent: true,
            ..found("v-1", None)
        };
        let fetched = Fetched {
            found: Some(match request.disc {
                Some(disc) => service.completed(disc),
                None => service,
            }),
            ..Fetched::default()
        };
        fetched.write(root).unwrap();
        let status = service::run(root, Origin::Fetched, now, None).unwrap();
        assert_eq!(status.state, State::Applied);
        let copy = std::fs::read_to_string(host.path(USER_DATA)).ok();
        (host.text("etc/hostname"), copy)
    };
    let mine = || ("mine\n".to_owned(), Some(GOOD.to_owned()));
    // "#cloud-config\nhostname: mine\n"
    disc("<CustomData>I2Nsb3VkLWNvbmZpZwpob3N0bmFtZTogbWluZQo=</CustomData>");
    assert_eq!(boot(), mine());
    std::fs::remove_file(host.path("dev/sr0")).unwrap();
    assert_eq!(boot(), mine());
    // One that cannot be read says nothing.
    disc("<CustomData>*</CustomData>");
    assert_eq!(boot(), mine());
    // One without user-data says that there is none.
    disc("");
    assert_eq!(boot(), ("platform\n".to_owned(), None));
    std::fs::remove_file(host.path("dev/sr0")).unwrap();
    assert_eq!(boot(), ("platform\n".to_owned(), None));
    // A copy of this machine's disk is another machine.
    disc("<CustomData>I2Nsb3VkLWNvbmZpZwpob3N0bmFtZTogbWluZQo=</CustomData>");
    assert_eq!(boot(), mine());
    std::fs::remove_file(host.path("dev/sr0")).unwrap();
    host.put("sys/class/dmi/id/product_uuid", "UUID-2\n");
    assert_eq!(boot().0, "platform\n");
}

#[test]
fn what_cannot_be_remembered_is_a_warning() {
    let host = Host::new();
    let mut given = found("i", Some("#cloud-config\n#include\n"));
    given.user_data = Some(b"#include\nhttp://x.example/a\n".to_vec());
    let content = b"#cloud-config\nhostname: mine\n".to_vec();
    given.metadata.imported = Imported {
        contents: [("http://x.example/a".to_owned(), content.into())].into(),
        ..Imported::default()
    };
    std::fs::create_dir_all(host.path("var/lib/cloudinit/imported.json")).unwrap();
    let status = host.apply(&given);
    assert_eq!(status.state, State::Applied);
    assert_eq!(host.text("etc/hostname"), "mine\n");
    let finding = status.findings[0].to_string();
    assert!(
        finding.contains("will not be there at the next boot"),
        "{finding}"
    );
    assert!(Status::read(host.dir.path()).is_some());
}
