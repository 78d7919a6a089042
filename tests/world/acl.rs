//! Access control lists as tests write them, `u::7 u:5:6 g::5 g:9:0 m::7 o::4`, and as the kernel does.

use bytes::Bytes;

pub const OWNER: u16 = 1;
pub const USER: u16 = 2;
pub const GROUP: u16 = 4;
pub const NAMED_GROUP: u16 = 8;
pub const MASK: u16 = 16;
pub const OTHERS: u16 = 32;
const NO_ID: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub tag: u16,
    pub permissions: u16,
    pub id: u32,
}

pub fn list(text: &str) -> Bytes {
    encode(&text.split_whitespace().map(entry).collect::<Vec<_>>())
}

fn entry(word: &str) -> Entry {
    let (who, permissions) = word.rsplit_once(':').unwrap_or_else(|| panic!("not an entry of a list: {word}"));
    let (tag, id) = match who.split_once(':') {
        Some(("u", "")) => (OWNER, NO_ID),
        Some(("u", id)) => (USER, id.parse().unwrap()),
        Some(("g", "")) => (GROUP, NO_ID),
        Some(("g", id)) => (NAMED_GROUP, id.parse().unwrap()),
        Some(("m", "")) => (MASK, NO_ID),
        Some(("o", "")) => (OTHERS, NO_ID),
        _ => panic!("not an entry of a list: {word}"),
    };
    Entry { tag, permissions: permissions.parse().unwrap(), id }
}

pub fn encode(entries: &[Entry]) -> Bytes {
    let words = entries.iter().flat_map(|Entry { tag, permissions, id }| {
        [&tag.to_le_bytes()[..], &permissions.to_le_bytes(), &id.to_le_bytes()].concat()
    });
    [2, 0, 0, 0].into_iter().chain(words).collect::<Vec<u8>>().into()
}

pub fn decode(list: &[u8]) -> Vec<Entry> {
    let entry = |word: &[u8]| Entry {
        tag: u16::from_le_bytes([word[0], word[1]]),
        permissions: u16::from_le_bytes([word[2], word[3]]),
        id: u32::from_le_bytes([word[4], word[5], word[6], word[7]]),
    };
    list[4..].chunks(8).map(entry).collect()
}

pub fn text(list: &[u8]) -> String {
    let word = |Entry { tag, permissions, id }: Entry| match tag {
        OWNER => format!("u::{permissions}"),
        USER => format!("u:{id}:{permissions}"),
        GROUP => format!("g::{permissions}"),
        NAMED_GROUP => format!("g:{id}:{permissions}"),
        MASK => format!("m::{permissions}"),
        OTHERS => format!("o::{permissions}"),
        other => panic!("a stored list has an entry of kind {other}"),
    };
    decode(list).into_iter().map(word).collect::<Vec<_>>().join(" ")
}
