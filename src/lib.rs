//! keelfs: one directory that is the same on every machine of a small cluster.
//!
//! Every change of the tree is a *command* in a Raft log; five *nodes* agree on its order, and each applies it to the
//! same pure state machine. The log is also the data store: a file's content is a list of references into it.
//!
//! # The rooms
//!
//! | room | what it holds | may import |
//! |---|---|---|
//! | [`fs`] | the file system as a pure, deterministic state machine | nothing of ours |
//! | [`codec`] | truth ↔ bytes: versioned, bounded | `fs` |
//! | [`log`] | bytes ↔ disk: the segmented log and the metadata snapshots | `codec` |
//! | [`net`] | bytes ↔ peers: frames, handshake, encryption and keys, deadlines | `codec` |
//! | [`raft`] | the only user of openraft; offers a `Replica` | `fs codec log net` |
//! | [`volume`] | what every front end talks to: submit a command, run a query, read bytes | `fs codec net raft` |
//! | [`fuse`] | the only user of fuser: kernel request → command or query → reply | `fs volume` |
//! | [`gateway`] | other front ends: the cs733 text protocol | `fs volume` |
//! | [`node`] | one running process: wiring, expiry proposer, shutdown | all but `cli` |
//! | [`cli`] | the operator's words → the above | all |
//!
//! `tests/rooms.rs` holds this table against the sources. [`limits`] holds every bound and may be read by
//! all; so may [`seeded`], the deliberate bugs of tests.
//!
//! # Glossary
//!
//! | word | meaning |
//! |---|---|
//! | node | one keelfs process with a data directory; a member of the cluster, under a number that is never given twice |
//! | voter, learner | a member whose vote counts; one that gets the log and has none (yet) |
//! | instance, incarnation, run | which making of a data directory; its how manieth start; which process |
//! | entry | one slot of the Raft log: a command with its stamp and body, a membership, or a blank |
//! | index | the position of an entry in the log; also the version that the entry gives to what it changes |
//! | keys, authority | what a node or a client proves itself with; what has signed all keys of one cluster |
//! | commit | a quorum holds the entry durably |
//! | apply | this replica has executed the entry |
//! | command | a change; goes through the log |
//! | query | a question; answered from the state of one replica, linearizable by default |
//! | reply, refusal | what a command returns; both are part of the replicated truth |
//! | body | the bulk bytes of an entry (file data); never looked at by the state machine |
//! | extent | a range of a file, pointing at a range of an entry's body |
//! | dentry | a name in a directory, pointing at an inode |
//! | ino | the number of an inode; never reused |
//! | version | the index of the entry that last changed a file's content |
//! | session | one client's standing with the cluster: makes its commands exactly-once, owns its locks and open files |
//! | orphan | an inode without names that some session may still hold open |
//! | cluster time | steady nanoseconds stamped by leaders into entries; stands still without a leader |
//! | snapshot | the whole metadata at one index, as a file |
//! | segment | one file of the log |

pub mod cli;
pub mod codec;
pub mod fs;
pub mod fuse;
pub mod gateway;
pub mod limits;
pub mod log;
pub mod net;
pub mod node;
pub mod raft;
pub mod seeded;
pub mod volume;
