//! Truth ↔ bytes. bincode lives here and nowhere else.
//!
//! Every value is preceded by a format version byte by whoever frames it (record, frame, snapshot item). Decoding takes
//! at most [`VALUE_BYTES_MAX`] of memory, refuses trailing bytes and never guesses: undecodable is an error.

use serde::{Serialize, de::DeserializeOwned};

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("cannot decode {what}: {why}")]
    Undecodable { what: &'static str, why: String },
    #[error("{what}: {trailing} bytes too many")]
    Trailing { what: &'static str, trailing: usize },
    #[error("{what}: {length} bytes exceed the limit of {limit}")]
    TooLarge { what: &'static str, length: usize, limit: usize },
}

/// Largest single value that is ever encoded or decoded, in bytes; everything larger is split by its owner.
const VALUE_BYTES_MAX: usize = 8 << 20;

fn config() -> bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<VALUE_BYTES_MAX>,
> {
    bincode::config::standard().with_limit::<VALUE_BYTES_MAX>()
}

/// Encode one value. Fails only if it exceeds the limit.
pub fn encode<T: Serialize>(what: &'static str, value: &T) -> Result<Vec<u8>, CodecError> {
    let bytes = bincode::serde::encode_to_vec(value, config())
        .map_err(|e| CodecError::Undecodable { what, why: e.to_string() })?;
    if bytes.len() > VALUE_BYTES_MAX {
        return Err(CodecError::TooLarge { what, length: bytes.len(), limit: VALUE_BYTES_MAX });
    }
    Ok(bytes)
}

/// Decode exactly one value from exactly these bytes.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > VALUE_BYTES_MAX {
        return Err(CodecError::TooLarge { what, length: bytes.len(), limit: VALUE_BYTES_MAX });
    }
    let (value, used) = bincode::serde::decode_from_slice(bytes, config())
        .map_err(|e| CodecError::Undecodable { what, why: e.to_string() })?;
    match bytes.len() - used {
        0 => Ok(value),
        trailing => Err(CodecError::Trailing { what, trailing }),
    }
}
