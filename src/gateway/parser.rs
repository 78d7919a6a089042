//! Bytes in pieces of any size → requests of the cs733 protocol.
//!
//! Pure: no IO, no clock. [`Parser::push`] takes what arrived, [`Parser::next_event`] gives what is complete; the same stream
//! gives the same events however it was cut.
//!
//! Decision: after a fault the parser goes on only where it knows that the faulty request ends. `read` and `delete` end
//! with their line, whatever is in it. `write` and `cas` end behind their content, so a bad name, version or expiry
//! costs one answer, and a bad count costs the connection: what follows could be content or a request, and content taken
//! for requests would let whoever supplies a file's bytes give orders in another's name. A count above
//! [`PUT_BYTES_MAX`] is treated like a bad one, so that nobody can make the gateway swallow what it has refused.
//! Cost: a client that sends too large a file loses the requests that it pipelined behind it.
//!
//! Lines end with CRLF. A line feed alone is a fault that loses the end of the request, not something to wait behind:
//! someone who types into `nc` without `-C` gets an answer instead of silence.

use crate::fs::{LogIndex, Name};
use crate::limits::{CS733_LINE_BYTES_MAX, PUT_BYTES_MAX};
use bytes::{Buf, Bytes, BytesMut};

/// One well-formed request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Read { name: Name },
    Write { name: Name, expiry_ns: Option<u64>, content: Bytes },
    Cas { name: Name, version: LogIndex, expiry_ns: Option<u64>, content: Bytes },
    Delete { name: Name },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Request(Request),
    /// A malformed request whose end is known: answer and go on.
    Malformed,
    /// A malformed request whose end cannot be found: answer and close. Every later event is this one.
    Lost,
}

/// Holds at most one incomplete request and what was pushed since the last `None` of [`Parser::next_event`].
#[derive(Default)]
pub struct Parser {
    buffer: BytesMut,
    standing: Standing,
}

/// What the start of `buffer` is.
#[derive(Default)]
enum Standing {
    #[default]
    Line,
    Content {
        head: Option<Head>,
        length: usize,
    },
    Lost,
}

/// A `write` (without version) or `cas` whose content is awaited.
struct Head {
    name: Name,
    version: Option<LogIndex>,
    expiry_ns: Option<u64>,
}

/// What a first line says.
enum Line {
    Whole(Request),
    Malformed,
    /// Content of `length` bytes follows; `head` is `None` if the request is malformed all the same.
    Before {
        head: Option<Head>,
        length: usize,
    },
    Lost,
}

impl Parser {
    pub fn push(&mut self, bytes: &[u8]) {
        if !matches!(self.standing, Standing::Lost) {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next complete request or fault; `None`: more bytes are needed.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            match &self.standing {
                Standing::Line => {
                    if let Some(event) = self.take_line()? {
                        return Some(event);
                    }
                }
                Standing::Content { length, .. } => {
                    let length = *length;
                    return self.take_content(length);
                }
                Standing::Lost => return Some(Event::Lost),
            }
        }
    }

    /// Has a request begun that is not complete?
    pub fn is_within_request(&self) -> bool {
        !self.buffer.is_empty() || matches!(self.standing, Standing::Content { .. })
    }

    /// `None`: the line is incomplete; `Some(None)`: it announces content.
    fn take_line(&mut self) -> Option<Option<Event>> {
        let line = match line_end(&self.buffer)? {
            Ok(end) => {
                let line = self.buffer.split_to(end);
                self.buffer.advance(2);
                understand(&line)
            }
            Err(NoEnd) => Line::Lost,
        };
        Some(match line {
            Line::Whole(request) => Some(Event::Request(request)),
            Line::Malformed => Some(Event::Malformed),
            Line::Lost => Some(self.lose()),
            Line::Before { head, length } => {
                self.standing = Standing::Content { head, length };
                None
            }
        })
    }

    fn take_content(&mut self, length: usize) -> Option<Event> {
        match self.buffer.get(length..)? {
            [b'\r', b'\n', ..] => {}
            [] | [b'\r'] => return None,
            _ => return Some(self.lose()),
        }
        let content = self.buffer.split_to(length).freeze();
        self.buffer.advance(2);
        match std::mem::take(&mut self.standing) {
            Standing::Content { head: Some(head), .. } => Some(Event::Request(head.with(content))),
            _ => Some(Event::Malformed),
        }
    }

    fn lose(&mut self) -> Event {
        self.buffer = BytesMut::new();
        self.standing = Standing::Lost;
        Event::Lost
    }
}

impl Head {
    fn with(self, content: Bytes) -> Request {
        let Head { name, version, expiry_ns } = self;
        match version {
            Some(version) => Request::Cas { name, version, expiry_ns, content },
            None => Request::Write { name, expiry_ns, content },
        }
    }
}

struct NoEnd;

/// Where the first line ends (its length without CRLF); `None`: not yet known.
fn line_end(buffer: &[u8]) -> Option<Result<usize, NoEnd>> {
    let window = &buffer[..buffer.len().min(CS733_LINE_BYTES_MAX + 2)];
    match window.iter().position(|b| *b == b'\n') {
        Some(feed) if feed > 0 && window[feed - 1] == b'\r' => Some(Ok(feed - 1)),
        Some(_) => Some(Err(NoEnd)),
        None => match window.get(CS733_LINE_BYTES_MAX..) {
            None | Some([] | [b'\r']) => None,
            Some(_) => Some(Err(NoEnd)),
        },
    }
}

fn understand(line: &[u8]) -> Line {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    match fields[..] {
        [b"read", ref operands @ ..] => named(operands, |name| Request::Read { name }),
        [b"delete", ref operands @ ..] => named(operands, |name| Request::Delete { name }),
        [b"write", name, count] => before(count, || head(name, None, b"0")),
        [b"write", name, count, expiry] => before(count, || head(name, None, expiry)),
        [b"cas", name, version, count] => before(count, || head(name, Some(version), b"0")),
        [b"cas", name, version, count, expiry] => before(count, || head(name, Some(version), expiry)),
        _ => Line::Lost,
    }
}

/// `read` and `delete`: a name and nothing else.
fn named(operands: &[&[u8]], request: impl FnOnce(Name) -> Request) -> Line {
    match operands {
        [field] => name(field).map_or(Line::Malformed, |name| Line::Whole(request(name))),
        _ => Line::Malformed,
    }
}

fn before(count: &[u8], head: impl FnOnce() -> Option<Head>) -> Line {
    match number(count).and_then(|count| usize::try_from(count).ok()) {
        Some(length) if length <= PUT_BYTES_MAX => Line::Before { head: head(), length },
        _ => Line::Lost,
    }
}

fn head(field: &[u8], version: Option<&[u8]>, expiry: &[u8]) -> Option<Head> {
    let version = match version {
        Some(digits) => Some(LogIndex(number(digits)?)),
        None => None,
    };
    let ns = number(expiry)?.checked_mul(1_000_000_000)?;
    Some(Head { name: name(field)?, version, expiry_ns: (ns > 0).then_some(ns) })
}

/// Any byte but space, CR, LF, NUL and `/`, as [`Name`] has it.
fn name(field: &[u8]) -> Option<Name> {
    if field.contains(&b'\r') {
        return None;
    }
    Name::new(field).ok()
}

/// Decimal digits only: no sign, no space.
fn number(field: &[u8]) -> Option<u64> {
    if field.is_empty() || !field.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(bytes: &[u8]) -> Name {
        Name::new(bytes).unwrap()
    }

    fn read(bytes: &[u8]) -> Event {
        Event::Request(Request::Read { name: name(bytes) })
    }

    fn write(bytes: &[u8], seconds: u64, content: &'static [u8]) -> Event {
        let expiry_ns = (seconds > 0).then_some(seconds * 1_000_000_000);
        Event::Request(Request::Write { name: name(bytes), expiry_ns, content: Bytes::from_static(content) })
    }

    /// Every event of a stream that arrives in the given pieces, up to and including the first `Lost`; and the most
    /// bytes held meanwhile.
    fn run<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Event>, usize) {
        let (mut parser, mut events, mut held) = (Parser::default(), Vec::new(), 0);
        for piece in pieces {
            parser.push(piece);
            held = held.max(parser.buffer.len());
            while let Some(event) = parser.next_event() {
                events.push(event);
                if events.last() == Some(&Event::Lost) {
                    return (events, held);
                }
            }
        }
        (events, held)
    }

    #[test]
    fn every_row_of_the_table() {
        let cas = |version, seconds: u64, content: &'static [u8]| {
            let expiry_ns = (seconds > 0).then_some(seconds * 1_000_000_000);
            let content = Bytes::from_static(content);
            Event::Request(Request::Cas { name: name(b"f"), version: LogIndex(version), expiry_ns, content })
        };
        let delete = Event::Request(Request::Delete { name: name(b"f") });
        let rows: &[(&[u8], &[Event])] = &[
            // well-formed
            (b"read f\r\n", &[read(b"f")]),
            (b"read \xff\x01\xfe\r\n", &[read(b"\xff\x01\xfe")]),
            (b"write f 3\r\nabc\r\n", &[write(b"f", 0, b"abc")]),
            (b"write f 3 0\r\nabc\r\n", &[write(b"f", 0, b"abc")]),
            (b"write f 4 30\r\n\r\n\r\n\r\n", &[write(b"f", 30, b"\r\n\r\n")]),
            (b"write f 0\r\n\r\n", &[write(b"f", 0, b"")]),
            (b"cas f 7 1\r\nx\r\n", &[cas(7, 0, b"x")]),
            (b"cas f 0 1 9\r\nx\r\n", &[cas(0, 9, b"x")]),
            (b"delete f\r\n", std::slice::from_ref(&delete)),
            // malformed, the end is known: the next request is served
            (b"read\r\ndelete f\r\n", &[Event::Malformed, delete.clone()]),
            (b"read a b\r\ndelete f\r\n", &[Event::Malformed, delete.clone()]),
            (b"read a/b\r\ndelete f\r\n", &[Event::Malformed, delete.clone()]),
            (b"read ..\r\ndelete f\r\n", &[Event::Malformed, delete.clone()]),
            (b"read a\0\r\ndelete f\r\n", &[Event::Malformed, delete.clone()]),
            (b"read a\rb\r\ndelete f\r\n", &[Event::Malformed, delete.clone()]),
            (b"delete \r\ndelete f\r\n", &[Event::Malformed, delete.clone()]),
            (b"write a/b 3\r\nabc\r\ndelete f\r\n", &[Event::Malformed, delete.clone()]),
            (b"write f 3 -1\r\nabc\r\ndelete f\r\n", &[Event::Malformed, delete.clone()]),
            (b"write f 3 99999999999999\r\nabc\r\ndelete f\r\n", &[Event::Malformed, delete.clone()]),
            (b"cas f x 3\r\nabc\r\ndelete f\r\n", &[Event::Malformed, delete.clone()]),
            // malformed, the end cannot be found: content must never be taken for a request
            (b"\r\n", &[Event::Lost]),
            (b"READ f\r\n", &[Event::Lost]),
            (b"write f\r\ndelete f\r\n", &[Event::Lost]),
            (b"write f x\r\ndelete f\r\n", &[Event::Lost]),
            (b"write f -1\r\ndelete f\r\n", &[Event::Lost]),
            (b"write f +1\r\nx\r\n", &[Event::Lost]),
            (b"write f 1 2 3\r\nx\r\n", &[Event::Lost]),
            (b"write f 99999999999999999999999\r\n", &[Event::Lost]),
            (b"write f 1048577\r\n", &[Event::Lost]),
            (b"cas f 1\r\nx\r\n", &[Event::Lost]),
            (b"write f 3\r\nabcd\r\n", &[Event::Lost]),
            (b"write f 3\r\nabc\rx", &[Event::Lost]),
            (b"read f\n", &[Event::Lost]),
            (b"\n", &[Event::Lost]),
            // incomplete
            (b"", &[]),
            (b"read f\r", &[]),
            (b"write f 3\r\nabc\r", &[]),
        ];
        for (stream, events) in rows {
            assert_eq!(run([*stream]).0, *events, "{}", stream.escape_ascii());
        }
    }

    #[test]
    fn the_first_line_is_shorter_than_500_bytes_and_the_content_at_most_the_limit() {
        let line = |length: usize| [&b"read "[..], &vec![b'n'; length - 5]].concat();
        assert_eq!(run([&line(499)[..], b"\r\n"]).0, [Event::Malformed], "a name of 494 bytes is too long, not lost");
        assert_eq!(run([&line(500)[..], b"\r\n"]).0, [Event::Lost]);
        assert_eq!(run([&line(500)[..]]).0, [Event::Lost], "does not wait for an end that would come too late");

        let longest = vec![b'x'; PUT_BYTES_MAX];
        let (events, _) = run([&b"write f 1048576\r\n"[..], &longest, b"\r\n"]);
        assert!(
            matches!(&events[..], [Event::Request(Request::Write { content, .. })] if content.len() == PUT_BYTES_MAX)
        );
    }

    #[test]
    fn what_is_lost_stays_lost_and_is_not_kept() {
        let mut parser = Parser::default();
        parser.push(b"nonsense\r\nread f\r\n");
        assert_eq!(parser.next_event(), Some(Event::Lost));
        parser.push(&[0; 1 << 16]);
        assert_eq!(parser.next_event(), Some(Event::Lost));
        assert_eq!(parser.buffer.len(), 0);
    }

    /// Pieces of requests, right and wrong, in any order: far more often near the grammar than random bytes are.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            4 => Just(b"read f\r\n".to_vec()),
            4 => Just(b"write f 5\r\na\r\nbc\r\n".to_vec()),
            2 => Just(b"cas f 3 0 5\r\n\r\n".to_vec()),
            2 => Just(b"delete a/b\r\n".to_vec()),
            2 => Just(b"write f 2 x\r\nab\r\n".to_vec()),
            1 => Just(b"write f 3\r\n".to_vec()),
            1 => Just(b"write f 1048577\r\n".to_vec()),
            1 => Just(b"\r".to_vec()),
            1 => Just(b"\n".to_vec()),
            1 => proptest::collection::vec(any::<u8>(), 0..600),
        ];
        proptest::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn the_cut_of_a_stream_does_not_matter(stream in stream(), cuts in proptest::collection::vec(1usize..64, 1..40)) {
            let whole = run([&stream[..]]).0;
            let bytewise = run(stream.chunks(1)).0;
            let mut cuts = cuts.into_iter().cycle();
            let mut rest = &stream[..];
            let pieces = std::iter::from_fn(|| {
                let piece;
                (piece, rest) = rest.split_at(cuts.next().unwrap().min(rest.len()));
                (!piece.is_empty()).then_some(piece)
            });
            prop_assert_eq!(&whole, &run(pieces).0);
            prop_assert_eq!(&whole, &bytewise);
        }

        #[test]
        fn what_is_held_is_bounded(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..4096), 1..64)) {
            let head: &[u8] = b"write f 100000\r\n";
            let pieces = std::iter::once(head).chain(chunks.iter().map(|chunk| &chunk[..]));
            let (_, held) = run(pieces);
            prop_assert!(held <= 100_002 + 4096 + CS733_LINE_BYTES_MAX, "{} bytes held", held);
        }
    }
}
