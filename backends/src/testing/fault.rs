//! A source that fails on request, around any other.

use crate::{Error, Identity, Kind, Source};
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What goes wrong with one read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// It fails at once.
    Fail(Kind),
    /// It is done and then fails.
    FailAfter(Kind),
    /// It takes this much longer.
    Delay(Duration),
    /// It never ends.
    Stall,
    /// It brings a byte too few, which no source may.
    Short,
}

/// Goes wrong as it is told, one mishap per read, and counts.
#[derive(Debug)]
pub struct Faulty<S> {
    inner: S,
    mishaps: Mutex<VecDeque<Mishap>>,
    reads: Mutex<Vec<Range<u64>>>,
}

impl<S: Source> Faulty<S> {
    /// `inner`, as it is until told otherwise.
    pub fn new(inner: S) -> Faulty<S> {
        Faulty { inner, mishaps: Mutex::default(), reads: Mutex::default() }
    }

    /// The next reads go wrong so, one after the other.
    pub fn next(&self, mishaps: impl IntoIterator<Item = Mishap>) {
        self.mishaps.lock().unwrap_or_else(PoisonError::into_inner).extend(mishaps);
    }

    /// The ranges read so far.
    pub fn reads(&self) -> Vec<Range<u64>> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<S: Source> Source for Faulty<S> {
    fn identity(&self) -> &Identity {
        self.inner.identity()
    }

    async fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner).push(range.clone());
        let mishap = self.mishaps.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let failed = |kind| Err(Error::new(kind, format!("{}: as asked for", self.identity().location)));
        match mishap {
            None => self.inner.read(range).await,
            Some(Mishap::Fail(kind)) => failed(kind),
            Some(Mishap::FailAfter(kind)) => {
                self.inner.read(range).await?;
                failed(kind)
            }
            Some(Mishap::Delay(wait)) => {
                tokio::time::sleep(wait).await;
                self.inner.read(range).await
            }
            Some(Mishap::Stall) => std::future::pending().await,
            Some(Mishap::Short) => {
                let bytes = self.inner.read(range).await?;
                Ok(bytes.slice(..bytes.len().saturating_sub(1)))
            }
        }
    }
}
