//! The metadata of the simulated pool.

use super::CHUNK;
use super::ports::Port;
use crate::error::{Error, Result};
use crate::thin::{Root, Seen, ThinMetadata};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

/// Where the metadata snapshot begins, while there is one.
pub(super) const HELD_ROOT: &str = "77";

type Chunks = BTreeMap<u64, u8>;

impl Port {
    fn thins(&self, root: Root) -> Result<BTreeMap<u32, Chunks>> {
        let sim = self.sim();
        match root {
            Root::Live => Ok(sim.thins.clone()),
            Root::Held(_) => sim.held.clone().ok_or_else(|| Error::failed("there is no metadata snapshot")),
        }
    }

    fn thin(&self, root: Root, id: u32) -> Result<Chunks> {
        self.thins(root)?
            .remove(&id)
            .ok_or_else(|| Error::failed(format!("the pool has no thin device {id}")))
    }
}

impl ThinMetadata for Port {
    fn usage(&mut self, _: &Path, root: Root) -> Result<Seen<BTreeMap<u32, u64>>> {
        let thins = self.thins(root)?;
        Ok(Seen::Whole(thins.into_iter().map(|(id, chunks)| (id, chunks.len() as u64 * CHUNK)).collect()))
    }

    fn usage_of(&mut self, _: &Path, root: Root, id: u32) -> Result<Seen<Option<u64>>> {
        Ok(Seen::Whole(self.thins(root)?.get(&id).map(|chunks| chunks.len() as u64 * CHUNK)))
    }

    fn mapped(&mut self, _: &Path, root: Root, id: u32) -> Result<Seen<Vec<Range<u64>>>> {
        Ok(Seen::Whole(ranges(self.thin(root, id)?.into_keys().collect())))
    }

    fn changed(&mut self, _: &Path, root: Root, a: u32, b: u32) -> Result<Seen<Vec<Range<u64>>>> {
        let (a, b) = (self.thin(root, a)?, self.thin(root, b)?);
        let differ = |chunk: &u64| a.get(chunk) != b.get(chunk);
        Ok(Seen::Whole(ranges(a.keys().chain(b.keys()).copied().filter(differ).collect())))
    }
}

fn ranges(chunks: BTreeSet<u64>) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for chunk in chunks {
        let (start, end) = (chunk * CHUNK, (chunk + 1) * CHUNK);
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}
