//! Where connections come from: the kernel's TCP; or, in a simulation, whatever its thread was given.

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::cell::RefCell;
use std::io::Result;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// How long the kernel retransmits before it gives the connection up (`TCP_USER_TIMEOUT`).
const UNACKNOWLEDGED_MS: u32 = 8_000;

/// The two directions of a connection.
pub struct Wire {
    pub read: Box<dyn AsyncRead + Send + Unpin>,
    pub write: Box<dyn AsyncWrite + Send + Unpin>,
}

/// Where callers arrive.
pub trait Listener: Send + Sync + 'static {
    /// The next connection, and who called.
    fn accept(&self) -> impl Future<Output = Result<(Wire, SocketAddr)>> + Send;
}

/// How others are reached.
pub trait Dialer: 'static {
    fn dial(&self, address: SocketAddr) -> BoxFuture<'static, Result<Wire>>;
}

thread_local! {
    static DIALER: RefCell<Option<Rc<dyn Dialer>>> = const { RefCell::new(None) };
}

/// From now on, every connection that is begun on this thread goes through `dialer`: for simulations, which have one
/// thread.
pub fn dial_through(dialer: Rc<dyn Dialer>) {
    DIALER.set(Some(dialer));
}

pub(super) fn dial(address: SocketAddr) -> BoxFuture<'static, Result<Wire>> {
    match DIALER.with_borrow(Clone::clone) {
        Some(dialer) => dialer.dial(address),
        None => async move { wire(TcpStream::connect(address).await?) }.boxed(),
    }
}

impl Listener for TcpListener {
    async fn accept(&self) -> Result<(Wire, SocketAddr)> {
        loop {
            let (stream, address) = TcpListener::accept(self).await?;
            // One that has gone already is nobody's error.
            if let Ok(wire) = wire(stream) {
                return Ok((wire, address));
            }
        }
    }
}

/// With the options of every socket: small frames leave at once, and a dead peer is noticed.
fn wire(stream: TcpStream) -> Result<Wire> {
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_socket_keepalive(&stream, true)?;
    rustix::net::sockopt::set_tcp_user_timeout(&stream, UNACKNOWLEDGED_MS)?;
    let (read, write) = stream.into_split();
    Ok(Wire { read: Box::new(read), write: Box::new(write) })
}
