//! The words of the command line: what `clap` parses, and the help that it prints.
//!
//! Every verb shows an example, because an example is what people look for in a help text.

use crate::cli::words::{MemberAt, MountAt, NodeList, SignalName, TreePath, Ttl, Which};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Parser)]
#[command(
    name = "keelfs",
    version,
    about = "One directory, the same on every machine of a small cluster",
    after_help = "Exit codes:\n  \
        0 done   1 failed   2 usage   3 version mismatch   4 not found   5 no majority or timeout\n  \
        6 lock busy   73 data directory in use   74 storage failed   75 data damaged\n\n\
        Start here:\n  keelfs cluster start\n  echo hello > mnt/greeting",
    disable_help_subcommand = true,
    max_term_width = 110
)]
pub struct CommandLine {
    #[command(subcommand)]
    pub verb: Verb,
    /// Print JSON instead of text; errors too
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// A whole cluster on this machine: start, look, break, mend, stop
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Give a data directory its place in a cluster (once in its life)
    #[command(after_help = "Example, a cluster of three; the same --cluster and --member on each:\n  \
        keelfs init --data /var/lib/keelfs --cluster 6f1c… --node 1 \\\n    \
        --member 1=10.0.0.1:7700 --member 2=10.0.0.2:7700 --member 3=10.0.0.3:7700")]
    Init(InitArgs),
    /// Run one node in the foreground
    #[command(
        after_help = "Example:\n  keelfs serve --data /var/lib/keelfs --tls /etc/keelfs/node-1 --mount /srv/shared"
    )]
    Serve(ServeArgs),
    /// Make this machine's data directory a new node of a cluster that runs
    #[command(
        after_help = "The cluster gives the new node its number. Once started it catches up, and then gets a vote.\n\n\
        Example:\n  keelfs join --data /var/lib/keelfs --address 10.0.0.6:7700 --node 10.0.0.1,10.0.0.2\n  \
        keelfs serve --data /var/lib/keelfs --tls /etc/keelfs/node-6"
    )]
    Join(JoinArgs),
    /// Remove this machine's node from its cluster; its process ends by itself
    #[command(after_help = "Refused if the remaining voters would have no majority that answers.\n\n\
        Example:\n  keelfs leave --data /var/lib/keelfs")]
    Leave(LeaveArgs),
    /// Who is in the cluster: list, add, remove, promote, replace
    #[command(subcommand)]
    Member(MemberVerb),
    /// Mount a cluster that runs elsewhere
    #[command(after_help = "Example:\n  keelfs mount 10.0.0.1:7700,10.0.0.2:7700 /srv/shared --background")]
    Mount(MountArgs),
    /// Unmount, also when the process that served the mount is gone
    #[command(after_help = "Example:\n  keelfs umount /srv/shared")]
    Umount(UmountArgs),
    /// Make the keys with which nodes and clients prove what they are, and encrypt what they say
    #[command(subcommand)]
    Keys(KeysVerb),
    /// Who leads, and how far each node is
    #[command(after_help = "Examples:\n  keelfs status\n  keelfs status --node 10.0.0.1:7700 --json")]
    Status(RemoteArgs),
    /// Compare all replicas at one index and test their invariants: names, links, contents, locks
    #[command(
        after_help = "With --data every node also reads all that it stores from its disk and verifies it, which may take \
                      long; it serves meanwhile. Exit code 75: something is damaged and was not mended.\n\nExamples:\n  \
                      keelfs check && echo sound\n  keelfs check --repair"
    )]
    Check(CheckArgs),
    /// Print the Raft log of a node that is stopped; changes nothing
    #[command(
        after_help = "One line for each entry that the node's log still holds; with --json one object on each line.\n\n\
        Examples:\n  keelfs log /var/lib/keelfs --from 1000\n  keelfs log /var/lib/keelfs --json | \
        jq -c 'select(.session == 4096)'"
    )]
    Log(LogArgs),
    /// Print a file
    #[command(after_help = "Example:\n  keelfs read /greeting")]
    Read(PathArgs),
    /// Replace or create a whole file; prints its new version
    #[command(
        after_help = "A write cancels the file's expiry unless --ttl gives a new one. Up to 1 MiB it is one step \
        that replaces the content in place; more goes to a hidden file that then takes the old one's place, with its \
        owner, permissions and attributes, while other hard links to the old one, and who has it open, keep it.\n\n\
        Examples:\n  echo hello | keelfs write /greeting\n  keelfs write /token secret.txt --ttl 30s"
    )]
    Write(WriteArgs),
    /// Replace a whole file if its version is VERSION; prints the version it then has
    #[command(
        after_help = "VERSION 0 means: the file must not exist. On a mismatch the exit code is 3 and the current \
        version is printed.\n\nExample:\n  v=$(keelfs stat /greeting --version-only)\n  \
        echo goodbye | keelfs cas /greeting \"$v\" || echo someone was faster"
    )]
    Cas(CasArgs),
    /// Remove a file, or an empty directory with --directory
    #[command(after_help = "Example:\n  keelfs rm /greeting")]
    Rm(RmArgs),
    /// Show a file's attributes and version
    #[command(after_help = "Examples:\n  keelfs stat /greeting\n  keelfs stat /greeting --version-only")]
    Stat(StatArgs),
    /// Show or set how long a file has to live
    #[command(
        after_help = "Examples:\n  keelfs ttl /token        # seconds left, or none\n  keelfs ttl /token 5m     \
        # five minutes from now\n  keelfs ttl /token 0      # for ever"
    )]
    Ttl(TtlArgs),
}

#[derive(Debug, Subcommand)]
pub enum MemberVerb {
    /// Show the nodes: who votes, how far each is behind, how often it has started
    #[command(after_help = "Example:\n  keelfs member list --node 10.0.0.1")]
    List(RemoteArgs),
    /// Give out a number for a new node; `keelfs join --as` on its machine makes the node
    #[command(after_help = "Example:\n  keelfs member add 10.0.0.6:7700 --name rack-2 --node 10.0.0.1")]
    Add(AddArgs),
    /// Remove a node, dead or alive, for good: its number is not given again
    #[command(after_help = "Refused if the remaining voters would have no majority that answers.\n\n\
        Example:\n  keelfs member remove 3 --node 10.0.0.1")]
    Remove(OneMemberArgs),
    /// Give a learner that has caught up a vote
    #[command(after_help = "Example:\n  keelfs member promote 6 --node 10.0.0.1")]
    Promote(OneMemberArgs),
    /// Put a new node in the place of one whose machine or disk is lost
    #[command(
        after_help = "Run it on the machine of the new node. It gets a number of its own, and the old node's address \
        unless --address\ngives another; when it has caught up, it takes the old node's place in one step.\n\n\
        Example:\n  keelfs member replace 3 --data /var/lib/keelfs --node 10.0.0.1,10.0.0.2\n  \
        keelfs serve --data /var/lib/keelfs --tls /etc/keelfs/node-6"
    )]
    Replace(ReplaceArgs),
}

#[derive(Debug, Subcommand)]
pub enum KeysVerb {
    /// Make the authority of a cluster, which makes the keys of its nodes and clients
    #[command(
        after_help = "Once for each cluster. DIR/ca-key.pem is the cluster's greatest secret; no node needs it.\n\n\
        Example:\n  keelfs keys create authority"
    )]
    Create {
        /// The authority's directory: made if it is missing
        dir: PathBuf,
    },
    /// Make the keys of a node, good for ten years
    #[command(after_help = "Take the directory to the node's machine by a safe way.\n\n\
        Example:\n  keelfs keys node authority node-1\n  keelfs serve --data /var/lib/keelfs --tls /etc/keelfs/node-1")]
    Node(IssueArgs),
    /// Make the keys of a client (a mount, the command line), good for ten years
    #[command(after_help = "Take the directory to the client's machine by a safe way.\n\n\
        Example:\n  keelfs keys client authority laptop\n  keelfs mount 10.0.0.1 /srv/shared --tls /etc/keelfs/laptop")]
    Client(IssueArgs),
}

#[derive(Debug, Args)]
pub struct IssueArgs {
    /// The directory that `keelfs keys create` has made
    pub authority: PathBuf,
    /// Where the keys go: made if it is missing, nothing is overwritten
    pub dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct NewNodeArgs {
    /// The new node's data directory: made if it is missing, refused if it holds anything
    #[arg(long)]
    pub data: PathBuf,
    /// A name for people
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct JoinArgs {
    #[command(flatten)]
    pub new: NewNodeArgs,
    /// Where the others will reach it
    #[arg(long, value_name = "HOST:PORT", value_parser = crate::cli::words::resolve)]
    pub address: Option<std::net::SocketAddr>,
    /// The number that `keelfs member add` gave out for it
    #[arg(long = "as", value_name = "NODE", conflicts_with_all = ["address", "learner", "name"])]
    pub as_node: Option<u64>,
    /// Leave it without a vote until `keelfs member promote`
    #[arg(long)]
    pub learner: bool,
    #[command(flatten)]
    pub remote: RemoteArgs,
}

#[derive(Debug, Args)]
pub struct LeaveArgs {
    /// The data directory of the node that leaves
    #[arg(long)]
    pub data: PathBuf,
    /// How long to try
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
    /// Directory of a client's keys, as `keelfs keys client` makes it: encrypt, and prove who we are [env: KEELFS_TLS]
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct AddArgs {
    /// Where the others will reach the new node
    #[arg(value_name = "HOST:PORT", value_parser = crate::cli::words::resolve)]
    pub address: std::net::SocketAddr,
    /// A name for people
    #[arg(long)]
    pub name: Option<String>,
    /// Leave it without a vote until `keelfs member promote`
    #[arg(long)]
    pub learner: bool,
    #[command(flatten)]
    pub remote: RemoteArgs,
}

#[derive(Debug, Args)]
pub struct OneMemberArgs {
    /// Its number, as `keelfs member list` shows it
    #[arg(value_name = "NODE")]
    pub member: u64,
    #[command(flatten)]
    pub remote: RemoteArgs,
}

#[derive(Debug, Args)]
pub struct ReplaceArgs {
    /// The number of the node that is lost
    #[arg(value_name = "NODE")]
    pub member: u64,
    /// The new node's data directory: made if it is missing, refused if it holds anything
    #[arg(long)]
    pub data: PathBuf,
    /// Where the others will reach the new node [default: the old node's address]
    #[arg(long, value_name = "HOST:PORT", value_parser = crate::cli::words::resolve)]
    pub address: Option<std::net::SocketAddr>,
    /// A name for people
    #[arg(long)]
    pub name: Option<String>,
    #[command(flatten)]
    pub remote: RemoteArgs,
}

#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// Start a cluster, or what is not running of it
    #[command(after_help = "Examples:\n  keelfs cluster start\n  \
        keelfs cluster start --nodes 3 --mount 1=./a --mount 2=./b")]
    Start(StartArgs),
    /// List the nodes
    #[command(after_help = "Example:\n  keelfs cluster status --json | jq '.[] | select(.role == \"leader\").id'")]
    Status(DirArgs),
    /// Send a signal to nodes, to see how the others take over
    #[command(after_help = "Examples:\n  keelfs cluster kill leader\n  keelfs cluster kill 2 3\n  \
        keelfs cluster kill leader --signal STOP")]
    Kill(KillArgs),
    /// Start dead nodes again; stop running ones first
    #[command(after_help = "Examples:\n  keelfs cluster restart 2\n  keelfs cluster restart all")]
    Restart(RestartArgs),
    /// Unmount and stop all nodes; the data stays
    #[command(after_help = "Example:\n  keelfs cluster stop")]
    Stop(DirArgs),
    /// Stop the cluster and delete its data
    #[command(after_help = "Example:\n  keelfs cluster destroy --yes")]
    Destroy(DestroyArgs),
}

#[derive(Debug, Args)]
pub struct DirArgs {
    /// The cluster's directory
    #[arg(long, default_value = "./cluster")]
    pub dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    pub at: DirArgs,
    /// How many nodes: 1 to 7, better odd [default: 5; of an existing cluster what it has]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=7))]
    pub nodes: Option<u64>,
    /// Mount node NODE at PATH; may be repeated [default: 1=./mnt]
    #[arg(long, value_name = "NODE=PATH", conflicts_with = "no_mount")]
    pub mount: Vec<MountAt>,
    /// Mount nothing
    #[arg(long)]
    pub no_mount: bool,
    /// Node N listens on P+N [default: 7700]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..=65_528))]
    pub base_port: Option<u16>,
    /// Node N speaks the cs733 protocol on P+N [default: 8700]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..=65_528))]
    pub cs733_base_port: Option<u16>,
    /// Make keys, and have the nodes and mounts of this cluster use them: all that they say is encrypted
    #[arg(long)]
    pub tls: bool,
    /// How long to wait until the cluster answers
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
pub struct KillArgs {
    /// Nodes by number, `leader`, or `all`
    #[arg(required = true, value_name = "NODE|leader|all")]
    pub which: Vec<Which>,
    /// Name or number of the signal
    #[arg(long, default_value = "KILL")]
    pub signal: SignalName,
    #[command(flatten)]
    pub at: DirArgs,
}

#[derive(Debug, Args)]
pub struct RestartArgs {
    /// Nodes by number, `leader`, or `all`
    #[arg(required = true, value_name = "NODE|leader|all")]
    pub which: Vec<Which>,
    #[command(flatten)]
    pub at: DirArgs,
    /// How long to wait until the nodes answer
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
pub struct DestroyArgs {
    #[command(flatten)]
    pub at: DirArgs,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

#[derive(Debug, Args)]
pub struct InitArgs {
    /// The data directory: made if it is missing, refused if it holds anything
    #[arg(long)]
    pub data: PathBuf,
    /// The cluster's id, the same on all its nodes (`uuidgen` makes one)
    #[arg(long)]
    pub cluster: uuid::Uuid,
    /// This node's number: never reused, not even after a disk is lost
    #[arg(long)]
    pub node: u64,
    /// Every node's number and address, also this one's; once for each
    #[arg(long = "member", required = true, value_name = "NODE=ADDRESS")]
    pub members: Vec<MemberAt>,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The data directory, as given to `keelfs init`
    #[arg(long)]
    pub data: PathBuf,
    /// Listen here instead of at the address that the members know
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<std::net::SocketAddr>,
    /// Directory of this node's keys, as `keelfs keys node` makes it: encrypt, and let in only who has keys as well
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// Listen where other machines can reach it, although there (without --tls; with --cs733-listen also with it) nothing
    /// is encrypted or authenticated
    #[arg(long)]
    pub insecure_no_tls: bool,
    /// Mount the tree here
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
    /// Mount options, comma-separated, as of `keelfs mount`
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Speak the cs733 text protocol here; it is never encrypted
    #[arg(long, value_name = "ADDRESS")]
    pub cs733_listen: Option<std::net::SocketAddr>,
    /// How fast the daily scrub reads what is stored, to find what a disk has lost; 0: no scrub
    #[arg(long, value_name = "BYTES_PER_SECOND", default_value_t = crate::limits::SCRUB_BYTES_PER_SECOND)]
    pub scrub_rate: u64,
    /// Leave the terminal's session first: `keelfs cluster` starts nodes so
    #[arg(long, hide = true)]
    pub own_session: bool,
}

#[derive(Debug, Args)]
pub struct MountArgs {
    /// Addresses of nodes, comma-separated: more than one, so that one may be down
    #[arg(value_name = "HOST[:PORT][,…]")]
    pub nodes: NodeList,
    /// Where to mount
    pub dir: PathBuf,
    /// Mount options, comma-separated: ro, allow_other, allow_dev, allow_suid, noexec, timeout=30s,
    /// consistency=strict|local, max_write=BYTES, tls=DIR (as --tls)
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
    /// Directory of a client's keys, as `keelfs keys client` makes it: encrypt, and prove who we are [env: KEELFS_TLS]
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// What the first column of df shows [default: the addresses, followed by ":/"]
    #[arg(long, value_name = "NAME", hide = true)]
    pub source: Option<String>,
    /// Say nothing when it is mounted, as mount(8) wants it
    #[arg(long, hide = true)]
    pub quiet: bool,
    /// Return once the mount answers, and serve it from a process of its own
    #[arg(long)]
    pub background: bool,
    /// Where that process writes its log [default: a new file in the directory for temporary files]
    #[arg(long, value_name = "FILE", requires = "background")]
    pub log: Option<PathBuf>,
    #[arg(long, hide = true)]
    pub own_session: bool,
    /// Mount this cluster and no other, whatever answers at the addresses: `keelfs cluster` knows its mounts by it
    #[arg(long, value_name = "UUID", hide = true)]
    pub cluster: Option<uuid::Uuid>,
}

#[derive(Debug, Args)]
pub struct UmountArgs {
    /// The mount point
    pub dir: PathBuf,
    /// Take it out of sight now, even if programs use it; it ends with the last of them
    #[arg(long)]
    pub lazy: bool,
}

/// Which cluster a verb talks to, and for how long.
#[derive(Debug, Args)]
pub struct RemoteArgs {
    /// Addresses of nodes, comma-separated [env: KEELFS_NODES]
    #[arg(long, value_name = "HOST[:PORT][,…]")]
    pub node: Option<NodeList>,
    /// Or the directory of a cluster on this machine [default: ./cluster]
    #[arg(long, conflicts_with = "node")]
    pub dir: Option<PathBuf>,
    /// Directory of a client's keys, as `keelfs keys client` makes it: encrypt, and prove who we are [env: KEELFS_TLS]. A
    /// cluster on this machine has its own
    #[arg(long, value_name = "DIR", conflicts_with = "dir")]
    pub tls: Option<PathBuf>,
    /// How long to try
    #[arg(long, default_value = "30s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

#[derive(Debug, Args)]
pub struct LogArgs {
    /// The node's data directory
    pub data: PathBuf,
    /// The first entry to print
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    pub from: u64,
    /// The last entry to print [default: the last one of the log]
    #[arg(long, value_name = "INDEX")]
    pub to: Option<u64>,
    /// Print so many bytes of each entry's body as well, in hexadecimal
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub body: u32,
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Read and verify everything that is stored, too: entries, bodies, snapshots
    #[arg(long)]
    pub data: bool,
    /// Mend what is damaged with the copies of the other nodes; means --data
    #[arg(long)]
    pub repair: bool,
    #[command(flatten)]
    pub remote: RemoteArgs,
}

#[derive(Debug, Args)]
pub struct PathArgs {
    /// Absolute in the tree: /dir/name
    pub path: TreePath,
    #[command(flatten)]
    pub remote: RemoteArgs,
}

#[derive(Debug, Args)]
pub struct RmArgs {
    #[command(flatten)]
    pub at: PathArgs,
    /// Remove an empty directory
    #[arg(long)]
    pub directory: bool,
}

#[derive(Debug, Args)]
pub struct StatArgs {
    #[command(flatten)]
    pub at: PathArgs,
    /// Print nothing but the version
    #[arg(long)]
    pub version_only: bool,
}

#[derive(Debug, Args)]
pub struct WriteArgs {
    /// Absolute in the tree: /dir/name
    pub path: TreePath,
    #[command(flatten)]
    pub content: ContentArgs,
}

#[derive(Debug, Args)]
pub struct CasArgs {
    /// Absolute in the tree: /dir/name
    pub path: TreePath,
    /// The version that the file must have; 0: it must not exist
    pub version: u64,
    #[command(flatten)]
    pub content: ContentArgs,
}

#[derive(Debug, Args)]
pub struct ContentArgs {
    /// Where the content comes from; `-` is standard input
    #[arg(default_value = "-")]
    pub file: PathBuf,
    /// Remove the file this long after: 30, 30s, 5m, 2h, 7d
    #[arg(long, value_name = "DURATION")]
    pub ttl: Option<Ttl>,
    #[command(flatten)]
    pub remote: RemoteArgs,
}

#[derive(Debug, Args)]
pub struct TtlArgs {
    #[command(flatten)]
    pub at: PathArgs,
    /// 30, 30s, 5m, 2h, 7d; 0: for ever
    pub duration: Option<Ttl>,
}
