//! SKELETON: the grammar of attribute values (`30s`, `VERSION [ttl=D]\n…`, RFC 3339), both ways.

use super::*;
use bytes::Bytes;

/// `user.keelfs.X` (or its alias `keelfs.X`) → X; `None` for every other name.
pub fn virtual_name(name: &[u8]) -> Option<&[u8]> {
    unimplemented!()
}

/// A duration as a user types it: `30`, `30s`, `5m`, `2h`, `7d`; nanoseconds.
pub fn parse_duration_ns(text: &[u8]) -> Result<u64, Refusal> {
    unimplemented!()
}

/// The command that setting an attribute amounts to, and its body: `cas` becomes `Replace`, `ttl` becomes `SetExpiry`,
/// a plain name `SetXattr`. Refuses unknown names under the prefix (`Invalid`) and read-only ones (`NotPermitted`).
pub fn set_attribute(ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<(Command, Bytes), Refusal> {
    unimplemented!()
}

/// The command that removing an attribute amounts to.
pub fn remove_attribute(ino: Ino, name: &[u8]) -> Result<Command, Refusal> {
    unimplemented!()
}
