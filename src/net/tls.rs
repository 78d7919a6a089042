//! Encryption: TLS 1.3 over a wire, in which both ends prove that they are of the cluster.
//!
//! Who calls wants a node of its own authority at the other end, wherever that is; who is called wants any certificate of
//! its authority, and hears from it whether a node or a client calls. What each may do then is for the handshake behind
//! it. A process without keys speaks plainly. The two do not understand each other, and say so.

use super::Message;
use super::frame::{self, Direction, Frame};
use super::keys::{self, Keys, Role};
use super::wire::Wire;
use rustls::{AlertDescription, CertificateError, Error as TlsError};
use std::io::{Error, ErrorKind, Result};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, join};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// How long a caller that is refused may take to hear why.
const LINGER_TIME: Duration = Duration::from_secs(1);

/// What a plain caller hears of a node that has keys.
const ENCRYPTED_HERE: &str = "this node speaks TLS only: give the caller keys of this cluster (--tls DIR)";
/// What the holder of a certificate of another kind hears.
const NO_ROLE: &str = "the caller's certificate is that of neither a node nor a client; `keelfs keys` makes such";

/// The caller's half.
pub(super) async fn call(Wire { read, write }: Wire, keys: &Keys) -> Result<Wire> {
    let name = Role::Node.server_name();
    let stream = TlsConnector::from(keys.calls()).connect(name, join(read, write)).await.map_err(said)?;
    Ok(halves(stream))
}

/// The called one's half: the wire from now on, and what the caller has proven to be.
pub(super) async fn answer(Wire { mut read, write }: Wire, keys: &Keys) -> Result<(Wire, Role)> {
    let mut first = [0; 2];
    read.read_exact(&mut first).await?;
    let both = join(std::io::Cursor::new(first).chain(read), write);
    if first == frame::MAGIC {
        return Err(refuse(both, ENCRYPTED_HERE).await);
    }
    match TlsAcceptor::from(keys.answers()).accept(both).into_fallible().await {
        Ok(stream) => match keys::proven(stream.get_ref().1.peer_certificates()) {
            Some(role) => Ok((halves(stream), role)),
            None => Err(refuse(stream, NO_ROLE).await),
        },
        Err((why, mut both)) => {
            linger(&mut both).await;
            Err(said(why))
        }
    }
}

async fn refuse(mut both: impl AsyncRead + AsyncWrite + Unpin, why: &str) -> Error {
    let frame = Frame { direction: Direction::Answer, call: 0, message: Message::refused(why) };
    let told = async {
        both.write_all(&frame.head()).await?;
        both.flush().await
    };
    if told.await.is_ok() {
        linger(&mut both).await;
    }
    refused(why.into())
}

/// Let the other end read what it was told: a connection that is closed with bytes unread takes back what was sent.
pub(super) async fn linger(read: &mut (impl AsyncRead + Unpin)) {
    let _ = tokio::time::timeout(LINGER_TIME, tokio::io::copy(read, &mut tokio::io::sink())).await;
}

fn halves(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Wire {
    let (read, write) = tokio::io::split(stream);
    Wire { read: Box::new(read), write: Box::new(write) }
}

/// A failure of TLS as a refusal in words; any other error is passed on.
pub(super) fn said(error: Error) -> Error {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>()) {
        Some(why) => refused(in_words(why)),
        None => error,
    }
}

/// What went wrong, for those who can mend it.
pub(super) fn in_words(error: &TlsError) -> String {
    match error {
        TlsError::InvalidMessage(_) => "the other end does not speak TLS, and this one has keys (--tls)".into(),
        TlsError::NoCertificatesPresented => "the other end shows no certificate".into(),
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "the certificate is not signed by the authority in ca.pem: it is of another cluster".into()
        }
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "the certificate is not that of a node".into(),
        TlsError::InvalidCertificate(
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. },
        ) => "the certificate is that of a client".into(),
        TlsError::InvalidCertificate(why) => format!("the certificate is not good: {why}"),
        TlsError::AlertReceived(AlertDescription::UnknownCA | AlertDescription::DecryptError) => {
            "our certificate is not signed by the authority that the other end knows: we have keys of another cluster"
                .into()
        }
        TlsError::AlertReceived(why) => format!("the other end does not accept our certificate ({why:?})"),
        other => other.to_string(),
    }
}

fn refused(why: String) -> Error {
    Error::new(ErrorKind::PermissionDenied, why)
}
