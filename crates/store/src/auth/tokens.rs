//! Who has logged in. Simple tokens are known to every member, because each login goes through the log; how long one
//! stays valid unused is each member's own affair. A JWT carries all that is to be known about it.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;

use super::jwt::Jwt;
use super::{Auth, Identity, Void};
use crate::error::{self, Error};

/// Letters in a simple token, before the dot and the index that make it unique.
const LETTERS: usize = 16;

/// `--auth-token`, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Options {
    Simple { ttl: Duration },
    Jwt(JwtOptions),
}

/// What follows `jwt,`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JwtOptions {
    pub sign_method: String,
    pub public_key: Option<std::path::PathBuf>,
    pub private_key: Option<std::path::PathBuf>,
    pub ttl: Duration,
}

impl Options {
    /// Reads `simple`, or `jwt,sign-method=RS256,pub-key=…,priv-key=…,ttl=5m`.
    pub fn parse(text: &str, simple_ttl: Duration) -> Result<Options, String> {
        let mut parts = text.split(',');
        match parts.next().unwrap_or_default() {
            "simple" | "" => return Ok(Options::Simple { ttl: simple_ttl }),
            "jwt" => {}
            other => {
                return Err(format!(
                    "--auth-token: {other:?} is no kind of token; there are simple and jwt"
                ));
            }
        }
        let mut options = JwtOptions {
            ttl: Duration::from_secs(300),
            ..JwtOptions::default()
        };
        for part in parts {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| format!("--auth-token: {part:?} is not of the form name=value"))?;
            match name {
                "sign-method" => options.sign_method = value.into(),
                "pub-key" => options.public_key = Some(value.into()),
                "priv-key" => options.private_key = Some(value.into()),
                "ttl" => {
                    options.ttl = duration(value).ok_or_else(|| {
                        format!("--auth-token: ttl={value} is no time, write 5m or 300s")
                    })?;
                }
                _ => {
                    return Err(format!(
                        "--auth-token: {name:?} is unknown; there are sign-method, pub-key, priv-key and ttl"
                    ));
                }
            }
        }
        if options.sign_method.is_empty() {
            return Err("--auth-token: a jwt needs sign-method=, for example RS256".into());
        }
        Ok(Options::Jwt(options))
    }
}

/// A length of time as Go writes it: `1h30m`, `90s`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let (number, tail) = rest.split_at(digits);
        let letters = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let number: u64 = number.parse().ok()?;
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
        rest = tail;
    }
    (!total.is_zero()).then_some(total)
}

/// What a member knows of logins.
#[derive(Debug)]
pub struct Tokens {
    kind: Kind,
}

/// Which kind of token it hands out.
#[derive(Debug)]
pub enum Kind {
    Simple {
        ttl: Duration,
        known: Mutex<HashMap<String, Simple>>,
    },
    Jwt(Box<Jwt>),
}

#[derive(Debug)]
pub struct Simple {
    user: String,
    until: Duration,
}

impl Tokens {
    /// Reads the keys of a JWT, if that is wanted.
    pub fn new(options: Options) -> Result<Tokens, String> {
        let kind = match options {
            Options::Simple { ttl } => Kind::Simple {
                ttl,
                known: Mutex::default(),
            },
            Options::Jwt(options) => Kind::Jwt(Box::new(Jwt::new(&options)?)),
        };
        Ok(Tokens { kind })
    }

    /// A token for a checked login. A simple one has to go through the log (`AuthCommand.token`) before it is good
    /// anywhere; a JWT is good at once.
    pub fn issue(
        &self,
        user: &str,
        revision: u64,
        index: u64,
        now: Duration,
    ) -> Result<Issued, Error> {
        match &self.kind {
            Kind::Simple { .. } => {
                let mut random = [0u8; LETTERS];
                getrandom::fill(&mut random).map_err(|reason| {
                    Error::internal(format!("etcdserver: no random numbers: {reason}"))
                })?;
                const ALPHABET: &[u8; 52] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
                let letters: String = random
                    .iter()
                    .filter_map(|byte| ALPHABET.get(usize::from(*byte) % ALPHABET.len()))
                    .map(|letter| char::from(*letter))
                    .collect();
                Ok(Issued::Announce(format!("{letters}.{index}")))
            }
            Kind::Jwt(jwt) => jwt.sign(user, revision, now).map(Issued::Ready),
        }
    }

    /// A login that came through the log.
    pub fn learn(&self, token: &str, user: &str, now: Duration) {
        if let Kind::Simple { ttl, known } = &self.kind {
            let mut known = known.lock();
            // As good a moment as any to forget what nobody has used.
            known.retain(|_, simple| simple.until > now);
            known.insert(
                token.to_owned(),
                Simple {
                    user: user.to_owned(),
                    until: now.saturating_add(*ttl),
                },
            );
        }
    }

    /// Forgets what a change of users has made void. A JWT is void by its revision.
    pub fn forget(&self, void: &Void) {
        if let Kind::Simple { known, .. } = &self.kind {
            match void {
                Void::Nobody => {}
                Void::User(name) => known.lock().retain(|_, simple| simple.user != *name),
                Void::Everybody => known.lock().clear(),
            }
        }
    }

    /// Whose token this is.
    pub fn identify(&self, auth: &Auth, token: &str, now: Duration) -> Result<Identity, Error> {
        match &self.kind {
            Kind::Simple { ttl, known } => {
                let mut known = known.lock();
                let simple = known
                    .get_mut(token)
                    .filter(|simple| simple.until > now)
                    .ok_or(error::INVALID_AUTH_TOKEN)?;
                simple.until = now.saturating_add(*ttl);
                Ok(Identity {
                    user: simple.user.clone(),
                    revision: auth.revision(),
                })
            }
            Kind::Jwt(jwt) => jwt.verify(token, now),
        }
    }

    /// Who asks: by token, or else by the name in a client certificate. Nobody, when neither is there: then
    /// [`Auth::permits`] decides. Leave the name out for requests of the gateway, which have the gateway's certificate.
    pub fn caller(
        &self,
        auth: &Auth,
        token: Option<&str>,
        common_name: Option<&str>,
        now: Duration,
    ) -> Result<Identity, Error> {
        if !auth.enabled() {
            return Ok(Identity::default());
        }
        match (token, common_name) {
            (Some(token), _) => self.identify(auth, token, now),
            (None, Some(name)) => Ok(Identity {
                user: name.to_owned(),
                revision: auth.revision(),
            }),
            (None, None) => Ok(Identity::default()),
        }
    }
}

/// A token, and what is left to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Issued {
    /// Through the log first.
    Announce(String),
    Ready(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_or_explained() {
        let parse = |text| Options::parse(text, Duration::from_secs(300));
        assert_eq!(
            parse("simple"),
            Ok(Options::Simple {
                ttl: Duration::from_secs(300)
            })
        );
        let Ok(Options::Jwt(options)) =
            parse("jwt,pub-key=a.pub,priv-key=a.pem,sign-method=ES256,ttl=1h30m")
        else {
            panic!("not read");
        };
        assert_eq!(options.ttl, Duration::from_secs(5400));
        assert_eq!(options.sign_method, "ES256");
        for (bad, because) in [
            ("basic", "no kind of token"),
            ("jwt", "needs sign-method"),
            ("jwt,sign-method=RS256,ttl=soon", "no time"),
            ("jwt,sign-method=RS256,colour=red", "unknown"),
            ("jwt,rs256", "name=value"),
        ] {
            let error = parse(bad).unwrap_err();
            assert!(error.contains(because), "{bad}: {error}");
        }
    }
}
