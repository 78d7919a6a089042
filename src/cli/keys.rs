//! `keelfs keys`: the secrets with which the nodes and clients of a cluster prove what they are.
//!
//! The command line names directories only, never a secret: whoever may list the processes of a machine reads their words.

use crate::cli::args::{IssueArgs, KeysVerb};
use crate::cli::error::{CliError, CliResult, Tried};
use crate::cli::output::Output;
use crate::net::keys::{CERTIFICATE_TIME, KeysError, create_authority, issue};
use crate::net::{Keys, Role};
use serde_json::json;
use std::path::{Path, PathBuf};

pub const KEYS_VARIABLE: &str = "KEELFS_TLS";

pub fn run(verb: KeysVerb, output: Output) -> CliResult {
    match verb {
        KeysVerb::Create { dir } => create(&dir, output),
        KeysVerb::Node(args) => make(&args, Role::Node, output),
        KeysVerb::Client(args) => make(&args, Role::Client, output),
    }
}

/// `keelfs keys create`
fn create(dir: &Path, output: Output) -> CliResult {
    create_authority(dir)?;
    output.show(&json!({ "authority": dir }), || {
        let dir = dir.display();
        format!(
            "{dir} can make keys: `keelfs keys node {dir} DIR` for each node, `keelfs keys client {dir} DIR` for each client. \
             Keep it where no node is: who has {dir}/ca-key.pem can let anybody in"
        )
    })
}

/// `keelfs keys node` and `keelfs keys client`
fn make(IssueArgs { authority, dir }: &IssueArgs, role: Role, output: Output) -> CliResult {
    issue(authority, dir, role)?;
    let (shown, days) = (dir.display(), CERTIFICATE_TIME.as_secs() / 86_400);
    let then = match role {
        Role::Node => format!("keelfs serve --tls {shown} …"),
        Role::Client => format!("keelfs mount --tls {shown} …"),
    };
    output.show(&json!({ "keys": dir, "role": role.to_string(), "days": days }), || {
        format!(
            "{shown} holds the keys of a {role}, good for ten years. Take it there as it is, by a safe way, and: {then}"
        )
    })
}

/// Where the keys are that a client's verb is told to use: in the directory named, else in that of KEELFS_TLS. `None`: it
/// has none, and nothing is encrypted.
pub fn directory(named: Option<&Path>) -> CliResult<Option<PathBuf>> {
    let variable = || std::env::var_os(KEYS_VARIABLE).filter(|text| !text.is_empty()).map(PathBuf::from);
    let Some(dir) = named.map(Path::to_owned).or_else(variable) else { return Ok(None) };
    let absolute = std::path::absolute(&dir).tried(|| format!("cannot use the keys in {}", dir.display()))?;
    Ok(Some(absolute))
}

/// The keys of a client's verb.
pub fn of_client(named: Option<&Path>) -> CliResult<Option<Keys>> {
    Ok(directory(named)?.map(|dir| Keys::load(&dir)).transpose()?)
}

impl From<KeysError> for CliError {
    fn from(error: KeysError) -> CliError {
        CliError::failed(error.to_string())
    }
}
