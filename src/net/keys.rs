//! Keys: who may take part in a cluster, and how a node or a client proves that it may.
//!
//! Each cluster has an authority of its own, and what that has signed is of this cluster. A certificate names a role and
//! nothing else: no address, because nodes move, and no number, because a node gets its number from the cluster.
//!
//! ```text
//! ca.pem       whom we believe: the certificate of the cluster's authority (more than one while it changes)
//! cert.pem     what we are: signed by the authority, with the name of our role
//! key.pem      the secret that belongs to it; for its owner's eyes only
//! ca-key.pem   in the authority's own directory: what makes new nodes and clients; no node needs it
//! ```
//!
//! Absent on purpose: revocation. A key that got into strange hands is dealt with by a new authority: both stand in
//! `ca.pem` while the nodes restart one by one. Cost: that is work; but no list has to be kept, and to be right, everywhere.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const AUTHORITY: &str = "ca.pem";
const AUTHORITY_KEY: &str = "ca-key.pem";
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";

const DAY: Duration = Duration::from_secs(24 * 3600);
/// How far a clock may be behind that of the machine that made the keys.
const BACKDATED: Duration = DAY;
/// How long a certificate of a node or a client is good; an authority's is so for three times as long.
pub const CERTIFICATE_TIME: Duration = Duration::from_secs(3652 * 24 * 3600);

/// The largest file of keys that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a certificate says that its holder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// May be called, and may take part in Raft.
    Node,
    /// May use the tree.
    Client,
}

impl Role {
    /// How it stands in a certificate: as a DNS name, so that the TLS library's own verification of names finds it.
    fn name(self) -> &'static str {
        match self {
            Role::Node => "node.keelfs",
            Role::Client => "client.keelfs",
        }
    }

    pub(super) fn server_name(self) -> ServerName<'static> {
        ServerName::try_from(self.name()).expect("a DNS name")
    }

    fn of(certificate: &CertificateDer) -> Option<Role> {
        let parsed = ParsedCertificate::try_from(certificate).ok()?;
        let has = |role: &Role| verify_server_name(&parsed, &role.server_name()).is_ok();
        [Role::Node, Role::Client].into_iter().find(has)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Node => "node",
            Role::Client => "client",
        })
    }
}

/// Why keys cannot be used or made: which file, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeysError(String);

type Result<T> = std::result::Result<T, KeysError>;

fn bad<T>(what: String) -> Result<T> {
    Err(KeysError(what))
}

fn failed(what: &str, path: &Path, why: &dyn fmt::Display) -> KeysError {
    KeysError(format!("cannot {what} {}: {why}", path.display()))
}

/// What a process proves itself with, and what it demands of others. Clones share it.
#[derive(Clone)]
pub struct Keys {
    inner: Arc<Inner>,
}

struct Inner {
    role: Role,
    calls: Arc<ClientConfig>,
    answers: Arc<ServerConfig>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys of a {}", self.inner.role)
    }
}

impl Keys {
    /// Read a directory with `ca.pem`, `cert.pem` and `key.pem`. Refused is what others would refuse, and a key that
    /// others could have read.
    pub fn load(directory: &Path) -> Result<Keys> {
        let authority = read(&directory.join(AUTHORITY), Secret::No)?;
        let certificate = read(&directory.join(CERTIFICATE), Secret::No)?;
        let key = read(&directory.join(KEY), Secret::Yes)?;
        Keys::new(&authority, &certificate, &key).map_err(|why| failed("use the keys in", directory, &why))
    }

    /// From the texts of the three files.
    fn new(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<Keys> {
        let (roots, chain) = (roots(authority)?, certificates(CERTIFICATE, certificate)?);
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|why| KeysError(format!("{KEY} holds no key: {why}")))?;
        let (roots, provider) = (Arc::new(roots), Arc::new(ring::default_provider()));
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build();
        let verifier = verifier.map_err(|why| KeysError(format!("{AUTHORITY} cannot be used: {why}")))?;
        verify_own(&*verifier, &chain)?;
        let Some(role) = Role::of(&chain[0]) else {
            return bad(format!("{CERTIFICATE} is that of neither a node nor a client; `keelfs keys` makes such"));
        };
        let unfit = |why: rustls::Error| KeysError(format!("{CERTIFICATE} and {KEY} do not go together: {why}"));
        let calls = calling(provider.clone(), roots, chain.clone(), key.clone_key()).map_err(unfit)?;
        let answers = answering(provider, verifier, chain, key).map_err(unfit)?;
        Ok(Keys { inner: Arc::new(Inner { role, calls: Arc::new(calls), answers: Arc::new(answers) }) })
    }

    pub fn role(&self) -> Role {
        self.inner.role
    }

    pub(super) fn calls(&self) -> Arc<ClientConfig> {
        self.inner.calls.clone()
    }

    pub(super) fn answers(&self) -> Arc<ServerConfig> {
        self.inner.answers.clone()
    }
}

/// How we call: TLS 1.3, as ourselves, and who answers must be a node of the authority. Each connection proves both ends
/// anew: nothing is resumed.
fn calling(
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> std::result::Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
    let mut config = builder.with_root_certificates(roots).with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::disabled();
    // There is one certificate to answer with, so nobody needs to hear which one we expect.
    config.enable_sni = false;
    Ok(config)
}

/// How we answer: TLS 1.3, and who calls must show what the authority has signed.
fn answering(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ClientCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> std::result::Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13])?;
    let mut config = builder.with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// What a caller has proven that it is. The chain behind its certificate has been verified.
pub(super) fn proven(chain: Option<&[CertificateDer]>) -> Option<Role> {
    Role::of(chain?.first()?)
}

/// Our certificate, as others will see it: better refused now, with its name, than by each of them.
fn verify_own(verifier: &dyn ClientCertVerifier, chain: &[CertificateDer]) -> Result<()> {
    match verifier.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()) {
        Ok(_) => Ok(()),
        Err(why) => bad(format!("{CERTIFICATE} is not good by {AUTHORITY}: {}", super::tls::in_words(&why))),
    }
}

fn roots(text: &[u8]) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(AUTHORITY, text)? {
        roots.add(certificate).map_err(|why| KeysError(format!("{AUTHORITY} cannot be used: {why}")))?;
    }
    Ok(roots)
}

/// At least one.
fn certificates(file: &str, text: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    match found {
        Ok(found) if found.is_empty() => bad(format!("{file} holds no certificate")),
        Ok(found) => Ok(found),
        Err(why) => bad(format!("{file} is not in PEM form: {why}")),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Secret {
    Yes,
    No,
}

fn read(path: &Path, secret: Secret) -> Result<Vec<u8>> {
    let file = File::open(path).map_err(|why| failed("read", path, &why))?;
    if secret == Secret::Yes {
        must_be_private(&file, path)?;
    }
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text).map_err(|why| failed("read", path, &why))?;
    Ok(text)
}

/// A key that others could have read proves nothing.
fn must_be_private(file: &File, path: &Path) -> Result<()> {
    let mode = file.metadata().map_err(|why| failed("read", path, &why))?.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let path = path.display();
    bad(format!(
        "cannot use the key {path}: its mode is {mode:04o}, so others than its owner can get at it; `chmod 600 {path}`, and \
         if somebody may have read it make a new one with `keelfs keys`"
    ))
}

/// Make the authority of a new cluster: `ca.pem` and `ca-key.pem`.
pub fn create_authority(directory: &Path) -> Result<()> {
    let key = generate()?;
    let certificate = authority().self_signed(&key).map_err(|why| failed("make keys in", directory, &why))?;
    write_new(
        directory,
        &[(AUTHORITY_KEY, key.serialize_pem(), Secret::Yes), (AUTHORITY, certificate.pem(), Secret::No)],
    )
}

/// Make the keys of a node or a client, signed by the authority in another directory.
pub fn issue(authority_directory: &Path, directory: &Path, role: Role) -> Result<()> {
    let authority_text = read(&authority_directory.join(AUTHORITY), Secret::No)?;
    let authority_key = authority_directory.join(AUTHORITY_KEY);
    let signing = String::from_utf8_lossy(&read(&authority_key, Secret::Yes)?).into_owned();
    let signing = KeyPair::from_pem(&signing).map_err(|why| failed("use", &authority_key, &why))?;
    let (key, params) = (generate()?, leaf(role)?);
    let certificate = params.signed_by(&key, &Issuer::new(authority(), signing));
    let certificate = certificate.map_err(|why| failed("make keys in", directory, &why))?.pem();
    let key = key.serialize_pem();
    // They are used once before anybody relies on them: the authority's key may be another one than its certificate's.
    Keys::new(&authority_text, certificate.as_bytes(), key.as_bytes())
        .map_err(|why| failed("make keys with the authority in", authority_directory, &why))?;
    let authority_text = String::from_utf8_lossy(&authority_text).into_owned();
    write_new(
        directory,
        &[(KEY, key, Secret::Yes), (CERTIFICATE, certificate, Secret::No), (AUTHORITY, authority_text, Secret::No)],
    )
}

fn generate() -> Result<KeyPair> {
    KeyPair::generate().map_err(|why| KeysError(format!("cannot make a key: {why}")))
}

/// Every authority has this name: which one it is, its key says.
fn authority() -> CertificateParams {
    let mut params = named("keelfs cluster authority", CERTIFICATE_TIME * 3);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn leaf(role: Role) -> Result<CertificateParams> {
    let mut params = named(&format!("keelfs {role}"), CERTIFICATE_TIME);
    let name = role.name().try_into().map_err(|why| KeysError(format!("cannot name a {role}: {why}")))?;
    params.subject_alt_names = vec![SanType::DnsName(name)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match role {
        Role::Node => vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        Role::Client => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn named(name: &str, time: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + time).into();
    params
}

/// Write files that are not there yet into a directory that is made if it is missing.
fn write_new(directory: &Path, files: &[(&str, String, Secret)]) -> Result<()> {
    let paths: Vec<PathBuf> = files.iter().map(|(name, ..)| directory.join(name)).collect();
    if let Some(there) = paths.iter().find(|path| path.exists()) {
        return bad(format!(
            "{} is there already: keys are never overwritten; name another directory",
            there.display()
        ));
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|why| failed("make", directory, &why))?;
    for (path, (_, text, secret)) in paths.iter().zip(files) {
        let mode = if *secret == Secret::Yes { 0o600 } else { 0o644 };
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
        written.map_err(|why| failed("write", path, &why))?;
    }
    Ok(())
}
