//! Giving back memory that is free.
//!
//! Blocks on their way to the cache are allocated by many threads, and the C library keeps what each of them freed. Of a
//! server that has been quiet for a while that is most of its memory.

use std::time::Duration;

/// How often it is given back.
const EVERY: Duration = Duration::from_secs(5);

/// Gives free memory back to the system now and then, for as long as it runs.
pub(crate) async fn give_back() {
    loop {
        tokio::time::sleep(EVERY).await;
        // Walks the lists of free memory, which takes a millisecond where there is much.
        if tokio::task::spawn_blocking(trim).await.is_err() {
            return;
        }
    }
}

#[cfg(target_env = "gnu")]
fn trim() {
    // SAFETY: takes a number, and touches nothing that is in use.
    unsafe { libc::malloc_trim(0) };
}

/// Other C libraries do so by themselves, or cannot.
#[cfg(not(target_env = "gnu"))]
fn trim() {}
