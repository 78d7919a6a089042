//! What peers say to each other about Raft: message kinds 1 to 63.
//!
//! A header is a format byte and bincode. The body of AppendEntries is the bodies of its entries one behind the other; of
//! SnapshotItems, the items, each behind its length (u32, little endian); of an answer to FetchBodies, the bodies.

use super::disks::DiskReport;
use super::payload::{self, StoredMeta, StoredVote};
use super::types::*;
use crate::codec::CodecError;
use crate::limits::FRAME_BODY_BYTES_MAX;
use crate::log::{self, Body, EntryId};
use crate::net::Message;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

pub const APPEND: u8 = 1;
pub const VOTE: u8 = 2;
pub const PRE_VOTE: u8 = 3;
pub const TRANSFER: u8 = 4;
pub const SNAPSHOT_BEGIN: u8 = 5;
pub const SNAPSHOT_ITEMS: u8 = 6;
pub const SNAPSHOT_END: u8 = 7;
pub const SNAPSHOT_PROGRESS: u8 = 8;
pub const FETCH_BODIES: u8 = 9;
pub const FETCH_ENTRIES: u8 = 10;
pub const HASH_AT: u8 = 11;
pub const FETCH_STATE: u8 = 12;
/// Says nothing, and is answered with nothing: the handshake before it has said all.
pub const INTRODUCE: u8 = 13;

/// A message of `kind` with this header.
pub fn message<T: Serialize>(kind: u8, header: &T, body: Bytes) -> Result<Message, CodecError> {
    Ok(Message { kind, header: payload::encode_formatted("message", header)?, body })
}

/// The same for an answer; one that cannot be encoded becomes a refusal.
pub fn answer<T: Serialize>(kind: u8, answer: &T) -> Message {
    message(kind, answer, Bytes::new()).unwrap_or_else(|e| Message::refused(e.to_string()))
}

pub fn header<T: DeserializeOwned>(message: &Message) -> Result<T, CodecError> {
    payload::decode_formatted("message", &message.header)
}

#[derive(Serialize, Deserialize)]
pub struct Append {
    vote: StoredVote,
    previous: Option<EntryId>,
    commit: Option<EntryId>,
    entries: Vec<AppendedEntry>,
}

#[derive(Serialize, Deserialize)]
struct AppendedEntry {
    id: EntryId,
    command: Bytes,
    body_length: u32,
}

/// What an append is answered with; to a heartbeat also how the disk stands.
#[derive(Serialize, Deserialize)]
pub struct Appended {
    pub answer: AppendAnswer,
    pub disk: Option<DiskReport>,
}

#[derive(Serialize, Deserialize)]
pub enum AppendAnswer {
    Success,
    /// The entry before the first is not in the log.
    Conflict,
    HigherVote(StoredVote),
    /// The entries were not taken: the disk is full.
    Full,
}

#[derive(Serialize, Deserialize)]
pub struct VoteRequest {
    vote: StoredVote,
    last: Option<EntryId>,
    transfer: bool,
}

#[derive(Serialize, Deserialize)]
pub struct VoteAnswer {
    vote: StoredVote,
    last: Option<EntryId>,
    granted: bool,
}

#[derive(Serialize, Deserialize)]
pub struct Transfer {
    from: StoredVote,
    to: u64,
    last: Option<EntryId>,
}

#[derive(Serialize, Deserialize)]
pub enum TransferAnswer {
    Accepted,
    VoteChanged { expected: StoredVote, actual: StoredVote },
    NotFlushed { expected: Option<EntryId>, actual: Option<EntryId> },
}

/// Start of a snapshot; the answer is a [`Progress`].
#[derive(Serialize, Deserialize)]
pub struct SnapshotBegin {
    /// Names this transmission: no two of one sender's process are equal.
    pub transfer: u64,
    pub vote: StoredVote,
    pub meta: StoredMeta,
}

/// The next items, counted from 0 within the transmission; the answer is a [`Progress`].
#[derive(Serialize, Deserialize)]
pub struct SnapshotItems {
    pub transfer: u64,
    pub sequence: u64,
}

/// That was all (SNAPSHOT_END), or: how far is it (SNAPSHOT_PROGRESS)? The answer is a [`Progress`].
#[derive(Serialize, Deserialize)]
pub struct SnapshotQuestion {
    pub transfer: u64,
}

/// The entries of `from..to` that the asked one has and has applied; the first of them if a frame holds no more.
#[derive(Serialize, Deserialize)]
pub struct FetchEntries {
    pub from: u64,
    pub to: u64,
}

/// Contiguous; the bodies are the message's, one behind the other.
#[derive(Serialize, Deserialize)]
struct FetchedEntries {
    entries: Vec<AppendedEntry>,
}

/// The next items of the asked one's state; 0 begins anew. The answer's body is items.
#[derive(Serialize, Deserialize)]
pub struct FetchState {
    pub sequence: u64,
}

#[derive(Serialize, Deserialize)]
pub struct FetchedState {
    pub meta: StoredMeta,
    /// There were no more.
    pub ended: bool,
}

/// The state's hash right after this entry.
#[derive(Serialize, Deserialize)]
pub struct HashAt {
    pub index: u64,
}

#[derive(Serialize, Deserialize)]
pub struct HashTold {
    /// `None`: not applied there yet, or not remembered any more.
    pub hash: Option<u128>,
}

/// How far the receiver of a snapshot is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    Working { bodies_fetched: u64 },
    Installed { vote: StoredVote },
    Failed { why: String },
}

#[derive(Serialize, Deserialize)]
pub struct FetchBodies {
    pub indexes: Vec<u64>,
}

/// One for each index asked for, in order; shorter when a frame is full.
#[derive(Serialize, Deserialize)]
pub struct FetchedBodies {
    pub found: Vec<FetchedBody>,
}

#[derive(Serialize, Deserialize)]
pub enum FetchedBody {
    /// So many bytes of the message's body.
    Here { length: u32 },
    /// No file refers to it any more in the committed state at index `at`.
    Dead { at: u64 },
    /// It should be here and cannot be read.
    Unreadable { why: String },
}

pub fn append_message(request: &AppendEntriesRequest<Types>) -> Result<Message, CodecError> {
    let stored = request.entries.iter().map(payload::to_stored).collect::<Result<Vec<_>, _>>()?;
    let (entries, bodies) = pack(stored)?;
    let append = Append {
        vote: (&request.vote).into(),
        previous: request.prev_log_id.as_ref().map(entry_id),
        commit: request.leader_commit.as_ref().map(entry_id),
        entries,
    };
    message(APPEND, &append, bodies)
}

/// Entries as they travel: what goes into the header, and all bodies one behind the other.
fn pack(stored: Vec<log::Entry>) -> Result<(Vec<AppendedEntry>, Bytes), CodecError> {
    let mut entries = Vec::with_capacity(stored.len());
    let mut bodies = Vec::with_capacity(stored.len());
    for log::Entry { id, command, body } in stored {
        entries.push(AppendedEntry { id, command, body_length: body_length(&body) });
        match body {
            Body::Bytes(bytes) => bodies.push(bytes),
            Body::Absent(_) => {
                let why = format!("entry {} was read without its body", id.index);
                return Err(CodecError::Undecodable { what: "entries", why });
            }
        }
    }
    Ok((entries, joined(bodies)))
}

/// The answer to FETCH_ENTRIES.
pub fn entries_message(stored: Vec<log::Entry>) -> Result<Message, CodecError> {
    let (entries, bodies) = pack(stored)?;
    message(FETCH_ENTRIES, &FetchedEntries { entries }, bodies)
}

/// What such an answer brings.
pub fn fetched_entries(message: &Message) -> Result<Vec<log::Entry>, CodecError> {
    let fetched: FetchedEntries = header(message)?;
    let mut bodies = message.body.clone();
    let entries = fetched.entries.into_iter().map(|entry| {
        let body = Body::Bytes(take(&mut bodies, entry.body_length as usize)?);
        Ok(log::Entry { id: entry.id, command: entry.command, body })
    });
    let entries = entries.collect::<Result<Vec<_>, CodecError>>()?;
    taken(&bodies)?;
    Ok(entries)
}

/// One buffer out of many; a single one is not copied.
pub fn joined(mut parts: Vec<Bytes>) -> Bytes {
    parts.retain(|part| !part.is_empty());
    if parts.len() == 1 {
        return parts.swap_remove(0);
    }
    let mut all = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| all.extend_from_slice(part));
    all.freeze()
}

/// The next `length` bytes, shared and not copied.
pub fn take(bytes: &mut Bytes, length: usize) -> Result<Bytes, CodecError> {
    match length <= bytes.len() {
        true => Ok(bytes.split_to(length)),
        false => Err(CodecError::Undecodable { what: "message body", why: "shorter than its header says".into() }),
    }
}

/// Nothing may be left when everything has been taken.
pub fn taken(bytes: &Bytes) -> Result<(), CodecError> {
    match bytes.len() {
        0 => Ok(()),
        trailing => Err(CodecError::Trailing { what: "message body", trailing }),
    }
}

pub fn append_request(message: &Message) -> Result<AppendEntriesRequest<Types>, CodecError> {
    let append: Append = header(message)?;
    let mut bodies = message.body.clone();
    let entries = append.entries.into_iter().map(|entry| {
        let body = Body::Bytes(take(&mut bodies, entry.body_length as usize)?);
        Ok(Entry { log_id: log_id(entry.id), payload: payload::decode(&entry.command, body)? })
    });
    let entries = entries.collect::<Result<Vec<_>, CodecError>>()?;
    taken(&bodies)?;
    Ok(AppendEntriesRequest {
        vote: append.vote.into(),
        prev_log_id: append.previous.map(log_id),
        leader_commit: append.commit.map(log_id),
        entries,
    })
}

impl From<AppendEntriesResponse<Types>> for AppendAnswer {
    fn from(response: AppendEntriesResponse<Types>) -> AppendAnswer {
        match response {
            AppendEntriesResponse::Success => AppendAnswer::Success,
            // Nothing here makes one; to call it a conflict costs a round trip and no more.
            AppendEntriesResponse::PartialSuccess(_) | AppendEntriesResponse::Conflict => AppendAnswer::Conflict,
            AppendEntriesResponse::HigherVote(vote) => AppendAnswer::HigherVote((&vote).into()),
        }
    }
}

impl AppendAnswer {
    /// The answer as openraft has it; `None`: the peer's disk is full.
    pub fn response(self) -> Option<AppendEntriesResponse<Types>> {
        match self {
            AppendAnswer::Success => Some(AppendEntriesResponse::Success),
            AppendAnswer::Conflict => Some(AppendEntriesResponse::Conflict),
            AppendAnswer::HigherVote(vote) => Some(AppendEntriesResponse::HigherVote(vote.into())),
            AppendAnswer::Full => None,
        }
    }
}

/// The answer to an append with entries.
pub fn appended(answer: AppendAnswer) -> Message {
    self::answer(APPEND, &Appended { answer, disk: None })
}

impl From<openraft::raft::VoteRequest<Types>> for VoteRequest {
    fn from(request: openraft::raft::VoteRequest<Types>) -> VoteRequest {
        VoteRequest {
            vote: (&request.vote).into(),
            last: request.last_log_id.as_ref().map(entry_id),
            transfer: request.leadership_transfer,
        }
    }
}

impl From<VoteRequest> for openraft::raft::VoteRequest<Types> {
    fn from(request: VoteRequest) -> openraft::raft::VoteRequest<Types> {
        openraft::raft::VoteRequest {
            vote: request.vote.into(),
            last_log_id: request.last.map(log_id),
            leadership_transfer: request.transfer,
        }
    }
}

impl From<openraft::raft::VoteResponse<Types>> for VoteAnswer {
    fn from(response: openraft::raft::VoteResponse<Types>) -> VoteAnswer {
        VoteAnswer {
            vote: (&response.vote).into(),
            last: response.last_log_id.as_ref().map(entry_id),
            granted: response.vote_granted,
        }
    }
}

impl From<VoteAnswer> for openraft::raft::VoteResponse<Types> {
    fn from(answer: VoteAnswer) -> openraft::raft::VoteResponse<Types> {
        openraft::raft::VoteResponse {
            vote: answer.vote.into(),
            vote_granted: answer.granted,
            last_log_id: answer.last.map(log_id),
        }
    }
}

impl From<&openraft::raft::TransferLeaderRequest<Types>> for Transfer {
    fn from(request: &openraft::raft::TransferLeaderRequest<Types>) -> Transfer {
        Transfer {
            from: request.from_leader().into(),
            to: *request.to_node_id(),
            last: request.last_log_id().map(entry_id),
        }
    }
}

impl From<Transfer> for openraft::raft::TransferLeaderRequest<Types> {
    fn from(transfer: Transfer) -> openraft::raft::TransferLeaderRequest<Types> {
        openraft::raft::TransferLeaderRequest::new(transfer.from.into(), transfer.to, transfer.last.map(log_id))
    }
}

impl From<openraft::raft::TransferLeaderResponse<Types>> for TransferAnswer {
    fn from(response: openraft::raft::TransferLeaderResponse<Types>) -> TransferAnswer {
        match response {
            Ok(()) => TransferAnswer::Accepted,
            Err(TransferLeaderError::VoteChanged { expected, actual }) => {
                TransferAnswer::VoteChanged { expected: (&expected).into(), actual: (&actual).into() }
            }
            Err(TransferLeaderError::LogNotFlushed { expected, actual }) => TransferAnswer::NotFlushed {
                expected: expected.as_ref().map(entry_id),
                actual: actual.as_ref().map(entry_id),
            },
        }
    }
}

impl From<TransferAnswer> for openraft::raft::TransferLeaderResponse<Types> {
    fn from(answer: TransferAnswer) -> openraft::raft::TransferLeaderResponse<Types> {
        match answer {
            TransferAnswer::Accepted => Ok(()),
            TransferAnswer::VoteChanged { expected, actual } => {
                Err(TransferLeaderError::VoteChanged { expected: expected.into(), actual: actual.into() })
            }
            TransferAnswer::NotFlushed { expected, actual } => {
                Err(TransferLeaderError::LogNotFlushed { expected: expected.map(log_id), actual: actual.map(log_id) })
            }
        }
    }
}

/// Append an item to the body of a SnapshotItems message; `false`: it does not fit any more.
pub fn push_item(body: &mut BytesMut, item: &Bytes) -> bool {
    let fits = body.len() + 4 + item.len() <= FRAME_BODY_BYTES_MAX;
    if fits {
        body.put_u32_le(item.len() as u32);
        body.extend_from_slice(item);
    }
    fits
}

/// The items of a SnapshotItems message.
pub fn items(mut body: Bytes) -> Result<Vec<Bytes>, CodecError> {
    let mut items = Vec::new();
    while !body.is_empty() {
        let length = take(&mut body, 4)?.get_u32_le();
        items.push(take(&mut body, length as usize)?);
    }
    Ok(items)
}

/// Whether a message can be decoded, whatever it is of.
pub fn is_sound(message: &Message) -> bool {
    match message.kind {
        APPEND => append_request(message).is_ok(),
        VOTE | PRE_VOTE => header::<VoteRequest>(message).is_ok(),
        TRANSFER => header::<Transfer>(message).is_ok(),
        SNAPSHOT_BEGIN => header::<SnapshotBegin>(message).is_ok_and(|begin| begin.meta.snapshot_meta().is_ok()),
        SNAPSHOT_ITEMS => header::<SnapshotItems>(message).is_ok() && items(message.body.clone()).is_ok(),
        SNAPSHOT_END | SNAPSHOT_PROGRESS => header::<SnapshotQuestion>(message).is_ok(),
        FETCH_BODIES => header::<FetchBodies>(message).is_ok() || header::<FetchedBodies>(message).is_ok(),
        FETCH_ENTRIES => header::<FetchEntries>(message).is_ok() || fetched_entries(message).is_ok(),
        HASH_AT => header::<HashAt>(message).is_ok() || header::<HashTold>(message).is_ok(),
        FETCH_STATE => header::<FetchState>(message).is_ok() || header::<FetchedState>(message).is_ok(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{ClusterTime, Command, Credentials, Request, Sequence, SessionId, Timestamp};
    use openraft::EntryPayload;
    use std::sync::Arc;

    fn entry(index: u64, body: Bytes) -> Entry {
        let stamped = Stamped {
            cluster: ClusterTime(index),
            wall: Timestamp::default(),
            request: Request {
                session: SessionId(1),
                sequence: Sequence(index),
                first_outstanding: Sequence(1),
                credentials: Credentials::default(),
                command: Command::Tick,
            },
        };
        let command = payload::encode_command(&stamped).unwrap();
        let proposal = Proposal { command, stamped: Arc::new(stamped), body: Body::Bytes(body) };
        Entry { log_id: log_id(EntryId { term: 2, node: 1, index }), payload: EntryPayload::Normal(proposal) }
    }

    fn request() -> AppendEntriesRequest<Types> {
        let id = |index| log_id(EntryId { term: 2, node: 1, index });
        AppendEntriesRequest {
            vote: Vote::new_committed(2, 1),
            prev_log_id: Some(id(4)),
            leader_commit: Some(id(3)),
            entries: vec![
                entry(5, Bytes::from_static(b"five")),
                entry(6, Bytes::new()),
                Entry { log_id: id(7), payload: EntryPayload::Blank },
                entry(8, Bytes::from(vec![8; 1000])),
            ],
        }
    }

    #[test]
    fn entries_arrive_as_they_were_sent_and_share_the_buffer_that_they_came_in() {
        let message = append_message(&request()).unwrap();
        let back = append_request(&message).unwrap();
        assert_eq!(back.entries, request().entries);
        assert_eq!((back.vote, back.prev_log_id, back.leader_commit), {
            let sent = request();
            (sent.vote, sent.prev_log_id, sent.leader_commit)
        });
        let EntryPayload::Normal(Proposal { body: Body::Bytes(last), .. }) = &back.entries[3].payload else { panic!() };
        assert!(message.body.as_ptr_range().contains(&last.as_ptr()), "a copy was made");
    }

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let good = append_message(&request()).unwrap();
        let shorter = Message { body: good.body.slice(1..), ..good.clone() };
        let longer = Message { body: [&good.body[..], b"x"].concat().into(), ..good.clone() };
        let cut = Message { header: good.header.slice(..good.header.len() - 1), ..good };
        for bad in [shorter, longer, cut] {
            assert!(append_request(&bad).is_err());
        }
        let without_body = Entry {
            payload: match entry(5, Bytes::new()).payload {
                EntryPayload::Normal(proposal) => EntryPayload::Normal(Proposal { body: Body::Absent(10), ..proposal }),
                other => other,
            },
            ..entry(5, Bytes::new())
        };
        assert!(append_message(&AppendEntriesRequest { entries: vec![without_body], ..request() }).is_err());
    }

    #[test]
    fn items_are_cut_apart_where_they_were_joined() {
        let sent = vec![Bytes::from_static(b"a"), Bytes::new(), Bytes::from(vec![7; 100_000])];
        let mut body = BytesMut::new();
        assert!(sent.iter().all(|item| push_item(&mut body, item)));
        assert!(!push_item(&mut body, &Bytes::from(vec![0; FRAME_BODY_BYTES_MAX])), "it fits no frame");
        let body = body.freeze();
        assert_eq!(items(body.clone()).unwrap(), sent);
        assert!(items(body.slice(..body.len() - 1)).is_err());
    }
}
