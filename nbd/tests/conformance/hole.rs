//! A disk of any size that holds nothing.

use std::sync::Arc;
use thinorigin_nbd::{
    Client, Errno, Export, ExportInfo, Exports, Extent, ExtentFlags, Failure, Segment, Segments,
};

/// So many zeros; the only export, under any name.
#[derive(Clone, Copy)]
pub(crate) struct Hole(pub(crate) u64);

impl Export for Hole {
    fn info(&self) -> ExportInfo {
        ExportInfo { size: self.0, preferred_block: 4096, description: String::new() }
    }

    fn try_read(&self, _offset: u64, len: u32, out: &mut Segments) -> Option<Result<(), Failure>> {
        out.push(Segment::Zero(len));
        Some(Ok(()))
    }

    async fn read(&self, _offset: u64, len: u32) -> Result<Segments, Failure> {
        Ok(Segments::from_iter([Segment::Zero(len)]))
    }

    async fn block_status(&self, _offset: u64, len: u64, _max: usize) -> Result<Vec<Extent>, Errno> {
        Ok(vec![Extent { len, flags: ExtentFlags::HOLE | ExtentFlags::ZERO, depth: 0, local: true }])
    }

    async fn prefetch(&self, _offset: u64, _len: u64) {}
}

impl Exports for Hole {
    type Export = Hole;

    async fn lookup(&self, _name: &str, _client: &Client) -> Option<Arc<Hole>> {
        Some(Arc::new(*self))
    }

    fn names(&self, _client: &Client) -> Vec<String> {
        Vec::new()
    }
}
