//! The last events, for watchers that come back and ask what they missed.

use std::collections::VecDeque;
use std::sync::Arc;

use super::error::{Code, Error};
use super::event::Event;

/// How many events are kept.
pub(crate) const CAPACITY: usize = 1000;

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct History {
    events: VecDeque<Arc<Event>>,
}

impl History {
    pub(crate) fn add(&mut self, event: Arc<Event>) {
        if self.events.len() == CAPACITY {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub(crate) fn events(&self) -> impl Iterator<Item = &Arc<Event>> {
        self.events.iter()
    }

    /// The events since `since` that a watcher of `key` wants.
    pub(crate) fn scan(
        &self,
        key: &str,
        recursive: bool,
        since: u64,
        index: u64,
    ) -> Result<impl Iterator<Item = &Arc<Event>>, Error> {
        let first = self.events.front().map_or(0, |event| event.index());
        let Some(offset) = since.checked_sub(first) else {
            return Err(Error::new(
                Code::EventIndexCleared,
                format!("the requested history has been cleared [{first}/{since}]"),
                index,
            ));
        };
        // Each event has the index after that of the one before it.
        let skip = usize::try_from(offset).unwrap_or(usize::MAX);
        Ok(self.events.iter().skip(skip).filter(move |event| {
            !event.refresh
                && (event.key() == key
                    || recursive && is_below(key, event.key())
                    || event.removes_directory() && is_below(event.key(), key))
        }))
    }
}

fn is_below(dir: &str, key: &str) -> bool {
    dir == "/"
        || key
            .strip_prefix(dir)
            .is_some_and(|rest| rest.starts_with('/'))
}
