//! What the host's configuration allows.

use std::path::Path;

use host::UpdateConf;
use host::conf::{ConfError, RebootStrategy, RebootType, Window};

use crate::needed;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub rule: Rule,
    pub window: Option<Window>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// Reboot without asking anybody.
    Free,
    /// Ask the lock service, and reboot without a lock where there is none.
    LockIfAny,
    /// Do not reboot.
    Never { why: String },
}

impl Policy {
    pub fn from_conf(conf: &UpdateConf) -> Self {
        let rule = match conf.reboot_strategy {
            RebootStrategy::Reboot => Rule::Free,
            RebootStrategy::BestEffort => Rule::LockIfAny,
            RebootStrategy::Off => Rule::Never {
                why: "the strategy is off".to_owned(),
            },
            // A fleet that asked for one reboot at a time must never get several at once.
            RebootStrategy::EtcdLock => Rule::Never {
                why: "etcd-lock is not part of this release yet; using off".to_owned(),
            },
        };
        Self {
            rule,
            window: conf.reboot_window,
        }
    }

    /// Reads the configuration. One that cannot be read allows nothing: an unwanted reboot is worse
    /// than a late one.
    pub fn read(root: &Path) -> (Self, Option<UpdateConf>) {
        match UpdateConf::read_for_locksmith(root) {
            Ok(conf) => (Self::from_conf(&conf), Some(conf)),
            Err(error) => (
                Self {
                    rule: Rule::Never {
                        why: describe(&error),
                    },
                    window: None,
                },
                None,
            ),
        }
    }

    /// How to reboot now: of the whole machine, unless less was asked for and is enough.
    pub fn reboot_type(root: &Path) -> RebootType {
        let configured = UpdateConf::read_for_locksmith(root).map(|conf| conf.reboot_type);
        match configured {
            Ok(RebootType::Auto) if needed::soft_is_enough(root) => RebootType::Auto,
            _ => RebootType::Hard,
        }
    }

    /// Whether the rule is something other than what the operator wrote.
    pub fn problem(&self, strategy: Option<RebootStrategy>) -> Option<&str> {
        match (&self.rule, strategy) {
            (Rule::Never { why }, strategy) if strategy != Some(RebootStrategy::Off) => Some(why),
            _ => None,
        }
    }
}

fn describe(error: &ConfError) -> String {
    use std::error::Error;
    match error.source() {
        Some(source) => format!("{error}: {source}; using off"),
        None => format!("{error}; using off"),
    }
}
