//! Looking once more before going to sleep.
//!
//! A client that asks for one thing after the other, as a machine does that starts, sends its next request some
//! microseconds after it has the last reply. To sleep in between costs more than that: the kernel has to wake a thread,
//! on another processor most often, which in a virtual machine is a trap to the host. So a connection whose client is as
//! quick as that looks for the next request itself, for a moment, and sleeps when it has not come.
//!
//! A client with many requests under way is better left alone: while the connection sleeps they gather, and are answered
//! together.
//!
//! Only one connection lingers at a time, and only as long as no other one receives anything, for its thread serves
//! nobody else meanwhile; and none where there is only one processor, which the client needs.
//!
//! Where it has gone well for a while the runtime is not told of the socket any more ([`Aside`](super::transport::Aside)), for
//! it would wake another of its threads for each request, which finds that there is nothing to do.

use std::io;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long is looked at most: about as long as a thread takes to fall asleep and be woken.
const LINGER: Duration = Duration::from_micros(50);

/// What comes sooner than this after an answer was sent before the answer can have been seen.
const CLOSE: Duration = Duration::from_micros(4);

/// So many single requests on end, each after the answer to the one before, make a client one that waits for answers.
const SINGLES: u32 = 8;

/// So many requests of a client that is waited for are answered before others of the thread have their turn, which wakes
/// another thread, too.
const TURN: u32 = 4;

/// Connections, ever.
static CONNECTIONS: AtomicU64 = AtomicU64::new(0);
/// The connection of this process that was the last to receive anything.
static LAST: AtomicU64 = AtomicU64::new(u64::MAX);

static SEVERAL_PROCESSORS: LazyLock<bool> =
    LazyLock::new(|| std::thread::available_parallelism().is_ok_and(|processors| processors.get() > 1));

/// How quick one client is.
#[derive(Debug)]
pub(super) struct Pace {
    connection: u64,
    /// The connection that was the last to receive anything, of those that this one is beside.
    last: &'static AtomicU64,
    /// Whether its last two receptions followed on each other, without one of another connection in between.
    alone: bool,
    /// When all that had come was answered, unless something came since.
    answered: Option<Instant>,
    /// Requests since everything was answered.
    requests: u32,
    /// How many times on end a single request came, and soon, but not too soon.
    singles: u32,
    /// How many times on end it was looked for one and one came.
    found: u32,
}

impl Pace {
    pub(super) fn new() -> Pace {
        Pace::beside(&LAST)
    }

    fn beside(last: &'static AtomicU64) -> Pace {
        let connection = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
        Pace { connection, last, alone: false, answered: None, requests: 0, singles: 0, found: 0 }
    }

    /// Something came.
    pub(super) fn received(&mut self) {
        self.alone = self.last.load(Ordering::Relaxed) == self.connection;
        if !self.alone {
            self.last.store(self.connection, Ordering::Relaxed);
        }
        let waited = self.answered.take().map_or(Duration::MAX, |answered| answered.elapsed());
        self.after(waited);
    }

    /// Something came so long after everything was answered.
    fn after(&mut self, waited: Duration) {
        if !(CLOSE..2 * LINGER).contains(&waited) {
            self.singles = 0;
        }
    }

    /// A request was in what came.
    pub(super) fn request(&mut self) {
        self.requests += 1;
    }

    /// Everything is answered, and the connection would go to sleep: asks `look` again and again as long as this client
    /// may be expected to say something, and until it does.
    pub(super) fn linger<T>(
        &mut self,
        mut look: impl FnMut() -> io::Result<Option<T>>,
    ) -> io::Result<Option<T>> {
        if self.answered.is_some() {
            return Ok(None);
        }
        let began = Instant::now();
        self.answered = Some(began);
        let single = std::mem::take(&mut self.requests) == 1;
        self.singles = if single { self.singles.saturating_add(1) } else { 0 };
        let found = std::mem::take(&mut self.found);
        if self.singles < SINGLES || !self.alone || !*SEVERAL_PROCESSORS {
            return Ok(None);
        }
        while self.last.load(Ordering::Relaxed) == self.connection && began.elapsed() < LINGER {
            if let Some(seen) = look()? {
                self.found = found.wrapping_add(1);
                return Ok(Some(seen));
            }
            std::hint::spin_loop();
        }
        Ok(None)
    }

    /// Whether others of this thread should have their turn, after a request was found.
    pub(super) fn has_had_its_turn(&self) -> bool {
        self.found.is_multiple_of(TURN)
    }

    /// Whether the next request is likely to be seen by looking for it, as those before were.
    pub(super) fn is_steady(&self) -> bool {
        self.found >= SINGLES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = LINGER;

    /// So many requests come together, so long after everything was answered, and are answered; whether it is looked for
    /// more.
    fn looks_after(pace: &mut Pace, waited: Duration, requests: u32) -> bool {
        // The clock is left out.
        pace.answered = None;
        let singles = pace.singles;
        pace.received();
        pace.singles = singles;
        pace.after(waited);
        for _ in 0..requests {
            pace.request();
        }
        let looked = pace.linger(|| Ok(Some(()))).unwrap().is_some();
        assert!(pace.linger(|| -> io::Result<Option<()>> { panic!("looked twice") }).unwrap().is_none());
        looked
    }

    #[test]
    fn a_client_that_waits_for_each_answer_is_waited_for_and_no_other() {
        if !*SEVERAL_PROCESSORS {
            return;
        }
        static NEAR: AtomicU64 = AtomicU64::new(u64::MAX);
        let (mut pace, mut other) = (Pace::beside(&NEAR), Pace::beside(&NEAR));
        let looked = |pace: &mut Pace, waited, requests| {
            (0..100).filter(|_| looks_after(pace, waited, requests)).count() as u32
        };
        // A thread that is made to wait in the middle of it loses one look.
        assert!((80..=101 - SINGLES).contains(&looked(&mut pace, SOON, 1)));
        assert_eq!(looked(&mut pace, SOON, 2), 0, "several come together");
        assert_eq!(looked(&mut pace, CLOSE / 2, 1), 0, "the next one was sent before the answer");
        assert_eq!(looked(&mut pace, 3 * LINGER, 1), 0, "the client is slow");
        assert!(looked(&mut pace, SOON, 1) > 0, "it is quick again");
        let turns = (0..100).filter(|_| {
            looks_after(&mut other, SOON, 1);
            looks_after(&mut pace, SOON, 1)
        });
        assert_eq!(turns.count(), 0, "another one is served meanwhile");
        assert!(looked(&mut pace, SOON, 1) > 80, "the other one is silent again");
    }

    #[test]
    fn a_client_that_is_found_again_and_again_is_steady_until_it_is_not() {
        if !*SEVERAL_PROCESSORS {
            return;
        }
        static NEAR: AtomicU64 = AtomicU64::new(u64::MAX);
        let mut pace = Pace::beside(&NEAR);
        let (mut turns, began) = (0, Instant::now());
        while !pace.is_steady() {
            // A thread that is made to wait in the middle of it begins anew.
            assert!(began.elapsed() < Duration::from_secs(10));
            turns += u32::from(looks_after(&mut pace, SOON, 1) && pace.has_had_its_turn());
        }
        assert!(turns >= SINGLES / TURN);
        looks_after(&mut pace, 3 * LINGER, 1);
        assert!(!pace.is_steady());
    }

    #[test]
    fn a_look_that_shows_nothing_ends_soon() {
        static NEAR: AtomicU64 = AtomicU64::new(u64::MAX);
        let mut pace = Pace::beside(&NEAR);
        for _ in 0..SINGLES {
            looks_after(&mut pace, SOON, 1);
        }
        pace.answered = None;
        assert!(pace.linger(|| -> io::Result<Option<()>> { Ok(None) }).unwrap().is_none());
    }
}
