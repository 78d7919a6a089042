//! What the process asks its system for that is not the same twice: the time and random bytes.
//!
//! A symbol that the program defines takes the place of the C library's, for the standard library and for every crate
//! below it: keys of hash maps, random elections, `Instant` and `SystemTime` all come under the seed and the simulated
//! clock. Until a simulation begins, both functions ask the kernel.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// The monotonic clock at the beginning of a simulation, and the wall clock.
const MONOTONIC_BEGIN_NS: u64 = 1_000_000_000_000;
const WALL_BEGIN_NS: u64 = 1_700_000_000_000_000_000;

static SIMULATING: AtomicBool = AtomicBool::new(false);
/// A machine's runtime runs: its paused clock is the time.
static STEPPING: AtomicBool = AtomicBool::new(false);
/// Since the beginning.
static NOW_NS: AtomicU64 = AtomicU64::new(0);
static WALL_OFFSET_MS: AtomicI64 = AtomicI64::new(0);
static RANDOM: AtomicU64 = AtomicU64::new(0);
static BEGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();

/// Begin the one simulation of this process.
pub fn begin(seed: u64) {
    RANDOM.store(seed, Relaxed);
    SIMULATING.store(true, Relaxed);
    BEGIN.get_or_init(Instant::now);
}

/// Milliseconds since the beginning, of the world's clock.
pub fn now_ms() -> u64 {
    NOW_NS.load(Relaxed) / 1_000_000
}

pub fn set_now_ms(ms: u64) {
    NOW_NS.store(ms * 1_000_000, Relaxed);
}

/// Run something inside a machine's runtime: the time is that runtime's, the wall clock is off by so much.
pub fn stepping<T>(wall_offset_ms: i64, run: impl FnOnce() -> T) -> T {
    WALL_OFFSET_MS.store(wall_offset_ms, Relaxed);
    STEPPING.store(true, Relaxed);
    let result = run();
    STEPPING.store(false, Relaxed);
    result
}

fn monotonic_ns() -> u64 {
    let since = match BEGIN.get().filter(|_| STEPPING.swap(false, Relaxed)) {
        Some(begin) => {
            let now = tokio::time::Instant::now().into_std();
            STEPPING.store(true, Relaxed);
            now.saturating_duration_since(*begin)
        }
        None => Duration::from_nanos(NOW_NS.load(Relaxed)),
    };
    MONOTONIC_BEGIN_NS + since.as_nanos() as u64
}

fn wall_ns() -> u64 {
    let since = (monotonic_ns() - MONOTONIC_BEGIN_NS) as i64;
    WALL_BEGIN_NS.saturating_add_signed(since + WALL_OFFSET_MS.load(Relaxed) * 1_000_000)
}

/// SAFETY: as of the C library: `time` points at a `timespec`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    if !SIMULATING.load(Relaxed) {
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as libc::c_int };
    }
    let ns = match clock {
        libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => wall_ns(),
        _ => monotonic_ns(),
    };
    let told = libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
    unsafe { time.write(told) };
    0
}

/// SAFETY: as of the C library: `buffer` has room for `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, flags: libc::c_uint) -> isize {
    if !SIMULATING.load(Relaxed) {
        return unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as isize };
    }
    for at in 0..length {
        unsafe { buffer.add(at).write(splitmix(RANDOM.fetch_add(GOLDEN, Relaxed)) as u8) };
    }
    length as isize
}

pub const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
pub fn splitmix(x: u64) -> u64 {
    let x = x.wrapping_add(GOLDEN);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A stream of numbers of its own, for each part that draws.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64, stream: u64) -> Dice {
        Dice(splitmix(seed ^ splitmix(stream)))
    }

    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        splitmix(self.0)
    }

    /// Below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.any() % bound.max(1)
    }

    pub fn between(&mut self, from: u64, to: u64) -> u64 {
        from + self.below(to.saturating_sub(from) + 1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}
