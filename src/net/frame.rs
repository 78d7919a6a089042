//! Frames: how a message lies on the wire.
//!
//! ```text
//!  0  magic "kf"        2  version      3  kind        4  direction (0 request, 1 answer)   5  zero ×3
//!  8  call number (u64) 16 header length (u32)         20 body length (u32)
//! 24  CRC32C of bytes 0..24 and the header             28 CRC32C of the body
//! 32  header, then body                                       all numbers little-endian
//! ```

use super::Message;
use crate::limits::{FRAME_BODY_BYTES_MAX, FRAME_HEADER_BYTES_MAX};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::io::{Error, ErrorKind, Result};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::OwnedSemaphorePermit;

/// Version of the frame layout and of all messages in it.
pub(super) const PROTOCOL: u8 = 2;
/// The first frame of a link, in both directions.
pub(super) const KIND_HELLO: u8 = 255;
/// An answer that says why a message was not handled, as text.
pub(super) const KIND_REFUSED: u8 = 254;

/// An answer, to a hello or later, that says why its sender may never take part (an `Expulsion`).
pub(super) const KIND_EXPELLED: u8 = 253;

pub(super) const MAGIC: [u8; 2] = *b"kf";
/// What a caller that speaks TLS begins with: the record of a handshake.
const MAGIC_OF_TLS: [u8; 2] = [0x16, 0x03];
const PRELUDE_BYTES: usize = 32;
const CHECKED_BYTES: usize = 24;
/// What a sender must at least keep up, in bytes a second, once a frame has begun; and who is sent answers.
const RATE_MIN: usize = 1 << 20;
/// Time for any frame, however small, to pass once it has begun.
const FRAME_TIME: Duration = Duration::from_secs(5);

/// An error of the kind `Unsupported`.
const SPEAKS_TLS: &str = "the other end speaks TLS, and this one has no keys: give it some (--tls DIR)";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Request = 0,
    Answer = 1,
}

#[derive(Debug)]
pub(super) struct Frame {
    pub direction: Direction,
    pub call: u64,
    pub message: Message,
}

/// A frame on its way out, and the room that it takes until it has been written.
pub(super) struct Outgoing {
    pub frame: Frame,
    pub room: Vec<OwnedSemaphorePermit>,
}

/// What a frame's prelude says, checked but for the checksums.
pub(super) struct Prelude {
    direction: Direction,
    kind: u8,
    call: u64,
    header_bytes: usize,
    body_bytes: usize,
    body_sum: u32,
    head_sum: u32,
    checked: [u8; CHECKED_BYTES],
}

impl Frame {
    /// Prelude and header in one buffer; the body follows it on the wire, uncopied.
    pub(super) fn head(&self) -> BytesMut {
        let Message { kind, header, body } = &self.message;
        let mut head = BytesMut::with_capacity(PRELUDE_BYTES + header.len());
        head.put_slice(&MAGIC);
        head.put_u8(PROTOCOL);
        head.put_u8(*kind);
        head.put_u32_le(self.direction as u32);
        head.put_u64_le(self.call);
        head.put_u32_le(header.len() as u32);
        head.put_u32_le(body.len() as u32);
        head.put_u32_le(crc32c::crc32c_append(crc32c::crc32c(&head[..CHECKED_BYTES]), header));
        head.put_u32_le(crc32c::crc32c(body));
        head.put_slice(header);
        head
    }
}

/// Wait (as long as it takes) for the next frame to begin, and read its prelude. `None`: the other end closed between frames.
pub(super) async fn read_prelude(from: &mut (impl AsyncRead + Unpin)) -> Result<Option<Prelude>> {
    let mut bytes = [0; PRELUDE_BYTES];
    let first = from.read(&mut bytes).await?;
    if first == 0 {
        return Ok(None);
    }
    in_time(0, from.read_exact(&mut bytes[first..])).await?;
    Prelude::parse(&bytes).map(Some)
}

impl Prelude {
    fn parse(bytes: &[u8; PRELUDE_BYTES]) -> Result<Prelude> {
        let mut rest = &bytes[..];
        let mut magic = [0; 2];
        rest.copy_to_slice(&mut magic);
        if magic == MAGIC_OF_TLS {
            return Err(Error::new(ErrorKind::Unsupported, SPEAKS_TLS));
        }
        if magic != MAGIC {
            return Err(bad("this is not a keelfs peer or client".into()));
        }
        let version = rest.get_u8();
        if version != PROTOCOL {
            return Err(bad(format!("protocol version {version}, this build speaks {PROTOCOL}")));
        }
        let kind = rest.get_u8();
        let direction = match rest.get_u32_le() {
            0 => Direction::Request,
            1 => Direction::Answer,
            other => return Err(bad(format!("direction {other}"))),
        };
        let call = rest.get_u64_le();
        let header_bytes = bounded("header", rest.get_u32_le() as usize, FRAME_HEADER_BYTES_MAX)?;
        let body_bytes = bounded("body", rest.get_u32_le() as usize, FRAME_BODY_BYTES_MAX)?;
        let (head_sum, body_sum) = (rest.get_u32_le(), rest.get_u32_le());
        let mut checked = [0; CHECKED_BYTES];
        checked.copy_from_slice(&bytes[..CHECKED_BYTES]);
        Ok(Prelude { direction, kind, call, header_bytes, body_bytes, body_sum, head_sum, checked })
    }

    /// Bytes that [`Prelude::read_rest`] will allocate.
    pub(super) fn bytes(&self) -> usize {
        self.header_bytes + self.body_bytes
    }

    /// Refuse more than these, before any of it is read.
    pub(super) fn within(self, header_bytes_max: usize, body_bytes_max: usize) -> Result<Prelude> {
        bounded("header", self.header_bytes, header_bytes_max)?;
        bounded("body", self.body_bytes, body_bytes_max)?;
        Ok(self)
    }

    pub(super) async fn read_rest(self, from: &mut (impl AsyncRead + Unpin)) -> Result<Frame> {
        in_time(self.bytes(), async {
            let header = read_bytes(from, self.header_bytes).await?;
            if crc32c::crc32c_append(crc32c::crc32c(&self.checked), &header) != self.head_sum {
                return Err(bad("the frame's header fails its checksum".into()));
            }
            let body = read_bytes(from, self.body_bytes).await?;
            if crc32c::crc32c(&body) != self.body_sum {
                return Err(bad("the frame's body fails its checksum".into()));
            }
            let message = Message { kind: self.kind, header, body };
            Ok(Frame { direction: self.direction, call: self.call, message })
        })
        .await
    }
}

/// A whole frame; an error if the other end closes instead.
pub(super) async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> Result<Frame> {
    must_begin(from).await?.read_rest(from).await
}

/// The same, of one who has not said who he is: a header of at most so many bytes, and no body.
pub(super) async fn read_first_frame(from: &mut (impl AsyncRead + Unpin), bytes_max: usize) -> Result<Frame> {
    must_begin(from).await?.within(bytes_max, 0)?.read_rest(from).await
}

async fn must_begin(from: &mut (impl AsyncRead + Unpin)) -> Result<Prelude> {
    read_prelude(from).await?.ok_or_else(|| Error::new(ErrorKind::UnexpectedEof, "closed"))
}

async fn read_bytes(from: &mut (impl AsyncRead + Unpin), length: usize) -> Result<Bytes> {
    let mut bytes = BytesMut::with_capacity(length);
    let mut limited = from.take(length as u64);
    while bytes.len() < length {
        if limited.read_buf(&mut bytes).await? == 0 {
            return Err(Error::new(ErrorKind::UnexpectedEof, "closed in the middle of a frame"));
        }
    }
    Ok(bytes.freeze())
}

/// Read or write so many bytes, at the least rate.
pub(super) async fn in_time<T>(bytes: usize, work: impl Future<Output = Result<T>>) -> Result<T> {
    let time = FRAME_TIME + Duration::from_secs((bytes / RATE_MIN) as u64);
    tokio::time::timeout(time, work).await.map_err(|_| Error::new(ErrorKind::TimedOut, "a frame took too long"))?
}

fn bounded(what: &str, length: usize, limit: usize) -> Result<usize> {
    if length > limit { Err(bad(format!("{what} of {length} bytes, at most {limit} are allowed"))) } else { Ok(length) }
}

fn bad(why: String) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}
