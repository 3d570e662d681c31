//! From bytes to a plan: the walk that every command takes.

use crate::config::{self, Config};
use crate::finding::{Finding, has_errors};
use crate::metadata::Metadata;
use crate::plan::{Facts, Plan, Request, build};
use crate::substitute::substitute;
use crate::userdata::{UserData, detect};

#[derive(Debug, Clone, Default)]
pub struct Input<'a> {
    pub user_data: Option<&'a [u8]>,
    pub metadata: Metadata,
}

#[derive(Debug)]
pub struct Outcome {
    /// What to do. With errors in the user-data this is what the metadata alone asks for, so that a
    /// host with a bad file can still be reached.
    pub plan: Plan,
    pub findings: Vec<Finding>,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    None,
    CloudConfig,
    Script,
    Unknown,
}

impl Outcome {
    pub fn has_errors(&self) -> bool {
        has_errors(&self.findings)
    }

    /// Takes in what the host has to say against the plan; with errors, only what the metadata asks for
    /// is left of it.
    pub fn object(&mut self, objections: Vec<Finding>, input: &Input<'_>, facts: &Facts) {
        if has_errors(&objections) {
            self.plan = fallback(input, facts, true);
        }
        self.findings.extend(objections);
        self.findings.sort_by_key(|finding| finding.pos);
    }

    /// The exit code: 1 when the user-data could not be used.
    pub fn exit(&self) -> u8 {
        u8::from(self.has_errors())
    }
}

/// What the text of the user-data says, before the host comes into it.
struct Checked {
    kind: Kind,
    config: Config,
    script: Option<Vec<u8>>,
    findings: Vec<Finding>,
    /// The file could be read, but has values that cannot be used.
    bad_values: bool,
}

fn check(input: &Input<'_>) -> Checked {
    let mut checked = Checked {
        kind: Kind::None,
        config: Config::default(),
        script: None,
        findings: Vec::new(),
        bad_values: false,
    };
    match detect(input.user_data.unwrap_or_default()) {
        Ok(UserData::Empty) => {}
        Ok(UserData::CloudConfig(text)) => {
            checked.kind = Kind::CloudConfig;
            let loaded = config::load(&text, &input.metadata.addresses);
            checked.bad_values = loaded.has_errors() && !loaded.syntax_error;
            checked.config = loaded.config;
            checked.findings = loaded.findings;
        }
        Ok(UserData::Script(bytes)) => {
            checked.kind = Kind::Script;
            checked.script = Some(match String::from_utf8(bytes) {
                Ok(text) => {
                    let done = substitute(&text, &input.metadata.addresses);
                    checked.findings = done.findings;
                    done.text.into_bytes()
                }
                Err(error) => error.into_bytes(),
            });
        }
        Err(finding) => {
            checked.kind = Kind::Unknown;
            checked.findings = vec![finding];
        }
    }
    checked
}

/// Everything about the file that can be said without a host.
pub fn validate(input: &Input<'_>) -> Vec<Finding> {
    check(input).findings
}

pub fn plan(input: &Input<'_>, facts: &Facts) -> Outcome {
    let checked = check(input);
    let (kind, mut findings) = (checked.kind, checked.findings);
    if !has_errors(&findings) {
        let request = Request {
            config: checked.config,
            script: checked.script.as_deref(),
            metadata: input.metadata.clone(),
            without_environment: false,
        };
        let (plan, more) = build(&request, facts);
        findings.extend(more);
        findings.sort_by_key(|finding| finding.pos);
        if !has_errors(&findings) {
            return Outcome {
                plan,
                findings,
                kind,
            };
        }
    }
    Outcome {
        plan: fallback(input, facts, checked.bad_values),
        findings,
        kind,
    }
}

/// What the metadata alone asks for. The original has written the addresses before it stumbles over
/// a file that is not YAML, and has not when it stumbles over a value: `without_environment`.
fn fallback(input: &Input<'_>, facts: &Facts, without_environment: bool) -> Plan {
    let request = Request {
        metadata: input.metadata.clone(),
        without_environment,
        ..Request::default()
    };
    build(&request, facts).0
}
