//! Counters for `/v2/stats/store`. They belong to this process and are in no snapshot.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

macro_rules! counters {
    ($($field:ident = $name:literal,)*) => {
        #[derive(Debug, Default)]
        pub(crate) struct Stats { $(pub(crate) $field: AtomicU64,)* }

        #[derive(Serialize)]
        struct Shown { $(#[serde(rename = $name)] $field: u64,)* watchers: u64 }

        impl Stats {
            pub(crate) fn line(&self, watchers: u64) -> String {
                super::gojson::text(&Shown {
                    $($field: self.$field.load(Ordering::Relaxed),)*
                    watchers,
                })
            }
        }
    };
}

counters! {
    get_success = "getsSuccess",
    get_fail = "getsFail",
    set_success = "setsSuccess",
    set_fail = "setsFail",
    delete_success = "deleteSuccess",
    delete_fail = "deleteFail",
    update_success = "updateSuccess",
    update_fail = "updateFail",
    create_success = "createSuccess",
    create_fail = "createFail",
    cas_success = "compareAndSwapSuccess",
    cas_fail = "compareAndSwapFail",
    cad_success = "compareAndDeleteSuccess",
    cad_fail = "compareAndDeleteFail",
    expire_count = "expireCount",
}

/// Counts an outcome, and hands it on.
pub(crate) fn count<T, E>(
    outcome: Result<T, E>,
    success: &AtomicU64,
    fail: &AtomicU64,
) -> Result<T, E> {
    let counter = if outcome.is_ok() { success } else { fail };
    counter.fetch_add(1, Ordering::Relaxed);
    outcome
}
