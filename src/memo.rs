//! A bounded memory of things that are dear to make: each is made once, however many ask for it.
//!
//! Two users: decoded leaf tables, and, where there is no cache on disk, decoded clusters. An entry is a cell that
//! the first caller fills while later ones wait; if the first is dropped, the next takes over, so no caller's
//! departure leaves a hole. Failures are not remembered. The budget is in bytes and covers what is filled; the
//! least recently used entries go first.

use lru::LruCache;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::OnceCell;

/// What a value weighs against the budget, in bytes.
pub(crate) trait Weigh {
    fn weight(&self) -> usize;
}

#[derive(Debug)]
pub(crate) struct Memo<K: Hash + Eq, V> {
    budget: usize,
    state: Mutex<State<K, V>>,
}

#[derive(Debug)]
struct State<K: Hash + Eq, V> {
    entries: LruCache<K, Arc<OnceCell<V>>>,
    weight: usize,
}

impl<K: Hash + Eq + Copy, V: Clone + Weigh> Memo<K, V> {
    /// An empty memo that keeps at most `budget` bytes, and always at least the newest value.
    pub(crate) fn new(budget: usize) -> Self {
        Memo { budget, state: Mutex::new(State { entries: LruCache::unbounded(), weight: 0 }) }
    }

    /// The value of `key` if it has been made and kept. Does not wait.
    pub(crate) fn peek(&self, key: &K) -> Option<V> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.entries.get(key)?.get().cloned()
    }

    /// The value of `key`, made by `make` if need be.
    pub(crate) async fn get<E, F>(&self, key: K, make: impl FnOnce() -> F) -> Result<V, E>
    where
        F: Future<Output = Result<V, E>>,
    {
        let cell = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.entries.get_or_insert(key, || Arc::new(OnceCell::new())).clone()
        };
        let mut made = 0;
        let result = cell
            .get_or_try_init(|| async {
                let value = make().await?;
                made = value.weight();
                Ok(value)
            })
            .await
            .cloned();
        if result.is_err() {
            self.forget(&key, &cell);
        } else if made > 0 {
            self.account(&key, &cell, made);
        }
        result
    }

    /// Makes `key` the first to be evicted, if it is there and nobody asks for it until then.
    pub(crate) fn demote(&self, key: &K) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).entries.demote(key);
    }

    /// Adds the weight of a value just made, unless its entry has been evicted meanwhile, and evicts others.
    fn account(&self, key: &K, cell: &Arc<OnceCell<V>>, weight: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.entries.peek(key).is_some_and(|kept| Arc::ptr_eq(kept, cell)) {
            return;
        }
        state.weight += weight;
        while state.weight > self.budget && state.entries.len() > 1 {
            let Some((_, evicted)) = state.entries.pop_lru() else { break };
            state.weight = state.weight.saturating_sub(evicted.get().map_or(0, Weigh::weight));
        }
    }

    /// Drops an entry that stayed empty, so that failures leave nothing behind.
    fn forget(&self, key: &K, cell: &Arc<OnceCell<V>>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if !cell.initialized() && state.entries.peek(key).is_some_and(|kept| Arc::ptr_eq(kept, cell)) {
            state.entries.pop(key);
        }
    }
}

impl Weigh for Arc<formats::Runs> {
    fn weight(&self) -> usize {
        self.footprint().max(size_of::<formats::Run>())
    }
}

impl Weigh for bytes::Bytes {
    fn weight(&self) -> usize {
        self.len().max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn value(len: usize) -> Bytes {
        Bytes::from(vec![7; len])
    }

    #[tokio::test]
    async fn a_value_is_made_once_for_many_waiters() {
        let memo = Arc::new(Memo::<u32, Bytes>::new(1 << 20));
        let made = Arc::new(AtomicUsize::new(0));
        let waiters: Vec<_> = (0..50)
            .map(|_| {
                let (memo, made) = (memo.clone(), made.clone());
                tokio::spawn(async move {
                    memo.get(1, || async {
                        made.fetch_add(1, Ordering::SeqCst);
                        tokio::task::yield_now().await;
                        Ok::<_, ()>(value(10))
                    })
                    .await
                })
            })
            .collect();
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap(), Ok(value(10)));
        }
        assert_eq!(made.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn the_budget_evicts_the_least_recently_used() {
        let memo = Memo::<u32, Bytes>::new(100);
        for key in 0..3 {
            memo.get(key, || async { Ok::<_, ()>(value(40)) }).await.unwrap();
            memo.peek(&0);
        }
        assert!(memo.peek(&0).is_some(), "touched last, so kept");
        assert!(memo.peek(&1).is_none(), "the oldest untouched entry goes");
        assert!(memo.peek(&2).is_some());
    }

    #[tokio::test]
    async fn what_was_demoted_goes_first() {
        let memo = Memo::<u32, Bytes>::new(100);
        for key in 0..2 {
            memo.get(key, || async { Ok::<_, ()>(value(40)) }).await.unwrap();
        }
        memo.demote(&1);
        memo.get(2, || async { Ok::<_, ()>(value(40)) }).await.unwrap();
        assert!(memo.peek(&0).is_some() && memo.peek(&1).is_none() && memo.peek(&2).is_some());
        memo.demote(&7);
    }

    #[tokio::test]
    async fn failures_and_dropped_callers_leave_no_entry() {
        let memo = Memo::<u32, Bytes>::new(100);
        assert_eq!(memo.get(1, || async { Err(5) }).await, Err(5));
        assert_eq!(memo.get(1, || async { Ok::<_, i32>(value(1)) }).await, Ok(value(1)));

        let stuck = memo.get(2, std::future::pending::<Result<Bytes, ()>>);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(5), stuck).await.is_err());
        assert_eq!(memo.get(2, || async { Ok::<_, ()>(value(2)) }).await, Ok(value(2)));
    }
}
