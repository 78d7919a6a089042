//! Canonical bytes of any value of the state, and their hash.
//!
//! Replicas compare hashes, also while they run different builds, so the bytes under a hash must not depend on the
//! compiler, the machine's word or an encoder's version. Here every number is little-endian and of its full width, every
//! sequence and string is preceded by its length (64 bits), every variant by its position (32 bits). A field cannot be
//! forgotten, because the walk is the type's own `Serialize`.
//!
//! Decision: not the codec's bytes, because a hash must survive a change of the codec. Cost: this walk.

use serde::ser::{self, Serialize};

/// Hash of a value: XXH3-128 of its canonical bytes. Guards against divergence by error, not by malice.
pub(super) fn hash_of<T: Serialize + ?Sized>(value: &T) -> u128 {
    let mut out = Canon(Vec::with_capacity(256));
    // A derived `Serialize` has no error of its own, and writing to memory has none either.
    let _ = value.serialize(&mut out);
    xxhash_rust::xxh3::xxh3_128(&out.0)
}

struct Canon(Vec<u8>);

impl Canon {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Never> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn put_length(&mut self, length: usize) -> Result<(), Never> {
        self.put(&(length as u64).to_le_bytes())
    }

    fn put_variant(&mut self, variant: u32) -> Result<(), Never> {
        self.put(&variant.to_le_bytes())
    }
}

/// serde wants an error type; nothing here makes one.
type Never = serde::de::value::Error;

impl ser::Serializer for &mut Canon {
    type Ok = ();
    type Error = Never;
    type SerializeSeq = Self;
    type SerializeTuple = Self;
    type SerializeTupleStruct = Self;
    type SerializeTupleVariant = Self;
    type SerializeMap = Self;
    type SerializeStruct = Self;
    type SerializeStructVariant = Self;

    fn serialize_bool(self, v: bool) -> Result<(), Never> {
        self.put(&[u8::from(v)])
    }
    fn serialize_i8(self, v: i8) -> Result<(), Never> {
        self.put(&v.to_le_bytes())
    }
    fn serialize_i16(self, v: i16) -> Result<(), Never> {
        self.put(&v.to_le_bytes())
    }
    fn serialize_i32(self, v: i32) -> Result<(), Never> {
        self.put(&v.to_le_bytes())
    }
    fn serialize_i64(self, v: i64) -> Result<(), Never> {
        self.put(&v.to_le_bytes())
    }
    fn serialize_i128(self, v: i128) -> Result<(), Never> {
        self.put(&v.to_le_bytes())
    }
    fn serialize_u8(self, v: u8) -> Result<(), Never> {
        self.put(&[v])
    }
    fn serialize_u16(self, v: u16) -> Result<(), Never> {
        self.put(&v.to_le_bytes())
    }
    fn serialize_u32(self, v: u32) -> Result<(), Never> {
        self.put(&v.to_le_bytes())
    }
    fn serialize_u64(self, v: u64) -> Result<(), Never> {
        self.put(&v.to_le_bytes())
    }
    fn serialize_u128(self, v: u128) -> Result<(), Never> {
        self.put(&v.to_le_bytes())
    }
    fn serialize_f32(self, v: f32) -> Result<(), Never> {
        self.put(&v.to_bits().to_le_bytes())
    }
    fn serialize_f64(self, v: f64) -> Result<(), Never> {
        self.put(&v.to_bits().to_le_bytes())
    }
    fn serialize_char(self, v: char) -> Result<(), Never> {
        self.put(&u32::from(v).to_le_bytes())
    }
    fn serialize_str(self, v: &str) -> Result<(), Never> {
        self.serialize_bytes(v.as_bytes())
    }
    fn serialize_bytes(self, v: &[u8]) -> Result<(), Never> {
        self.put_length(v.len())?;
        self.put(v)
    }
    fn serialize_none(self) -> Result<(), Never> {
        self.put(&[0])
    }
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<(), Never> {
        self.put(&[1])?;
        value.serialize(self)
    }
    fn serialize_unit(self) -> Result<(), Never> {
        Ok(())
    }
    fn serialize_unit_struct(self, _: &'static str) -> Result<(), Never> {
        Ok(())
    }
    fn serialize_unit_variant(self, _: &'static str, variant: u32, _: &'static str) -> Result<(), Never> {
        self.put_variant(variant)
    }
    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Result<(), Never> {
        value.serialize(self)
    }
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        variant: u32,
        _: &'static str,
        value: &T,
    ) -> Result<(), Never> {
        self.put_variant(variant)?;
        value.serialize(self)
    }
    fn serialize_seq(self, length: Option<usize>) -> Result<Self, Never> {
        self.put_length(length.unwrap_or(usize::MAX))?;
        Ok(self)
    }
    fn serialize_tuple(self, _: usize) -> Result<Self, Never> {
        Ok(self)
    }
    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<Self, Never> {
        Ok(self)
    }
    fn serialize_tuple_variant(self, _: &'static str, variant: u32, _: &'static str, _: usize) -> Result<Self, Never> {
        self.put_variant(variant)?;
        Ok(self)
    }
    fn serialize_map(self, length: Option<usize>) -> Result<Self, Never> {
        self.serialize_seq(length)
    }
    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Self, Never> {
        Ok(self)
    }
    fn serialize_struct_variant(self, _: &'static str, variant: u32, _: &'static str, _: usize) -> Result<Self, Never> {
        self.put_variant(variant)?;
        Ok(self)
    }
    fn is_human_readable(&self) -> bool {
        false
    }
}

impl ser::SerializeSeq for &mut Canon {
    type Ok = ();
    type Error = Never;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Never> {
        value.serialize(&mut **self)
    }
    fn end(self) -> Result<(), Never> {
        Ok(())
    }
}

impl ser::SerializeTuple for &mut Canon {
    type Ok = ();
    type Error = Never;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Never> {
        value.serialize(&mut **self)
    }
    fn end(self) -> Result<(), Never> {
        Ok(())
    }
}

impl ser::SerializeTupleStruct for &mut Canon {
    type Ok = ();
    type Error = Never;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Never> {
        value.serialize(&mut **self)
    }
    fn end(self) -> Result<(), Never> {
        Ok(())
    }
}

impl ser::SerializeTupleVariant for &mut Canon {
    type Ok = ();
    type Error = Never;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Never> {
        value.serialize(&mut **self)
    }
    fn end(self) -> Result<(), Never> {
        Ok(())
    }
}

impl ser::SerializeMap for &mut Canon {
    type Ok = ();
    type Error = Never;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), Never> {
        key.serialize(&mut **self)
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), Never> {
        value.serialize(&mut **self)
    }
    fn end(self) -> Result<(), Never> {
        Ok(())
    }
}

impl ser::SerializeStruct for &mut Canon {
    type Ok = ();
    type Error = Never;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Result<(), Never> {
        value.serialize(&mut **self)
    }
    fn end(self) -> Result<(), Never> {
        Ok(())
    }
}

impl ser::SerializeStructVariant for &mut Canon {
    type Ok = ();
    type Error = Never;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, _: &'static str, value: &T) -> Result<(), Never> {
        value.serialize(&mut **self)
    }
    fn end(self) -> Result<(), Never> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::hash_of;

    /// The bytes under the hash are a format: replicas of different builds compare it.
    #[test]
    fn canonical_bytes_are_fixed() {
        let value = (7_u16, Some("ab"), Option::<u8>::None, vec![1_u32, 2]);
        let by_hand = [
            &7_u16.to_le_bytes()[..],
            &[1],
            &2_u64.to_le_bytes()[..],
            b"ab",
            &[0],
            &2_u64.to_le_bytes()[..],
            &1_u32.to_le_bytes()[..],
            &2_u32.to_le_bytes()[..],
        ]
        .concat();
        assert_eq!(hash_of(&value), xxhash_rust::xxh3::xxh3_128(&by_hand));
    }
}
