//! Work that takes long: it tells how far it is, and can be asked to stop.

use std::fmt;
use std::time::Duration;

/// For how long an SR is kept from others in one go.
pub(super) const SLICE: Duration = Duration::from_millis(400);

/// How long others have then to begin.
pub(super) const PAUSE: Duration = Duration::from_millis(5);

/// Who watches work that takes long.
pub struct Work<'a> {
    /// Is told now and then how many bytes are done, and of how many.
    pub progress: &'a mut dyn FnMut(u64, u64),
    /// Whether the work is to stop. Asked several times a second, and never in the middle of something that must not stop.
    pub cancelled: &'a dyn Fn() -> bool,
}

impl fmt::Debug for Work<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").finish_non_exhaustive()
    }
}
