//! Reads that wait, of one image and of all: what is fetched in the background makes room for them.

use super::Image;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Reads under way in this process that nothing local answered, of images that are not local: they share links with each other
/// and with what is fetched in the background. Reads that are answered from what is at hand do not touch this.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Notified when the last of them ends.
static CALM: Notify = Notify::const_new();

/// A read that waits, until dropped.
pub(super) struct Waiting<'a> {
    image: &'a Image,
    by_link: bool,
}

impl<'a> Waiting<'a> {
    pub(super) fn new(image: &'a Image) -> Self {
        image.waiting.fetch_add(1, Ordering::Relaxed);
        let by_link = !image.is_local();
        if by_link {
            WAITING.fetch_add(1, Ordering::Relaxed);
        }
        Waiting { image, by_link }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.image.waiting.fetch_sub(1, Ordering::Relaxed);
        if self.by_link && WAITING.fetch_sub(1, Ordering::Relaxed) == 1 {
            CALM.notify_waiters();
        }
    }
}

impl Image {
    /// How many reads wait for a server, or a decoder, at this moment.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Whether reads of other images of this process wait for a server.
    pub(crate) fn others_wait(&self) -> bool {
        WAITING.load(Ordering::Relaxed) > self.waiting()
    }
}

/// The next moment at which no read of any image waits any more. Who looks first and waits then misses none if this is made, and
/// enabled, before.
pub(crate) fn calm() -> Notified<'static> {
    CALM.notified()
}
