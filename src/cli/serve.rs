//! `keelfs init` and `keelfs serve`: a node's data directory, and the process that runs on it.

use crate::cli::args::{InitArgs, ServeArgs};
use crate::cli::block_on;
use crate::cli::cluster::process::leave_session;
use crate::cli::error::{CliError, CliResult};
use crate::cli::mount::mount_options;
use crate::cli::mounts;
use crate::cli::output::Output;
use crate::net::{Keys, NodeId};
use crate::node::{DataDirectory, InitOptions, Node, NodeOptions};
use crate::raft::Timing;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use uuid::Uuid;

/// `keelfs init`
pub fn init(args: InitArgs, output: Output) -> CliResult {
    let mut members = BTreeMap::new();
    for member in &args.members {
        if members.insert(member.node, member.address).is_some() {
            return Err(CliError::usage(format!("--member names node {} twice", member.node)));
        }
    }
    make_identity(&args.data, args.cluster, args.node, &members, false)?;
    let (data, node) = (args.data.display(), args.node);
    output.show(&json!({ "data": args.data, "cluster": args.cluster, "node": node }), || {
        format!("{data} is node {node} of cluster {}. Start it with: keelfs serve --data {data}", args.cluster)
    })
}

/// Give a data directory, which must be new or empty, its place in a cluster; `joins`: in one that is there already.
pub fn make_identity(
    data: &Path,
    cluster: Uuid,
    node: NodeId,
    members: &BTreeMap<NodeId, SocketAddr>,
    joins: bool,
) -> CliResult {
    DataDirectory::init(InitOptions { data: data.into(), cluster, node, members: members.clone(), joins })?;
    Ok(())
}

/// `keelfs serve`: returns when the node has ended.
pub fn serve(args: ServeArgs) -> CliResult {
    if args.own_session {
        leave_session()?;
    }
    let mount_options = mount_options(&args.options)?;
    let mut mounts = Vec::new();
    if let Some(path) = &args.mount {
        let path = mounts::absolute(path)?;
        mounts::prepare(&path)?;
        mounts.push((path, mount_options));
    }
    let keys = args.tls.as_deref().map(Keys::load).transpose()?;
    let options = NodeOptions {
        data: args.data,
        listen: args.listen,
        cs733_listen: args.cs733_listen,
        mounts,
        timing: Timing::default(),
        keys,
        insecure_no_tls: args.insecure_no_tls,
        scrub_bytes_per_second: args.scrub_rate,
    };
    block_on(async { Ok(Node::start(options).await?.run().await?) })
}
