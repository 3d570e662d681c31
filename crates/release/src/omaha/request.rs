use super::OmahaError;
use super::xml::Element;
use crate::status::Health;
use crate::{Channel, Sha256, Slot, Version};

/// What a host sends. `machine_id` and the `orlop_` extensions are claims, nothing more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    pub updater_version: Option<String>,
    /// `ondemand` when a person asked, else `scheduler`.
    pub install_source: Option<String>,
    pub os: Os,
    pub apps: Vec<AppRequest>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Os {
    pub platform: String,
    pub version: String,
    pub arch: Option<String>,
}

/// One application on the host; Orlop has only one, [`super::APP_ID`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppRequest {
    /// As written by the client (Flatcar's write braces around it); echo it in the response.
    pub app_id: String,
    /// The running version: text, because another client's need not be one of ours.
    pub version: String,
    /// The channel.
    pub track: String,
    pub machine_id: String,
    pub boot_id: Option<String>,
    pub board: Option<String>,
    pub hostname: Option<String>,
    pub slot: Option<Slot>,
    pub health: Option<Health>,
    pub update_check: bool,
    /// The operator takes an older release too, or one that failed on this host.
    pub force: bool,
    pub ping: bool,
    pub events: Vec<Event>,
}

/// A step in the life of an update, as the protocol's pair of numbers and what they are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    pub event_type: u32,
    pub event_result: u32,
    pub error_code: Option<i64>,
    pub previous_version: Option<String>,
    /// The version the event is about.
    pub version: Option<Version>,
    /// The release id ([`crate::Verified::id`]) the event is about.
    pub release: Option<Sha256>,
    pub reason: Option<String>,
}

/// What a pair of numbers means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventMeaning {
    DownloadStarted,
    Downloaded,
    /// Written, waits for a reboot.
    Staged,
    /// Runs and is healthy.
    Good,
    /// Nothing was installed; the host tries again by itself.
    DownloadFailed,
    /// Was tried and left again: a server must not offer that release to this host any more.
    Failed,
    /// The operator had the host forget what failed.
    FailuresCleared,
    /// Put off by the host.
    Deferred,
    Other,
}

impl EventMeaning {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DownloadStarted => "download started",
            Self::Downloaded => "downloaded",
            Self::Staged => "staged",
            Self::Good => "good",
            Self::DownloadFailed => "download failed",
            Self::Failed => "failed",
            Self::FailuresCleared => "failures cleared",
            Self::Deferred => "deferred",
            Self::Other => "other",
        }
    }
}

impl Event {
    fn new(event_type: u32, event_result: u32, version: &Version) -> Self {
        Self {
            event_type,
            event_result,
            version: Some(version.clone()),
            ..Self::default()
        }
    }

    pub fn download_started(version: &Version) -> Self {
        Self::new(13, 1, version)
    }

    pub fn downloaded(version: &Version) -> Self {
        Self::new(14, 1, version)
    }

    pub fn staged(version: &Version) -> Self {
        Self::new(3, 1, version)
    }

    /// The new version runs and is healthy.
    pub fn good(version: &Version, previous: &Version) -> Self {
        Self {
            previous_version: Some(previous.to_string()),
            ..Self::new(3, 2, version)
        }
    }

    /// Fetching or checking did not work; it will be tried again.
    pub fn download_failed(version: &Version, code: i64, reason: &str) -> Self {
        Self {
            error_code: Some(code),
            reason: Some(reason.into()),
            ..Self::new(14, 0, version)
        }
    }

    /// The release was tried and left again. `release` tells apart two builds of one version.
    pub fn failed(version: &Version, release: Option<Sha256>, code: i64, reason: &str) -> Self {
        Self {
            error_code: Some(code),
            release,
            reason: Some(reason.into()),
            ..Self::new(3, 0, version)
        }
    }

    /// The host would try again what failed before. The number is Orlop's own.
    pub fn failures_cleared() -> Self {
        Self {
            event_type: 900,
            event_result: 1,
            ..Self::default()
        }
    }

    pub fn meaning(&self) -> EventMeaning {
        match (self.event_type, self.event_result) {
            (13, 1) => EventMeaning::DownloadStarted,
            (14, 1) => EventMeaning::Downloaded,
            // The second is what clients without a reboot of their own say.
            (3 | 800, 1) => EventMeaning::Staged,
            // Allowed, but not now: the user is busy, or the connection is metered.
            (_, 9) => EventMeaning::Deferred,
            (3, 2) => EventMeaning::Good,
            (13 | 14, 0) => EventMeaning::DownloadFailed,
            (3, 0) => EventMeaning::Failed,
            (900, 1) => EventMeaning::FailuresCleared,
            _ => EventMeaning::Other,
        }
    }

    fn to_element(&self) -> Element {
        Element::new("event")
            .attr("eventtype", self.event_type)
            .attr("eventresult", self.event_result)
            .attr_if("errorcode", self.error_code)
            .attr_if("previousversion", self.previous_version.as_ref())
            .attr_if("orlop_version", self.version.as_ref())
            .attr_if("orlop_release", self.release)
            .attr_if("orlop_reason", self.reason.as_ref())
    }

    fn from_element(element: &Element) -> Result<Self, OmahaError> {
        Ok(Self {
            event_type: element.parse("eventtype")?,
            event_result: element.parse("eventresult")?,
            error_code: element.get("errorcode").and_then(|code| code.parse().ok()),
            previous_version: element.text("previousversion"),
            version: element.get("orlop_version").and_then(|v| v.parse().ok()),
            release: element.get("orlop_release").and_then(|id| id.parse().ok()),
            reason: element.text("orlop_reason"),
        })
    }
}

impl AppRequest {
    /// The app of an Orlop host that runs `version` and follows `channel`.
    pub fn orlop(version: &Version, channel: &Channel, machine_id: &str) -> Self {
        Self {
            app_id: super::APP_ID.into(),
            version: version.to_string(),
            track: channel.to_string(),
            machine_id: machine_id.into(),
            board: Some("amd64-usr".into()),
            ..Self::default()
        }
    }

    fn to_element(&self) -> Element {
        let mut app = Element::new("app")
            .attr("appid", &self.app_id)
            .attr("version", &self.version)
            .attr("track", &self.track)
            .attr("machineid", &self.machine_id)
            .attr_if("bootid", self.boot_id.as_ref())
            .attr_if("board", self.board.as_ref())
            .attr_if("orlop_hostname", self.hostname.as_ref())
            .attr_if("orlop_slot", self.slot)
            .attr_if("orlop_health", self.health)
            .attr_if("orlop_force", self.force.then_some(1))
            .children_from(self.events.iter().map(Event::to_element));
        if self.ping {
            app = app.child(Element::new("ping").attr("active", 1));
        }
        if self.update_check {
            app = app.child(Element::new("updatecheck"));
        }
        app
    }

    fn from_element(app: &Element) -> Result<Self, OmahaError> {
        Ok(Self {
            app_id: app.need("appid")?.into(),
            version: app.need("version")?.into(),
            track: app.text("track").unwrap_or_default(),
            machine_id: app.text("machineid").unwrap_or_default(),
            boot_id: app.text("bootid"),
            board: app.text("board"),
            // Flatcar's name for it is machinealias.
            hostname: app
                .text("orlop_hostname")
                .or_else(|| app.text("machinealias")),
            slot: app.get("orlop_slot").and_then(|slot| slot.parse().ok()),
            health: app.get("orlop_health").and_then(Health::from_name),
            update_check: app.find("updatecheck").is_some(),
            force: app.get("orlop_force") == Some("1"),
            ping: app.find("ping").is_some(),
            events: app
                .all("event")
                .map(Event::from_element)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl Request {
    pub fn to_xml(&self) -> String {
        let os = Element::new("os")
            .attr("platform", &self.os.platform)
            .attr("version", &self.os.version)
            .attr_if("arch", self.os.arch.as_ref());
        Element::new("request")
            .attr("protocol", "3.0")
            .attr_if("updaterversion", self.updater_version.as_ref())
            .attr_if("installsource", self.install_source.as_ref())
            .attr("ismachine", 1)
            .child(os)
            .children_from(self.apps.iter().map(AppRequest::to_element))
            .document()
    }

    pub fn from_xml(text: &str) -> Result<Self, OmahaError> {
        let root = Element::read(text, "request")?;
        let os = root.find("os").map(|os| Os {
            platform: os.text("platform").unwrap_or_default(),
            version: os.text("version").unwrap_or_default(),
            arch: os.text("arch"),
        });
        Ok(Self {
            updater_version: root.text("updaterversion"),
            install_source: root.text("installsource"),
            os: os.unwrap_or_default(),
            apps: root
                .all("app")
                .map(AppRequest::from_element)
                .collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    fn example() -> Request {
        Request {
            install_source: Some("scheduler".into()),
            os: Os {
                platform: "CoreOS".into(),
                version: "Orlop".into(),
                arch: Some("x86_64".into()),
            },
            apps: vec![AppRequest {
                hostname: Some("<node>&\"1\"".into()),
                slot: Some(Slot::B),
                health: Some(Health::Healthy),
                boot_id: Some("{b00t}".into()),
                update_check: true,
                force: true,
                ping: true,
                events: vec![
                    Event::good(&version("2"), &version("1")),
                    Event::failed(
                        &version("3"),
                        Some(Sha256::of("3")),
                        800,
                        "sshd failed\n\ttwice\u{1b}",
                    ),
                ],
                ..AppRequest::orlop(&version("2"), &Channel::stable(), "4f2a")
            }],
            ..Request::default()
        }
    }

    #[test]
    fn what_a_host_sends() {
        insta::assert_snapshot!(example().to_xml(), @r#"
            <?xml version="1.0" encoding="UTF-8"?>
            <request protocol="3.0" installsource="scheduler" ismachine="1">
              <os platform="CoreOS" version="Orlop" arch="x86_64"/>
              <app appid="e96281a6-d1af-4bde-9a0a-97b76e56dc57" version="2" track="stable" machineid="4f2a" bootid="{b00t}" board="amd64-usr" orlop_hostname="&lt;node&gt;&amp;&quot;1&quot;" orlop_slot="b" orlop_health="healthy" orlop_force="1">
                <event eventtype="3" eventresult="2" previousversion="1" orlop_version="2"/>
                <event eventtype="3" eventresult="0" errorcode="800" orlop_version="3" orlop_release="4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce" orlop_reason="sshd failed&#10;&#9;twice�"/>
                <ping active="1"/>
                <updatecheck/>
              </app>
            </request>
            "#);
        let mut back = Request::from_xml(&example().to_xml()).unwrap();
        // The escape character cannot be written in XML.
        let reason = back.apps[0].events[1].reason.as_mut().unwrap();
        assert_eq!(*reason, "sshd failed\n\ttwice\u{fffd}");
        *reason = reason.replace('\u{fffd}', "\u{1b}");
        assert_eq!(back, example());
    }

    #[test]
    fn events_mean_something() {
        let all = [
            Event::download_started(&version("2")),
            Event::downloaded(&version("2")),
            Event::staged(&version("2")),
            Event::good(&version("2"), &version("1")),
            Event::download_failed(&version("2"), 1, "x"),
            Event::failed(&version("2"), None, 1, "x"),
            Event::failures_cleared(),
            Event {
                event_type: 800,
                event_result: 1,
                ..Event::default()
            },
            Event {
                event_type: 3,
                event_result: 9,
                ..Event::default()
            },
            Event {
                event_type: 2,
                event_result: 1,
                ..Event::default()
            },
        ];
        let meanings: Vec<_> = all.iter().map(|event| event.meaning().as_str()).collect();
        assert_eq!(
            meanings,
            [
                "download started",
                "downloaded",
                "staged",
                "good",
                "download failed",
                "failed",
                "failures cleared",
                "staged",
                "deferred",
                "other"
            ]
        );
    }

    fn check(xml: &str, expect: &str) {
        let got = match Request::from_xml(xml) {
            Ok(request) => format!("{} apps", request.apps.len()),
            Err(error) => error.to_string(),
        };
        assert!(got.starts_with(expect), "got {got:?}, expected {expect:?}");
    }

    #[test]
    fn a_flatcar_client_is_understood() {
        let xml = r#"<?xml version="1.0" encoding="UTF-8"?>
<request protocol="3.0" version="update_engine-0.4.10" updaterversion="update_engine-0.4.10" installsource="scheduler" ismachine="1">
    <os version="Chateau" platform="CoreOS" sp="3510.2.0_x86_64"></os>
    <app appid="{e96281a6-d1af-4bde-9a0a-97b76e56dc57}" version="3510.2.0" track="stable" bootid="{7d52}" oem="qemu" machineid="abc" machinealias="web1" board="amd64-usr" delta_okay="false" >
        <ping active="1"></ping>
        <future x="1">text &amp; more</future>
        <event eventtype="3" eventresult="2" previousversion="3510.1.0"></event>
        <updatecheck></updatecheck>
    </app>
</request>"#;
        let request = Request::from_xml(xml).unwrap();
        let app = &request.apps[0];
        assert_eq!(app.app_id, "{e96281a6-d1af-4bde-9a0a-97b76e56dc57}");
        assert_eq!(
            (app.version.as_str(), app.hostname.as_deref()),
            ("3510.2.0", Some("web1"))
        );
        assert!(app.ping && app.update_check && !app.force);
        assert_eq!(app.events[0].meaning(), EventMeaning::Good);
        assert_eq!(app.events[0].previous_version.as_deref(), Some("3510.1.0"));
    }

    #[test]
    fn errors_have_a_position() {
        check("", "line 1, column 1: there is no element");
        check("<request>\n <app", "line 2, column ");
        check(
            "<request>\n  <app appid='x'/>\n</request>",
            r#"line 2, column 3: <app> has no attribute "version""#,
        );
        check("<request>\n</reqest>", "line 2, column 1: ");
        check(
            "<request><app>",
            "line 1, column 15: the text ends inside <app>",
        );
        check(
            "<response/>",
            "line 1, column 1: the root element is <response>, expected <request>",
        );
        check(
            "<request/><request/>",
            "line 1, column 11: <request> after the end of the document",
        );
        check(
            "<!DOCTYPE x><request/>",
            "line 1, column 1: a document type is not allowed",
        );
        check(
            "<request><app appid='x' version='1'><event eventtype='three' eventresult='1'/></app></request>",
            r#"line 1, column 37: eventtype="three" in <event>: invalid digit"#,
        );
        check(
            "<request><app appid='x' appid='y' version='1'/></request>",
            "line 1, column 10: ",
        );
        check(
            "<request><app appid='&bomb;' version='1'/></request>",
            "line 1, column 10: ",
        );
        check(
            &"<a>".repeat(100),
            "line 1, column 49: elements are nested more than 16 deep",
        );
        check(
            &format!("<request>{}</request>", "<a/>".repeat(2000)),
            "line 1, column ",
        );
        check(
            &" ".repeat(300_000),
            "the message has 300000 bytes, more than the 262144",
        );
        check(
            "<request><app appid='x' version='1' orlop_slot='z' orlop_health='fine'/></request>",
            "1 apps",
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = Request::from_xml(&text);
        }

        #[test]
        fn no_almost_right_text_panics(at in 0usize..900, insert in "[<>&;'\"/=a \\PC]{0,4}", cut in 0usize..40) {
            let mut chars: Vec<char> = example().to_xml().chars().collect();
            let at = at.min(chars.len());
            let end = (at + cut).min(chars.len());
            chars.splice(at..end, insert.chars());
            let _ = Request::from_xml(&chars.into_iter().collect::<String>());
        }

        #[test]
        fn what_hosts_say_survives(hostname in "[^\\x00-\\x1f\\x7f-\\u{9f}\\u{fffe}\\u{ffff}]{0,40}") {
            let mut request = example();
            request.apps[0].events.clear();
            request.apps[0].hostname = Some(hostname);
            prop_assert_eq!(Request::from_xml(&request.to_xml()), Ok(request));
        }
    }
}
