use super::OmahaError;
use super::xml::Element;
use crate::{FileName, Sha1, Sha256, Version};

/// What a server answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// Seconds since midnight at the server.
    pub daystart_seconds: u32,
    pub apps: Vec<AppResponse>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppResponse {
    /// As the request wrote it.
    pub app_id: String,
    /// `ok`, or the reason why this app was not served.
    pub status: String,
    pub update_check: Option<UpdateCheck>,
    pub ping: bool,
    /// How many events were received.
    pub events: usize,
}

/// The answer to `<updatecheck/>`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpdateCheck {
    /// Stay with the running version (repeated here, because strict clients want a manifest).
    NoUpdate {
        running: String,
    },
    Offer(Offer),
    /// Not now, with the server's word for it. Ask again later.
    Refused(String),
}

/// Where a release may be found. Only a hint: the signed manifest among the packages decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Base URLs, each ending in `/`, to be tried in order.
    pub codebases: Vec<String>,
    pub version: Version,
    pub packages: Vec<Package>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: FileName,
    pub size: u64,
    pub sha256: Option<Sha256>,
    /// For update_engine, which wants it of its payload.
    pub sha1: Option<Sha1>,
    pub required: bool,
}

/// Nebraska's words for "not now": its policy holds the update back, or waits for the end of one that it
/// believes to be under way. Nothing is wrong then, as opposed to its other `error-` words.
const HOLDS_BACK: [&str; 5] = [
    "error-maxUpdatesPerPeriodLimitReached",
    "error-maxConcurrentUpdatesLimitReached",
    "error-maxTimedOutUpdatesLimitReached",
    "error-updateInProgressOnInstance",
    "error-updatesDisabled",
];

/// Whether a refusal means that the server would rather be asked again later.
pub fn holds_back(status: &str) -> bool {
    HOLDS_BACK.contains(&status)
}

impl UpdateCheck {
    fn to_element(&self) -> Element {
        let check = Element::new("updatecheck");
        match self {
            Self::NoUpdate { running } => check
                .attr("status", "noupdate")
                .child(Element::new("urls"))
                .child(Element::new("manifest").attr("version", running)),
            Self::Refused(status) => check
                .attr("status", status)
                .child(Element::new("urls"))
                .child(Element::new("manifest").attr("version", "")),
            Self::Offer(offer) => check
                .attr("status", "ok")
                .child(
                    Element::new("urls").children_from(
                        offer
                            .codebases
                            .iter()
                            .map(|url| Element::new("url").attr("codebase", url)),
                    ),
                )
                .child(offer.to_element()),
        }
    }

    fn from_element(check: &Element) -> Result<Self, OmahaError> {
        let manifest = check.find("manifest");
        Ok(match check.need("status")? {
            "ok" => Self::Offer(Offer::from_element(check)?),
            "noupdate" => Self::NoUpdate {
                running: manifest.and_then(|m| m.text("version")).unwrap_or_default(),
            },
            other => Self::Refused(other.chars().take(80).collect()),
        })
    }
}

impl Offer {
    fn to_element(&self) -> Element {
        let packages = self.packages.iter().map(|package| {
            Element::new("package")
                .attr("name", &package.name)
                .attr_if("hash", package.sha1.map(Sha1::to_base64))
                .attr("size", package.size)
                .attr("required", package.required)
                .attr_if("hash_sha256", package.sha256)
        });
        // Flatcar's clients compare this digest with the first package's, and wait longer after
        // every failure unless they are told not to.
        let actions = self
            .packages
            .first()
            .and_then(|first| first.sha256)
            .map(|digest| {
                Element::new("action")
                    .attr("event", "postinstall")
                    .attr("sha256", digest.to_base64())
                    .attr("needsadmin", false)
                    .attr("IsDelta", false)
                    .attr("IsDeltaPayload", false)
                    .attr("DisablePayloadBackoff", true)
            });
        Element::new("manifest")
            .attr("version", &self.version)
            .child(Element::new("packages").children_from(packages))
            .child(Element::new("actions").children_from(actions))
    }

    fn from_element(check: &Element) -> Result<Self, OmahaError> {
        let empty = Element::new("manifest");
        let manifest = check.find("manifest").unwrap_or(&empty);
        let urls = check
            .find("urls")
            .into_iter()
            .flat_map(|urls| urls.all("url"));
        let packages = manifest
            .find("packages")
            .into_iter()
            .flat_map(|p| p.all("package"));
        Ok(Self {
            codebases: urls
                .map(|url| url.need("codebase").map(str::to_owned))
                .collect::<Result<_, _>>()?,
            version: manifest.parse("version")?,
            packages: packages
                .map(Package::from_element)
                .collect::<Result<_, _>>()?,
        })
    }
}

impl Package {
    fn from_element(package: &Element) -> Result<Self, OmahaError> {
        Ok(Self {
            name: package.parse("name")?,
            size: package.parse("size")?,
            sha256: package
                .get("hash_sha256")
                .and_then(|digest| digest.parse().ok()),
            sha1: None,
            required: package.get("required") == Some("true"),
        })
    }
}

impl Response {
    pub fn to_xml(&self) -> String {
        let apps = self.apps.iter().map(|app| {
            let mut element = Element::new("app")
                .attr("appid", &app.app_id)
                .attr("status", &app.status)
                .children_from((0..app.events).map(|_| Element::new("event").attr("status", "ok")));
            if app.ping {
                element = element.child(Element::new("ping").attr("status", "ok"));
            }
            element.children_from(app.update_check.as_ref().map(UpdateCheck::to_element))
        });
        Element::new("response")
            .attr("protocol", "3.0")
            .attr("server", "orlop")
            .child(Element::new("daystart").attr("elapsed_seconds", self.daystart_seconds))
            .children_from(apps)
            .document()
    }

    pub fn from_xml(text: &str) -> Result<Self, OmahaError> {
        let root = Element::read(text, "response")?;
        let daystart = root.find("daystart").and_then(|d| d.get("elapsed_seconds"));
        let apps = root.all("app").map(|app| {
            let status = app.need("status")?.to_owned();
            let check = app
                .find("updatecheck")
                .map(UpdateCheck::from_element)
                .transpose()?;
            Ok(AppResponse {
                app_id: app.need("appid")?.into(),
                // Nebraska says why in the app's status, and only that it does not work in the
                // check's.
                update_check: check.map(|check| match check {
                    UpdateCheck::Refused(_) if status != "ok" => {
                        UpdateCheck::Refused(status.chars().take(80).collect())
                    }
                    check => check,
                }),
                status,
                ping: app.find("ping").is_some(),
                events: app.all("event").count(),
            })
        });
        Ok(Self {
            daystart_seconds: daystart.and_then(|s| s.parse().ok()).unwrap_or(0),
            apps: apps.collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(update_check: UpdateCheck) -> Response {
        Response {
            daystart_seconds: 3600,
            apps: vec![AppResponse {
                app_id: format!("{{{}}}", super::super::APP_ID),
                status: "ok".into(),
                update_check: Some(update_check),
                ping: true,
                events: 1,
            }],
        }
    }

    fn offer() -> Offer {
        let package = |name: &str, size| Package {
            name: name.parse().unwrap(),
            size,
            sha256: Some(Sha256::of(name)),
            sha1: None,
            required: true,
        };
        Offer {
            codebases: vec!["http://10.0.2.2:8090/releases/2/".into()],
            version: "2".parse().unwrap(),
            packages: vec![
                package("manifest.dsse.json", 900),
                package("uki.efi", 12_000_000),
            ],
        }
    }

    #[test]
    fn an_offer() {
        let response = answer(UpdateCheck::Offer(offer()));
        insta::assert_snapshot!(response.to_xml(), @r#"
            <?xml version="1.0" encoding="UTF-8"?>
            <response protocol="3.0" server="orlop">
              <daystart elapsed_seconds="3600"/>
              <app appid="{e96281a6-d1af-4bde-9a0a-97b76e56dc57}" status="ok">
                <event status="ok"/>
                <ping status="ok"/>
                <updatecheck status="ok">
                  <urls>
                    <url codebase="http://10.0.2.2:8090/releases/2/"/>
                  </urls>
                  <manifest version="2">
                    <packages>
                      <package name="manifest.dsse.json" size="900" required="true" hash_sha256="17f3ffcbdcd9c581ba28bc8f119b08f8e33104fb3d5cafee990dbf710e1729db"/>
                      <package name="uki.efi" size="12000000" required="true" hash_sha256="210740b437fc45781460ed6cbfedbcc6f4c2250e60110b5308f0b429f904bbb9"/>
                    </packages>
                    <actions>
                      <action event="postinstall" sha256="F/P/y9zZxYG6KLyPEZsI+OMxBPs9XK/umQ2/cQ4XKds=" needsadmin="false" IsDelta="false" IsDeltaPayload="false" DisablePayloadBackoff="true"/>
                    </actions>
                  </manifest>
                </updatecheck>
              </app>
            </response>
            "#);
        assert_eq!(Response::from_xml(&response.to_xml()), Ok(response));
    }

    #[test]
    fn no_update_still_has_urls_and_a_manifest() {
        let response = answer(UpdateCheck::NoUpdate {
            running: "2".into(),
        });
        insta::assert_snapshot!(response.to_xml(), @r#"
            <?xml version="1.0" encoding="UTF-8"?>
            <response protocol="3.0" server="orlop">
              <daystart elapsed_seconds="3600"/>
              <app appid="{e96281a6-d1af-4bde-9a0a-97b76e56dc57}" status="ok">
                <event status="ok"/>
                <ping status="ok"/>
                <updatecheck status="noupdate">
                  <urls/>
                  <manifest version="2"/>
                </updatecheck>
              </app>
            </response>
            "#);
        assert_eq!(Response::from_xml(&response.to_xml()), Ok(response));
    }

    fn check(update_check: &str, expect: &str) {
        let xml = format!("<response><app appid='x' status='ok'>{update_check}</app></response>");
        let got = match Response::from_xml(&xml) {
            Ok(response) => format!("{:?}", response.apps[0].update_check),
            Err(error) => error.to_string(),
        };
        assert_eq!(got, expect);
    }

    #[test]
    fn other_servers() {
        check("", "None");
        check(
            "<updatecheck status='noupdate'/>",
            r#"Some(NoUpdate { running: "" })"#,
        );
        check(
            "<updatecheck status='error-updateInProgressOnInstance'/>",
            r#"Some(Refused("error-updateInProgressOnInstance"))"#,
        );
        check(
            "<updatecheck/>",
            r#"line 1, column 38: <updatecheck> has no attribute "status""#,
        );
        check(
            "<updatecheck status='ok'><manifest version='two'/></updatecheck>",
            r#"line 1, column 63: version="two" in <manifest>: the version "two" has the part "two": write dotted numbers such as 2 or 2.1"#,
        );
        check(
            "<updatecheck status='ok'><manifest version='2'><packages><package name='../x' size='1'/></packages></manifest></updatecheck>",
            r#"line 1, column 95: name="../x" in <package>: "../x" cannot name a file of a release: use up to 100 letters, digits, '.', '_', '-', not starting with '.'"#,
        );
    }

    #[test]
    fn nebraska_holds_back() {
        let xml = r#"<?xml version="1.0" encoding="UTF-8"?>
            <response protocol="3.0" server="nebraska"><daystart elapsed_seconds="0"/>
            <app appid="{x}" status="error-maxUpdatesPerPeriodLimitReached"><ping status="ok"/>
            <updatecheck status="error-internal"/></app></response>"#;
        let response = Response::from_xml(xml).unwrap();
        let Some(UpdateCheck::Refused(status)) = &response.apps[0].update_check else {
            panic!("{response:?}");
        };
        assert_eq!(status, "error-maxUpdatesPerPeriodLimitReached");
        assert!(holds_back(status) && !holds_back("error-unknownApplicationOrGroup"));
    }

    #[test]
    fn a_refusal_is_whole_as_well() {
        let xml = answer(UpdateCheck::Refused("error-internal".into())).to_xml();
        let check = xml
            .lines()
            .skip(6)
            .take(4)
            .map(str::trim)
            .collect::<String>();
        assert_eq!(
            check,
            r#"<updatecheck status="error-internal"><urls/><manifest version=""/></updatecheck>"#
        );
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _ = Response::from_xml(&text);
        }

        #[test]
        fn no_almost_right_text_panics(at in 0usize..900, insert in "[<>&;'\"/=a \\PC]{0,4}", cut in 0usize..40) {
            let mut chars: Vec<char> = answer(UpdateCheck::Offer(offer())).to_xml().chars().collect();
            let at = at.min(chars.len());
            let end = (at + cut).min(chars.len());
            chars.splice(at..end, insert.chars());
            let _ = Response::from_xml(&chars.into_iter().collect::<String>());
        }
    }
}
