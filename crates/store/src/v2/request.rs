//! A request as it goes through the log. The field numbers are those of etcd's own message, so that the entry in the log
//! is what etcd would have written.

/// One request to the v2 store.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Request {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// `PUT`, `POST`, `DELETE`, `QGET` or `SYNC`.
    #[prost(string, tag = "2")]
    pub method: String,
    /// With its name space.
    #[prost(string, tag = "3")]
    pub path: String,
    #[prost(string, tag = "4")]
    pub val: String,
    #[prost(bool, tag = "5")]
    pub dir: bool,
    /// Empty: no condition.
    #[prost(string, tag = "6")]
    pub prev_value: String,
    /// 0: no condition.
    #[prost(uint64, tag = "7")]
    pub prev_index: u64,
    #[prost(bool, optional, tag = "8")]
    pub prev_exist: Option<bool>,
    /// Nanoseconds since 1970; 0: never.
    #[prost(int64, tag = "9")]
    pub expiration: i64,
    #[prost(bool, tag = "10")]
    pub wait: bool,
    #[prost(uint64, tag = "11")]
    pub since: u64,
    #[prost(bool, tag = "12")]
    pub recursive: bool,
    #[prost(bool, tag = "13")]
    pub sorted: bool,
    #[prost(bool, tag = "14")]
    pub quorum: bool,
    /// When the request was made, in nanoseconds since 1970; of a `SYNC`, up to when keys expire.
    #[prost(int64, tag = "15")]
    pub time: i64,
    #[prost(bool, tag = "16")]
    pub stream: bool,
    #[prost(bool, optional, tag = "17")]
    pub refresh: Option<bool>,
}

impl Request {
    /// What the leader proposes so that keys expire everywhere at the same place in the log.
    pub fn sync(now: i64) -> Request {
        Request {
            method: "SYNC".into(),
            time: now,
            ..Request::default()
        }
    }

    /// Are a value or an index to be compared?
    pub(crate) fn compares(&self) -> bool {
        self.prev_index > 0 || !self.prev_value.is_empty()
    }

    pub(crate) fn refreshes(&self) -> bool {
        self.refresh == Some(true)
    }

    pub(crate) fn expires(&self) -> Option<i64> {
        (self.expiration != 0).then_some(self.expiration)
    }
}
