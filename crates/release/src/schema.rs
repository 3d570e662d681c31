//! What the texts of this crate look like in a JSON schema.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::{Channel, Sha256, Slot, Version};

macro_rules! schema {
    ($type:ident, $schema:tt) => {
        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

schema!(Version, { "type": "string", "pattern": r"^[0-9]{1,18}(\.[0-9]{1,18}){0,7}$" });
schema!(Channel, { "type": "string", "pattern": "^[a-z][a-z0-9-]{0,31}$" });
schema!(Sha256, { "type": "string", "pattern": "^[0-9a-f]{64}$" });
schema!(Slot, { "type": "string", "enum": ["a", "b"] });
