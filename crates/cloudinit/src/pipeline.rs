//! From bytes to a plan: the walk that every command takes.

use crate::config::{self, Config, Spanned};
use crate::finding::{Finding, Place, Pos, Severity, has_errors};
use crate::imports::{Import, Purpose};
use crate::metadata::Metadata;
use crate::plan::{Facts, Plan, Request, build};
use crate::remote::shown;
use crate::substitute::substitute;
use crate::userdata::{Part, UserData, detect};

#[derive(Debug, Clone, Default)]
pub struct Input<'a> {
    pub user_data: Option<&'a [u8]>,
    pub metadata: Metadata,
    /// The host name that user-data gave when it last had no errors.
    pub name_before: Option<String>,
}

#[derive(Debug)]
pub struct Outcome {
    /// What to do. With errors in the user-data this is what the metadata alone asks for, so that a
    /// host with a bad file can still be reached.
    pub plan: Plan,
    pub findings: Vec<Finding>,
    pub kind: Kind,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    #[default]
    None,
    CloudConfig,
    Script,
    Ignition,
    Archive,
    Include,
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
#[derive(Default)]
struct Checked {
    kind: Kind,
    config: Config,
    /// In order, each with its name.
    scripts: Vec<(String, Vec<u8>)>,
    findings: Vec<Finding>,
    /// The file could be read, but has values that cannot be used.
    bad_values: bool,
    /// Pieces of user-data that were named in others.
    included: usize,
}

/// Where user-data includes itself, an end has to be.
const MAX_DEPTH: usize = 4;
const MAX_INCLUDED: usize = 64;

fn check(input: &Input<'_>) -> Checked {
    let mut checked = Checked::default();
    match detect(input.user_data.unwrap_or_default()) {
        Ok(data) => {
            checked.kind = data.kind();
            checked.findings = checked.add(data, input, 0);
        }
        Err(finding) => {
            checked.kind = Kind::Unknown;
            checked.findings = vec![finding];
        }
    }
    checked
}

impl UserData {
    fn kind(&self) -> Kind {
        match self {
            Self::Empty => Kind::None,
            Self::CloudConfig(_) => Kind::CloudConfig,
            Self::Script(_) => Kind::Script,
            Self::Ignition(_) => Kind::Ignition,
            Self::Include(_) => Kind::Include,
            Self::Archive(_) => Kind::Archive,
        }
    }
}

/// Where a part stands in the whole.
struct Within {
    /// `part a.yml`, `http://x/a`
    name: String,
    pos: Pos,
    /// Its lines are lines of the whole.
    verbatim: bool,
}

impl Within {
    /// Places in the part become places in the whole; where its text does not stand there, the part as a
    /// whole, and the key has the place inside.
    fn relocate(&self, place: &mut Place) {
        let inside = place.pos;
        if self.verbatim {
            place.pos.line += self.pos.line - 1;
            return;
        }
        place.pos = self.pos;
        place.key = match place.key.as_str() {
            "" => format!("{}, {inside}", self.name),
            key => format!("{}, {inside}: {key}", self.name),
        };
    }

    fn finding(&self, finding: Finding) -> Finding {
        let mut place = Place::new(finding.pos, finding.path);
        self.relocate(&mut place);
        Finding {
            pos: place.pos,
            path: place.key,
            ..finding
        }
    }
}

impl Checked {
    /// Takes in one piece of user-data; what is to be said about it has places in that piece.
    fn add(&mut self, data: UserData, input: &Input<'_>, depth: usize) -> Vec<Finding> {
        let addresses = &input.metadata.addresses;
        let imported = &input.metadata.imported;
        let loaded = match data {
            UserData::Empty => return Vec::new(),
            UserData::Archive(parts) => {
                let parts = parts.into_iter();
                return parts.flat_map(|p| self.part(p, input, depth)).collect();
            }
            UserData::Include(urls) => {
                let urls = urls.into_iter();
                return urls
                    .flat_map(|(pos, url)| self.include(pos, url, input, depth))
                    .collect();
            }
            UserData::CloudConfig(text) => config::load(&text, addresses, imported),
            UserData::Ignition(text) => config::load_ignition(&text, addresses, imported),
            UserData::Script(bytes) => {
                let (script, findings) = match String::from_utf8(bytes) {
                    Ok(text) => {
                        let done = substitute(&text, addresses);
                        (done.text.into_bytes(), done.findings)
                    }
                    Err(error) => (error.into_bytes(), Vec::new()),
                };
                let name = match self.scripts.len() {
                    0 => "user-data".to_owned(),
                    more => format!("user-data-{}", more + 1),
                };
                self.scripts.push((name, script));
                return findings;
            }
        };
        self.bad_values |= loaded.has_errors() && !loaded.syntax_error;
        self.config.merge(loaded.config);
        loaded.findings
    }

    /// What is in another piece of user-data, in that one's places.
    fn inside(
        &mut self,
        within: &Within,
        data: UserData,
        input: &Input<'_>,
        depth: usize,
    ) -> Vec<Finding> {
        let mut part = Self {
            scripts: std::mem::take(&mut self.scripts),
            included: self.included,
            ..Self::default()
        };
        let findings = part.add(data, input, depth);
        self.scripts = part.scripts;
        self.included = part.included;
        self.bad_values |= part.bad_values;
        part.config.relocate(&|place| within.relocate(place));
        self.config.merge(part.config);
        findings.into_iter().map(|f| within.finding(f)).collect()
    }

    /// One part of an archive.
    fn part(&mut self, part: Part, input: &Input<'_>, depth: usize) -> Vec<Finding> {
        let Part {
            name,
            line,
            verbatim,
            data,
        } = part;
        let within = Within {
            name: format!("part {name}"),
            pos: Pos { line, column: 1 },
            verbatim,
        };
        match data {
            Ok(data) => self.inside(&within, data, input, depth),
            // It says something that we do not do: the rest still counts.
            Err(finding) => vec![Finding {
                pos: within.finding(finding.clone()).pos,
                severity: Severity::Warning,
                message: format!("{}, ignored", finding.message),
                ..finding
            }],
        }
    }

    /// User-data at a URL, if it is here by now; it is asked for in any case.
    fn include(&mut self, pos: Pos, url: String, input: &Input<'_>, depth: usize) -> Vec<Finding> {
        let place = Place::new(pos, "#include");
        self.included += 1;
        if self.included > MAX_INCLUDED {
            let first = self.included == MAX_INCLUDED + 1;
            let error = || place.error(format!("more than {MAX_INCLUDED} files"));
            return first.then(error).into_iter().collect();
        }
        if depth == MAX_DEPTH {
            let message = format!("files nested deeper than {MAX_DEPTH}");
            return vec![place.error(message)];
        }
        let content = input.metadata.imported.contents.get(&url);
        let within = Within {
            name: shown(&url),
            pos,
            verbatim: false,
        };
        self.config.imports.push(Spanned {
            value: Import::new(url, Purpose::UserData),
            place,
        });
        let Some(content) = content else {
            return Vec::new();
        };
        match detect(content.bytes()) {
            Ok(data) => self.inside(&within, data, input, depth + 1),
            Err(finding) => vec![within.finding(finding)],
        }
    }
}

/// Everything about the file that can be said without a host.
pub fn validate(input: &Input<'_>) -> Vec<Finding> {
    check(input).findings
}

/// What the user-data has at a URL, as far as one can see before it has been fetched.
pub fn imports(input: &Input<'_>) -> Vec<Import> {
    let config = check(input).config;
    let of_users = config.users.into_iter().flat_map(|user| user.imports);
    let keys = of_users.chain(config.ssh_imports);
    let keys = keys.map(|url| Import::new(url.value, Purpose::Keys));
    let others = config.imports.into_iter().map(|import| import.value);
    let mut imports: Vec<Import> = keys.chain(others).collect();
    imports.sort();
    imports.dedup();
    imports
}

pub fn plan(input: &Input<'_>, facts: &Facts) -> Outcome {
    let checked = check(input);
    let (kind, mut findings) = (checked.kind, checked.findings);
    if !has_errors(&findings) {
        let request = Request {
            config: checked.config,
            scripts: checked
                .scripts
                .iter()
                .map(|(name, bytes)| (name.clone(), bytes.as_slice()))
                .collect(),
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

/// What the metadata alone asks for; a host name that user-data gave before stays, and so do its keys. The original has written the addresses before it stumbles over
/// a file that is not YAML, and has not when it stumbles over a value: `without_environment`.
fn fallback(input: &Input<'_>, facts: &Facts, without_environment: bool) -> Plan {
    let request = Request {
        config: Config {
            hostname: input.name_before.clone(),
            ..Config::default()
        },
        metadata: input.metadata.clone(),
        without_environment,
        ..Request::default()
    };
    Plan {
        keep_keys: true,
        ..build(&request, facts).0
    }
}

/// Where the user-data's own plan came to nothing half-way, what lets people in all the same.
pub(crate) fn metadata_alone(input: &Input<'_>, facts: &Facts) -> Plan {
    fallback(input, facts, true)
}
