//! The threads that inflate: one for each processor, for more would only take each other's caches. A thread that has
//! finished goes on with what waits next by itself, where it would otherwise sleep until the reactor finds it something.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::runtime::{Builder, Runtime};
use tokio_util::task::AbortOnDropHandle;

/// How many pieces of work wait or are being done.
static UNDER_WAY: AtomicUsize = AtomicUsize::new(0);

/// How many threads there are. Asking for it opens files, so that it is asked once.
static THREADS: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));

/// Only its threads for blocking work are used; they end when nothing was to be done for a while.
static POOL: LazyLock<Option<Runtime>> = LazyLock::new(|| {
    Builder::new_current_thread().max_blocking_threads(*THREADS).thread_name("inflate").build().ok()
});

/// Work that is under way, until dropped.
struct UnderWay;

impl UnderWay {
    fn new() -> Self {
        UNDER_WAY.fetch_add(1, Ordering::Relaxed);
        UnderWay
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        UNDER_WAY.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many threads have nothing to do.
pub(super) fn idle() -> usize {
    THREADS.saturating_sub(UNDER_WAY.load(Ordering::Relaxed))
}

/// Runs `work`, which does not wait, on one of the threads; `None` if it ended before its time. Work whose future is
/// dropped before it began is not done.
pub(super) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let under_way = UnderWay::new();
    let task = POOL.as_ref()?.spawn_blocking(move || {
        let _under_way = under_way;
        work()
    });
    AbortOnDropHandle::new(task).await.ok()
}
