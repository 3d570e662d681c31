//! One cloud-config makes a machine.
//!
//! `datasource → user-data → config → plan → apply → systemd`: each step is a module, the values
//! between them are plain data, and nothing is changed before the whole plan is known to be good.

pub mod apply;
pub mod config;
pub mod datasource;
pub mod finding;
pub mod forget;
pub mod imports;
pub mod metadata;
mod mime;
pub mod network;
mod once;
pub mod pipeline;
pub mod plan;
pub mod remote;
mod root;
pub mod service;
pub mod status;
pub mod substitute;
mod suggest;
pub mod systemd;
pub mod userdata;
mod yaml;
