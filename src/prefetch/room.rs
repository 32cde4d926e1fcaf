//! How much may be fetched in the background at a time beside those who wait.

use std::time::{Duration, Instant};

/// How much is asked for at a time, in bytes: enough for a long way when nobody else reads, and so little while somebody
/// waits that his requests are not held up.
pub(super) const ALONE: u64 = 8 << 20;
pub(super) const BESIDE: u64 = 1 << 20;

/// How often to look whether somebody is still waiting.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long nothing new is asked for while others wait. Their servers may be away, and ours not.
const STAND_BACK: Duration = Duration::from_secs(2);

/// How long it is quiet before others count as served: who reads one thing after the other waits again at once.
const QUIET: Duration = Duration::from_millis(20);

/// What is remembered of those who wait for other images.
///
/// Who waits for this image most likely waits for what is fetched here, so that some of it goes on. Who waits for another one
/// has nothing of that but a busy link.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Since when this stands back for others.
    began: Option<Instant>,
    /// Since when none of them waits, if none does.
    quiet: Option<Instant>,
}

impl Room {
    /// How many bytes may be under way at `now`, where somebody waits for this image (`own`) or for another, and when to look
    /// again at the latest, if who waits now is to be noticed.
    pub(super) fn at(&mut self, now: Instant, own: bool, others: bool) -> (u64, Option<Duration>) {
        if others {
            self.began.get_or_insert(now);
            self.quiet = None;
        } else if now - *self.quiet.get_or_insert(now) >= QUIET {
            self.began = None;
        }
        let Some(began) = self.began.filter(|_| !own) else {
            return if own { (BESIDE, Some(LOOK_EVERY)) } else { (ALONE, None) };
        };
        match STAND_BACK.checked_sub(now - began) {
            Some(left) if !left.is_zero() => (0, Some(if others { left } else { QUIET.min(left) })),
            _ => (BESIDE, Some(QUIET)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_are_let_by_and_do_not_stop_it_for_good() {
        let start = Instant::now();
        let mut room = Room::default();
        let mut at =
            |milliseconds, own, others| room.at(start + Duration::from_millis(milliseconds), own, others).0;
        assert_eq!(at(0, false, false), ALONE);
        assert_eq!(at(10, true, false), BESIDE);
        // Others wait, with short pauses.
        assert_eq!(at(100, false, true), 0);
        assert_eq!(at(150, false, false), 0);
        assert_eq!(at(160, false, true), 0);
        // Who waits for this image as well has something of it.
        assert_eq!(at(170, true, true), BESIDE);
        assert_eq!(at(180, false, true), 0);
        // They are through.
        assert_eq!(at(200, false, false), 0);
        assert_eq!(at(220, false, false), ALONE);
        // They wait for long.
        assert_eq!(at(1000, false, true), 0);
        assert_eq!(at(2999, false, true), 0);
        assert_eq!(at(3000, false, true), BESIDE);
        assert_eq!(at(9000, false, true), BESIDE);
        assert_eq!(at(9001, false, false), BESIDE);
        assert_eq!(at(9021, false, false), ALONE);
    }
}
