//! The words of the shell interface: the virtual attributes under `user.keelfs.`, and how their values are written.
//!
//! `setfattr` and `getfattr` are the whole interface of a shell script to what POSIX has no call for, so these values are
//! typed by people. Each becomes one command; a name outside the prefix is a stored attribute.
//!
//! Absent on purpose: clocks. `ttl` stays a span and `expires` a wall time until apply turns them into cluster time.
//!
//! Decisions:
//! * Nothing is trimmed and nothing guessed: one space, one newline, decimal digits. A value that is nearly right is
//!   refused, because the likeliest damage of a lenient parser is a file that ends at the wrong time.
//! * `0` as a `ttl`, a `default-ttl` or an `expires` clears. Cost: nothing can be made to expire at the epoch; in return
//!   a script that means "never" does not delete its file.
//! * `cas` without `ttl=` keeps the file's expiry: a lease that is renewed by compare-and-swap must not become immortal.
//! * The `XATTR_CREATE` and `XATTR_REPLACE` flags mean nothing for a virtual attribute and are ignored.

use super::*;
use crate::limits::XATTR_VALUE_BYTES_MAX;
use bytes::Bytes;
use std::time::UNIX_EPOCH;

const SECOND_NS: u64 = 1_000_000_000;

/// A virtual attribute. All are hidden from `listxattr(2)`, so that no copying program carries them along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Virtual {
    Version,
    Change,
    Cas,
    ReplaceIf,
    Ttl,
    Expires,
    DefaultTtl,
    Ephemeral,
    Owner,
    LockGen,
    Locks,
    Info,
}

impl Virtual {
    /// By what follows the prefix; `None` for a name that keelfs does not know.
    pub fn named(name: &[u8]) -> Option<Virtual> {
        Some(match name {
            b"version" => Virtual::Version,
            b"change" => Virtual::Change,
            b"cas" => Virtual::Cas,
            b"replace-if" => Virtual::ReplaceIf,
            b"ttl" => Virtual::Ttl,
            b"expires" => Virtual::Expires,
            b"default-ttl" => Virtual::DefaultTtl,
            b"ephemeral" => Virtual::Ephemeral,
            b"owner" => Virtual::Owner,
            b"lock-gen" => Virtual::LockGen,
            b"locks" => Virtual::Locks,
            b"info" => Virtual::Info,
            _ => return None,
        })
    }
}

/// `user.keelfs.X` (or its alias `keelfs.X`) → X; `None` for every other name.
pub fn virtual_name(name: &[u8]) -> Option<&[u8]> {
    name.strip_prefix(b"user.keelfs.").or_else(|| name.strip_prefix(b"keelfs."))
}

/// The command that setting an attribute amounts to, and its body: `cas` becomes `Replace`, `ttl` becomes `SetExpiry`,
/// a plain name `SetXattr`. Refuses unknown names under the prefix and malformed values (`Invalid`), read-only names
/// (`NotPermitted`), and values longer than [`XATTR_VALUE_BYTES_MAX`] (`XattrTooLarge`).
pub fn set_attribute(ino: Ino, name: &[u8], value: &[u8], mode: XattrMode) -> Result<(Command, Bytes), Refusal> {
    if value.len() > XATTR_VALUE_BYTES_MAX {
        return Err(Refusal::XattrTooLarge);
    }
    let Some(short) = virtual_name(name) else {
        let (name, value) = (Bytes::copy_from_slice(name), Bytes::copy_from_slice(value));
        return Ok((Command::SetXattr { ino, name, value, mode }, Bytes::new()));
    };
    let command = match Virtual::named(short).ok_or(Refusal::Invalid)? {
        Virtual::Cas => return compare_and_swap(ino, value),
        Virtual::ReplaceIf => Command::SetReplaceIf { ino, version: Some(parse_version(value)?) },
        Virtual::Ttl => Command::SetExpiry { ino, expiry: parse_ttl(value)? },
        Virtual::Expires => Command::SetExpiry { ino, expiry: parse_expires(value)? },
        Virtual::DefaultTtl => {
            Command::SetDefaultTtl { ino, ttl_ns: Some(parse_duration_ns(value)?).filter(|ns| *ns > 0) }
        }
        Virtual::Ephemeral if value == b"session" => Command::SetEphemeral { ino, ephemeral: true },
        Virtual::Ephemeral => return Err(Refusal::Invalid),
        Virtual::Version | Virtual::Change | Virtual::Owner | Virtual::LockGen | Virtual::Locks | Virtual::Info => {
            return Err(Refusal::NotPermitted);
        }
    };
    Ok((command, Bytes::new()))
}

/// The command that removing an attribute amounts to. What cannot be cleared is `NotPermitted`, an unknown name under
/// the prefix `Invalid`.
pub fn remove_attribute(ino: Ino, name: &[u8]) -> Result<Command, Refusal> {
    let Some(short) = virtual_name(name) else {
        return Ok(Command::RemoveXattr { ino, name: Bytes::copy_from_slice(name) });
    };
    match Virtual::named(short).ok_or(Refusal::Invalid)? {
        Virtual::ReplaceIf => Ok(Command::SetReplaceIf { ino, version: None }),
        Virtual::Ttl | Virtual::Expires => Ok(Command::SetExpiry { ino, expiry: ExpiryChange::Clear }),
        Virtual::DefaultTtl => Ok(Command::SetDefaultTtl { ino, ttl_ns: None }),
        Virtual::Ephemeral => Ok(Command::SetEphemeral { ino, ephemeral: false }),
        Virtual::Version
        | Virtual::Change
        | Virtual::Cas
        | Virtual::Owner
        | Virtual::LockGen
        | Virtual::Locks
        | Virtual::Info => Err(Refusal::NotPermitted),
    }
}

/// A duration as a user types it: `30`, `30s`, `5m`, `2h`, `7d`; in nanoseconds, at most 584 years.
pub fn parse_duration_ns(text: &[u8]) -> Result<u64, Refusal> {
    let (digits, unit_seconds) = match text {
        [digits @ .., b's'] => (digits, 1),
        [digits @ .., b'm'] => (digits, 60),
        [digits @ .., b'h'] => (digits, 3_600),
        [digits @ .., b'd'] => (digits, 86_400),
        digits => (digits, 1),
    };
    let seconds = parse_decimal(digits)?.checked_mul(unit_seconds).ok_or(Refusal::Invalid)?;
    seconds.checked_mul(SECOND_NS).ok_or(Refusal::Invalid)
}

/// What `ttl=` and `user.keelfs.ttl` ask for: a duration from now, or `0` for none.
pub fn parse_ttl(text: &[u8]) -> Result<ExpiryChange, Refusal> {
    Ok(match parse_duration_ns(text)? {
        0 => ExpiryChange::Clear,
        ns => ExpiryChange::After { ns },
    })
}

/// What `user.keelfs.expires` asks for: Unix seconds, or RFC 3339 as `date -Is` and `date --rfc-3339=seconds` print it;
/// parts of a second count as a whole one, because nothing may end early.
pub fn parse_expires(text: &[u8]) -> Result<ExpiryChange, Refusal> {
    let unix_seconds = match parse_decimal(text) {
        Ok(0) => return Ok(ExpiryChange::Clear),
        Ok(seconds) => i64::try_from(seconds).map_err(|_| Refusal::Invalid)?,
        Err(_) => parse_rfc3339(text).ok_or(Refusal::Invalid)?,
    };
    Ok(ExpiryChange::At { unix_seconds })
}

/// A span as it is shown: whole seconds, rounded up.
pub fn seconds_rounded_up(ns: u64) -> u64 {
    ns.div_ceil(SECOND_NS)
}

/// `VERSION [ttl=DURATION]`, a newline, and the new content.
fn compare_and_swap(ino: Ino, value: &[u8]) -> Result<(Command, Bytes), Refusal> {
    let newline = value.iter().position(|b| *b == b'\n').ok_or(Refusal::Invalid)?;
    let (line, rest) = value.split_at(newline);
    let content = rest.get(1..).unwrap_or_default();
    let (version, expiry) = match line.iter().position(|b| *b == b' ') {
        None => (line, ExpiryChange::Keep),
        Some(space) => {
            let (version, option) = line.split_at(space);
            let duration = option.strip_prefix(b" ttl=").ok_or(Refusal::Invalid)?;
            (version, parse_ttl(duration)?)
        }
    };
    let expected = parse_version(version)?;
    let length = u32::try_from(content.len()).map_err(|_| Refusal::XattrTooLarge)?;
    Ok((Command::Replace { ino, expected, expiry, length }, Bytes::copy_from_slice(content)))
}

fn parse_version(text: &[u8]) -> Result<LogIndex, Refusal> {
    parse_decimal(text).map(LogIndex)
}

/// Decimal digits and nothing else (`str::parse` would take a sign).
fn parse_decimal(digits: &[u8]) -> Result<u64, Refusal> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Invalid);
    }
    std::str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).ok_or(Refusal::Invalid)
}

/// Unix seconds of a date and time, `Z` or an offset behind it; years 1970 to 9999.
fn parse_rfc3339(text: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(text).ok()?;
    let (local, offset_seconds) = match text.strip_suffix('Z') {
        Some(local) => (local, 0),
        None => split_offset(text)?,
    };
    if local.ends_with('Z') {
        return None;
    }
    let since = humantime::parse_rfc3339_weak(local).ok()?.duration_since(UNIX_EPOCH).ok()?;
    let seconds = i64::try_from(since.as_secs()).ok()?.checked_add(i64::from(since.subsec_nanos() > 0))?;
    seconds.checked_sub(offset_seconds)
}

/// `2026-11-22T13:00:00+01:30` → the part before the offset, and the offset in seconds east of Greenwich.
fn split_offset(text: &str) -> Option<(&str, i64)> {
    let (local, offset) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let (sign, hours, minutes) = match offset.as_bytes() {
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => (*sign, [*h1, *h2], [*m1, *m2]),
        _ => return None,
    };
    let (hours, minutes) = (parse_decimal(&hours).ok()?, parse_decimal(&minutes).ok()?);
    if hours > 23 || minutes > 59 {
        return None;
    }
    let seconds = i64::try_from(hours.saturating_mul(60).saturating_add(minutes).saturating_mul(60)).ok()?;
    Some((local, if sign == b'-' { seconds.saturating_neg() } else { seconds }))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests may panic")]
mod tests {
    use super::*;

    const INO: Ino = Ino(9);
    const BAD: Refusal = Refusal::Invalid;

    fn set(name: &str, value: &str) -> Result<(Command, Bytes), Refusal> {
        set_attribute(INO, name.as_bytes(), value.as_bytes(), XattrMode::Create)
    }

    /// The command alone, for a name under the prefix and under its alias.
    fn command(name: &str, value: &str) -> Result<Command, Refusal> {
        let both = ["user.keelfs.", "keelfs."].map(|prefix| set(&format!("{prefix}{name}"), value));
        assert_eq!(both[0], both[1]);
        both[0].clone().map(|(command, body)| {
            assert!(body.is_empty());
            command
        })
    }

    #[test]
    fn durations_are_digits_and_at_most_one_unit() {
        let good = [("0", 0), ("30", 30), ("30s", 30), ("5m", 300), ("2h", 7_200), ("7d", 604_800), ("007", 7)];
        for (text, seconds) in good {
            assert_eq!(parse_duration_ns(text.as_bytes()), Ok(seconds * SECOND_NS), "{text}");
        }
        assert_eq!(parse_duration_ns(b"18446744073"), Ok(18_446_744_073 * SECOND_NS));
        let bad = [
            "",
            "s",
            "-1",
            "+1",
            "1e9y",
            "1y",
            "1.5h",
            "1h30m",
            "30 s",
            " 30",
            "30\n",
            "30S",
            "5ms",
            "0x10",
            "٣",
            "18446744074",
            "300000000000000d",
            "99999999999999999999999999",
            "30\0",
        ];
        for text in bad {
            assert_eq!(parse_duration_ns(text.as_bytes()), Err(BAD), "{text:?}");
        }
    }

    #[test]
    fn an_expiry_is_a_span_or_a_time_and_zero_clears_it() {
        let at = |unix_seconds| ExpiryChange::At { unix_seconds };
        let table = [
            ("ttl", "90", ExpiryChange::After { ns: 90 * SECOND_NS }),
            ("ttl", "0", ExpiryChange::Clear),
            ("ttl", "0d", ExpiryChange::Clear),
            ("expires", "0", ExpiryChange::Clear),
            ("expires", "1", at(1)),
            ("expires", "1795353252", at(1_795_353_252)),
            ("expires", "9223372036854775807", at(i64::MAX)),
            ("expires", "2026-11-22T13:14:12Z", at(1_795_353_252)),
            ("expires", "2026-11-22T13:14:12.000000001Z", at(1_795_353_253)),
            ("expires", "2026-11-22 13:14:12+00:00", at(1_795_353_252)),
            ("expires", "2026-11-22T14:44:12+01:30", at(1_795_353_252)),
            ("expires", "2026-11-22T05:14:12-08:00", at(1_795_353_252)),
        ];
        for (name, value, expiry) in table {
            assert_eq!(command(name, value), Ok(Command::SetExpiry { ino: INO, expiry }), "{name} {value}");
        }
        let bad = [
            "",
            "-1",
            "9223372036854775808",
            "tomorrow",
            "2026-11-22",
            "2026-13-22T13:14:12Z",
            "2026-11-22T13:14:12",
            "2026-11-22T13:14:12+24:00",
            "2026-11-22T13:14:12+0100",
            "2026-11-22T13:14:12ZZ",
            "30s",
            " 1",
            "é00:00",
        ];
        for value in bad {
            assert_eq!(command("expires", value), Err(BAD), "{value:?}");
        }
    }

    #[test]
    fn cas_is_a_version_perhaps_a_ttl_a_newline_and_the_content() {
        let after = ExpiryChange::After { ns: 30 * SECOND_NS };
        let table = [
            ("5\nhello\n", 5, ExpiryChange::Keep, "hello\n"),
            ("5\n", 5, ExpiryChange::Keep, ""),
            ("18446744073709551615 ttl=30s\na b\nc", u64::MAX, after, "a b\nc"),
            ("0 ttl=0\n\n", 0, ExpiryChange::Clear, "\n"),
        ];
        for (value, version, expiry, content) in table {
            let expected = LogIndex(version);
            let replace = Command::Replace { ino: INO, expected, expiry, length: content.len() as u32 };
            assert_eq!(set("user.keelfs.cas", value), Ok((replace, Bytes::from(content))), "{value:?}");
        }
        let bad = [
            "",
            "\n",
            "5",
            "5 hello",
            "-5\n",
            "+5\n",
            "5 \n",
            "5  ttl=1\n",
            "5 ttl=\n",
            "5 ttl=1 \n",
            "5 TTL=1\n",
            "5 ttl=1 ttl=2\n",
            " 5\n",
            "5\r\n",
            "18446744073709551616\n",
            "v5\n",
        ];
        for value in bad {
            assert_eq!(set("user.keelfs.cas", value), Err(BAD), "{value:?}");
        }
    }

    #[test]
    fn the_other_names_take_their_words_or_refuse() {
        let version = Some(LogIndex(12));
        assert_eq!(command("replace-if", "12"), Ok(Command::SetReplaceIf { ino: INO, version }));
        assert_eq!(command("replace-if", "12\n"), Err(BAD));
        assert_eq!(command("replace-if", ""), Err(BAD));
        let ttl_ns = Some(300 * SECOND_NS);
        assert_eq!(command("default-ttl", "5m"), Ok(Command::SetDefaultTtl { ino: INO, ttl_ns }));
        assert_eq!(command("default-ttl", "0"), Ok(Command::SetDefaultTtl { ino: INO, ttl_ns: None }));
        assert_eq!(command("ephemeral", "session"), Ok(Command::SetEphemeral { ino: INO, ephemeral: true }));
        for value in ["", "1", "Session", "session "] {
            assert_eq!(command("ephemeral", value), Err(BAD), "{value:?}");
        }
        for name in ["version", "change", "owner", "lock-gen", "locks", "info"] {
            assert_eq!(command(name, "1"), Err(Refusal::NotPermitted), "{name}");
        }
        for name in ["", "x", "Version", "ttl ", "ttl.x"] {
            assert_eq!(command(name, "1"), Err(BAD), "{name:?}");
        }
    }

    #[test]
    fn removing_clears_what_can_be_cleared() {
        let clear = Command::SetExpiry { ino: INO, expiry: ExpiryChange::Clear };
        let table = [
            ("replace-if", Ok(Command::SetReplaceIf { ino: INO, version: None })),
            ("ttl", Ok(clear.clone())),
            ("expires", Ok(clear)),
            ("default-ttl", Ok(Command::SetDefaultTtl { ino: INO, ttl_ns: None })),
            ("ephemeral", Ok(Command::SetEphemeral { ino: INO, ephemeral: false })),
            ("version", Err(Refusal::NotPermitted)),
            ("change", Err(Refusal::NotPermitted)),
            ("cas", Err(Refusal::NotPermitted)),
            ("owner", Err(Refusal::NotPermitted)),
            ("lock-gen", Err(Refusal::NotPermitted)),
            ("locks", Err(Refusal::NotPermitted)),
            ("info", Err(Refusal::NotPermitted)),
            ("nonsense", Err(BAD)),
        ];
        for (name, expected) in table {
            assert_eq!(remove_attribute(INO, format!("user.keelfs.{name}").as_bytes()), expected, "{name}");
            assert_eq!(remove_attribute(INO, format!("keelfs.{name}").as_bytes()), expected, "{name}");
        }
    }

    #[test]
    fn a_name_outside_the_prefix_is_stored() {
        for name in ["user.comment", "user.keelfs", "user.keelfsx.ttl", "security.capability", "keelfs"] {
            let (name, value) = (Bytes::from(name), Bytes::from("0\n"));
            let (command, body) = set_attribute(INO, &name, &value, XattrMode::Replace).unwrap();
            let mode = XattrMode::Replace;
            assert_eq!(command, Command::SetXattr { ino: INO, name: name.clone(), value, mode });
            assert!(body.is_empty());
            assert_eq!(remove_attribute(INO, &name), Ok(Command::RemoveXattr { ino: INO, name }));
        }
        let long = vec![b'1'; XATTR_VALUE_BYTES_MAX + 1];
        for name in ["user.comment", "user.keelfs.cas", "user.keelfs.ttl"] {
            let refused = set_attribute(INO, name.as_bytes(), &long, XattrMode::Any);
            assert_eq!(refused, Err(Refusal::XattrTooLarge), "{name}");
        }
    }

    #[test]
    fn what_is_left_is_shown_in_whole_seconds_and_never_as_none() {
        let table = [(0, 0), (1, 1), (SECOND_NS, 1), (SECOND_NS + 1, 2), (u64::MAX, 18_446_744_074)];
        for (ns, seconds) in table {
            assert_eq!(seconds_rounded_up(ns), seconds);
        }
    }
}
