//! Every bound of the system, with its unit, in one place; they prove each other at compile time.

/// Longest name of a directory entry, in bytes (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;
/// Longest symbolic link target, in bytes (`PATH_MAX` without its NUL).
pub const SYMLINK_BYTES_MAX: usize = 4095;
/// Longest extended attribute name, in bytes (`XATTR_NAME_MAX`).
pub const XATTR_NAME_BYTES_MAX: usize = 255;
/// Largest extended attribute value, in bytes (`XATTR_SIZE_MAX`).
pub const XATTR_VALUE_BYTES_MAX: usize = 65_536;
/// All extended attributes of one inode together, names and values, in bytes.
pub const XATTRS_BYTES_MAX: usize = 131_072;
/// Largest access control list in the kernel's form, in bytes: the kernel asks for no more than a page.
pub const ACL_BYTES_MAX: usize = 4096;
/// Largest file, in bytes: 8 EiB − 4 KiB would be the kernel's; 16 TiB is what ext4 gives.
pub const FILE_BYTES_MAX: u64 = 16 << 40;
/// Most names of one inode (`LINK_MAX` of ext4).
pub const LINKS_MAX: u32 = 65_000;

/// Largest body of one entry, in bytes: what one write request carries.
pub const BODY_BYTES_MAX: usize = 1 << 20;
/// Largest encoded command without its body, in bytes: an attribute value, its name and the rest.
pub const COMMAND_BYTES_MAX: usize = 256 * 1024;
/// Largest whole-file replacement through one command, in bytes.
pub const PUT_BYTES_MAX: usize = BODY_BYTES_MAX;

/// Most replies that a session may keep unacknowledged.
pub const SESSION_OUTSTANDING_MAX: usize = 4096;
/// Most sessions at one time.
pub const SESSIONS_MAX: usize = 10_000;
/// Longest label of a session, in bytes.
pub const SESSION_LABEL_BYTES_MAX: usize = 255;
/// Most names of ephemeral inodes that go in the entry that ends their session; the others expire at once.
pub const EPHEMERAL_NAMES_AT_ONCE_MAX: u32 = 1000;
/// Most extents that one copy of a range shares; a longer copy is cut short and its caller goes on. Without it, a file
/// copied onto its own end, over and over, would double the memory of every node each time.
pub const COPY_EXTENTS_MAX: usize = 4096;
/// Most entries in one answer to `ReadDirectory`; the asker goes on behind the last cookie.
pub const DIRECTORY_ANSWER_ENTRIES_MAX: usize = 4096;
/// Most lock ranges held and waited for on one inode.
pub const LOCKS_PER_INODE_MAX: usize = 10_000;

/// How long a session lives after its last sign of life, in nanoseconds of cluster time.
pub const SESSION_TTL_NS: u64 = 30_000_000_000;

/// Most requests of one mount that are answered at one time; each [`FUSE_REQUEST_DATA_BYTES`] of data count as one more.
pub const FUSE_REQUESTS_MAX: usize = 2048;
pub const FUSE_REQUEST_DATA_BYTES: usize = 32 << 10;
/// Most callers of one mount that wait for a lock at one time.
pub const FUSE_LOCK_WAITS_MAX: usize = 16_384;

/// Size of one segment file of the log, in bytes.
pub const SEGMENT_BYTES: u64 = 64 << 20;
/// Bytes of a body that one checksum covers.
pub const BODY_CHECKSUM_BYTES: usize = 16 << 10;
/// Bytes of log since the last metadata snapshot that trigger the next one.
pub const SNAPSHOT_AFTER_BYTES: u64 = 128 << 20;

/// Bytes that the scrub reads in a second when nobody waits for it, unless an operator says otherwise.
pub const SCRUB_BYTES_PER_SECOND: u64 = 4 << 20;

/// Largest header of a frame between nodes or from a client, in bytes.
pub const FRAME_HEADER_BYTES_MAX: usize = 4 << 20;
/// Largest body of a frame, in bytes.
pub const FRAME_BODY_BYTES_MAX: usize = 8 << 20;
/// Bytes of entries in one AppendEntries request.
pub const APPEND_BYTES_MAX: usize = 4 << 20;

/// Longest first line of a cs733 request, in bytes, without its CRLF: "less than 500" in the original.
pub const CS733_LINE_BYTES_MAX: usize = 499;
/// Most cs733 clients of one node at one time; each may hold one [`PUT_BYTES_MAX`] of memory.
pub const CS733_CONNECTIONS_MAX: usize = 256;
/// How long a cs733 client may be silent between requests, in seconds.
pub const CS733_IDLE_SECONDS_MAX: u64 = 600;
/// How long it may be silent before it can be let go for the sake of another client, in seconds.
pub const CS733_SPARED_SECONDS: u64 = 10;
/// How long a cs733 request may take from its first byte to its last, and an answer to be taken, in seconds.
pub const CS733_TRANSFER_SECONDS_MAX: u64 = 60;
/// How long the cluster has to carry out one cs733 request, in seconds.
pub const CS733_OPERATION_SECONDS_MAX: u64 = 30;

const _: () = assert!(COMMAND_BYTES_MAX > XATTR_VALUE_BYTES_MAX + XATTR_NAME_BYTES_MAX);
const _: () = assert!(XATTR_VALUE_BYTES_MAX <= XATTRS_BYTES_MAX);
// What a new inode inherits fits, so making one cannot fail for it.
const _: () = assert!(2 * (ACL_BYTES_MAX + XATTR_NAME_BYTES_MAX) <= XATTRS_BYTES_MAX);
const _: () = assert!(FUSE_REQUESTS_MAX > BODY_BYTES_MAX / FUSE_REQUEST_DATA_BYTES + 1);
const _: () = assert!(APPEND_BYTES_MAX + BODY_BYTES_MAX <= FRAME_BODY_BYTES_MAX);
const _: () = assert!((BODY_BYTES_MAX + COMMAND_BYTES_MAX) as u64 * 8 < SEGMENT_BYTES);
