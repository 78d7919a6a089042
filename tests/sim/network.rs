//! The simulated network: connections with latency, loss, partitions in any direction, hangs, resets.
//!
//! It is TCP's view: bytes arrive in order or not at all; what is lost arrives late; what cannot arrive hangs, and breaks
//! the connection after the time for which the kernel would retransmit. Connections overtake each other freely. Nothing
//! arrives in the tick in which it was sent, so that the order in which machines are stepped decides nothing.

use crate::os::{self, Dice};
use crate::trace::Trace;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, poll_fn};
use keelfs::net::{Dialer, Listener, Wire};
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The shortest latency: one tick of the world.
pub const TICK_MS: u64 = 2;
/// As `TCP_USER_TIMEOUT` of the product.
const UNACKNOWLEDGED_MS: u64 = 8_000;
/// What a connection's direction holds before its writer waits.
const IN_FLIGHT_MAX: usize = 256 << 10;
const RETRY_MS: u64 = 20;

/// A machine. The first nodes are on 1 to 5, machines of clients come behind, and then those of nodes that are added.
pub type Host = u64;

pub fn address(host: Host) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host as u8], 7700))
}

fn host_of(address: SocketAddr) -> Host {
    match address {
        SocketAddr::V4(v4) => v4.ip().octets()[3].into(),
        SocketAddr::V6(_) => 0,
    }
}

#[derive(Clone)]
pub struct Network {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    dice: Dice,
    trace: Trace,
    current: Host,
    hosts: BTreeMap<Host, HostState>,
    pipes: BTreeMap<u64, Pipe>,
    dials: BTreeMap<u64, Dial>,
    next_id: u64,
    due: BinaryHeap<Reverse<(u64, u64, Event)>>,
    /// What is wrong on the way from the first to the second, and by which fault.
    wrong: BTreeMap<(Host, Host), Vec<(u64, Wrong)>>,
    /// Faults that have held something back.
    felt: BTreeSet<u64>,
}

/// What may be wrong on the way from one machine to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// Nothing gets there.
    Cut,
    /// Percent of what is sent that is lost at first.
    Loss(u64),
    /// More latency, in milliseconds, at most.
    Delay(u64),
}

#[derive(Default)]
struct HostState {
    powered: bool,
    /// Counts power cuts: connections of an earlier one are unknown to the machine.
    boot: u64,
    listening: bool,
    arrived: VecDeque<(Wire, SocketAddr)>,
    acceptor: Option<Waker>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Deliver(u64),
    Arrive(u64),
    Answer(u64, bool),
}

struct Dial {
    from: Host,
    to: Host,
    waker: Option<Waker>,
    answer: Option<io::Result<Wire>>,
}

/// One direction of a connection.
struct Pipe {
    from: Host,
    to: Host,
    /// Of both machines, when the connection was made.
    boots: (u64, u64),
    other: u64,
    /// Empty bytes: the end.
    sent: VecDeque<(u64, Vec<u8>)>,
    ready: VecDeque<u8>,
    in_flight: usize,
    last_due: u64,
    stuck_since: Option<u64>,
    ended: bool,
    reader_gone: bool,
    writer_broken: bool,
    reader_broken: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Network {
    pub fn new(seed: u64, trace: Trace) -> Network {
        let inner = Inner {
            dice: Dice::new(seed, 1),
            trace,
            current: 0,
            hosts: BTreeMap::new(),
            pipes: BTreeMap::new(),
            dials: BTreeMap::new(),
            next_id: 1,
            due: BinaryHeap::new(),
            wrong: BTreeMap::new(),
            felt: BTreeSet::new(),
        };
        Network { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Whose code runs from now on.
    pub fn enter(&self, host: Host) {
        self.inner.lock().current = host;
    }

    pub fn power_on(&self, host: Host) {
        let mut inner = self.inner.lock();
        let state = inner.hosts.entry(host).or_default();
        state.powered = true;
    }

    /// The machine is gone without a word.
    pub fn power_off(&self, host: Host) {
        let mut inner = self.inner.lock();
        let state = inner.hosts.entry(host).or_default();
        state.powered = false;
        state.boot += 1;
        drop(inner);
        self.process_ended(host);
    }

    /// The process has ended: nobody listens.
    pub fn process_ended(&self, host: Host) {
        let mut inner = self.inner.lock();
        let state = inner.hosts.entry(host).or_default();
        state.listening = false;
        state.acceptor = None;
        let arrived = std::mem::take(&mut state.arrived);
        drop(inner);
        // Not under the lock: the ends of connections take it.
        drop(arrived);
    }

    pub fn listen(&self, host: Host) -> Listening {
        self.inner.lock().hosts.entry(host).or_default().listening = true;
        Listening { network: self.clone(), host }
    }

    /// From now on this is wrong, until that fault is mended. What several faults do adds up.
    pub fn worsen(&self, fault: u64, from: Host, to: Host, wrong: Wrong) {
        self.inner.lock().wrong.entry((from, to)).or_default().push((fault, wrong));
    }

    /// What this fault did is over; what others do goes on.
    pub fn mend(&self, fault: u64) {
        let mut inner = self.inner.lock();
        inner.wrong.values_mut().for_each(|wrong| wrong.retain(|(by, _)| *by != fault));
    }

    pub fn heal(&self) {
        self.inner.lock().wrong.clear();
    }

    /// Whether this fault has held something back.
    pub fn was_felt(&self, fault: u64) -> bool {
        self.inner.lock().felt.contains(&fault)
    }

    /// Let everything happen that is due by now.
    pub fn deliver(&self) {
        let mut wakers = Vec::new();
        let mut inner = self.inner.lock();
        let now = os::now_ms();
        while inner.due.peek().is_some_and(|Reverse((at, _, _))| *at <= now) {
            let Some(Reverse((_, _, event))) = inner.due.pop() else { break };
            match event {
                Event::Deliver(pipe) => inner.deliver(pipe, now, &mut wakers),
                Event::Arrive(dial) => inner.arrive(dial, self, &mut wakers),
                Event::Answer(dial, accepted) => inner.answer(dial, accepted, &mut wakers),
            }
        }
        drop(inner);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Inner {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn schedule(&mut self, at: u64, event: Event) {
        let order = self.id();
        self.due.push(Reverse((at, order, event)));
    }

    fn latency(&mut self, from: Host, to: Host) -> u64 {
        let base = 1 + (os::splitmix(from.min(to) * 31 + from.max(to)) % 4);
        let mut latency = TICK_MS + base + self.dice.below(4);
        for (fault, wrong) in self.wrong.get(&(from, to)).into_iter().flatten() {
            let more = match wrong {
                Wrong::Cut => 0,
                Wrong::Loss(percent) if self.dice.chance(*percent) => self.dice.between(200, 1500),
                Wrong::Loss(_) => 0,
                Wrong::Delay(ms) => self.dice.below(ms + 1),
            };
            latency += more;
            if more > 0 {
                self.felt.insert(*fault);
            }
        }
        latency
    }

    fn boot(&self, host: Host) -> u64 {
        self.hosts.get(&host).map_or(0, |state| state.boot)
    }

    fn reachable(&mut self, from: Host, to: Host) -> bool {
        let wrong = self.wrong.get(&(from, to)).into_iter().flatten();
        let by: Vec<u64> = wrong.filter(|(_, wrong)| *wrong == Wrong::Cut).map(|(fault, _)| *fault).collect();
        self.felt.extend(&by);
        by.is_empty() && self.hosts.get(&to).is_some_and(|state| state.powered)
    }

    fn send(&mut self, id: u64, bytes: Vec<u8>) {
        let Some(pipe) = self.pipes.get(&id) else { return };
        // A machine without power sends nothing, not even an end.
        if self.boot(pipe.from) != pipe.boots.0 {
            return;
        }
        let (from, to, last_due) = (pipe.from, pipe.to, pipe.last_due);
        let at = last_due.max(os::now_ms() + self.latency(from, to));
        if let Some(pipe) = self.pipes.get_mut(&id) {
            pipe.last_due = at;
            pipe.in_flight += bytes.len();
            pipe.sent.push_back((at, bytes));
        }
        self.schedule(at, Event::Deliver(id));
    }

    fn deliver(&mut self, id: u64, now: u64, wakers: &mut Vec<Waker>) {
        let Some(pipe) = self.pipes.get(&id) else { return };
        let (from, to, boots, stuck_since) = (pipe.from, pipe.to, pipe.boots, pipe.stuck_since);
        if pipe.sent.is_empty() {
            return;
        }
        let vanished = self.boot(from) != boots.0;
        let unknown = self.boot(to) != boots.1 || pipe.reader_gone;
        if !self.reachable(from, to) {
            if vanished {
                return;
            }
            if now - stuck_since.unwrap_or(now) > UNACKNOWLEDGED_MS {
                self.break_at(id, from, wakers);
                return;
            }
            if let Some(pipe) = self.pipes.get_mut(&id) {
                pipe.stuck_since.get_or_insert(now);
            }
            return self.schedule(now + RETRY_MS, Event::Deliver(id));
        }
        if unknown {
            return self.break_at(id, from, wakers);
        }
        let Some(pipe) = self.pipes.get_mut(&id) else { return };
        pipe.stuck_since = None;
        while pipe.sent.front().is_some_and(|(at, _)| *at <= now) {
            let Some((_, bytes)) = pipe.sent.pop_front() else { break };
            self.trace.note("net", &[from, to, bytes.len() as u64, crc32c::crc32c(&bytes).into()]);
            pipe.ended |= bytes.is_empty();
            pipe.ready.extend(bytes);
            wakers.extend(pipe.reader.take());
        }
    }

    /// The machine learns that this connection of its is no more: its writer and the reader of the other direction.
    fn break_at(&mut self, out: u64, host: Host, wakers: &mut Vec<Waker>) {
        let Some(pipe) = self.pipes.get_mut(&out) else { return };
        let other = pipe.other;
        pipe.writer_broken = true;
        pipe.sent.clear();
        wakers.extend(pipe.writer.take());
        if let Some(pipe) = self.pipes.get_mut(&other).filter(|pipe| pipe.to == host) {
            pipe.reader_broken = true;
            wakers.extend(pipe.reader.take());
        }
    }

    fn arrive(&mut self, id: u64, network: &Network, wakers: &mut Vec<Waker>) {
        let Some(dial) = self.dials.get(&id) else { return };
        let (from, to) = (dial.from, dial.to);
        // Else nobody answers, and the dialling end gives up by itself.
        if !self.reachable(from, to) || !self.reachable(to, from) {
            return;
        }
        let accepted = self.hosts.get(&to).is_some_and(|state| state.listening);
        if accepted {
            let boots = (self.boot(from), self.boot(to));
            let (there, back) = (self.id(), self.id());
            self.pipes.insert(there, Pipe::new(from, to, boots, back));
            self.pipes.insert(back, Pipe::new(to, from, (boots.1, boots.0), there));
            let called = network.wire(there, back);
            let caller = network.wire(back, there);
            if let Some(state) = self.hosts.get_mut(&to) {
                state.arrived.push_back((called, address(from)));
                wakers.extend(state.acceptor.take());
            }
            if let Some(dial) = self.dials.get_mut(&id) {
                dial.answer = Some(Ok(caller));
            }
        }
        let at = os::now_ms() + self.latency(to, from);
        self.schedule(at, Event::Answer(id, accepted));
    }

    fn answer(&mut self, id: u64, accepted: bool, wakers: &mut Vec<Waker>) {
        let Some(dial) = self.dials.get_mut(&id) else { return };
        if !accepted {
            dial.answer = Some(Err(io::ErrorKind::ConnectionRefused.into()));
        }
        wakers.extend(dial.waker.take());
        dial.waker = None;
        dial.to = 0;
    }
}

impl Pipe {
    fn new(from: Host, to: Host, boots: (u64, u64), other: u64) -> Pipe {
        Pipe {
            from,
            to,
            boots,
            other,
            sent: VecDeque::new(),
            ready: VecDeque::new(),
            in_flight: 0,
            last_due: 0,
            stuck_since: None,
            ended: false,
            reader_gone: false,
            writer_broken: false,
            reader_broken: false,
            reader: None,
            writer: None,
        }
    }
}

impl Network {
    /// The end of a connection that reads one pipe and writes the other.
    fn wire(&self, read: u64, write: u64) -> Wire {
        Wire {
            read: Box::new(ReadEnd { network: self.clone(), pipe: read }),
            write: Box::new(WriteEnd { network: self.clone(), pipe: write }),
        }
    }
}

impl Dialer for Network {
    fn dial(&self, to: SocketAddr) -> BoxFuture<'static, io::Result<Wire>> {
        let network = self.clone();
        let id = {
            let mut inner = self.inner.lock();
            let (id, from, to) = (inner.id(), inner.current, host_of(to));
            inner.dials.insert(id, Dial { from, to, waker: None, answer: None });
            let at = os::now_ms() + inner.latency(from, to);
            inner.schedule(at, Event::Arrive(id));
            id
        };
        let dialling = Dialling { network, id };
        poll_fn(move |context| dialling.poll(context)).boxed()
    }
}

/// Forgets the dial when it is given up.
struct Dialling {
    network: Network,
    id: u64,
}

impl Dialling {
    fn poll(&self, context: &mut Context<'_>) -> Poll<io::Result<Wire>> {
        let mut inner = self.network.inner.lock();
        let Some(dial) = inner.dials.get_mut(&self.id) else {
            return Poll::Ready(Err(io::ErrorKind::NotConnected.into()));
        };
        // `to` is 0 once the answer has come back.
        match dial.answer.take_if(|_| dial.to == 0) {
            Some(answer) => Poll::Ready(answer),
            None => {
                dial.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for Dialling {
    fn drop(&mut self) {
        let dial = self.network.inner.lock().dials.remove(&self.id);
        drop(dial);
    }
}

pub struct Listening {
    network: Network,
    host: Host,
}

impl Listener for Listening {
    fn accept(&self) -> impl Future<Output = io::Result<(Wire, SocketAddr)>> + Send {
        poll_fn(|context| {
            let mut inner = self.network.inner.lock();
            let state = inner.hosts.entry(self.host).or_default();
            match state.arrived.pop_front() {
                Some(arrived) => Poll::Ready(Ok(arrived)),
                None => {
                    state.acceptor = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
    }
}

struct ReadEnd {
    network: Network,
    pipe: u64,
}

impl AsyncRead for ReadEnd {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.network.inner.lock();
        let Some(pipe) = inner.pipes.get_mut(&self.pipe) else { return Poll::Ready(Ok(())) };
        if !pipe.ready.is_empty() {
            let count = pipe.ready.len().min(buffer.remaining());
            let bytes: Vec<u8> = pipe.ready.drain(..count).collect();
            buffer.put_slice(&bytes);
            pipe.in_flight -= count;
            let writer = pipe.writer.take();
            drop(inner);
            writer.into_iter().for_each(Waker::wake);
            return Poll::Ready(Ok(()));
        }
        match (pipe.reader_broken, pipe.ended) {
            (true, _) => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
            (_, true) => Poll::Ready(Ok(())),
            _ => {
                pipe.reader = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl Drop for ReadEnd {
    fn drop(&mut self) {
        let mut inner = self.network.inner.lock();
        let mut wakers = Vec::new();
        if let Some(pipe) = inner.pipes.get_mut(&self.pipe) {
            pipe.reader_gone = true;
            pipe.reader = None;
            pipe.ready.clear();
            wakers.extend(pipe.writer.take());
        }
        drop(inner);
        drop(wakers);
    }
}

struct WriteEnd {
    network: Network,
    pipe: u64,
}

impl AsyncWrite for WriteEnd {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.network.inner.lock();
        let Some(pipe) = inner.pipes.get_mut(&self.pipe) else { return Poll::Ready(Ok(bytes.len())) };
        if pipe.writer_broken {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.in_flight >= IN_FLIGHT_MAX {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        if !bytes.is_empty() {
            inner.send(self.pipe, bytes.to_vec());
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.network.inner.lock().send(self.pipe, Vec::new());
        Poll::Ready(Ok(()))
    }
}

impl Drop for WriteEnd {
    fn drop(&mut self) {
        self.network.inner.lock().send(self.pipe, Vec::new());
    }
}
